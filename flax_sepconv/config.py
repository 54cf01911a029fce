"""The static description of a layer: Keras's arguments, validated once and hashable.

Everything downstream (parameters, the function, loss terms, optax transforms) asks a `SeparableConv1DConfig` for the
layer's arguments, and for its weights, their shapes and what is attached to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.core import Tracer
from jax.typing import DTypeLike

from flax_sepconv import (
    _arguments,
    _callables,
    _packed,
    _symbolic,
    _validation,
    _window,
    activations,
    initializers,
)
from flax_sepconv._arguments import check_shape
from flax_sepconv._dtypes import output_dtype
from flax_sepconv._keras import layer_config
from flax_sepconv._keras.objects import integer
from flax_sepconv._messages import shown
from flax_sepconv._types import DataFormat, Identifier, Implementation, Padding, Size
from flax_sepconv._validation import as_integers

__all__ = ["SeparableConv1DConfig", "Weight"]


class Weight(NamedTuple):
    """One weight of the layer: its name in the parameters, its shape, and what Keras attaches to it."""

    name: str
    shape: tuple[int, ...]
    initializer: Callable[..., jax.Array]
    regularizer: Callable[[jax.Array], jax.Array] | None
    constraint: Callable[[jax.Array], jax.Array] | None

    def argument(self, part: str) -> str:
        """Returns the config's argument for the weight's `"initializer"`, `"regularizer"` or `"constraint"`."""
        return f"{self.name.removesuffix('_kernel')}_{part}"


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class SeparableConv1DConfig:
    """Holds every argument of `tf.keras.layers.SeparableConv1D`, in Keras's order and with its defaults.

    A config is immutable and hashable, and configs made from equal arguments are equal, so a config can be a static
    argument of `jax.jit`. Whatever can be wrong with a layer is refused when its config is made.

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
    kernel_size: int
    strides: int
    padding: Literal["valid", "same", "causal"]
    data_format: DataFormat
    dilation_rate: int
    depth_multiplier: int
    activation: Callable[[jax.Array], jax.Array]
    use_bias: bool
    depthwise_initializer: Callable[..., jax.Array] | None
    pointwise_initializer: Callable[..., jax.Array] | None
    bias_initializer: Callable[..., jax.Array] | None
    depthwise_regularizer: Callable[[jax.Array], jax.Array] | None
    pointwise_regularizer: Callable[[jax.Array], jax.Array] | None
    bias_regularizer: Callable[[jax.Array], jax.Array] | None
    activity_regularizer: Callable[[jax.Array], jax.Array] | None
    depthwise_constraint: Callable[[jax.Array], jax.Array] | None
    pointwise_constraint: Callable[[jax.Array], jax.Array] | None
    bias_constraint: Callable[[jax.Array], jax.Array] | None
    trainable: bool
    name: str | None
    _: dataclasses.KW_ONLY
    dtype: np.dtype[Any] | None
    param_dtype: np.dtype[Any]
    precision: Any
    preferred_element_type: np.dtype[Any] | None
    implementation: Implementation | None

    @_arguments.names_unknown
    def __init__(
        self,
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
    ) -> None:
        given = locals()
        for argument, normalize in _arguments.NORMALIZE.items():
            object.__setattr__(self, argument, normalize(argument, given[argument]))
        self._check()

    def _check(self) -> None:
        """Refuses arguments that do not go together."""
        if self.strides != 1 and self.dilation_rate != 1:
            raise ValueError(
                f"`strides` and `dilation_rate` cannot both differ from 1; got strides={self.strides} and "
                f"dilation_rate={self.dilation_rate}. Set one of them to 1."
            )
        if self.dtype is not None:
            output_dtype(self.dtype, self.preferred_element_type)
        for weight in self.weights(in_features=1):
            for part in ("initializer", "regularizer", "constraint"):
                check_shape(weight.argument(part), getattr(weight, part), weight.shape)
        check_shape("activity_regularizer", self.activity_regularizer, (1, 1, self.filters))
        _callables.try_activation(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _key(self) == _key(other)

    def __hash__(self) -> int:
        return hash(_key(self))

    def __deepcopy__(self, memo: object) -> Self:
        return self  # immutable, and callables in it are known by identity

    def __repr__(self) -> str:
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return short_repr(type(self).__name__, arguments, {"stack_axes": ()})

    def weights(self, in_features: int) -> tuple[Weight, ...]:
        """Describes the weights for `in_features` input channels, in Keras's order; no bias without `use_bias`."""
        if not export.is_symbolic_dim(in_features):
            in_features = _validation.count("in_features", in_features)
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
        """Kernel size, strides, padding and dilation rate, by the names of the library's arguments."""
        return {k: getattr(self, k) for k in ("kernel_size", "strides", "padding", "dilation_rate")}

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, counted from the end."""
        return -1 if self.data_format == "channels_last" else -2

    @property
    def time_axis(self) -> int:
        """The axis of time, counted from the end."""
        return -3 - self.channel_axis

    @property
    def latency(self) -> int:
        """The number of samples by which a stream's outputs are late: those that a window reads after its own sample.

        It is 0 for `"causal"` and `"valid"`. A layer of `"same"` with strides cannot be streamed, and raises.

        Example:
            >>> import flax_sepconv as fsc
            >>> fsc.SeparableConv1DConfig(64, 5, padding="same", dilation_rate=3).latency
            6
        """
        if self.padding == "same" and self.strides != 1:
            raise ValueError(
                f"a stream of padding='same' must have strides=1, since otherwise the place of windows depends on the "
                f"length of the sequence; got strides={self.strides}. Use padding='causal' or 'valid'."
            )
        return _window.padding_amounts(1, **self.geometry)[1]

    @overload
    def output_position(self, position: None) -> None: ...
    @overload
    def output_position(self, position: int) -> int: ...
    @overload
    def output_position(self, position: jax.Array) -> jax.Array: ...
    @overload
    def output_position(self, position: np.ndarray | Sequence[int]) -> np.ndarray: ...
    def output_position(self, position: Any) -> Any:
        """Computes the position of a chunk's outputs in their sequence: in a stream, the next layer's `position`.

        Args:
            position: the number of the chunk's first sample in its sequence, negative before the sequence begins; an
                integer, integers in an array or a list, or `None` for unknown.

        Returns:
            `(position - latency) / strides`, rounded down, of the kind that was given; an array for a list.

        Raises:
            ValueError: the layer cannot be streamed (see `latency`).
            TypeError: `position` is not an integer.

        Example:
            >>> import flax_sepconv as fsc
            >>> fsc.SeparableConv1DConfig(64, 5, padding="same").output_position(100)
            98
        """
        if position is None:
            return None
        if isinstance(position, str | bool | numbers.Number):
            position = integer("position", position)
        else:
            position = _window.signed(as_integers("position", position))
        return (position - self.latency) // self.strides

    @overload
    def output_length(self, length: None) -> None: ...
    @overload
    def output_length(self, length: int) -> int: ...
    @overload
    def output_length(self, length: jax.Array) -> jax.Array: ...
    @overload
    def output_length(self, length: np.ndarray | Sequence[int]) -> np.ndarray: ...
    def output_length(self, length: Any) -> Any:
        """Computes the length of the output for an input of `length` samples.

        Args:
            length: an integer, integers in an array or a list, a symbolic dimension of `jax.export`, or `None` for
                unknown.

        Returns:
            A length of the kind that was given; an array for a list. In an array, lengths without an output give 0.

        Raises:
            ValueError: an integer `length` without an output, or a symbolic one about which too little is known.
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

    @overload
    def output_segment_ids(self, segment_ids: jax.Array) -> jax.Array: ...
    @overload
    def output_segment_ids(self, segment_ids: np.ndarray | Sequence[Any]) -> np.ndarray: ...
    def output_segment_ids(self, segment_ids: Any) -> Any:
        """Returns the segment ids of the output, which the next layer takes.

        Args:
            segment_ids: integers `(*batch, length)`, as `separable_conv1d` takes them.

        Returns:
            Ids `(*batch, output_length)`: the same ids for `padding="same"` and `"causal"`; for `"valid"`, the id of
            the run that the output's window lies in, or 0 if it does not lie in a single run.

        Raises:
            ValueError: a layer with strides, or a length without an output.
            TypeError: `segment_ids` are not integers.

        Example:
            >>> import numpy as np
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(8, 2)
            >>> config.output_segment_ids(np.array([3, 3, 3, 5, 5, 0]))
            array([3, 3, 0, 5, 0])
        """
        ids = as_integers("segment_ids", segment_ids)
        if ids.ndim == 0:
            raise ValueError("`segment_ids` must be (*batch, length); got a single number.")
        _packed.check_segment_ids(ids, ids.shape, self.strides)
        self.output_length(ids.shape[-1])  # refuses a length that gives no output
        runs = _packed.run_numbers(ids)
        return _packed.of_outputs(ids, runs, self.kernel_size, self.padding, self.dilation_rate)

    @overload
    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]: ...
    @overload
    def output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]: ...
    def output_shape(self, input_shape: Any) -> Any:
        """Computes the shape of the output for an input of `input_shape`: Keras's `compute_output_shape`.

        Args:
            input_shape: `(*batch, length, channels)`, or with the last two exchanged for channels_first;
                `None` where a size is unknown.

        Returns:
            A tuple, with `None` where a size follows from an unknown one.

        Raises:
            ValueError: fewer than two sizes, no channels, a length without an output, or an activation of your own that
                cannot be traced.
            TypeError: `input_shape` is not a sequence of sizes.
        """
        shape = list(_validation.sizes("input_shape", input_shape))
        if len(shape) < 2:
            raise ValueError(f"`input_shape` must have at least a length and channels; got {tuple(shape)}.")
        if shape[self.channel_axis] == 0:
            raise ValueError(f"`input_shape` must have at least one channel; got {tuple(shape)}.")
        shape[self.time_axis] = self.output_length(shape[self.time_axis])
        shape[self.channel_axis] = self.filters
        return _callables.shape_after(self, tuple(shape))

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras 3's `layer.get_config()` gives, ready for `json.dumps`.

        It leaves out `precision`, `preferred_element_type` and `implementation`, which Keras does not have. Sizes are
        one-element tuples as in Keras; a `name` of `None` lets Keras choose one.

        Returns:
            A dict from which `keras.layers.SeparableConv1D.from_config` makes the same layer. Keras 3 itself
            refuses `padding="causal"` in this layer; Keras 2 accepts it.

        Raises:
            ValueError: an argument is a callable that Keras has no name for, or the dtypes fit no Keras policy.
        """
        return layer_config.to_keras(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SeparableConv1DConfig:
        """Makes the config of a layer from the result of its `get_config()` in Keras 3, Keras 2 or TF 2.x.

        Args:
            config: a mapping. Sizes may be integers or lists, and `dtype` a name or a policy's config. Keras 2's
                `kernel_*` entries and `groups`, which this layer does not use, are left out; its
                `"hard_sigmoid"` keeps Keras 2's meaning. The policy `"float32"` becomes `dtype=None`, which
                differs from it for float64 input only; the other policies set `dtype` and `param_dtype`.

        Raises:
            ValueError: an unknown entry, or one that the config itself refuses.
            TypeError: `config` is not a mapping, or an entry has a wrong type.

        Example:
            >>> import flax_sepconv as fsc
            >>> config = fsc.SeparableConv1DConfig(8, 3, depthwise_constraint="max_norm")
            >>> fsc.SeparableConv1DConfig.from_config(config.get_config()) == config
            True
        """
        return cls(**layer_config.from_keras(config))


def arguments_of(
    config: SeparableConv1DConfig | Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments, by name, of the layer that a config or Keras's form of one describes.

    Args:
        config: the config.
        overrides: arguments that replace the config's; Keras's entries for them may be anything.
    """
    if isinstance(config, Mapping):
        replaced = {name: None for name in overrides if name in _arguments.IDENTIFIERS and name in config}
        config = SeparableConv1DConfig.from_config({**config, **replaced})
    check_config(config)
    arguments = {name: getattr(config, name) for name in inspect.signature(SeparableConv1DConfig).parameters}
    return arguments | dict(overrides)


