"""Keras's weight penalties: functions `w -> scalar` to add to a loss.

| name | penalty |
| --- | --- |
| `"l1"`, `L1(l1=0.01)` | `l1 * sum(abs(w))` |
| `"l2"`, `L2(l2=0.01)` | `l2 * sum(w ** 2)` |
| `L1L2(l1=0.0, l2=0.0)` | both |
| `"l1_l2"`, `l1_l2(l1=0.01, l2=0.01)` | both, with TF 2.0's defaults |
| `OrthogonalRegularizer(factor=0.01, mode="rows")` | `factor` times the mean `abs` cosine between rows |

TF 2.0, the reference, documents both factors of `"l1_l2"` as 0.01, while the class defaults to 0; Keras 3 made
`l1_l2` the class. Here the reference decides for the name and the function; `"L1L2"` and Keras 3's `"l1l2"` are
the class. Penalties of half-precision arrays are float32, since a sum in half precision would lose most of its terms.
"""

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from flax_sepconv._keras.identifiers import Family, names_of, resolve, to_config
from flax_sepconv._keras.objects import KerasObject, NonNegative, one_of, widened

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "serialize",
]


class Regularizer(KerasObject):
    """Base of the penalties."""

    keras_module = "keras.regularizers"

    @abc.abstractmethod
    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes the penalty of one array, a scalar of at least single precision."""


@dataclass(frozen=True, repr=False)
class L1(Regularizer):
    """Penalizes the sum of absolute values, which drives single weights to zero.

    Args:
        l1: factor, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(L1(0.5)(jnp.array([1.0, -3.0])))
        2.0
    """

    l1: NonNegative = 0.01

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `l1 * sum(abs(w))`."""
        return self.l1 * jnp.sum(_abs(widened(w)))


@dataclass(frozen=True, repr=False)
class L2(Regularizer):
    """Penalizes the sum of squares, which keeps weights small.

    Args:
        l2: factor, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(L2(0.5)(jnp.array([1.0, -3.0])))
        5.0
    """

    l2: NonNegative = 0.01

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `l2 * sum(w ** 2)`."""
        return self.l2 * jnp.sum(jnp.square(widened(w)))


@dataclass(frozen=True, repr=False)
class L1L2(Regularizer):
    """Penalizes the sum of absolute values and the sum of squares, each with its factor.

    Args:
        l1: factor of the absolute values, at least 0.
        l2: factor of the squares, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(L1L2(l1=1.0, l2=0.5)(jnp.array([1.0, -3.0])))
        9.0
    """

    l1: NonNegative = 0.0
    l2: NonNegative = 0.0

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `l1 * sum(abs(w)) + l2 * sum(w ** 2)`, leaving out terms whose factor is 0."""
        w = widened(w)
        penalty = jnp.zeros((), w.dtype)
        if self.l1:
            penalty += self.l1 * jnp.sum(_abs(w))
        if self.l2:
            penalty += self.l2 * jnp.sum(jnp.square(w))
        return penalty


