"""Keras's weight constraints: projections `w -> w` to apply after an update, with the same shape and dtype.

| name | projection |
| --- | --- |
| `"max_norm"`, `MaxNorm(max_value=2, axis=0)` | norms along `axis` are at most `max_value` |
| `"non_neg"`, `NonNeg()` | `maximum(w, 0)` |
| `"unit_norm"`, `UnitNorm(axis=0)` | norms along `axis` are 1 |
| `"min_max_norm"`, `MinMaxNorm(min_value=0.0, max_value=1.0, rate=1.0, axis=0)` | norms are in between |

A norm is taken over all entries along `axis`: an integer, several integers, or `None` for the whole array. The
default, axis 0, is Keras's. For the weights of this layer it means:

| weight | shape | along axis 0 | norm of each filter |
| --- | --- | --- | --- |
| depthwise kernel | `(kernel_size, in_features, depth_multiplier)` | the taps of each filter | `axis=0` |
| pointwise kernel | `(1, in_features * depth_multiplier, filters)` | each weight by itself | `axis=1` |
| bias | `(filters,)` | the whole bias | |

So `pointwise_constraint="max_norm"` clips each weight to 2; `MaxNorm(2, axis=1)` bounds the norm of each filter. Keras
adds 1e-7 to a norm before it divides by it, so a vector of zeros stays zero, and a projected norm is exact to
1e-7 and rounding. Norms of half-precision arrays are taken in float32.

Keras 2's `RadialConstraint` rotates the rank-4 kernels of two-dimensional convolutions and is refused.
"""

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from optax import projections

from flax_sepconv._keras.identifiers import Family, names_of, resolve, to_config
from flax_sepconv._keras.objects import Axes, KerasObject, check_axes, check_range, widened, within

__all__ = [
    "Constraint",
    "MaxNorm",
    "MinMaxNorm",
    "NonNeg",
    "UnitNorm",
    "get",
    "max_norm",
    "min_max_norm",
    "non_neg",
    "serialize",
    "unit_norm",
]

_EPSILON = 1e-7  # Keras's


Norm = Annotated[float, within(0)]
Rate = Annotated[float, within(0, 1)]


class Constraint(KerasObject):
    """Base of the projections."""

    keras_module = "keras.constraints"

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape that lacks an axis."""
        check_axes(getattr(self, "axis", None), len(shape))

    @abc.abstractmethod
    def __call__(self, w: jax.Array) -> jax.Array:
        """Projects one array; the result has the same shape and dtype."""


@dataclass(frozen=True, repr=False)
class MaxNorm(Constraint):
    """Scales vectors with a norm above a bound down to it.

    Args:
        max_value: the largest norm, at least 0.
        axis: the axes along which norms are taken: an integer, several, or `None` for all. For the norm of each
            filter of a pointwise kernel, `MaxNorm(2, axis=1)`.

    Raises:
        ValueError: when called with an array that lacks an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> print(MaxNorm(1.0)(jnp.array([[3.0, 0.3], [4.0, 0.4]])).round(3))
        [[0.6 0.3]
         [0.8 0.4]]
    """

    max_value: Norm = 2
    axis: Axes = 0

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `w * clip(norm, 0, max_value) / norm`."""
        norms = _norms(w, self.axis)
        return _scaled(w, jnp.clip(norms, 0, self.max_value) / (_EPSILON + norms))


@dataclass(frozen=True, repr=False)
class NonNeg(Constraint):
    """Sets negative entries to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> print(NonNeg()(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `maximum(w, 0)`."""
        return projections.projection_non_negative(w)


