"""The layer's config as Keras writes it: translates the entries of `layer.get_config()` both ways.

Keras 3 and Keras 2 (TF 2.x, tf_keras) write the same arguments under the same names. Keras 2 adds what its
layer inherits from the general convolution (`groups`, `kernel_*`), and may write the dtype as a bare name.
"""

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax_sepconv import activations, initializers
from flax_sepconv._arguments import IDENTIFIERS
from flax_sepconv._keras.identifiers import UnknownName
from flax_sepconv._keras.unknown import UnknownInitializer, names
from flax_sepconv._messages import shown

# Keras 3's order of the entries.
_ENTRIES = (
    *("name", "trainable", "dtype"),
    *("depth_multiplier", "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate"),
    *("activation", "use_bias", "depthwise_initializer", "pointwise_initializer", "bias_initializer"),
    *("depthwise_regularizer", "pointwise_regularizer", "bias_regularizer", "activity_regularizer"),
    *("depthwise_constraint", "pointwise_constraint", "bias_constraint"),
)
# Entries that only Keras 2 writes, which mean nothing in this layer.
_KERAS_2_ENTRIES = ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
# Entries that Keras 2 stores with the first layer of a model: they describe the input, not the layer.
_INPUT_ENTRIES = ("batch_input_shape", "input_shape", "batch_size")

KNOWN = frozenset(_ENTRIES + _KERAS_2_ENTRIES + _INPUT_ENTRIES)
"""All entries that the layer's own class writes."""

_POLICY_CLASSES = ("DTypePolicy", "FloatDTypePolicy", "Policy", "PolicyV1")


def to_keras(config) -> dict[str, Any]:
    """Returns the entries of Keras 3 for a `SeparableConv1DConfig`."""
    return {entry: _entry(config, entry) for entry in _ENTRIES}


def from_keras(entries: Mapping[str, Any], keras2: bool | None = None) -> dict[str, Any]:
    """Returns the arguments of a `SeparableConv1DConfig` for a mapping of Keras 3's or Keras 2's entries.

    Args:
        entries: what `layer.get_config()` gave.
        keras2: whether a Keras before 3 wrote them, as their file says. With `None`, the entries that only Keras 2
            writes decide; its first versions left them out.
    """
    arguments = _arguments(entries)
    keras2 = _is_keras2(entries) if keras2 is None else keras2
    arguments["activation"] = activations.get(entries.get("activation"), argument="activation", keras2=keras2)
    return arguments


class Refused(NamedTuple):
    """An identifier in a file that this library cannot resolve.

    Attributes:
        name: its name, if it is not Keras's own.
        reason: why it is refused.
    """

    name: str | None
    reason: str


def from_file(
    entries: Mapping[str, Any],
    keras2: bool | None = None,
    custom: Callable[[Any], tuple[str, Any] | None] = lambda identifier: None,
) -> tuple[dict[str, Any], dict[str, Refused]]:
    """Returns the arguments for entries that come with weights, and the refused identifiers, which are left out.

    A refused initializer becomes an `UnknownInitializer`, since nothing has to be drawn.

    Args:
        entries: what `layer.get_config()` gave.
        keras2: as for `from_keras`.
        custom: returns the caller's name and replacement for an identifier, or `None`.
    """
    arguments, refused = _arguments(entries), {}
    keras2 = _is_keras2(entries) if keras2 is None else keras2
    for argument, module in IDENTIFIERS.items():
        if argument not in arguments:
            continue
        identifier = arguments.pop(argument)
        found = custom(identifier)
        if found is not None:
            name, value = found
            arguments[argument] = module.get(value, argument=f"custom_objects[{name!r}]")
            continue
        options = {"keras2": keras2} if module is activations else {}
        try:
            arguments[argument] = module.get(identifier, argument=argument, **options)
        except (ValueError, TypeError, OverflowError) as error:
            known = names(identifier)[:1]
            is_custom = isinstance(error, UnknownName) or known == ["__lambda__"]
            if module is initializers:
                arguments[argument] = UnknownInitializer.of(identifier, str(error))
            else:
                refused[argument] = Refused(known[0] if is_custom and known else None, str(error))
    return arguments, refused


