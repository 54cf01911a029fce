"""Resolves identifiers and writes them back: what the four identifier modules share.

Keras takes an initializer, regularizer, constraint or activation in many forms:

    "l2"  ·  {"class_name": "L2", "config": {...}}  ·  L2(0.1)  ·  L2  ·  keras's own L2(0.1)  ·  any callable

`resolve` turns each of them into one hashable object; `to_config` turns that into Keras 3's form. A `Family` lists
what one kind of identifier may be; there are no global registries. Names and dicts are untrusted, since they come from
files, so they reach only the constructors that a family lists, and these check their entries; nothing is imported,
looked up or run by name.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import jax

from flax_sepconv._keras.objects import KerasObject
from flax_sepconv._messages import shown


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes everything that one kind of identifier may be.

    Attributes:
        wanted: what would do, for messages.
        classes: this library's classes that Keras 3 has too.
        makers: constructors by each of Keras's names for them. Their parameters are the entries that a config may have.
        aliases: constructors by older names, which are understood but not suggested.
        functions: functions, which are the objects themselves, by name.
        refused: names that Keras knows and this library cannot serve, each with the reason.
        ignored: entries of a config that mean nothing here.
        called_with: the arguments that a caller's own callable is given.
    """

    wanted: str
    classes: tuple[type[KerasObject], ...]
    makers: Mapping[str, Callable[..., Any]]
    aliases: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    functions: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    called_with: tuple[str, ...] = ("x",)


class UnknownName(ValueError):
    """A name, or the config of a class or function, that is not Keras's own."""


def resolve(identifier: Any, family: Family, argument: str) -> Any:
    """Returns the object that `identifier` stands for.

    Args:
        identifier: a name, a Keras config, an object or class of this library or of Keras, or any hashable callable.
        family: what it may be.
        argument: what messages call it.

    Raises:
        ValueError: an unknown name, or a config that cannot be honoured.
        TypeError: neither a name, a config nor a hashable callable.
    """
    is_function = isinstance(identifier, FunctionType)
    if type(identifier) in family.classes or (is_function and identifier in family.functions.values()):
        return identifier  # the most frequent case
    if isinstance(identifier, str):
        return _make(identifier, {}, family, argument)
    if isinstance(identifier, Mapping):
        return _from_config(identifier, family, argument)
    if is_keras(identifier):
        # Keras's own object computes with another framework; ours of the same name replaces it.
        if hasattr(identifier, "get_config") and not isinstance(identifier, type):
            return _make(type(identifier).__name__, identifier.get_config(), family, argument)
        # TensorFlow names its newer `softmax` and `log_softmax` with a suffix.
        return _make(identifier.__name__.removesuffix("_v2"), {}, family, argument)
    if isinstance(identifier, type):
        try:
            identifier = identifier()
        except TypeError as error:
            raise TypeError(
                f"`{argument}` is {shown(identifier)}, a class that cannot be made with its defaults: {error}. Pass an "
                "instance of it."
            ) from None
    if isinstance(identifier, KerasObject) and identifier.keras_module != family.classes[0].keras_module:
        raise ValueError(f"`{argument}` must be {family.wanted}; got {shown(identifier)}.")
    _refuse_module(identifier, argument)
    if not callable(identifier) or not _takes(identifier, family.called_with):
        raise TypeError(f"`{argument}` must be {family.wanted}; got {shown(identifier)}.")
    try:
        hash(identifier)
    except TypeError:
        raise TypeError(
            f"`{argument}` must be hashable, as the layer's config is; got {shown(identifier)}. Pass a "
            "function, or an instance of a frozen dataclass with a `__call__`."
        ) from None
    return identifier


def _refuse_module(identifier: Any, argument: str) -> None:
    """Refuses a module of a neural network library that has parameters or other state of its own."""
    parts = [identifier, getattr(identifier, "__self__", None)]
    if isinstance(identifier, functools.partial):
        parts += [identifier.func, *identifier.args, *identifier.keywords.values()]
    for part in parts:
        for library in ("flax.linen", "flax.nnx", "equinox", "torch.nn"):
            if isinstance(part, getattr(sys.modules.get(library), "Module", ())) and jax.tree.leaves(part):
                advice = "Use it as a layer after this one" if argument == "activation" else "Pass a function"
                raise TypeError(
                    f"`{argument}` cannot be a module of {library} with parameters of its own, which no config holds "
                    f"and nothing would train; got {shown(part)}. {advice}."
                )


def _takes(function: Callable, arguments: tuple[str, ...]) -> bool:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some builtins have no signature
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def to_config(obj: Any, family: Family, argument: str) -> dict[str, Any]:
    """Returns the form in which Keras 3 writes an object.

    Args:
        obj: what `resolve` gave.
        family: what it may be.
        argument: what messages call it.

    Raises:
        ValueError: Keras 3 has no name for it.
    """
    if type(obj) not in family.classes:
        name = getattr(obj, "__name__", "").removesuffix("_keras2")
        hint = f" (its {name!r} is another function)" if name in family.functions else ""
        raise ValueError(
            f"`{argument}` is {shown(obj)}, which Keras 3 has no name for{hint}, so it cannot be written to "
            "a config. Use one that has a name, or pass the callable again where the config is read."
        )
    return {
        "module": obj.keras_module,
        "class_name": type(obj).__name__,
        "config": obj.get_config(),
        "registered_name": None,
    }