@dataclass(frozen=True, repr=False)
class UnitNorm(Constraint):
    """Scales vectors to norm 1; a vector of zeros stays.

    Args:
        axis: the axes along which norms are taken: an integer, several, or `None` for all. For the norm of each
            filter of a pointwise kernel, `UnitNorm(axis=1)`; with axis 0 each of its weights becomes 1 or -1.

    Raises:
        ValueError: when called with an array that lacks an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> print(UnitNorm()(jnp.array([3.0, 4.0])).round(3))
        [0.6 0.8]
    """

    axis: Axes = 0

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `w / norm`."""
        return _scaled(w, 1 / (_EPSILON + _norms(w, self.axis)))


@dataclass(frozen=True, repr=False)
class MinMaxNorm(Constraint):
    """Moves norms into an interval, or part of the way there.

    Args:
        min_value: the smallest norm, at least 0.
        max_value: the largest norm, at least `min_value`.
        rate: how far each projection moves, from 0 (not at all) to 1 (all the way).
        axis: the axes along which norms are taken: an integer, several, or `None` for all. For the norm of each
            filter of a pointwise kernel, `MinMaxNorm(axis=1)`.

    Raises:
        ValueError: when called with an array that lacks an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> print(MinMaxNorm(max_value=1.0, rate=0.5)(jnp.array([0.0, 8.0])).round(3))
        [0.  4.5]
    """

    min_value: Norm = 0.0
    max_value: Norm = 1.0
    rate: Rate = 1.0
    axis: Axes = 0

    def __post_init__(self):
        super().__post_init__()
        check_range("min_value", self.min_value, "max_value", self.max_value)

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `w * (rate * clip(norm, min_value, max_value) + (1 - rate) * norm) / norm`."""
        norms = _norms(w, self.axis)
        desired = self.rate * jnp.clip(norms, self.min_value, self.max_value) + (1 - self.rate) * norms
        return _scaled(w, desired / (_EPSILON + norms))


max_norm = MaxNorm
non_neg = NonNeg
unit_norm = UnitNorm
min_max_norm = MinMaxNorm

_RADIAL = "it needs weights of rank 4, as two-dimensional convolutions have; this layer's have rank 3 and 1."
_BASE = "it is Keras's base class and does nothing. Use None for no constraint."

_CLASSES = (MaxNorm, NonNeg, UnitNorm, MinMaxNorm)
_FAMILY = Family(
    wanted="None, a name such as 'max_norm', a Keras config, a constraint or a callable `w -> w`",
    classes=_CLASSES,
    makers=names_of(_CLASSES),
    aliases={"maxnorm": MaxNorm, "nonneg": NonNeg, "unitnorm": UnitNorm},
    refused={
        "RadialConstraint": _RADIAL,
        "radial_constraint": _RADIAL,
        "Constraint": _BASE,
        "constraint": _BASE,
    },
)


def get(identifier: Any, *, argument: str = "constraint") -> Any:
    """Returns the constraint that a name, a Keras config, an object or a callable stands for.

    Args:
        identifier: any name that Keras 3 or TF 2.0 knows, a config of either, an object or class of this
            module or of Keras, any hashable callable `w -> w` (kept as it is), or `None`.
        argument: what messages call it.

    Returns:
        A hashable callable, or `None` for `None`.

    Raises:
        ValueError: an unknown name, or a config with unknown or impossible entries.
        TypeError: none of the above.

    Example:
        >>> get("max_norm"), get({"class_name": "UnitNorm", "config": {"axis": [0, 1]}})
        (MaxNorm(), UnitNorm(axis=(0, 1)))
    """
    return None if identifier is None else resolve(identifier, _FAMILY, argument)


def serialize(constraint: Any, *, argument: str = "constraint") -> dict[str, Any] | None:
    """Returns what Keras 3's `keras.constraints.serialize` gives for a constraint, ready for JSON.

    Args:
        constraint: whatever `get` takes.
        argument: what messages call it.

    Raises:
        ValueError: a callable that Keras has no name for.

    Example:
        >>> serialize("max_norm")["config"]
        {'max_value': 2, 'axis': 0}
    """
    resolved = get(constraint, argument=argument)
    return None if resolved is None else to_config(resolved, _FAMILY, argument)


def _norms(w: jax.Array, axis: Any) -> jax.Array:
    """Computes Euclidean norms along `axis`, and keeps that axis with size 1."""
    check_axes(axis, jnp.ndim(w))
    return jnp.sqrt(jnp.sum(jnp.square(widened(w)), axis=axis, keepdims=True))


def _scaled(w: jax.Array, scale: jax.Array) -> jax.Array:
    return (widened(w) * scale).astype(jnp.asarray(w).dtype)
