"""Reads a Keras model's config as a tree of layers, and finds the `SeparableConv1D` layers in it.

Every Keras version writes a layer as `{"class_name": ..., "config": {...}}`, and the layers inside it somewhere in that
inner config: a model in the list `layers`, a wrapper under `layer`, a user's own class under any name. So whatever has
these two entries counts as a layer here, and nothing needs to be known about the classes around it; none is imported.
"""

import collections
import dataclasses
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax_sepconv._arguments import IDENTIFIERS
from flax_sepconv._keras import layer_config
from flax_sepconv._keras.layer_config import Refused
from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.reading import Reading

_NAME_LIMIT = 256
_TEXT_LIMIT = 2**20  # for a function's code, which Keras writes for lambdas and nobody reads here
# Costs in steps: making a config, each value and each list in one, and anything else that has a class and a config.
CONFIG_STEPS, _VALUE_STEPS, _LIST_STEPS, _LAYER_STEPS, _LAYER_BYTES = 250, 2, 6, 30, 1000

_CLASS = "SeparableConv1D"
_CLASSES = (_CLASS, "SeparableConvolution1D")
_PACKAGES = ("", "keras", "tf_keras", "tensorflow", "tf")


class Settings(NamedTuple):
    """What a file says about a `SeparableConv1D`.

    Attributes:
        config: its config.
        refused: the arguments that are not understood, which have their defaults in the config.
        unsaid: the arguments that the file leaves out and that the weights' shapes tell.
    """

    config: SeparableConv1DConfig
    refused: dict[str, Refused]
    unsaid: frozenset[str]


@dataclasses.dataclass(eq=False, slots=True, weakref_slot=True)
class Layer:
    """A layer at one place in a model.

    Attributes:
        name: its name.
        class_name: its class, without a package.
        full_name: its class, after the name of the package that registered it, unless that is Keras;
            `SeparableConv1D` if the caller says that the class is one.
        config: the entries of its own config.
        path: the names from below the model down to it, joined with `/`.
        trainable: whether it and all layers that hold it are trainable.
        holder: a weak reference to the layer that holds it, which must be kept alive; `None` for the model itself.
        slot: the entry of the parent's config that holds it.
        in_list: whether that entry holds a list or dict of layers.
        children: the layers it holds, in order.
        holds: whether it is a `SeparableConv1D` or has one below.
        same_as: the same layer at an earlier place, if the model uses it at several.
        settings: what is known about a `SeparableConv1D`, else `None`.
    """

    name: str
    class_name: str
    full_name: str
    config: Mapping[str, Any]
    path: str
    trainable: bool
    holder: "weakref.ref[Layer] | None"
    slot: str
    in_list: bool
    children: list["Layer"] = dataclasses.field(default_factory=list)
    holds: bool = False
    same_as: "Layer | None" = None
    settings: Settings | None = None

    @property
    def parent(self) -> "Layer | None":
        """The layer that holds it, or `None` for the model itself."""
        return self.holder() if self.holder else None

    @property
    def original(self) -> "Layer":
        """This layer at the first of its places."""
        return self.same_as or self

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer: an initializer or the like has no name, and a dtype policy is in the slot `dtype`."""
        return self.slot != "dtype" and isinstance(self.config.get("name"), str)

    def walk(self) -> Iterator["Layer"]:
        """Yields this layer and all layers below it, in order."""
        yield self
        for child in self.children:
            if child.is_layer:
                yield from child.walk()

    def holding(self) -> Iterator["Layer"]:
        """Yields those of this layer and the layers below it that hold a `SeparableConv1D`, in order."""
        if self.holds:
            yield self
            for child in self.children:
                yield from child.holding()

    def separable(self) -> list["Layer"]:
        """Lists the `SeparableConv1D` layers among these, at each of their places."""
        return [layer for layer in self.holding() if layer.settings]


def tree(entry: Any, keras2: bool | None, reading: Reading) -> Layer:
    """Builds the tree of layers that a model's config describes.

    Args:
        entry: the config, parsed from JSON.
        keras2: whether a Keras before 3 wrote it; `None` if unknown.
        reading: how the file is read.

    Raises:
        ValueError: it is not a model's config, is far too large, or has a `SeparableConv1D` with a config that Keras
            would refuse.
    """
    if not is_layer(entry):
        raise ValueError(
            "its model config is not one that Keras writes: it has no 'class_name' and 'config'."
        )
    return _Reader(keras2, reading).layer(entry, None, "", False, None)


def is_keras2(version: Any) -> bool | None:
    """Returns whether this version, as a file has it, is of a Keras before 3; `None` if it is not a version."""
    major = version.partition(".")[0] if isinstance(version, str) else ""
    return int(major) < 3 if re.fullmatch("[0-9]{1,4}", major) else None


def is_layer(entry: Any) -> bool:
    """Returns whether this is how Keras writes a layer, or any other of its objects."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("class_name"), str)
        and isinstance(entry.get("config"), dict | list)
    )


def full_name(entry: Mapping) -> str:
    """Returns the class of an entry, after the name of the package that registered it, unless that is Keras."""
    package, _, name = entry["class_name"].rpartition(">")
    registered, _, _ = str(entry.get("registered_name") or "").rpartition(">")
    module, _, _ = str(entry.get("module", "keras")).partition(".")
    others = [
        each for each in (package, registered, module) if each.partition(".")[0].lower() not in _PACKAGES
    ]
    return f"{others[0]}>{name}" if others else name


