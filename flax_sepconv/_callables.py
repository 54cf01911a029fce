"""Calls a layer's functions and checks what they return, since a caller's own may return anything.

When a config is made, each of them is traced once, on an array with the sizes that the config knows. What it raises
there is its own affair, since the other sizes are made up; what it returns is not. This library's own are trusted.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import activations
from flax_sepconv._keras_object import KerasObject
from flax_sepconv._messages import shown

if TYPE_CHECKING:
    from flax_sepconv.config import SeparableConv1DConfig, Weight

Shape = tuple[int | None, ...]

_ADVICE = {
    "initializer": "It is called with a key, a shape and a dtype.",
    "factory": "Pass what that factory makes, such as `nn.initializers.lecun_normal()`.",
    "regularizer": "Sum what it gives, as `lambda w: 0.01 * jnp.sum(w**2)` does.",
    "constraint": "It is called with a weight and returns its projection, as `lambda w: jnp.maximum(w, 0)` does.",
    "activation": "It may change the number of channels and nothing else. Do the rest after the layer.",
}

# What works on numbers that are there only: functions of NumPy and `math`, conditions on values.
_NOT_TRACED = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


def try_out(config: "SeparableConv1DConfig") -> None:
    """Refuses functions of the caller's own that return what they must not, or that JAX cannot trace.

    Raises:
        ValueError: a function returns another shape, or cannot make a bias.
        TypeError: a function returns no real numbers, or cannot be traced.
    """
    for weight in config.weights(in_features=2):  # a size that does not broadcast to others
        # It may give values that it has for another number of channels.
        values = weight.shape if len(weight.shape) == 1 else (weight.shape[0], None, weight.shape[2])
        _try(weight.argument("initializer"), weight.initializer, weight.shape, values)
        _try(weight.argument("regularizer"), weight.regularizer, weight.shape, ())
        _try(weight.argument("constraint"), weight.constraint, weight.shape, weight.shape)
    output = (None, None, config.filters) if config.channel_axis == -1 else (None, config.filters, None)
    _try("activation", config.activation, _made_up(output), _any_channels(_made_up(output), config))
    if activations.is_own(config.activation):
        shape_after(config, output)


def drawn(weight: "Weight", key: Any, config: "SeparableConv1DConfig") -> Any:
    """Calls a weight's initializer, whose result may be boxed; an error names it."""
    try:
        value = weight.initializer(key, weight.shape, config.param_dtype)
        return np.asarray(value) if isinstance(value, list | tuple) else value
    except (ValueError, TypeError) as error:
        raise _failed(weight.argument("initializer"), weight.shape, error) from error


def penalty(argument: str, regularizer: Callable, w: Any) -> Any:
    """Calls a regularizer on a weight or an output; the result is a real number."""
    value = regularizer(w)
    check_result(argument, value, ())
    return value


def projection(argument: str, constraint: Callable, w: jax.Array) -> jax.Array:
    """Calls a constraint on a weight; the result is real numbers of its shape."""
    value = constraint(w)
    check_result(argument, value, w.shape)
    return value


def activated(config: "SeparableConv1DConfig", y: jax.Array) -> jax.Array:
    """Calls the activation on an output."""
    if config.activation is activations.glu:
        shape_after(config, y.shape)
    try:
        value = config.activation(y)
    except (ValueError, TypeError) as error:
        raise _failed("activation", y.shape, error) from error
    if not activations.is_own(config.activation):
        check_result("activation", value, _any_channels(y.shape, config))
    return value


