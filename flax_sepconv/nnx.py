"""The layer as a `flax.nnx` module.

    layer = fsc.nnx.SeparableConv1D(12, 64, 3, activation="relu", rngs=nnx.Rngs(0))

The module holds parameters and calls `separable_conv1d`; no arithmetic lives here. `flax.nnx` is imported with this
module, which `fsc.nnx` does when it is first asked for.
"""

import inspect
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from flax_sepconv import _arguments
from flax_sepconv._layer_configs import layer_configs as layer_configs
from flax_sepconv._layer_configs.calls import noted
from flax_sepconv._messages import shown
from flax_sepconv._validation import check_width
from flax_sepconv.config import SeparableConv1DConfig, Size
from flax_sepconv.functional import as_initial, separable_conv1d
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
        params = noted(params, config)
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