def names_of(classes: Iterable[type]) -> dict[str, type]:
    """Returns each class by the two names that Keras gives it: `MaxNorm` and `max_norm`."""
    names = {cls.__name__: cls for cls in classes}
    return names | {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): cls for name, cls in names.items()}


def is_keras(identifier: Any) -> bool:
    """Returns whether this is an object, class or activation function of Keras or TensorFlow itself.

    Its module tells, so Keras need not be imported. A user's subclass of a Keras class is the user's own. Functions of
    `keras.ops` are left alone: on Keras's JAX backend they take JAX's arrays, and some of them differ from the
    activations of the same name.
    """
    is_function = isinstance(identifier, FunctionType)
    owner = identifier if is_function or isinstance(identifier, type) else type(identifier)
    root, *inner = str(owner.__module__).split(".")
    if is_function:
        return root == "tensorflow" or (root in ("keras", "tf_keras") and "activations" in inner)
    return root in ("keras", "tf_keras", "tensorflow") and hasattr(owner, "get_config")


def is_keras2(identifier: Any) -> bool:
    """Returns whether this belongs to the Keras that came with TensorFlow, today's tf_keras."""
    owner = identifier if hasattr(identifier, "__module__") else type(identifier)
    return is_keras(identifier) and not owner.__module__.startswith("keras.")


def _make(name: str, entries: Mapping, family: Family, argument: str) -> Any:
    """Makes the object that an untrusted name stands for, with the arguments that came with it."""
    if name in family.refused:
        raise ValueError(f"`{argument}` cannot be {name!r}: {family.refused[name]}")
    if name in family.functions and not entries:
        return family.functions[name]
    maker = family.makers.get(name) or family.aliases.get(name)
    if maker is None:
        hint = _did_you_mean(name, [*family.makers, *family.functions])
        raise UnknownName(f"`{argument}` must be {family.wanted}; got {shown(name)}.{hint}")
    entries = {key: value for key, value in entries.items() if key not in family.ignored}
    accepted = _parameters(maker)
    for key in entries:
        if key not in accepted:
            hint = _did_you_mean(str(key), accepted) if accepted else " It takes none."
            raise ValueError(f"`{argument}`: {name!r} has no argument {shown(key)}.{hint}")
    try:
        return maker(**entries)
    except (TypeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"`{argument}`: {error}") from None


@functools.cache
def _parameters(maker: Callable) -> Mapping[str, Any]:
    """Returns the parameters of one of a family's constructors, of which there are few."""
    return inspect.signature(maker).parameters


_CONFIG_KEYS = ("module", "class_name", "config", "registered_name")
# Entries that Keras may add to an object's config for its own bookkeeping.
_BOOKKEEPING = ("shared_object_id", "build_config", "compile_config", "__passive_serialization__")


def _from_config(config: Mapping, family: Family, argument: str) -> Any:
    """Makes the object that a config describes, in the form of Keras 2 (`class_name`, `config`) or of Keras 3."""
    class_name, entries = config.get("class_name"), config.get("config")
    entries = {} if entries is None else entries
    is_function = class_name == "function"
    name = entries if is_function else class_name
    if not isinstance(name, str) or not (is_function or isinstance(entries, Mapping)):
        raise TypeError(
            f"`{argument}` must be {family.wanted}, and a config must have a 'class_name' and a 'config'; "
            f"got {shown(config)}."
        )
    for key in config:
        if key not in _CONFIG_KEYS + _BOOKKEEPING:
            raise ValueError(
                f"`{argument}` must be {family.wanted}; got a config with the entry {shown(key)}, "
                f"where Keras has {', '.join(map(repr, _CONFIG_KEYS))}."
            )
    # A user's class or function may share its name with one of Keras's. Keras writes it with its module (None for a
    # script) and the name that it is registered under.
    module, registered = config.get("module", "keras"), config.get("registered_name")
    theirs = str(module).partition(".")[0] not in ("keras", "tf_keras", "builtins")
    if theirs or registered not in (None, name, "function"):
        raise UnknownName(
            f"`{argument}` is the config of {shown(registered or name)}, which is not Keras's own, and "
            "nothing is imported by name. Pass the callable itself."
        )
    return _make(name, {} if is_function else entries, family, argument)


def _did_you_mean(name: str, known) -> str:
    """Returns a hint with the nearest known names, or with all of them where none is near."""
    # Where names differ in case and underscores only, as the two of a class do, the snake-case one remains.
    by_letters = {
        _letters(each): each for each in sorted(known, key=lambda each: (each.islower(), len(each)))
    }
    near = difflib.get_close_matches(_letters(name[:64]), by_letters, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(repr(by_letters[each]) for each in near)}?"
    return f" Known names are {', '.join(map(repr, sorted(by_letters.values())))}."


def _letters(name: str) -> str:
    return name.replace("_", "").lower()
