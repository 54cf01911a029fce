"""The layer as a `flax.linen` module.

The module makes parameters and calls `separable_conv1d`; no arithmetic lives here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from flax_sepconv import _arguments, _callables, _validation
from flax_sepconv._layer_configs.calls import noted
from flax_sepconv._types import DataFormat, Identifier, Implementation, Padding, Size
from flax_sepconv._validation import check_axes, check_input, check_width
from flax_sepconv.config import SeparableConv1DConfig, Weight, arguments_of, short_repr
from flax_sepconv.functional import as_initial, separable_conv1d
from flax_sepconv.losses import store_losses
from flax_sepconv.streaming import check_places, check_streamable, init_stream, stream_step

__all__ = ["SeparableConv1D", "SeparableConvolution1D"]


class _NamesUnknown:
    """Makes the constructor that Linen generates refuse unknown keywords, naming the nearest known one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        type.__setattr__(cls, "__init__", _arguments.names_unknown(cls.__init__))


class SeparableConv1D(_NamesUnknown, nn.Module):
    """Applies a depthwise separable 1-D convolution: `tf.keras.layers.SeparableConv1D` as a Linen module.

    It takes the arguments of `SeparableConv1DConfig` in Keras's order. Its parameters have the names and shapes that
    `separable_conv1d` takes.

    With `decode=True` the layer takes a sequence chunk by chunk, as `stream_step` does, and keeps the state in the
    collection `cache`. Make `cache` mutable, and pass each call the `cache` that the previous one returned. A call
    without one starts a new stream; `init` makes the state before the first chunk, the layer's `cache["inputs"]`. A
    cache belongs to one place in a model, so a layer that a model calls in several places cannot stream.

    If the collection `losses` is mutable, a call stores in it what Keras's `layer.losses` would hold: one term for each
    regularized weight, however often the layer is called, and one term for the output of each call. Otherwise, and in
    `init`, these terms are not computed.

    Args:
        filters: number of output channels.
        kernel_size: length of the depthwise kernel, in samples.
        strides: step between windows, in samples.
        padding: `"valid"` (none), `"same"` (output length `ceil(length / strides)`) or `"causal"` (on the left
            only, so that no output reads later input); any case.
        data_format: `"channels_last"` for `(*batch, length, channels)`, the meaning of `None`, or
            `"channels_first"` for `(*batch, channels, length)`.
        dilation_rate: step between the samples of one window. Not together with `strides` above 1.
        depth_multiplier: depthwise outputs for each input channel.
        activation: applied to the output; `None` is linear. See `flax_sepconv.activations`.
        use_bias: whether a bias is added before the activation.
        depthwise_initializer: draws the depthwise kernel; `None` means `"glorot_uniform"`. See
            `flax_sepconv.initializers`.
        pointwise_initializer: draws the pointwise kernel.
        bias_initializer: draws the bias.
        depthwise_regularizer: loss term of the depthwise kernel. See `flax_sepconv.regularizers`.
        pointwise_regularizer: loss term of the pointwise kernel.
        bias_regularizer: loss term of the bias.
        activity_regularizer: loss term of the layer's output.
        depthwise_constraint: projection of the depthwise kernel after an update. See `flax_sepconv.constraints`.
        pointwise_constraint: projection of the pointwise kernel, `(1, in_features * depth_multiplier, filters)`. In
            Keras and here, `"max_norm"` takes norms along axis 0, so it bounds each weight by itself;
            `flax_sepconv.constraints.MaxNorm(2, axis=1)` bounds the norm of each filter.
        bias_constraint: projection of the bias.
        trainable: whether optimizers may change the weights (see `flax_sepconv.freeze`).
        name: the layer's name, for `get_config`; nothing is computed from it.
        dtype: dtype of the computation; `None` is Flax's rule, the common dtype of input and parameters.
        param_dtype: dtype of the parameters.
        precision: precision of `jax.lax`'s convolutions and products. Shifted products and Fourier transforms, which
            usually compute the depthwise step, always work in full precision.
        preferred_element_type: dtype of the output, as in Flax's layers. With float32, a float16 or bfloat16 layer
            keeps its float32 sums and applies the activation to them; `None` rounds the sums to `dtype` before.
        implementation: how the depthwise step is computed: `"taps"`, `"fourier"` or `"lax"`, the definition. `None`
            lets the library choose by platform and kernel size.
        decode: whether to stream.

    Raises:
        ValueError: on construction, for whatever `SeparableConv1DConfig` refuses, and for `decode=True` in a layer that
            cannot be streamed.
        TypeError: for what `SeparableConv1DConfig` refuses.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> layer = fsc.SeparableConv1D(64, 3, padding="same", activation="relu", depthwise_regularizer="l2")
        >>> x = jnp.ones((8, 100, 12))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(variables, x, mutable=["losses"])
        >>> y.shape, list(state["losses"])
        ((8, 100, 64), ['depthwise_kernel'])
    """

    filters: int
    kernel_size: Size
    strides: Size = 1
    padding: Padding = "valid"
    data_format: DataFormat | None = None
    dilation_rate: Size = 1
    depth_multiplier: int = 1
    activation: Identifier = None
    use_bias: bool = True
    depthwise_initializer: Identifier = "glorot_uniform"
    pointwise_initializer: Identifier = "glorot_uniform"
    bias_initializer: Identifier = "zeros"
    depthwise_regularizer: Identifier = None
    pointwise_regularizer: Identifier = None
    bias_regularizer: Identifier = None
    activity_regularizer: Identifier = None
    depthwise_constraint: Identifier = None
    pointwise_constraint: Identifier = None
    bias_constraint: Identifier = None
    trainable: bool = True
    _: dataclasses.KW_ONLY
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None
    implementation: Implementation | None = None
    decode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.config  # refuses what a config refuses
        if _validation.boolean("decode", self.decode):
            check_streamable(config)

    @property
    def config(self) -> SeparableConv1DConfig:
        """The layer's arguments as a config with the module's name."""
        names = inspect.signature(SeparableConv1DConfig).parameters
        return SeparableConv1DConfig(**{name: getattr(self, name) for name in names})

    @classmethod
    def from_config(cls, config: SeparableConv1DConfig | Mapping[str, Any], **overrides: Any) -> Self:
        """Makes the layer that a config describes.

        Args:
            config: a config, or what Keras's `layer.get_config()` gives.
            **overrides: arguments of the layer that replace the config's.

        Returns:
            The module, with the config's `name` unless that is overridden.

        Raises:
            ValueError: what `SeparableConv1DConfig` refuses.
            TypeError: what it refuses, or an unknown argument.

        Example:
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(64, 3, padding="causal", name="first")
            >>> fsc.SeparableConv1D.from_config(config, decode=True)
            SeparableConv1D(filters=64, kernel_size=3, padding='causal', decode=True, name='first')
        """
        return cls(**arguments_of(config, overrides))

    def __repr__(self) -> str:
        config = vars(self.config)
        fields = [f for f in dataclasses.fields(self) if f.name not in ("parent", "name")]
        arguments = {f.name: config.get(f.name, getattr(self, f.name)) for f in fields} | {"name": self.name}
        return short_repr(
            type(self).__name__, arguments, {f.name: f.default for f in fields if f.name not in config}
        )

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        lengths: ArrayLike | Sequence[int] | None = None,
        *,
        segment_ids: ArrayLike | Sequence[Any] | None = None,
        position: ArrayLike | Sequence[int] | None = None,
    ) -> jax.Array:
        """Applies the layer to `(*batch, length, in_features)`, or to channels_first if its config says so.

        `lengths` `(*batch,)` and `segment_ids` `(*batch, length)` are for padded and packed sequences, as in
        `separable_conv1d`. With `decode=True`, `x` is the next chunk of a stream, and `position` and `lengths` are
        those of `stream_step`.
        """
        config = self.config
        check_width("param_dtype", config.param_dtype)
        params = {}
        x = check_axes(x, config) if self.decode else check_input(x, config)
        for weight in config.weights(x.shape[config.channel_axis]):
            params[weight.name] = self.param(weight.name, functools.partial(_draw, weight, config))
        params = noted(params, config)
        check_places(self.decode, position, segment_ids)
        if self.decode:
            y = self._stream(params, jnp.asarray(x), config, position=position, lengths=lengths)
        else:
            y = separable_conv1d(params, x, config, lengths=lengths, segment_ids=segment_ids)
        if self.is_mutable_collection("losses") and not self.is_initializing():
            store_losses(functools.partial(self.sow, "losses"), params, y, config)
        return y

    def _stream(
        self, params: Mapping[str, jax.Array], x: jax.Array, config: SeparableConv1DConfig, **where: Any
    ) -> jax.Array:
        of_stream = x.shape[:-2], x.shape[config.channel_axis], x.dtype
        if not (self.is_mutable_collection("cache") or self.is_initializing()):
            raise ValueError(
                "with decode=True the collection 'cache' must be mutable, because it keeps the state of the stream: "
                "`y, cache = model.apply({'params': params, **cache}, x, mutable=['cache'])`."
            )
        cache = self.variable("cache", "inputs", init_stream, config, *of_stream)
        y, state = stream_step(params, x, cache.value, config, **where)
        if not self.is_initializing():
            cache.value = state
        return y


SeparableConvolution1D = SeparableConv1D
"""Keras's other name for the layer."""


def _draw(weight: Weight, config: SeparableConv1DConfig, key: jax.Array) -> Any:
    """Draws a weight, in the box that its initializer returns, if any."""
    drawn = _callables.drawn(weight, key, config)
    return jax.tree.map(lambda value: as_initial(value, weight, config), drawn)