@dataclass(frozen=True, repr=False)
class OrthogonalRegularizer(Regularizer):
    """Penalizes the mean absolute cosine between a matrix's rows, or columns, which makes them orthogonal.

    Only matrices have rows and columns. The weights of a `SeparableConv1D` have three axes, so its config
    refuses this regularizer, where Keras refuses it in the first training step.

    Args:
        factor: at least 0.
        mode: `"rows"` or `"columns"`.

    Raises:
        ValueError: when called with anything but a matrix of two or more rows (columns).

    Example:
        >>> import jax.numpy as jnp
        >>> print(OrthogonalRegularizer(1.0)(jnp.array([[1.0, 0.0], [0.6, 0.8]])).round(3))
        0.6
    """

    factor: NonNegative = 0.01
    mode: Annotated[str, one_of("rows", "columns")] = "rows"

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses what is not a matrix of two or more rows (columns)."""
        if len(shape) != 2:
            raise ValueError(
                f"`OrthogonalRegularizer` must be given a matrix; got an array of shape {shape}."
            )
        size = shape[0 if self.mode == "rows" else 1]
        if size is not None and size < 2:
            raise ValueError(
                f"`OrthogonalRegularizer` must be given at least two {self.mode}; got shape {shape}."
            )

    def __call__(self, w: jax.Array) -> jax.Array:
        """Computes `factor` times the mean of `abs(cos(u, v))` over the pairs of rows (columns) `u`, `v`."""
        self.check_shape(jnp.shape(w))
        rows = widened(w) if self.mode == "rows" else widened(w).T
        size = rows.shape[0]
        # Keras's bound on the norm, 1e-7, keeps a row of zeros at zero.
        rows = rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows**2, axis=1, keepdims=True), 1e-14))
        cosines = _abs(jnp.matmul(rows, rows.T, precision="highest"))
        pairs = size * (size - 1)  # each pair counts twice, here and in the sum
        return self.factor * jnp.sum(cosines * (1 - jnp.eye(size, dtype=rows.dtype))) / pairs


l1 = L1
l2 = L2
orthogonal_regularizer = OrthogonalRegularizer


def l1_l2(l1: float = 0.01, l2: float = 0.01) -> L1L2:
    """Makes an `L1L2` with the defaults that TF 2.0 documents for this name.

    Args:
        l1: factor of the absolute values, at least 0.
        l2: factor of the squares, at least 0.

    Example:
        >>> l1_l2()
        L1L2(l1=0.01, l2=0.01)
    """
    return L1L2(l1, l2)


_BASE = "it is Keras's base class and does nothing. Use None for no regularizer."

_CLASSES = (L1, L2, L1L2, OrthogonalRegularizer)
_FAMILY = Family(
    wanted="None, a name such as 'l2', a Keras config, a regularizer or a callable `w -> scalar`",
    classes=_CLASSES,
    makers=names_of(_CLASSES) | {"l1_l2": l1_l2},
    refused={"Regularizer": _BASE, "regularizer": _BASE},
)


def get(identifier: Any, *, argument: str = "regularizer") -> Any:
    """Returns the regularizer that a name, a Keras config, an object or a callable stands for.

    Args:
        identifier: any name that Keras 3 or TF 2.0 knows, a config of either, an object or class of this
            module or of Keras, any hashable callable `w -> scalar` (kept as it is), or `None`.
        argument: what messages call it.

    Returns:
        A hashable callable, or `None` for `None`.

    Raises:
        ValueError: an unknown name, or a config with unknown or impossible entries.
        TypeError: none of the above.

    Example:
        >>> get("l2"), get({"class_name": "L1", "config": {"l1": 0.5}}), get("l1_l2")
        (L2(), L1(l1=0.5), L1L2(l1=0.01, l2=0.01))
        >>> try:
        ...     get("l3", argument="bias_regularizer")
        ... except ValueError as error:
        ...     print(error)
        `bias_regularizer` must be None, a name such as 'l2', a Keras config, a regularizer or a callable \
`w -> scalar`; got 'l3'. Did you mean 'l2' or 'l1'?
    """
    return None if identifier is None else resolve(identifier, _FAMILY, argument)


def serialize(regularizer: Any, *, argument: str = "regularizer") -> dict[str, Any] | None:
    """Returns what Keras 3's `keras.regularizers.serialize` gives for a regularizer, ready for JSON.

    Factors are written as they were given; Keras rounds those of `L1` and `OrthogonalRegularizer` to float32.

    Args:
        regularizer: whatever `get` takes.
        argument: what messages call it.

    Raises:
        ValueError: a callable that Keras has no name for.

    Example:
        >>> serialize(L2(0.5))["config"]
        {'l2': 0.5}
    """
    resolved = get(regularizer, argument=argument)
    return None if resolved is None else to_config(resolved, _FAMILY, argument)


def _abs(w: jax.Array) -> jax.Array:
    """Computes `abs(w)` with slope 0 at 0, as TensorFlow does; JAX's slope 1 would move a bias of zeros."""
    return w * jnp.sign(w)
