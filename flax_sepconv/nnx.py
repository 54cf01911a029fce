"""The layer as a `flax.nnx` module.

    layer = fsc.nnx.SeparableConv1D(12, 64, 3, activation="relu", rngs=nnx.Rngs(0))

The module holds parameters and calls `separable_conv1d`; no arithmetic lives here. `flax.nnx` is imported with this
module, which `fsc.nnx` does when it is first asked for.
"""

import inspect
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from flax_sepconv import _arguments
from flax_sepconv._messages import shown
from flax_sepconv._tree import StackedConfig
from flax_sepconv.config import SeparableConv1DConfig, Size
from flax_sepconv.functional import as_initial, check_width, separable_conv1d
from flax_sepconv.losses import store_losses
from flax_sepconv.streaming import check_streamable, init_stream, refuse_lengths, stream_step


class Loss(nnx.Intermediate):
    """A loss term of a layer, as `nnx.capture(model, fsc.nnx.Loss)` collects them."""


class SeparableConv1D(nnx.Module):
    """Depthwise separable 1-D convolution: `tf.keras.layers.SeparableConv1D` as an NNX module.

    Its parameters are `nnx.Param`s with the names and shapes of `separable_conv1d`'s, so that the parameters of a
    Linen model of the same structure load with `nnx.update(model, params)`.

    A call inside `nnx.capture(model, fsc.nnx.Loss)` stores what Keras's `layer.losses` would hold: under
    `depthwise_kernel_loss`, `pointwise_kernel_loss` and `bias_loss` the term of each regularized weight, once
    however often the layer is called, and under `activity_loss` a tuple of the terms of the outputs, one a call.
    Nothing is computed for it otherwise. In a Flax that has no `nnx.capture` yet every call stores them, for
    `nnx.pop(model, fsc.nnx.Loss)` to take out, as `Module.sow` does there.

    With `decode=True` the layer, which has to be causal, takes a sequence chunk by chunk. It keeps the state of
    `stream_step` in an `nnx.Cache`, which `init_cache` makes at the start of each stream. A model that was trained
    without is switched by `model.set_attributes(fsc.nnx.SeparableConv1D, decode=True)`. The cache is that of one place
    in a model: a layer that is called in several places of it cannot stream.

    Args:
        in_features: number of input channels, before Keras's arguments.
        filters: as in `SeparableConv1DConfig`.
        kernel_size: likewise.
        *args: the other arguments of `SeparableConv1DConfig`, in the same order, which is Keras's.
        decode: whether to stream.
        rngs: its stream `params` draws the parameters.
        **kwargs: likewise, by name.

    Attributes:
        config: the layer's arguments as a config.
        decode: as given.
        depthwise_kernel: `(kernel_size, in_features, depth_multiplier)`.
        pointwise_kernel: `(1, in_features * depth_multiplier, filters)`.
        bias: `(filters,)`; absent without `use_bias`.

    Raises:
        ValueError: whatever `SeparableConv1DConfig` and `init_params` refuse.
        TypeError: likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import flax_sepconv as fsc
        >>> layer = fsc.nnx.SeparableConv1D(12, 64, 3, padding="same", activation="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((8, 100, 12))).shape
        (8, 100, 64)
    """

    def __init__(
        self,
        in_features: int,
        filters: int,
        kernel_size: Size,
        *args,
        decode: bool = False,
        rngs: nnx.Rngs,
        **kwargs,
    ):
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"`rngs` must be an nnx.Rngs; got {shown(rngs)}.")
        self.config = SeparableConv1DConfig(filters, kernel_size, *args, **kwargs)
        self.in_features = _arguments.count("in_features", in_features)
        check_width("param_dtype", self.config.param_dtype)
        self.decode = _arguments.boolean("decode", decode)
        if decode:
            check_streamable(self.config)
        for weight in self.config.weights(self.in_features):
            param = nnx.Param(weight.initializer(rngs.params(), weight.shape, self.config.param_dtype))
            setattr(self, weight.name, param.replace(as_initial(param[...], weight, self.config)))

    def __call__(self, x, lengths=None) -> jax.Array:
        """Applies the layer to `(*batch, length, in_features)`, or channels_first as its config says.

        With `lengths` `(*batch,)`, what stands in `x` beyond them reaches no output, as `separable_conv1d` has it.
        With `decode=True`, `x` is the next chunk of a stream, as `stream_step` has it.
        """
        config = self.config
        params = {weight.name: getattr(self, weight.name)[...] for weight in config.weights(self.in_features)}
        if self.decode:
            refuse_lengths(lengths)
            y = self._stream(params, x)
        else:
            y = separable_conv1d(params, x, config, lengths=lengths)
        if self._stores_losses():
            store_losses(lambda name, *args: self.sow(Loss, f"{name}_loss", *args), params, y, config)
        return y

    def init_cache(self, batch_shape: Sequence[int], dtype=jnp.float32) -> None:
        """Starts a stream: makes the state before the first chunk, as `init_stream` does, in an `nnx.Cache`.

        Args:
            batch_shape: the batch axes of the chunks, `()` for none.
            dtype: dtype of the chunks.
        """
        self.cache = nnx.Cache(init_stream(self.config, batch_shape, self.in_features, dtype))

    def _stream(self, params, x) -> jax.Array:
        if not hasattr(self, "cache"):
            raise ValueError(
                "with decode=True, call `init_cache(batch_shape)` of each layer before the first chunk of a stream."
            )
        y, state = stream_step(params, x, self.cache[...], self.config)
        self.cache[...] = state
        return y

    def _stores_losses(self) -> bool:
        captures = getattr(
            self, "__captures__", None
        )  # where nnx.capture puts what is sown; it has no other sign
        if captures is None:
            return not hasattr(nnx, "capture")
        return any(type(capture) is Loss for capture in captures)


