"""A Keras model's config as a tree of layers, and the `SeparableConv1D` layers in it.

Every Keras writes a layer as `{"class_name": ..., "config": {...}}`, and the layers inside it somewhere in that
inner config: a model in the list `layers`, a wrapper under `layer`, a class of one's own under any name. So
whatever has these two entries counts as a layer here, and nothing needs to be known of the classes around it;
none is imported.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flax_sepconv import _keras_config
from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig

# A config of the largest models has some 2 MiB and is nested some 20 deep.
SIZE_LIMIT, _DEPTH_LIMIT, LAYER_LIMIT, _NAME_LIMIT = 8 * 2**20, 200, 500, 256

_CLASSES = ("SeparableConv1D", "SeparableConvolution1D")
_PACKAGES = ("", "keras", "tf_keras", "tensorflow", "tf")


@dataclasses.dataclass(eq=False, slots=True)
class Layer:
    """A layer at one place in a model.

    Attributes:
        name: its name.
        class_name: its class, without a package.
        config: the entries of its own config.
        parent: the layer that holds it, `None` for the model itself.
        slot: the entry of the parent's config that holds it.
        in_list: whether that entry holds a list or dict of layers.
        children: the layers it holds, in order.
        holds: whether it is a `SeparableConv1D` or has one below.
        same_as: the layer itself at an earlier place, where the model uses one layer at several.
        settings: the config of a `SeparableConv1D`, else `None`.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    parent: "Layer | None"
    slot: str
    in_list: bool
    children: list["Layer"] = dataclasses.field(default_factory=list)
    holds: bool = False
    same_as: "Layer | None" = None
    settings: SeparableConv1DConfig | None = None

    @property
    def path(self) -> str:
        """The names from below the model down to this layer, joined with `/`."""
        return "/".join(each.name for each in reversed([*self.ancestors()][:-1])) or self.name

    @property
    def original(self) -> "Layer":
        """This layer at the first of its places."""
        return self.same_as or self

    @property
    def trainable(self) -> bool:
        """Whether this and all that holds it is trainable."""
        return all(each.config.get("trainable", True) for each in self.ancestors())

    def ancestors(self) -> Iterator["Layer"]:
        """This layer, what holds it, and so on up to the model."""
        layer: Layer | None = self
        while layer:
            yield layer
            layer = layer.parent

    def holding(self) -> Iterator["Layer"]:
        """This layer and all below it that hold a `SeparableConv1D`, in order."""
        if self.holds:
            yield self
            for child in self.children:
                yield from child.holding()

    def separable(self) -> list["Layer"]:
        """The `SeparableConv1D` layers among these, at each of their places."""
        return [layer for layer in self.holding() if layer.settings]


def read(text: bytes | str, keras2: bool | None) -> Layer:
    """The tree of layers that a model's config in JSON describes.

    Args:
        text: the JSON.
        keras2: whether a Keras before 3 wrote it; `None` where the file does not say.

    Raises:
        ValueError: it is not JSON, not a model's config, beyond all measure, or a `SeparableConv1D` in it has
            a config that Keras would refuse.
    """
    entry = parse(text)
    if not is_layer(entry):
        raise ValueError(
            "its model config is not one that Keras writes: it has no 'class_name' and 'config'."
        )
    return _Reader(keras2).layer(entry, None, "", False, None)


def is_keras2(version: Any) -> bool | None:
    """Whether this version, as a file has it, is one of a Keras before 3; `None` where it is no version."""
    major, _, _ = str(version).partition(".")
    return int(major) < 3 if re.fullmatch("[0-9]{1,4}", major) else None


def parse(text: bytes | str) -> Any:
    """JSON of bounded size and depth.

    Raises:
        ValueError: too large, too deeply nested, or not JSON.
    """
    if len(text) > SIZE_LIMIT:
        raise ValueError(f"its model config has {len(text)} bytes, more than any model's.")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        if _depth(text) > _DEPTH_LIMIT:
            raise ValueError("its model config is nested deeper than any model's.")
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its model config is not JSON: {error}.") from None


