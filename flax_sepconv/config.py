"""The static description of a layer: Keras's arguments, validated once and hashable.

Everything downstream (parameters, the function, loss terms, optax transforms) asks a `SeparableConv1DConfig` for the
layer's arguments, and for its weights, their shapes and what is attached to them.
"""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.core import Tracer

from flax_sepconv import _keras_config, _symbolic, _window, initializers
from flax_sepconv._arguments import NORMALIZE, check_shape
from flax_sepconv._keras_object import integer
from flax_sepconv._messages import shown
from flax_sepconv._validation import as_integers

Size: TypeAlias = Any
"""A positive integer, or a sequence of one as Keras allows; the config keeps the integer."""

Identifier: TypeAlias = Any
"""What Keras allows for a part of a layer: a name, a config dict, an object, any callable, or `None`."""


class Weight(NamedTuple):
    """One weight of the layer: its name in the parameters, its shape, and what Keras attaches to it."""

    name: str
    shape: tuple[int, ...]
    initializer: Callable
    regularizer: Callable | None
    constraint: Callable | None


@dataclasses.dataclass(frozen=True, repr=False)
class SeparableConv1DConfig:
    """Every argument of `tf.keras.layers.SeparableConv1D`, in Keras's order and with its defaults.

    A config is immutable and hashable, and two configs made from equal arguments are equal, so one may be a
    static argument of `jax.jit`. Whatever can be wrong with a layer is refused when its config is made.

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
        depthwise_initializer: of the depthwise kernel; `None` is `"glorot_uniform"`. See `flax_sepconv.initializers`.
        pointwise_initializer: of the pointwise kernel.
        bias_initializer: of the bias.
        depthwise_regularizer: loss term of the depthwise kernel. See `flax_sepconv.regularizers`.
        pointwise_regularizer: loss term of the pointwise kernel.
        bias_regularizer: loss term of the bias.
        activity_regularizer: loss term of the layer's output.
        depthwise_constraint: projection of the depthwise kernel after an update. See `flax_sepconv.constraints`.
        pointwise_constraint: projection of the pointwise kernel.
        bias_constraint: projection of the bias.
        trainable: whether optimizers may change the weights (see `flax_sepconv.freeze`).
        name: a name of the layer, for `get_config`; nothing is computed from it.
        dtype: dtype of the computation; `None` is Flax's rule, the common dtype of input and parameters.
        param_dtype: dtype of the parameters.
        precision: of `jax.lax`'s convolutions and products. Sums of shifted products and transforms, as which the
            depthwise step is mostly computed, work in full precision always.
        implementation: how the depthwise step is computed: `"taps"`, `"fourier"` or `"lax"`, the definition. `None`
            lets the library choose by platform and kernel size.

    Raises:
        ValueError: an argument of the right type with a value that is refused.
        TypeError: an argument of a type that is refused.

    Example:
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(64, (3,), padding="SAME", activation="relu")
        >>> config
        SeparableConv1DConfig(filters=64, kernel_size=3, padding='same', activation='relu')
        >>> config.output_shape((None, 100, 12))
        (None, 100, 64)
    """

    filters: int
    kernel_size: Size
    strides: Size = 1
    padding: str = "valid"
    data_format: str | None = None
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
    name: str | None = None
    _: dataclasses.KW_ONLY
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    implementation: str | None = None

    def __post_init__(self):
        for argument, normalize in NORMALIZE.items():
            object.__setattr__(self, argument, normalize(argument, getattr(self, argument)))
        if self.strides != 1 and self.dilation_rate != 1:
            raise ValueError(
                f"`strides` and `dilation_rate` cannot both differ from 1; got strides={self.strides} and "
                f"dilation_rate={self.dilation_rate}. Set one of them to 1."
            )
        for weight in self.weights(in_features=1):
            part = weight.name.removesuffix("_kernel")
            check_shape(f"{part}_initializer", weight.initializer, weight.shape)
            check_shape(f"{part}_regularizer", weight.regularizer, weight.shape)
            check_shape(f"{part}_constraint", weight.constraint, weight.shape)
        check_shape("activity_regularizer", self.activity_regularizer, (1, 1, self.filters))

    def __repr__(self):
        required = ("filters", "kernel_size")
        shown = [
            f.name
            for f in dataclasses.fields(self)
            if f.name in required or getattr(self, f.name) != getattr(_defaults(), f.name, None)
        ]
        parts = ", ".join(f"{name}={_short(getattr(self, name))}" for name in shown)
        return f"{type(self).__name__}({parts})"

    def weights(self, in_features: int) -> tuple[Weight, ...]:
        """The layer's weights for `in_features` input channels, in Keras's order; no bias without `use_bias`."""
        channels = in_features * self.depth_multiplier
        shapes = {
            "depthwise_kernel": (self.kernel_size, in_features, self.depth_multiplier),
            "pointwise_kernel": (1, channels, self.filters),
            "bias": (self.filters,),
        }
        if not self.use_bias:
            del shapes["bias"]

        def attached(name: str, part: str):
            return getattr(self, f"{name.removesuffix('_kernel')}_{part}")

        # Keras draws a weight from Glorot's uniform distribution where its initializer is None.
        return tuple(
            Weight(
                name,
                shape,
                attached(name, "initializer") or initializers.GlorotUniform(),
                attached(name, "regularizer"),
                attached(name, "constraint"),
            )
            for name, shape in shapes.items()
        )

    @property
    def geometry(self) -> dict[str, Any]:
        """Kernel size, strides, padding and dilation rate, as the functions of this library name them."""
        return {k: getattr(self, k) for k in ("kernel_size", "strides", "padding", "dilation_rate")}

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, counted from the end."""
        return -1 if self.data_format == "channels_last" else -2

    @property
    def time_axis(self) -> int:
        """The axis of time, counted from the end."""
        return -3 - self.channel_axis

    def output_length(self, length):
        """Length of the output for an input of `length` samples.

        Args:
            length: an integer, an integer array of lengths, a traced integer, a symbolic dimension of `jax.export`,
                or `None` for unknown.

        Returns:
            The same kind as came. Lengths in an array that give no output give 0.

        Raises:
            ValueError: an integer `length` that gives no output, or a symbolic one of which too little is known.
            TypeError: `length` is not an integer.

        Example:
            >>> import numpy as np
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(8, 5, strides=2)
            >>> config.output_length(10), config.output_length(np.array([10, 5, 4]))
            (3, array([3, 1, 0]))
        """
        if length is None:
            return None
        if export.is_symbolic_dim(length):
            _symbolic.check_length(length, self.geometry, self.implementation)
            return _window.output_length(length, **self.geometry)
        if not isinstance(length, str | bool | numbers.Number):
            lengths = _window.signed(as_integers("length", length))
            return _window.output_length(lengths, **self.geometry).clip(0)
        length = integer("length", length)
        out = _window.output_length(length, **self.geometry)
        if out <= 0:
            shortest = _window.shortest(self.kernel_size, self.padding, self.dilation_rate)
            raise ValueError(
                f"the output would be empty: length={length} with kernel_size={self.kernel_size}, "
                f"strides={self.strides}, dilation_rate={self.dilation_rate} and padding={self.padding!r}. "
                f"The length must be at least {shortest}."
            )
        return out

    def output_shape(self, input_shape):
        """Shape of the output for an input of `input_shape`: Keras's `compute_output_shape`.

        Args:
            input_shape: `(*batch, length, channels)`, or with the last two exchanged for channels_first;
                `None` where a size is unknown.

        Returns:
            A tuple, with `None` where a size follows from an unknown one.

        Raises:
            ValueError: fewer than two sizes, or a length that gives no output.
        """
        shape = tuple(input_shape)
        if len(shape) < 2:
            raise ValueError(f"`input_shape` must have at least a length and channels; got {shape}.")
        if self.data_format == "channels_last":
            return (*shape[:-2], self.output_length(shape[-2]), self.filters)
        return (*shape[:-2], self.filters, self.output_length(shape[-1]))

    def get_config(self) -> dict[str, Any]:
        """The layer's config as Keras 3's `layer.get_config()` gives it, ready for `json.dumps`.

        `precision` and `implementation` say how to compute, not what, and have no place in it. Sizes are
        one-element tuples as in Keras; a `name` of `None` lets Keras choose one.

        Returns:
            A dict from which `keras.layers.SeparableConv1D.from_config` makes the same layer. Keras 3 itself
            refuses `padding="causal"` in this layer, Keras 2 takes it.

        Raises:
            ValueError: an argument is a callable that Keras has no name for, or the dtypes fit no Keras policy.
        """
        return _keras_config.to_keras(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SeparableConv1DConfig":
        """The config of a layer from what its `get_config()` gave, in Keras 3, Keras 2 or TF 2.x.

        Args:
            config: a mapping. Sizes may be integers or lists, `dtype` a name or a policy's config. Keras 2's
                `kernel_*` entries and `groups`, which this layer does not use, are left out; its
                `"hard_sigmoid"` keeps Keras 2's meaning. The policy `"float32"` becomes `dtype=None`, which
                differs from it for float64 input only; the other policies set `dtype` and `param_dtype`.

        Raises:
            ValueError: an unknown entry, or one that the config itself refuses.
            TypeError: not a mapping, or an entry of a wrong type.

        Example:
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(8, 3, depthwise_constraint="max_norm")
            >>> fsc.SeparableConv1DConfig.from_config(config.get_config()) == config
            True
        """
        return cls(**_keras_config.from_keras(config))


def check_config(config: object, argument: str = "config") -> None:
    """Refuses what is no config."""
    if isinstance(config, Tracer):
        raise TypeError(
            f"`{argument}` is static, and a jitted function got it as an array. Name it in "
            f"`jax.jit(..., static_argnames={argument!r})`, or close over it: "
            f"`jax.jit(lambda params, x: fsc.separable_conv1d(params, x, {argument}))`."
        )
    if not isinstance(config, SeparableConv1DConfig):
        raise TypeError(f"`{argument}` must be a SeparableConv1DConfig; got {shown(config)}.")


@functools.cache
def _defaults() -> SeparableConv1DConfig:
    return SeparableConv1DConfig(filters=1, kernel_size=1)


def _short(value) -> str:
    match value:
        case np.dtype():
            return repr(value.name)
        case lax.Precision():
            return repr(value.name.lower())
        case tuple():
            return f"({', '.join(map(_short, value))}{',' * (len(value) == 1)})"
    return repr(getattr(value, "__name__", value))
