"""The rule of each argument of the layer: one function a kind, `normalize(argument, value) -> canonical value`.

An error names the argument, the value received and what would do.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from typing import Any, ParamSpec

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim

from flax_sepconv import activations, constraints, initializers, regularizers
from flax_sepconv._keras.objects import integer
from flax_sepconv._kernels import IMPLEMENTATIONS
from flax_sepconv._messages import shown
from flax_sepconv._window import PADDINGS

DATA_FORMATS = ("channels_last", "channels_first")

SIZE_LIMIT = 2**24
"""No layer comes near this limit, and within it products of sizes do not overflow."""

FLOATS = tuple(map(jnp.dtype, (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)))


def count(argument: str, value) -> int:
    """Returns an integer from 1 to `SIZE_LIMIT`."""
    number = integer(argument, value)
    if number <= 0:
        raise ValueError(f"`{argument}` must be at least 1; got {shown(value)}.")
    if number > SIZE_LIMIT:
        raise ValueError(f"`{argument}` must be at most {SIZE_LIMIT}; got {shown(value)}.")
    return number


def size(argument: str, value) -> int:
    """Returns a positive integer; Keras also allows a sequence of one."""
    if isinstance(value, (tuple, list)):
        if len(value) != 1:
            raise ValueError(f"`{argument}` must be an integer or a sequence of one; got {shown(value)}.")
        (value,) = value
    return count(argument, value)


def sizes(argument: str, value) -> tuple[Any, ...]:
    """Returns the sizes of an array's axes: integers, symbolic dimensions, and `None` where one is unknown."""
    of_axes = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)
    if not of_axes or getattr(value, "ndim", 1) != 1:
        hint = " Pass its `.shape`." if hasattr(value, "shape") else ""
        raise TypeError(
            f"`{argument}` must be a sequence of sizes, such as (None, 100, 12); got {shown(value)}.{hint}"
        )
    known: tuple[Any, ...] = tuple(int(each) if isinstance(each, np.integer) else each for each in value)
    if not all(each is None or type(each) is int or is_symbolic_dim(each) for each in known):
        raise TypeError(f"`{argument}` must have integers for sizes, or None; got {shown(known)}.")
    if any(type(each) is int and each < 0 for each in known):
        raise ValueError(f"`{argument}` must have no negative sizes; got {shown(known)}.")
    return known


def choice(options: tuple[str, ...], argument: str, value) -> str:
    """Returns one of a few words, which may be written in any case."""
    lowered = value.lower() if isinstance(value, str) else value
    if lowered not in options:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"`{argument}` must be one of {', '.join(map(repr, options))}; got {shown(value)}.")
    return lowered


def data_format(argument: str, value) -> str:
    """Returns the data format; `None` is Keras's default."""
    return "channels_last" if value is None else choice(DATA_FORMATS, argument, value)


def implementation(argument: str, value) -> str | None:
    """Returns the name of an implementation, or `None` to let the library choose."""
    return None if value is None else choice(IMPLEMENTATIONS, argument, value)


def boolean(argument: str, value) -> bool:
    """Returns `True` or `False`; refuses what is merely truthy or falsy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{argument}` must be True or False; got {shown(value)}.")
    return bool(value)


def optional_name(argument: str, value) -> str | None:
    """Returns a string or `None`."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"`{argument}` must be a string or None; got {shown(value)}.")
    return value


def float_dtype(argument: str, value) -> np.dtype:
    """Returns a real floating dtype."""
    try:
        dtype = jnp.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if value is None or dtype is None or dtype not in FLOATS:
        policy = (isinstance(value, str) and value.startswith("mixed_")) or isinstance(value, Mapping)
        hint = " For one of Keras's policies, set `dtype` to its compute dtype." if policy else ""
        raise TypeError(
            f"`{argument}` must be one of {', '.join(map(str, FLOATS))}; got {shown(value)}.{hint}"
        )
    return dtype


def optional_dtype(argument: str, value) -> np.dtype | None:
    """Returns a real floating dtype or `None`."""
    return None if value is None else float_dtype(argument, value)


def precision(argument: str, value):
    """Returns `None`, one of lax's precisions, or a pair of them."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return tuple(precision(argument, each) for each in value)
    try:
        return lax.Precision(value)
    except ValueError:
        raise ValueError(
            f"`{argument}` must be None, 'default', 'high', 'highest', a jax.lax.Precision, or a pair of "
            f"these; got {shown(value)}."
        ) from None


def _identifier(module, argument: str, value) -> Hashable:
    return module.get(value, argument=argument)


_P = ParamSpec("_P")
_WEIGHTS = ("depthwise", "pointwise", "bias")
_INPUTS = ("input_shape", "batch_input_shape", "input_dim", "batch_size")
# Other libraries' names for Keras's arguments.
_SYNONYMS = dict.fromkeys(("features", "units", "out_channels", "output_dim"), "filters")


def names_unknown(init: Callable[_P, None]) -> Callable[_P, None]:
    """Makes a constructor refuse unknown keywords, naming the nearest known one."""
    _, *known = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{type(args[0]).__name__} has no argument `{name}`. {_instead(name, known)}")
        init(*args, **kwargs)

    return checked


def _instead(name: str, known: list[str]) -> str:
    """Says what to write instead of an argument that the layer does not have."""
    name += "ializer" * name.endswith("_init")  # as Flax abbreviates it
    kernel, _, part = name.rpartition("_")
    if kernel == "kernel" and f"depthwise_{part}" in known:
        return f"The layer has two kernels: use `depthwise_{part}` or `pointwise_{part}`."
    if name in _INPUTS:
        of_layer = " as `in_features`" if "in_features" in known else ""
        return f"The number of channels is taken from the input{of_layer}: leave it out."
    near = [_SYNONYMS[name]] if name in _SYNONYMS else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else f"It has {', '.join(f'`{each}`' for each in known)}."


IDENTIFIERS = {
    "activation": activations,
    **{f"{weight}_initializer": initializers for weight in _WEIGHTS},
    **{f"{part}_regularizer": regularizers for part in (*_WEIGHTS, "activity")},
    **{f"{weight}_constraint": constraints for weight in _WEIGHTS},
}
"""The module that resolves each argument that may be an identifier."""

NORMALIZE: dict[str, Callable[[str, Any], Any]] = {
    "filters": count,
    "kernel_size": size,
    "strides": size,
    "padding": functools.partial(choice, PADDINGS),
    "data_format": data_format,
    "dilation_rate": size,
    "depth_multiplier": count,
    "use_bias": boolean,
    "trainable": boolean,
    "name": optional_name,
    "dtype": optional_dtype,
    "param_dtype": float_dtype,
    "precision": precision,
    "preferred_element_type": optional_dtype,
    "implementation": implementation,
    **{argument: functools.partial(_identifier, module) for argument, module in IDENTIFIERS.items()},
}
"""The rule of each argument."""


def check_shape(argument: str, part, shape: tuple[int, ...]) -> None:
    """Refuses an initializer, regularizer or constraint that Keras would refuse on an array of this rank.

    Only this library's own objects are asked, since a caller's function might do anything. Nothing is computed, since
    the layer may be large. The number of input channels is not known yet.
    """
    if type(part).__module__ != IDENTIFIERS[argument].__name__:
        return
    try:
        part.check_shape((shape[0], None, shape[2]) if len(shape) == 3 else shape)
    except ValueError as error:
        raise ValueError(f"`{argument}` cannot be used in this layer: {error}") from None