def is_layer(entry: Any) -> bool:
    """Whether this is how Keras writes a layer, or any other of its objects."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("class_name"), str)
        and isinstance(entry.get("config"), dict | list)
    )


def is_separable(entry: Mapping) -> bool:
    """Whether this is Keras's own layer, and no class of the same name of somebody else's."""
    package, _, name = entry["class_name"].rpartition(">")
    registered, _, _ = str(entry.get("registered_name") or "").rpartition(">")
    module = str(entry.get("module", "keras"))
    owners = (each.partition(".")[0].lower() for each in (package, registered, module))
    return (
        name in _CLASSES and isinstance(entry["config"], dict) and all(each in _PACKAGES for each in owners)
    )


def settings(entry: Mapping, path: str, keras2: bool | None) -> SeparableConv1DConfig:
    """The config of the `SeparableConv1D` of an entry, with the meaning that it has for the Keras that wrote it.

    Raises:
        ValueError: Keras would refuse it too; the message names the layer's path.
    """
    try:
        _check_strings(entry["config"])
        return SeparableConv1DConfig(**_keras_config.from_keras(entry["config"], keras2))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"layer {shown(path)}: {error}") from None


def unused(key: str, taken: Mapping[str, Any]) -> str:
    """The key, numbered where it is taken: classes of somebody's own may hold several layers of one name."""
    numbered = (f"{key}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain((key,), numbered) if each not in taken)


def snake_case(class_name: str, keras_2: bool) -> str:
    """A class's name as Keras writes it in lower case: `SeparableConv1D` is `separable_conv1d`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return f"private{name}" if keras_2 and name.startswith("_") else name


class _Reader:
    """Makes the tree, and knows the layers that the model shares by now."""

    def __init__(self, keras2: bool | None):
        self.keras2 = keras2
        self.shared: dict[Any, Layer] = {}
        self.count = 0

    def layer(
        self, entry: Mapping, parent: Layer | None, slot: str, in_list: bool, twin: Layer | None
    ) -> Layer:
        """The layer of an entry, with all below it; `twin` is the same place in an earlier use of the parent."""
        config = entry["config"]
        config = {"layers": config} if isinstance(config, list) else config  # a Sequential of Keras 1
        class_name = entry["class_name"].rpartition(">")[2]
        name = config.get("name", entry.get("name"))
        name = name if isinstance(name, str) and name else snake_case(class_name, keras_2=False)
        if max(map(len, (name, class_name, slot))) > _NAME_LIMIT:
            raise ValueError(f"its model config has a name of more than {_NAME_LIMIT} characters.")
        layer = Layer(name, class_name, config, parent, slot, in_list)
        ours, shared_id = is_separable(entry), entry.get("shared_object_id")
        if isinstance(shared_id, int | str):
            twin = self.shared.setdefault((shared_id, class_name, ours), layer)
        if twin and twin is not layer and (twin.class_name, twin.settings is not None) == (class_name, ours):
            layer.same_as = twin.original
        if ours:
            self.count += 1
            if self.count > LAYER_LIMIT:
                raise ValueError(
                    f"it has more than {LAYER_LIMIT} SeparableConv1D layers, more than any model."
                )
            layer.settings, layer.holds = settings(entry, layer.path, self.keras2), True
            return layer
        twins = iter(layer.same_as.children if layer.same_as else ())
        for key, value in config.items():
            for child, listed in _layers_in(value):
                layer.children.append(self.layer(child, layer, key, listed, next(twins, None)))
        layer.holds = any(child.holds for child in layer.children)
        return layer


def _layers_in(value: Any, listed: bool = False) -> Iterator[tuple[Mapping, bool]]:
    """The entries of layers in a part of a config, and whether each is one of a list."""
    if is_layer(value):
        yield value, listed
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _layers_in(each, listed=True)


def _check_strings(value: Any) -> None:
    """Refuses texts that no config of a layer has, before anything is made of them."""
    if isinstance(value, str) and len(value) > _NAME_LIMIT:
        raise ValueError(f"its config has a text of more than {_NAME_LIMIT} characters, {shown(value)}.")
    if isinstance(value, dict | list):
        for each in value if isinstance(value, list) else (*value, *value.values()):
            _check_strings(each)


def _depth(text: str) -> int:
    """How deep JSON is nested, found without nesting anything."""
    without_strings = re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", text, flags=re.DOTALL)
    brackets = np.frombuffer(re.sub(r"[^\[\]{}]+", "", without_strings).encode(), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.where(opening, np.int8(1), np.int8(-1)).cumsum(dtype=np.int32).max(initial=0))
