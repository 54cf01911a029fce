"""Checks single values, and the arrays, parameters and keys that the layer's functions are called with.

Each check refuses before anything is computed, with the argument's name, what came and what would do. `_arguments` says
which check each argument of a config takes; these run when the config is made.
"""

import contextlib
import difflib
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.export import is_symbolic_dim

from flax_sepconv._keras.objects import integer
from flax_sepconv._messages import shown

if TYPE_CHECKING:
    from flax_sepconv.config import SeparableConv1DConfig


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


def as_array(argument: str, value: Any) -> jax.Array | np.ndarray:
    """Returns `value` as an array if `jnp.asarray` accepts it; arrays of JAX and NumPy come back as they are."""
    if isinstance(value, jax.Array) or type(value) is np.ndarray:
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`{argument}` must be an array; got {value}, which has no values. To compute shapes only, call the "
            "function through `jax.eval_shape`."
        )
    try:
        return jnp.asarray(value)
    except Exception as error:  # another library's conversion may raise anything
        reason = str(error).partition("\n")[0][:100]
    hint = " Unbox it with `flax.core.meta.unbox`." if hasattr(type(value), "unbox") else ""
    raise TypeError(f"`{argument}` must be an array; got {shown(value)} ({reason}).{hint}")


def as_real(argument: str, value: Any) -> jax.Array | np.ndarray:
    """Returns `value` as an array of real numbers."""
    array = as_array(argument, value)
    if array.dtype in FLOATS or jnp.issubdtype(array.dtype, jnp.integer):
        return array
    raise TypeError(
        f"`{argument}` must hold real numbers; got an array of dtype {array.dtype}. Integers, "
        f"{', '.join(map(str, FLOATS[:-1]))} and {FLOATS[-1]} would do: convert it with `.astype`."
    )


def as_integers(argument: str, value: Any) -> jax.Array | np.ndarray:
    """Returns `value` as an array of integers, without any of them wrapping."""
    if isinstance(value, int | list | tuple):
        with contextlib.suppress(Exception):  # anything else is refused below
            value = np.asarray(value)
    array = as_array(argument, value)
    if array is not value and not isinstance(array, Tracer):
        array = np.asarray(value)  # in the dtype that it had before JAX narrowed it
    if not jnp.issubdtype(array.dtype, jnp.integer):
        hint = " Pass a mask as `segment_ids=mask.astype(int)`." if array.dtype == bool else ""
        raise TypeError(f"`{argument}` must hold integers; got an array of dtype {array.dtype}.{hint}")
    return array


def check_key(argument: str, key: Any) -> None:
    """Refuses anything but a single random key of JAX, typed or raw."""
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            batch = key.shape
        else:
            try:
                batch = jax.eval_shape(jax.random.wrap_key_data, key).shape
            except (ValueError, TypeError):
                batch = None
        if batch == ():
            return
        if batch is not None:
            raise ValueError(
                f"`{argument}` must be one random key; got a batch of the shape {batch}. Map the function over the "
                "keys with `jax.vmap`."
            )
    raise TypeError(
        f"`{argument}` must be a random key of JAX's, such as `jax.random.key(0)` or, from an `nnx.Rngs`, "
        f"`rngs.params()`; got {shown(key)}."
    )


def check_input(x: Any, config: "SeparableConv1DConfig") -> jax.Array | np.ndarray:
    """Returns the input as an array; refuses one that the layer cannot take."""
    x = check_axes(x, config)
    config.output_length(x.shape[config.time_axis])  # refuses a length that gives no output
    return x


def check_axes(x: Any, config: "SeparableConv1DConfig") -> jax.Array | np.ndarray:
    """Returns the input as an array of any length; refuses one without time and channels."""
    x = as_real("x", x)
    axes = "(*batch, length, channels)" if config.channel_axis == -1 else "(*batch, channels, length)"
    if len(x.shape) < 2:
        raise ValueError(f"`x` must be {axes}; got the shape {x.shape}.")
    if x.shape[config.channel_axis] == 0:
        raise ValueError(f"`x` must be {axes} with at least one channel; got the shape {x.shape}.")
    return x


def check_width(argument: str, dtype: Any) -> None:
    """Refuses a dtype that JAX would narrow."""
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"`{argument}` {dtype} needs jax.config.update('jax_enable_x64', True); got it off.")


def check_params(
    params: Any, in_features: int | None, config: "SeparableConv1DConfig"
) -> dict[str, jax.Array | np.ndarray]:
    """Returns the parameters of the layer as arrays; refuses anything else.

    If `in_features` is `None`, the depthwise kernel says how many input channels there are.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a dict of arrays; got {type(params).__name__}.")
    names = [weight.name for weight in config.weights(in_features=1)]
    for name in params:
        if name == "bias" and not config.use_bias:
            raise ValueError("`params` must not have a 'bias' since the config says use_bias=False; got one.")
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            hint = " Pass one layer's own dict, such as `variables['params']`." if name == "params" else hint
            raise ValueError(
                f"`params` must have just {', '.join(map(repr, names))}; got {', '.join(map(repr, params))}.{hint}"
            )
    for name in names:
        if name not in params:
            raise ValueError(
                f"`params` must have {', '.join(map(repr, names))}; got no {name!r}, only "
                f"{', '.join(map(repr, params)) or 'an empty dict'}."
            )
    arrays = {name: as_real(f"params[{name!r}]", params[name]) for name in names}
    if in_features is None:
        shape = arrays["depthwise_kernel"].shape
        in_features = int(max(shape[1], 1)) if len(shape) == 3 else 1
    for weight in config.weights(in_features):
        shape = arrays[weight.name].shape
        if shape != weight.shape:
            raise ValueError(
                f"`params[{weight.name!r}]` must have the shape {weight.shape} for {in_features} input channels "
                f"and {config}; got {shape}."
            )
    return arrays
