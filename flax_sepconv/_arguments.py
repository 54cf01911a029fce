"""The rule of each argument of the layer, `normalize(argument, value) -> canonical value`, and of their names."""

import difflib
import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec

from flax_sepconv import activations, constraints, initializers, regularizers
from flax_sepconv._kernels import IMPLEMENTATIONS
from flax_sepconv._validation import (
    boolean,
    choice,
    count,
    float_dtype,
    optional_dtype,
    optional_name,
    precision,
    size,
)
from flax_sepconv._window import PADDINGS

DATA_FORMATS = ("channels_last", "channels_first")


def data_format(argument: str, value) -> str:
    """Returns the data format; `None` is Keras's default."""
    return "channels_last" if value is None else choice(DATA_FORMATS, argument, value)


def implementation(argument: str, value) -> str | None:
    """Returns the name of an implementation, or `None` to let the library choose."""
    return None if value is None else choice(IMPLEMENTATIONS, argument, value)


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