def check_config(config: object, argument: str = "config") -> None:
    """Refuses anything but a config."""
    if isinstance(config, Tracer):
        raise TypeError(
            f"`{argument}` is static, and a jitted function got it as an array. Name it in "
            f"`jax.jit(..., static_argnames={argument!r})`, or close over it, as `jax.jit(lambda params, x: "
            f"fsc.separable_conv1d(params, x, {argument}))` does."
        )
    if not isinstance(config, SeparableConv1DConfig):
        is_layer = isinstance(getattr(config, "config", None), SeparableConv1DConfig)
        hint = " Pass its `.config`." if is_layer else ""
        if isinstance(config, Mapping):
            hint = " Make one of a Keras config dict by `SeparableConv1DConfig.from_config`."
        raise TypeError(f"`{argument}` must be a SeparableConv1DConfig; got {shown(config)}.{hint}")


def short_repr(name: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Returns `name(...)` with the arguments that differ from the config's defaults, or from `defaults`."""
    defaults = {**_defaults(), **defaults}
    shown = {k: v for k, v in arguments.items() if k not in defaults or not _same(v, defaults[k])}
    return f"{name}({', '.join(f'{key}={_short(value)}' for key, value in shown.items())})"


@functools.cache
def _defaults() -> dict[str, Any]:
    """Returns the normalized default of each optional argument."""
    config = SeparableConv1DConfig(filters=1, kernel_size=1)
    return {k: v for k, v in vars(config).items() if k not in ("filters", "kernel_size")}


def _key(config: Any) -> tuple[Any, ...]:
    """Returns the key by which configs are compared. A dtype is its name there, since NumPy's float64 equals `None`."""
    values = (getattr(config, f.name) for f in dataclasses.fields(config))
    return tuple(value.name if isinstance(value, np.dtype) else value for value in values)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _short(value: Any) -> str:
    match value:
        case np.dtype():
            return repr(value.name)
        case lax.Precision():
            return repr(value.name.lower())
        case tuple():
            return f"({', '.join(map(_short, value))}{',' * (len(value) == 1)})"
    name = getattr(value, "__name__", None)
    if name is None or isinstance(value, type):
        return repr(value)
    with contextlib.suppress(ValueError, TypeError):
        keras = activations.serialize(value)
        if activations.get(keras) is value:
            return repr(keras)
    if getattr(activations, name, None) is value:
        return f"activations.{name}"
    return f"jax.nn.{name}" if getattr(jax.nn, name, None) is value else f"<{name} at {id(value):#x}>"