# `help` and editors show what the config takes, by name.
_init = inspect.signature(SeparableConv1D.__init__).parameters
_of_config = inspect.signature(SeparableConv1DConfig).parameters.values()
SeparableConv1D.__init__.__signature__ = inspect.Signature(
    [_init["self"], _init["in_features"], *_of_config, _init["decode"], _init["rngs"]]
)

SeparableConvolution1D = SeparableConv1D
"""Keras's other name of the layer."""


def layer_configs(model) -> dict[str, SeparableConv1DConfig]:
    """Finds every `SeparableConv1D` in an NNX model: what `fsc.layer_configs` does for one.

    Args:
        model: an `nnx.Module`, of arrays or, as `nnx.eval_shape` makes it, of their shapes. Layers may be nested,
            shared, in lists and dicts, and stacked by `nnx.vmap`.

    Returns:
        The config of each layer, by its path in `nnx.state(model)`, parts joined with `/`; `""` for a model that is
        itself such a layer. The config of stacked layers also says along which axes (`stack_axes`).

    Raises:
        TypeError: `model` is no NNX module.
        ValueError: weights are stacked in a way that their shapes do not tell.

    Example:
        >>> from flax import nnx
        >>> import flax_sepconv as fsc
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(fsc.nnx.SeparableConv1D(3, 8, 3, rngs=rngs), nnx.relu)
        >>> fsc.layer_configs(model)
        {'layers/0': SeparableConv1DConfig(filters=8, kernel_size=3)}
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be a flax.linen or flax.nnx module; got {shown(model)}.")
    return {
        "/".join(map(str, path)): _stacked(layer, "/".join(map(str, path)))
        for path, layer in nnx.iter_graph(model)
        if isinstance(layer, SeparableConv1D)
    }


def _stacked(layer: SeparableConv1D, path: str) -> SeparableConv1DConfig:
    config = layer.config
    weights = config.weights(layer.in_features)
    shapes = {weight.name: tuple(getattr(layer, weight.name).shape) for weight in weights}
    ways = _ways_to_stack([weight.shape for weight in weights], list(shapes.values()))
    if len(ways) != 1:
        raise ValueError(
            f"the weights at {path!r} must have the shapes of {config} or, where layers are stacked, one more axis for "
            f"each transform; got {shapes}, which {'no' if not ways else 'more than one'} choice of axes explains. "
            "Stack layers along axis 0, as nnx.vmap does by itself."
        )
    (axes,) = ways
    return StackedConfig(**vars(config), stack_axes=axes) if axes else config


def _ways_to_stack(single: list[tuple], stacked: list[tuple]) -> list[tuple[int, ...]]:
    """Which axes, the innermost transform's first, give stacked weights' shapes from those of one layer's.

    Ways that take the same axes away are one way. An axis of size 1 holds one layer wherever it is.
    """
    rank = max(map(len, stacked))
    ways = {}
    for axes in itertools.product([*range(rank), *range(-rank, 0)], repeat=len(stacked[0]) - len(single[0])):
        taken = [_taken(axes, one, many) for one, many in zip(single, stacked, strict=True)]
        sizes = {tuple(size for _, size in each) if each is not None else None for each in taken}
        if len(sizes) == 1 and None not in sizes:
            which = tuple(frozenset(place for place, size in each if size != 1) for each in taken if each)
            ways.setdefault(which, axes)
    return list(ways.values())


def _taken(axes: tuple[int, ...], single: tuple, stacked: tuple) -> list[tuple[int, int]] | None:
    """Place and size of each axis of `stacked` that `axes` takes away, or `None` if that does not give `single`."""
    left, taken = list(enumerate(stacked)), []
    for axis in reversed(axes):
        if not -len(left) <= axis < len(left):
            return None
        taken.append(left.pop(axis))
    return taken if tuple(size for _, size in left) == single else None
