"""Calls a layer's functions and checks what they return, since a caller's own may return anything.

Initializers, regularizers and constraints are checked when they are applied to a weight. The activation is also traced
when a config is made, on an output with the sizes that are known. Its own errors are ignored there, because the other
sizes are made up, but its result says how many channels the layer has.
"""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import activations
from flax_sepconv._messages import shown

if TYPE_CHECKING:
    from flax_sepconv.config import SeparableConv1DConfig, Weight

Shape = tuple[int | None, ...]

_ADVICE = {
    "initializer": "It is called with a key, a shape and a dtype.",
    "factory": "Pass what that factory makes, such as `nn.initializers.lecun_normal()`.",
    "regularizer": "Sum its result, as `lambda w: 0.01 * jnp.sum(w**2)` does.",
    "constraint": "It is called with a weight and returns its projection, as `lambda w: jnp.maximum(w, 0)` does.",
    "activation": "It may change the number of channels and nothing else. Do the rest after the layer.",
}

# Raised by what works on concrete numbers only: functions of NumPy and `math`, conditions on values.
_NOT_TRACED = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


def drawn(weight: "Weight", key: Any, config: "SeparableConv1DConfig") -> Any:
    """Calls a weight's initializer, whose result may be boxed; an error names the argument."""
    argument = weight.argument("initializer")

    def draw(*arguments: Any) -> Any:
        value = weight.initializer(*arguments)
        return jnp.asarray(value) if isinstance(value, list | tuple) else value

    value = _called(argument, draw, weight.shape, key, weight.shape, config.param_dtype)
    if value is None:  # any other result is checked where it is unboxed
        check_result(argument, value, weight.shape)
    return value


def penalty(argument: str, regularizer: Callable, w: Any) -> Any:
    """Calls a regularizer on a weight or an output, and checks that it returns a real number."""
    value = _called(argument, regularizer, w.shape, w)
    check_result(argument, value, ())
    return value


def projection(argument: str, constraint: Callable, w: Any) -> Any:
    """Calls a constraint on a weight, and checks that it returns real numbers of the same shape."""
    value = _called(argument, constraint, w.shape, w)
    check_result(argument, value, w.shape)
    return value


def activated(config: "SeparableConv1DConfig", y: Any) -> Any:
    """Calls the activation on an output."""
    if config.activation is activations.glu:
        _halved(y.shape)
    value = _called("activation", config.activation, y.shape, y)
    if not activations.is_own(config.activation):
        channels = config.channel_axis % y.ndim
        check_result("activation", value, (*y.shape[:channels], None, *y.shape[channels + 1 :]))
    return value


def shape_after(config: "SeparableConv1DConfig", shape: Shape) -> Shape:
    """Computes the shape after the activation; `None` where a size is not known."""
    if config.activation is activations.glu:
        return _halved(shape)
    if activations.is_own(config.activation):
        return shape
    # Sizes that do not broadcast against one another and can be halved.
    made_up = tuple(2 + 2 * i if size is None else size for i, size in enumerate(shape))
    after = traced(lambda y: activated(config, y), made_up)
    channels = config.channel_axis % len(shape)
    return (*shape[:channels], after[channels], *shape[channels + 1 :])


def try_activation(config: "SeparableConv1DConfig") -> None:
    """Refuses an activation that returns no output, or that JAX cannot trace."""
    function = config.activation
    shape = (None, None, config.filters) if config.channel_axis == -1 else (None, config.filters, None)
    try:
        tried = _tried.setdefault(function, set())
    except TypeError:  # no weak reference to it is possible, as with functions of NumPy
        tried = set()
    if shape in tried:
        return
    try:
        shape_after(config, shape)
    except Exception as error:
        if isinstance(error.__cause__, _NOT_TRACED):
            raise TypeError(
                "`activation` must be a function that JAX can trace, of `jax.numpy` instead of NumPy or `math` and "
                f"without conditions on values; got {shown(function)}."
            ) from error.__cause__
        if (
            isinstance(error, ValueError | TypeError) and error.__cause__ is None
        ):  # not raised by the activation
            raise
    tried.add(shape)


# The shapes that each function was tried with: configs are made often, at each access to a Linen layer's.
_tried: weakref.WeakKeyDictionary[Callable, set[Shape]] = weakref.WeakKeyDictionary()


def try_constraint(project: Callable, w: Any) -> None:
    """Refuses a constraint that returns no weight. One that cannot be traced may still work without `jax.jit`."""
    try:
        traced(project, w.shape, w.dtype)
    except TypeError as error:
        if not isinstance(error.__cause__, _NOT_TRACED):
            raise


def traced(function: Callable, shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[int, ...]:
    """Returns the shape of a function's result for an array, without computing it."""
    outcome: list[Any] = []

    def call(x):  # raises nothing: JAX adds lines of its own to errors that pass through `eval_shape`
        try:
            outcome.append(function(x).shape)
        except Exception as error:
            outcome.append(error)

    jax.eval_shape(call, jax.ShapeDtypeStruct(shape, dtype))
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def check_result(argument: str, value: Any, wanted: Shape) -> None:
    """Refuses a result that is not real numbers of a shape, where `None` is any size."""
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


def _called(argument: str, function: Callable, shape: Shape, *arguments: Any) -> Any:
    """Calls a function, and raises its errors anew with the argument's name."""
    try:
        return function(*arguments)
    except (ValueError, TypeError, AssertionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`{argument}` cannot be used with the shape {shape}: {error}") from error


def _halved(shape: Shape) -> Shape:
    """Returns a shape with half of its last axis, as `glu` makes it."""
    *others, size = shape
    if isinstance(size, int) and size % 2:
        raise ValueError(
            f"`activation` 'glu' halves the last axis, which must be even; got the shape {shape}."
        )
    return (*others, None if size is None else size // 2)