def is_separable(entry: Mapping, reading: Reading) -> bool:
    """Returns whether this is Keras's own layer or one that the caller says is, and not a namesake."""
    is_ours = full_name(entry) in _CLASSES or reading.custom_objects.is_layer(entry)
    return is_ours and isinstance(entry["config"], dict)


def settings(entry: Mapping, keras2: bool | None, reading: Reading) -> Settings:
    """Reads the entry of a `SeparableConv1D` with the meaning that it has for the Keras that wrote it.

    Raises:
        ValueError: Keras would refuse it too, or the caller's object for a name in it does not fit.
    """
    config = entry["config"]
    if full_name(entry) not in _CLASSES:  # a class made from it may write entries of its own
        config = {name: value for name, value in config.items() if name in layer_config.KNOWN}
    reading.budget.step(CONFIG_STEPS)
    try:
        for name, value in config.items():
            _check_strings(value, reading.budget, _TEXT_LIMIT if name in IDENTIFIERS else _NAME_LIMIT)
        arguments, refused = layer_config.from_file(config, keras2, reading.custom_objects.find)
        made = SeparableConv1DConfig(**arguments)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    # TensorFlow 1.1 left the multiplier out.
    unsaid = frozenset({"depth_multiplier", "use_bias"} - config.keys())
    return Settings(made, refused, unsaid)


class Names:
    """Gives each name only once: users' own classes may hold several layers with one name."""

    def __init__(self):
        self._taken: set[str] = set()
        self._numbers: collections.Counter[str] = collections.Counter()

    def unused(self, name: str) -> str:
        """Returns the name, with a number if it is taken."""
        numbered = name
        while numbered in self._taken:
            self._numbers[name] += 1
            numbered = f"{name}_{self._numbers[name]}"
        self._taken.add(numbered)
        return numbered


def snake_case(class_name: str, keras2: bool) -> str:
    """Returns a class's name in lower case, as Keras writes it: `SeparableConv1D` is `separable_conv1d`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return f"private{name}" if keras2 and name.startswith("_") else name


class _Reader:
    """Builds the tree, and remembers the shared layers found so far."""

    def __init__(self, keras2: bool | None, reading: Reading):
        self.keras2, self.reading, self.budget = keras2, reading, reading.budget
        self.shared: dict[Any, Layer] = {}

    def layer(
        self, entry: Mapping, parent: Layer | None, slot: str, in_list: bool, twin: Layer | None
    ) -> Layer:
        """Builds an entry's layer and all below it; `twin` is the same place in an earlier use of the parent."""
        config = entry["config"]
        config = {"layers": config} if isinstance(config, list) else config  # a Sequential of Keras 1
        class_name = entry["class_name"].rpartition(">")[2]
        name = config.get("name", entry.get("name"))
        if len(class_name) > _NAME_LIMIT:
            raise ValueError(
                f"its model config has a class whose name has more than {_NAME_LIMIT} characters."
            )
        name = name if isinstance(name, str) and name else snake_case(class_name, keras2=False)
        if max(len(name), len(slot)) > _NAME_LIMIT:
            raise ValueError(f"its model config has a name of more than {_NAME_LIMIT} characters.")
        self.budget.step(_LAYER_STEPS)
        path = f"{parent.path}/{name}" if parent and parent.parent else name
        self.budget.hold(_LAYER_BYTES + len(path))
        holder = weakref.ref(parent) if parent else None
        trainable = bool(config.get("trainable", True)) and (parent is None or parent.trainable)
        ours, shared_id = is_separable(entry, self.reading), entry.get("shared_object_id")
        full = _CLASS if ours else full_name(entry)
        layer = Layer(name, class_name, full, config, path, trainable, holder, slot, in_list)
        if isinstance(shared_id, int | str):
            twin = self.shared.setdefault((shared_id, class_name, ours), layer)
        if twin and twin is not layer and (twin.class_name, twin.settings is not None) == (class_name, ours):
            layer.same_as = twin.original
        if ours:
            try:
                layer.settings, layer.holds = settings(entry, self.keras2, self.reading), True
            except ValueError as error:
                self.reading.fail(path, str(error))
            return layer
        twins = iter(layer.same_as.children if layer.same_as else ())
        for key, value in config.items():
            for child, listed in _layers_in(value):
                layer.children.append(self.layer(child, layer, key, listed, next(twins, None)))
        layer.holds = any(child.holds for child in layer.children)
        return layer


def entries_in(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the entries of the objects that a layer's config says it holds."""
    for value in config.values():
        for entry, _ in _layers_in(value):
            if isinstance(entry["config"], dict):
                yield dict(entry)


def _layers_in(value: Any, listed: bool = False) -> Iterator[tuple[Mapping, bool]]:
    """Yields the entries of layers in a part of a config, and whether each is in a list or dict."""
    if is_layer(value):
        yield value, listed
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _layers_in(each, listed=True)


def _check_strings(value: Any, budget: Budget, limit: int) -> None:
    """Refuses texts that no layer's config has, before anything is made from them."""
    if isinstance(value, str):
        if len(value) > limit:
            raise ValueError(f"its config has a text of more than {limit} characters, {shown(value)}.")
        budget.step(len(value) // 256)
    if isinstance(value, dict | list):
        budget.step(_VALUE_STEPS * len(value) + (_LIST_STEPS if isinstance(value, list) else 0))
        for each in value if isinstance(value, list) else (*value, *value.values()):
            _check_strings(each, budget, limit)
