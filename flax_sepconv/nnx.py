"""The layer as a `flax.nnx` module.

    layer = fsc.nnx.SeparableConv1D(12, 64, 3, activation="relu", rngs=nnx.Rngs(0))

The module holds parameters and calls `separable_conv1d`; no arithmetic lives here. The first use of `fsc.nnx` imports
this module and, with it, `flax.nnx`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from flax_sepconv import _arguments, _validation
from flax_sepconv._callables import drawn
from flax_sepconv._layer_configs import layer_configs as layer_configs
from flax_sepconv._layer_configs.calls import noted
from flax_sepconv._messages import shown
from flax_sepconv._types import DataFormat, Identifier, Implementation, Padding, Size
from flax_sepconv._validation import check_width
from flax_sepconv.config import SeparableConv1DConfig, arguments_of
from flax_sepconv.functional import as_initial, separable_conv1d
from flax_sepconv.losses import store_losses
from flax_sepconv.streaming import check_places, check_streamable, init_stream, stream_step

__all__ = ["Loss", "SeparableConv1D", "SeparableConvolution1D", "layer_configs"]


class Loss(nnx.Intermediate[Any]):
    """Holds a loss term of a layer, for `nnx.capture(model, fsc.nnx.Loss)` to collect."""


class SeparableConv1D(nnx.Module):
    """Applies a depthwise separable 1-D convolution: `tf.keras.layers.SeparableConv1D` as an NNX module.

    Its parameters are `nnx.Param`s with the names and shapes that `separable_conv1d` takes, so the parameters of a
    Linen model with the same structure load with `nnx.update(model, params)`.

    A call inside `nnx.capture(model, fsc.nnx.Loss)` stores what Keras's `layer.losses` would hold: in
    `depthwise_kernel_loss`, `pointwise_kernel_loss` and `bias_loss` one term for each regularized weight, however often
    the layer is called, and in `activity_loss` a tuple with one term for the output of each call. Otherwise these terms
    are not computed. In a Flax that has no `nnx.capture` yet, every call stores them, as `Module.sow` does there, and
    `nnx.pop(model, fsc.nnx.Loss)` takes them out.

    With `decode=True` the layer takes a sequence chunk by chunk, as `stream_step` does. It keeps the state in `cache`,
    an `nnx.Cache` that `init_cache` makes at the start of each stream. To stream a model that was trained without
    `decode`, call `model.set_attributes(fsc.nnx.SeparableConv1D, decode=True)`. A cache belongs to one place in a
    model, so a layer that a model calls in several places cannot stream.

    Args:
        in_features: number of input channels; Keras's arguments follow.
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
        rngs: the random streams; `params` draws the parameters.

    Attributes:
        config: the layer's arguments as a config.
        decode: as given.
        depthwise_kernel: `(kernel_size, in_features, depth_multiplier)`.
        pointwise_kernel: `(1, in_features * depth_multiplier, filters)`.
        bias: `(filters,)`; absent without `use_bias`.

    Raises:
        ValueError: for whatever `SeparableConv1DConfig` and `init_params` refuse.
        TypeError: for what they refuse.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import flax_sepconv as fsc
        >>> layer = fsc.nnx.SeparableConv1D(12, 64, 3, padding="same", activation="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((8, 100, 12))).shape
        (8, 100, 64)
    """

    config: SeparableConv1DConfig
    in_features: int
    decode: bool
    depthwise_kernel: nnx.Param[jax.Array]
    pointwise_kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]
    cache: nnx.Cache[jax.Array]

    @_arguments.names_unknown
    def __init__(
        self,
        in_features: int,
        filters: int,
        kernel_size: Size,
        strides: Size = 1,
        padding: Padding = "valid",
        data_format: DataFormat | None = None,
        dilation_rate: Size = 1,
        depth_multiplier: int = 1,
        activation: Identifier = None,
        use_bias: bool = True,
        depthwise_initializer: Identifier = "glorot_uniform",
        pointwise_initializer: Identifier = "glorot_uniform",
        bias_initializer: Identifier = "zeros",
        depthwise_regularizer: Identifier = None,
        pointwise_regularizer: Identifier = None,
        bias_regularizer: Identifier = None,
        activity_regularizer: Identifier = None,
        depthwise_constraint: Identifier = None,
        pointwise_constraint: Identifier = None,
        bias_constraint: Identifier = None,
        trainable: bool = True,
        name: str | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        preferred_element_type: DTypeLike | None = None,
        implementation: Implementation | None = None,
        decode: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        given = locals()
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"`rngs` must be an nnx.Rngs; got {shown(rngs)}.")
        names = inspect.signature(SeparableConv1DConfig).parameters
        self.config = SeparableConv1DConfig(**{name: given[name] for name in names})
        self.in_features = _validation.count("in_features", in_features)
        check_width("param_dtype", self.config.param_dtype)
        self.decode = _validation.boolean("decode", decode)
        if decode:
            check_streamable(self.config)
        for weight in self.config.weights(self.in_features):
            value = drawn(weight, rngs.params(), self.config)
            if not isinstance(value, nnx.VariableMetadata):  # what `nnx.with_partitioning` returns
                value = as_initial(value, weight, self.config)
            param = nnx.Param(value)
            setattr(self, weight.name, param.replace(as_initial(param[...], weight, self.config)))

    @classmethod
    def from_config(
        cls,
        in_features: int,
        config: SeparableConv1DConfig | Mapping[str, Any],
        *,
        rngs: nnx.Rngs,
        **overrides: Any,
    ) -> Self:
        """Makes the layer that a config describes.

        Args:
            in_features: number of input channels.
            config: a config, or what Keras's `layer.get_config()` gives.
            rngs: the random streams; `params` draws the parameters.
            **overrides: arguments of the layer that replace the config's.

        Raises:
            ValueError: what `SeparableConv1DConfig` refuses.
            TypeError: what it refuses, or an unknown argument.

        Example:
            >>> from flax import nnx
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(64, 3, padding="causal")
            >>> layer = fsc.nnx.SeparableConv1D.from_config(12, config, decode=True, rngs=nnx.Rngs(0))
            >>> layer.config == config, layer.decode
            (True, True)
        """
        return cls(in_features, **arguments_of(config, overrides), rngs=rngs)

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
        params = {weight.name: getattr(self, weight.name)[...] for weight in config.weights(self.in_features)}
        params = noted(params, config)
        check_places(self.decode, position, segment_ids)
        if self.decode:
            y = self._stream(params, x, position=position, lengths=lengths)
        else:
            y = separable_conv1d(params, x, config, lengths=lengths, segment_ids=segment_ids)
        if self._stores_losses():
            store_losses(lambda name, *args: self.sow(Loss, f"{name}_loss", *args), params, y, config)
        return y

    def init_cache(self, batch_shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> None:
        """Starts a stream: stores the state before the first chunk, as `init_stream` makes it, in an `nnx.Cache`.

        Args:
            batch_shape: the batch axes of the chunks, `()` for none.
            dtype: dtype of the chunks.
        """
        self.cache = nnx.Cache(init_stream(self.config, batch_shape, self.in_features, dtype))

    def _stream(self, params: Mapping[str, jax.Array], x: ArrayLike, **where: Any) -> jax.Array:
        if not hasattr(self, "cache"):
            raise ValueError(
                "with decode=True, call `init_cache(batch_shape)` of each layer before the first chunk of a stream."
            )
        y, state = stream_step(params, x, self.cache[...], self.config, **where)
        self.cache[...] = state
        return y

    def _stores_losses(self) -> bool:
        # `nnx.capture` collects in this attribute what is sown, and leaves no other sign.
        captures = getattr(self, "__captures__", None)
        if captures is None:
            return not hasattr(nnx, "capture")
        return any(type(capture) is Loss for capture in captures)


SeparableConvolution1D = SeparableConv1D
"""Keras's other name for the layer."""