def shape_after(config: "SeparableConv1DConfig", shape: Shape) -> Shape:
    """Computes the shape after the activation; `None` where a size is not known."""
    activation = config.activation
    if activation is activations.glu:
        *others, size = shape
        if isinstance(size, int) and size % 2:
            raise ValueError(
                f"`activation` 'glu' halves the last axis, which must be even; got the shape {shape}."
            )
        return (*others, None if size is None else size // 2)
    if activations.is_own(activation):
        return shape
    made_up = _made_up(shape)
    try:
        after = _traced("activation", activation, made_up, _any_channels(made_up, config))
    except _Raised as raised:
        raise _failed("activation", made_up, raised.error) from raised.error
    channels = config.channel_axis % len(shape)
    return tuple(after[i] if i == channels and shape[i] is not None else size for i, size in enumerate(shape))


class _Raised(Exception):
    """Holds what a function raised by itself."""

    def __init__(self, error: Exception):
        self.error = error


# What was tried of each function. A config is made often, as by each look at a Linen layer's.
_tried: weakref.WeakKeyDictionary[Callable, set] = weakref.WeakKeyDictionary()


def _try(argument: str, function: Callable | None, shape: tuple[int, ...], wanted: Shape) -> None:
    """Refuses a function that returns something else than it should, or that cannot be traced."""
    if function is None or isinstance(function, KerasObject) or activations.is_own(function):
        return
    try:
        tried = _tried.setdefault(function, set())
    except TypeError:  # has no weak references
        tried = set()
    if (argument, shape) in tried:
        return
    try:
        _traced(argument, function, shape, wanted)
    except _Raised as raised:
        if len(shape) == 1 and isinstance(raised.error, ValueError):  # a bias has this shape and no other
            raise _failed(argument, shape, raised.error) from raised.error
    tried.add((argument, shape))


def _traced(argument: str, function: Callable, shape: tuple[int, ...], wanted: Shape) -> tuple[int, ...]:
    """Computes the shape that a function returns for one."""
    draws = argument.endswith("initializer")

    def look(x):
        try:
            value = function(jax.random.key(0), x.shape, x.dtype) if draws else function(x)
        except Exception as error:
            if draws or not isinstance(error, _NOT_TRACED):  # an initializer need not be traceable
                raise _Raised(error) from error
            raise TypeError(
                f"`{argument}` must be a function that JAX can trace, of `jax.numpy` instead of NumPy or `math` and "
                f"without conditions on values; got {shown(function)}."
            ) from error
        if draws and isinstance(value, list | tuple):
            with contextlib.suppress(Exception):  # what is not an array is refused below
                value = np.asarray(value)
        if not (draws and _is_box(value)):
            check_result(argument, value, wanted)
        return np.shape(value)

    outcome: list = []

    def call(x):  # raises nothing: to what passes through `eval_shape` JAX adds lines of its own
        try:
            outcome.append(look(x))
        except Exception as error:
            outcome.append(error)

    jax.eval_shape(call, jax.ShapeDtypeStruct(shape, jnp.float32))
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _is_box(value: Any) -> bool:
    """Returns whether this may hold an array and what is known of it, as `nn.with_partitioning` returns."""
    plain = value is None or callable(value) or hasattr(value, "dtype")
    return not (plain or isinstance(value, str | int | float | complex | list | tuple | dict))


def check_result(argument: str, value: Any, wanted: Shape) -> None:
    """Refuses what is not real numbers of a shape, where `None` is any size."""
    part = argument.rpartition("_")[2]
    array: Any = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        array = np.asarray(value)
    kinds = (jnp.floating, jnp.integer, *[jnp.bool_] * (part == "initializer"))
    is_array = hasattr(array, "dtype") and hasattr(array, "shape")
    is_real = is_array and any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
    sizes = zip(array.shape, wanted, strict=False) if is_real else ()
    if is_real and len(array.shape) == len(wanted) and all(want in (None, got) for got, want in sizes):
        return
    if is_array:
        came = f"an array of the shape {array.shape} and dtype {array.dtype}"
    else:
        came = f"a {type(value).__name__}" if isinstance(value, tuple | list | dict) else shown(value)
    written = ", ".join("any size" if size is None else str(size) for size in wanted)
    what = f"real numbers of the shape ({written})" if wanted else "a real number"
    advice = _ADVICE["factory" if part == "initializer" and callable(value) else part]
    raise (ValueError if is_real else TypeError)(f"`{argument}` must return {what}; got {came}. {advice}")


def _failed(argument: str, shape: Shape, error: Exception) -> Exception:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"`{argument}` cannot be used with the shape {shape}: {error}")


def _made_up(shape: Shape) -> tuple[int, ...]:
    """Makes up sizes, all different, where a shape has none."""
    return tuple(2 + i if size is None else size for i, size in enumerate(shape))


def _any_channels(shape: Shape, config: "SeparableConv1DConfig") -> Shape:
    channels = config.channel_axis % len(shape)
    return (*shape[:channels], None, *shape[channels + 1 :])