def _is_keras2(entries: Mapping[str, Any]) -> bool:
    """Returns whether only Keras 2 writes such entries."""
    return any(entry in entries for entry in _KERAS_2_ENTRIES)


def _arguments(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments, with identifiers unresolved."""
    if not isinstance(entries, Mapping):
        raise TypeError(f"`config` must be a mapping, as `layer.get_config()` gives; got {shown(entries)}.")
    for entry in entries:
        if entry not in KNOWN:
            close = difflib.get_close_matches(str(entry)[:64], _ENTRIES, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"`config` has an entry {shown(entry)} that SeparableConv1D does not know.{hint}"
            )
    for entry in ("filters", "kernel_size"):
        if entry not in entries:
            raise ValueError(f"`config` must have an entry {entry!r}; got only {sorted(map(str, entries))}.")
    if entries.get("groups", 1) != 1:
        raise ValueError(f"`groups` must be 1 in a separable convolution; got {shown(entries['groups'])}.")
    for entry in _KERAS_2_ENTRIES[1:]:
        if not _is_default(entry, entries.get(entry)):
            part = entry.removeprefix("kernel_")
            warnings.warn(
                f"`config` sets {entry!r}, which a SeparableConv1D ignores, as Keras does: it has two kernels. Use "
                f"'depthwise_{part}' or 'pointwise_{part}'.",
                stacklevel=4,
            )
    arguments = {entry: entries[entry] for entry in _ENTRIES if entry in entries}
    return arguments | _dtypes(arguments.pop("dtype", None))


def _is_default(entry: str, value: Any) -> bool:
    """Returns whether an entry for the single kernel of other convolutions is the default that Keras 2 writes."""
    if value is None or entry != "kernel_initializer":
        return value is None
    try:
        return initializers.get(value) == initializers.GlorotUniform()
    except (ValueError, TypeError):  # it is one of the user's own
        return False


def _entry(config, entry: str):
    if entry == "dtype":
        return _policy(config)
    value = getattr(config, entry)
    if entry in ("kernel_size", "strides", "dilation_rate"):
        return (value,)
    if entry in IDENTIFIERS:
        return IDENTIFIERS[entry].serialize(value, argument=entry)
    return value


def _policy(config) -> dict[str, Any]:
    """Returns Keras's dtype policy for the config's two dtypes."""
    stored = config.param_dtype.name
    computed = stored if config.dtype is None else config.dtype.name
    name = stored if computed == stored else f"mixed_{computed}"
    if computed != stored and (stored != "float32" or computed not in ("float16", "bfloat16")):
        raise ValueError(
            "`dtype` and `param_dtype` must be equal, or float16 or bfloat16 over float32, to be a policy of "
            f"Keras; got dtype={computed} and param_dtype={stored}."
        )
    return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}, "registered_name": None}


def _dtypes(policy) -> dict[str, Any]:
    """Returns the config's two dtypes for Keras's policy, given by name or by its config."""
    if policy is None:
        return {}
    name = policy
    if isinstance(policy, Mapping) and policy.get("class_name") in _POLICY_CLASSES:
        inner = policy.get("config")
        name = inner.get("name") if isinstance(inner, Mapping) else None
    match name:
        case "float32":
            return {}
        case "mixed_float16" | "mixed_bfloat16":
            return {"dtype": name.removeprefix("mixed_"), "param_dtype": "float32"}
        case "float16" | "bfloat16" | "float64":
            return {"dtype": name, "param_dtype": name}
    raise ValueError(
        "`dtype` must be 'float32', 'float16', 'bfloat16', 'float64', 'mixed_float16' or 'mixed_bfloat16', or "
        f"the config of such a policy; got {shown(policy)}."
    )
