"""The base of the small dataclasses that stand for Keras's objects, and the checks of their fields."""

import abc
import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv._dtypes import wide
from flax_sepconv._messages import shown


class KerasObject(abc.ABC):
    """Base of the frozen dataclasses that stand for Keras's objects.

    Every field is annotated with its type and with a check, which returns the value in canonical form on creation or
    refuses it: `l2: Annotated[float, non_negative] = 0.01`.
    """

    keras_module: ClassVar[str]
    """The module in which Keras 3 has the class of the same name."""

    def __post_init__(self) -> None:
        for field in self._fields():
            (check,) = field.type.__metadata__
            value = check(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def __repr__(self) -> str:
        given = (field.name for field in self._fields() if getattr(self, field.name) != field.default)
        parts = ", ".join(f"{name}={shown(getattr(self, name))}" for name in given)
        return f"{type(self).__name__}({parts})"

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Refuses a shape of arrays that this object cannot be used with, without making one.

        Args:
            shape: the array's; `None` where a size is not known yet.

        Raises:
            ValueError: the object cannot be used with such arrays.
        """
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that recreate this object, ready for JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in self._fields()}

    def _fields(self) -> tuple[Any, ...]:
        return dataclasses.fields(cast(Any, self))


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


# ---- Checks of fields: `check(name, value) -> canonical value` ----


# NumPy's arrays have at most 64 axes, this layer's weights 3.
_AXES_LIMIT, _RANK_LIMIT = 32, 8


def number(name: str, value: Any) -> float:
    """Returns a finite number as an int or a float. Keras 2's configs also hold arrays without axes.

    An integer that does not fit into int32 becomes a float.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number; got {shown(value)}.")
    try:
        if math.isfinite(value):
            whole = int(value) if isinstance(value, numbers.Integral) else 2**31
            return whole if abs(whole) < 2**31 else float(value)
    except OverflowError:  # an integer that no float can hold
        pass
    raise ValueError(f"`{name}` must be a finite number; got {shown(value)}.")


def non_negative(name: str, value: Any) -> float:
    """Returns a finite number of at least 0, as a float."""
    checked = float(number(name, value))
    if checked < 0:
        raise ValueError(f"`{name}` must be at least 0; got {shown(value)}.")
    return checked


def within(low: float, high: float = math.inf) -> Callable[[str, Any], float]:
    """Makes the check for a finite number between two bounds, both included."""

    def check(name: str, value: Any) -> float:
        checked = number(name, value)
        if not low <= checked <= high:
            wanted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ValueError(f"`{name}` must be {wanted}; got {shown(value)}.")
        return checked

    return check


def positive(name: str, value: Any) -> float:
    """Returns a finite number above 0."""
    checked = number(name, value)
    if checked <= 0:
        raise ValueError(f"`{name}` must be above 0; got {shown(value)}.")
    return checked


def check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    """Refuses an empty range."""
    if low > high:
        raise ValueError(f"`{low_name}` must be at most `{high_name}`; got {low} and {high}.")


def integer(name: str, value: Any) -> int:
    """Returns an integer of Python or NumPy as Python's."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer; got {shown(value)}.") from None


def axes(name: str, value: Any) -> int | tuple[int, ...] | None:
    """Returns an axis, several axes, or `None`."""
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > _AXES_LIMIT:
            raise ValueError(f"`{name}` must have at most {_AXES_LIMIT} axes; got {len(value)}.")
        return tuple(integer(name, each) for each in value)
    return integer(name, value)


def values(name: str, value: Any) -> Any:
    """Returns a finite number, or an array of them as nested tuples."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        entries = value.get("config")  # an array, as Keras writes it
        value = entries.get("value") if isinstance(entries, Mapping) else None
    if not isinstance(value, list | tuple) and not getattr(value, "ndim", 0):
        return number(name, value)
    try:
        if not all(map(_is_number, _leaves(value))):
            raise ValueError
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise ValueError
    except ValueError:  # also of a ragged sequence
        message = f"`{name}` must be a number or an array of finite numbers; got {shown(value)}."
        raise ValueError(message) from None
    return _as_tuples(array.tolist())


def _leaves(nested: Any, rank: int = 0) -> Iterator[Any]:
    """Yields the leaves of nested sequences."""
    if rank > _RANK_LIMIT:
        raise ValueError
    for each in nested:
        if isinstance(each, list | tuple):
            yield from _leaves(each, rank + 1)
        else:
            yield each


def _is_number(leaf: Any) -> bool:
    """Returns whether this is a number, or an array, which NumPy takes as it is."""
    if isinstance(leaf, float | int):  # most of them are
        return not isinstance(leaf, bool)
    return isinstance(leaf, numbers.Real | np.ndarray | jax.Array) and not isinstance(leaf, np.bool_)


def _as_tuples(nested: Any) -> Any:
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested


def one_of(*options: str | bool | None) -> Callable[[str, Any], Any]:
    """Makes the check for one of a few words."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str | bool | None) or value not in options:
            kind = ValueError if isinstance(value, str) else TypeError
            raise kind(f"`{name}` must be {' or '.join(map(repr, options))}; got {shown(value)}.")
        return value

    return check


Number = Annotated[float, number]
NonNegative = Annotated[float, non_negative]
Positive = Annotated[float, positive]
Axes = Annotated[int | Sequence[int] | None, axes]


def widened(x: Any) -> jax.Array:
    """Returns `x` in float32 if its dtype is narrower, for sums and norms of half precision."""
    x = jnp.asarray(x)
    return x.astype(wide(x.dtype))


def check_axes(chosen: Any, ndim: int, name: str = "axis") -> None:
    """Refuses axes that an array of `ndim` axes does not have, and axes that are named twice."""
    axes = (chosen,) if isinstance(chosen, int) else chosen or ()
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"`{name}` must be within an array of {ndim} axes; got {shown(chosen)}.")
    if len({axis % ndim for axis in axes}) < len(axes):
        raise ValueError(f"`{name}` must have each axis once; got {shown(chosen)}.")
