"""Keras's initializers with JAX's signature: `init(key, shape, dtype=float32) -> array`.

| name | values |
| --- | --- |
| `Zeros`, `Ones`, `Constant(value)` | one value everywhere, or the values of an array |
| `RandomNormal`, `RandomUniform`, `TruncatedNormal` | a fixed distribution; truncation is at 2 deviations |
| `VarianceScaling`, `Glorot*`, `He*`, `Lecun*` | zero mean, variance `scale / n`, `n` a fan or their mean |
| `Orthogonal` | orthonormal columns, or rows, of the array as a matrix with its last axis as columns |
| `Identity` | an identity matrix, which no weight of this layer can be |
| `STFT` | the real or imaginary part of windowed Fourier atoms; for one input channel |

Every class has Keras's lower-case name as well. The fans of a kernel `(*window, in, out)` are `in` and `out`
times the window's size; the fans of a bias are its length.

A `seed` makes an initializer deterministic, as in Keras: it gives the same values at each call, drawn from
`jax.random.key(seed % 2**32)` instead of the key that it is called with. The values are JAX's, not Keras's, but they
have the same distribution. Half-precision arrays are drawn in float32 and rounded once.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import _dtypes
from flax_sepconv._keras import stft as _stft
from flax_sepconv._keras.identifiers import Family, names_of, resolve, to_config
from flax_sepconv._keras.objects import (
    KerasObject,
    Number,
    Positive,
    axes,
    check_axes,
    check_range,
    integer,
    one_of,
    values,
    within,
)
from flax_sepconv._keras.unknown import UnknownInitializer

__all__ = [
    "STFT",
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "IdentityInitializer",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "OrthogonalInitializer",
    "RandomNormal",
    "RandomUniform",
    "STFTInitializer",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
    "constant",
    "get",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "serialize",
    "stft",
    "truncated_normal",
    "variance_scaling",
    "zeros",
]


class Initializer(KerasObject):
    """Base of the initializers."""

    keras_module = "keras.initializers"

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Returns an array of initial values.

        Args:
            key: a JAX key. Initializers that draw nothing or have their own seed ignore it.
            shape: the array's.
            dtype: the array's.

        Raises:
            ValueError: the initializer cannot make an array of this shape.
        """
        seed = getattr(self, "seed", None)
        if seed is not None:
            key = jax.random.key(seed % 2**32)
        self.check_shape(tuple(shape))
        wide = _dtypes.wide(dtype)
        return self._values(key, tuple(shape), wide).astype(dtype)

    @abc.abstractmethod
    def _values(self, key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array: ...


# ---- Checks of fields -------------------------------------------------------------------------------------


def _seed(name: str, value: Any) -> int | None:
    class_name = value.get("class_name") if isinstance(value, Mapping) else type(value).__name__
    if class_name == "SeedGenerator":
        raise ValueError(
            f"`{name}` must be an integer or None; got a SeedGenerator, whose state this library does not "
            "keep. Use its integer seed, or None and the key that the parameters are drawn with."
        )
    return None if value is None else integer(name, value)


def _distribution(name: str, value: Any) -> str:
    lowered = value.lower() if isinstance(value, str) else value
    if lowered == "normal":  # TF 1's name for it
        return "truncated_normal"
    return one_of("truncated_normal", "untruncated_normal", "uniform")(name, lowered)


def _fan_axes(name: str, value: Any) -> tuple[int, ...] | None:
    chosen = axes(name, value)
    if isinstance(chosen, int):
        raise TypeError(f"`{name}` must be a sequence of integers or None; got {value!r}.")
    return chosen


Deviation = Annotated[float, within(0)]
Seed = Annotated[int | None, _seed]
FanAxes = Annotated[Sequence[int] | None, _fan_axes]

# ---- Values known in advance ------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Zeros(Initializer):
    """Returns zeros."""

    def _values(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)


@dataclass(frozen=True, repr=False)
class Ones(Initializer):
    """Returns ones."""

    def _values(self, key, shape, dtype):
        return jnp.ones(shape, dtype)


@dataclass(frozen=True, repr=False)
class Constant(Initializer):
    """Returns one number everywhere, or given values.

    Args:
        value: a number, or an array or nested sequence of numbers that has the shape or broadcasts to it.

    Example:
        >>> print(Constant([1.0, 2.0])(None, (3, 2)))
        [[1. 2.]
         [1. 2.]
         [1. 2.]]
    """

    value: Annotated[Any, values] = 0.0

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape that the values neither fill nor broadcast to."""
        given = np.shape(self.value)
        known = math.prod(size for size in shape if size is not None)
        # As in TF 2.0, which only counts.
        count = math.prod(given)
        counts = count > 0 and (count % known == 0 if None in shape else count == known)
        pairs = zip(reversed(given), reversed(shape), strict=False)
        fits = len(given) <= len(shape) and all(own in (1, size) or size is None for own, size in pairs)
        if not (counts or fits):
            raise ValueError(
                f"`value` must be of the shape {shape} (None is any size) or broadcast to it; got {given}."
            )

    def _values(self, key, shape, dtype):
        value = np.asarray(self.value)
        if value.size == math.prod(shape):  # as in TF 2.0, which only counts
            value = value.reshape(shape)
        return jnp.broadcast_to(jnp.asarray(value, dtype), shape)


@dataclass(frozen=True, repr=False)
class Identity(Initializer):
    """Returns a matrix with `gain` on its diagonal.

    No weight of a `SeparableConv1D` is a matrix, so its config refuses this initializer.

    Args:
        gain: the diagonal's value.
    """

    gain: Number = 1.0

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape that is not a matrix's."""
        if len(shape) != 2:
            raise ValueError(f"`Identity` must be given the shape of a matrix; got {shape}.")

    def _values(self, key, shape, dtype):
        return self.gain * jnp.eye(*shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the gain, or nothing where it is 1: Keras never writes it, though it reads it."""
        return {} if self.gain == 1 else super().get_config()


@dataclass(frozen=True, repr=False)
class STFT(Initializer):
    """Returns the windowed Fourier atoms of a short-time Fourier transform.

    They are a kernel `(times, 1, frequencies)`: in a `SeparableConv1D`, the depthwise kernel for a single input
    channel.

    Args:
        side: `"real"` (cosines) or `"imag"` (sines).
        window: a window of `scipy.signal`, its values, or `None`.
        scaling: `"density"` divides by the window's Euclidean norm, `"spectrum"` by its sum; or `None`.
        periodic: whether a named window is periodic, not symmetric.
    """

    side: Annotated[str, one_of("real", "imag")] = "real"
    window: Annotated[Any, _stft.window] = "hann"
    scaling: Annotated[str | None, one_of("density", "spectrum", None)] = "density"
    periodic: Annotated[bool, one_of(False, True)] = False

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape with several channels, with one frequency, or with other times than the window has."""
        _stft.check_shape(shape, self.window, self.periodic)

    def _values(self, key, shape, dtype):
        kernel = _stft.atoms(shape, self.side, self.window, self.scaling, self.periodic)
        return jnp.asarray(kernel, dtype)


# ---- Fixed distributions ----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class RandomNormal(Initializer):
    """Draws from a normal distribution.

    Args:
        mean: its mean.
        stddev: its standard deviation, at least 0.
        seed: an integer for the same values at each call, or `None`.
    """

    mean: Number = 0.0
    stddev: Deviation = 0.05
    seed: Seed = None

    def _values(self, key, shape, dtype):
        return self.mean + self.stddev * jax.random.normal(key, shape, dtype)


@dataclass(frozen=True, repr=False)
class TruncatedNormal(Initializer):
    """Draws from a normal distribution that is cut off at two standard deviations.

    Args:
        mean: its mean.
        stddev: its standard deviation before truncation, at least 0; after truncation it is 0.88 times that.
        seed: an integer for the same values at each call, or `None`.
    """

    mean: Number = 0.0
    stddev: Deviation = 0.05
    seed: Seed = None

    def _values(self, key, shape, dtype):
        return self.mean + self.stddev * jax.random.truncated_normal(key, -2, 2, shape, dtype)


@dataclass(frozen=True, repr=False)
class RandomUniform(Initializer):
    """Draws from a uniform distribution.

    Args:
        minval: its lower bound.
        maxval: its upper bound, at least `minval`.
        seed: an integer for the same values at each call, or `None`.
    """

    minval: Number = -0.05
    maxval: Number = 0.05
    seed: Seed = None

    def __post_init__(self):
        super().__post_init__()
        check_range("minval", self.minval, "maxval", self.maxval)

    def _values(self, key, shape, dtype):
        return self.minval + (self.maxval - self.minval) * jax.random.uniform(key, shape, dtype)


# ---- Distributions scaled to the layer --------------------------------------------------------------------


class _FanScaled(Initializer):
    """Draws with zero mean and variance `scale / n`."""

    scale: float
    mode: str
    distribution: str
    input_axes: tuple[int, ...] | None
    output_axes: tuple[int, ...] | None

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape that lacks one of the axes."""
        if self.input_axes is not None and self.output_axes is not None:
            check_axes(self.input_axes, len(shape), "input_axes")
            check_axes(self.output_axes, len(shape), "output_axes")

    def _values(self, key, shape, dtype):
        fan_in, fan_out = self._fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        stddev = math.sqrt(self.scale / max(1.0, n))
        match self.distribution:
            case "uniform":
                return math.sqrt(3) * stddev * jax.random.uniform(key, shape, dtype, -1)
            case "untruncated_normal":
                return stddev * jax.random.normal(key, shape, dtype)
        # The factor by which truncation at two standard deviations reduces the standard deviation.
        return stddev / 0.87962566103423978 * jax.random.truncated_normal(key, -2, 2, shape, dtype)

    def _fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Counts the inputs that reach one output, and the outputs that one input reaches."""
        if self.input_axes is not None and self.output_axes is not None:
            fan_in, fan_out = ([shape[axis] for axis in each] for each in (self.input_axes, self.output_axes))
            return math.prod(fan_in), math.prod(fan_out)
        if len(shape) < 2:
            return math.prod(shape), math.prod(shape)
        *window, inputs, outputs = shape
        return math.prod(window) * inputs, math.prod(window) * outputs


@dataclass(frozen=True, repr=False)
class VarianceScaling(_FanScaled):
    """Draws with zero mean and variance `scale / n`, where `n` is a fan of the array.

    Args:
        scale: above 0.
        mode: what `n` is: `"fan_in"`, `"fan_out"` or `"fan_avg"`, their mean.
        distribution: `"truncated_normal"`, `"untruncated_normal"` or `"uniform"`.
        seed: an integer for the same values at each call, or `None`.
        input_axes: together with `output_axes`, the axes whose sizes multiply to the fan in.
        output_axes: together with `input_axes`, the axes whose sizes multiply to the fan out.

    Example:
        >>> import jax
        >>> init = VarianceScaling(2.0, "fan_out", "uniform")
        >>> bool(abs(init(jax.random.key(0), (3, 4, 8))).max() < (3 * 2 / (3 * 8)) ** 0.5)
        True
    """

    scale: Positive = 1.0
    mode: Annotated[str, one_of("fan_in", "fan_out", "fan_avg")] = "fan_in"
    distribution: Annotated[str, _distribution] = "truncated_normal"
    seed: Seed = None
    input_axes: FanAxes = None
    output_axes: FanAxes = None


@dataclass(frozen=True, repr=False)
class _NamedScaling(_FanScaled):
    """Fixes the scale, the mode and the distribution of a `VarianceScaling`, and takes its other arguments."""

    seed: Seed = None
    input_axes: FanAxes = None
    output_axes: FanAxes = None


class GlorotUniform(_NamedScaling):
    """Draws from a uniform distribution with variance `2 / (fan_in + fan_out)`: Glorot and Bengio (2010)."""

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_avg"
    distribution: ClassVar[str] = "uniform"


class GlorotNormal(_NamedScaling):
    """Draws from a truncated normal distribution with variance `2 / (fan_in + fan_out)`: Glorot and Bengio (2010)."""

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_avg"
    distribution: ClassVar[str] = "truncated_normal"


class HeUniform(_NamedScaling):
    """Draws from a uniform distribution with variance `2 / fan_in`: He et al. (2015)."""

    scale: ClassVar[float] = 2.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "uniform"


class HeNormal(_NamedScaling):
    """Draws from a truncated normal distribution with variance `2 / fan_in`: He et al. (2015)."""

    scale: ClassVar[float] = 2.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "truncated_normal"


class LecunUniform(_NamedScaling):
    """Draws from a uniform distribution with variance `1 / fan_in`: LeCun et al. (1998)."""

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "uniform"


class LecunNormal(_NamedScaling):
    """Draws from a truncated normal distribution with variance `1 / fan_in`: LeCun et al. (1998)."""

    scale: ClassVar[float] = 1.0
    mode: ClassVar[str] = "fan_in"
    distribution: ClassVar[str] = "truncated_normal"


@dataclass(frozen=True, repr=False)
class Orthogonal(Initializer):
    """Draws a random matrix with orthonormal columns, or orthonormal rows if it has fewer rows, times `gain`.

    The matrix is the array with all axes but the last merged into one.

    Args:
        gain: factor of the result.
        seed: an integer for the same values at each call, or `None`.

    Raises:
        ValueError: when called with a shape of fewer than two axes, such as that of a bias.
    """

    gain: Number = 1.0
    seed: Seed = None

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape of fewer than two axes."""
        if len(shape) < 2:
            raise ValueError(f"`Orthogonal` must be given a shape of two or more axes; got {shape}.")

    def _values(self, key, shape, dtype):
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, dtype)


zeros = Zeros
ones = Ones
constant = Constant
identity = IdentityInitializer = Identity
stft = STFTInitializer = STFT
random_normal = RandomNormal
truncated_normal = TruncatedNormal
random_uniform = RandomUniform
variance_scaling = VarianceScaling
glorot_uniform = GlorotUniform
glorot_normal = GlorotNormal
he_uniform = HeUniform
he_normal = HeNormal
lecun_uniform = LecunUniform
lecun_normal = LecunNormal
orthogonal = OrthogonalInitializer = Orthogonal

_CLASSES = (
    *(Zeros, Ones, Constant, Identity, STFT),
    *(RandomNormal, TruncatedNormal, RandomUniform, VarianceScaling),
    *(GlorotUniform, GlorotNormal, HeUniform, HeNormal, LecunUniform, LecunNormal, Orthogonal),
)
_NAMES = names_of(_CLASSES)
_BASE = "it is Keras's base class and makes nothing."

_FAMILY = Family(
    wanted="a name such as 'glorot_uniform', a Keras config, an initializer (`Constant(values)` for given "
    "values) or a callable `init(key, shape, dtype) -> array`",
    classes=_CLASSES,
    called_with=("key", "shape", "dtype"),
    makers=_NAMES,
    # Early versions of TensorFlow 2 marked their classes by a suffix.
    aliases={f"{name}V2": initializer for name, initializer in _NAMES.items()}
    | {"zero": Zeros, "one": Ones, "normal": RandomNormal, "uniform": RandomUniform}
    | {"IdentityInitializer": Identity, "STFTInitializer": STFT, "OrthogonalInitializer": Orthogonal},
    refused={"Initializer": _BASE, "initializer": _BASE},
    ignored=frozenset({"dtype"}),  # an entry of TF 2.0; the layer's own dtype replaces it
)


def get(identifier: Any, *, argument: str = "initializer") -> Any:
    """Returns the initializer that a name, a Keras config, an object or a callable stands for.

    Args:
        identifier: any name that Keras 3 or TF 2.0 knows, a config of either, an object or class of this
            module or of Keras, any hashable callable with JAX's signature (kept as it is), or `None`.
        argument: what messages call it.

    Returns:
        A hashable callable `init(key, shape, dtype) -> array`, or `None` for `None`.

    Raises:
        ValueError: an unknown name, or a config with unknown or impossible entries.
        TypeError: none of the above.

    Example:
        >>> get("he_normal"), get({"class_name": "RandomNormal", "config": {"stddev": 0.1}})
        (HeNormal(), RandomNormal(stddev=0.1))
    """
    return None if identifier is None else resolve(identifier, _FAMILY, argument)


def serialize(initializer: Any, *, argument: str = "initializer") -> dict[str, Any] | None:
    """Returns what Keras 3's `keras.initializers.serialize` gives for an initializer, ready for JSON.

    Args:
        initializer: whatever `get` takes.
        argument: what messages call it.

    Raises:
        ValueError: a callable that Keras has no name for.

    Example:
        >>> serialize("he_normal")["config"]
        {'seed': None, 'input_axes': None, 'output_axes': None}
    """
    resolved = get(initializer, argument=argument)
    if resolved is None:
        return None
    if isinstance(resolved, UnknownInitializer):
        return resolved.entry
    same = {jax.nn.initializers.zeros: Zeros(), jax.nn.initializers.ones: Ones()}
    return to_config(same.get(resolved, resolved), _FAMILY, argument)
