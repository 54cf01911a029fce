"""Finds every layer of a model's file, with its arrays in the file.

A layer is whatever the model's config describes as one: it has a name of its own. Its arrays are

    .keras      those in the layer's groups, except for those in the groups of layers below it
    .h5         those whose names contain its name; if names do not tell, those at its place in the order

so that every array belongs to one layer: an array that no layer below claims is the holder's, under its name in the
file.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from flax_sepconv.interop._files import description
from flax_sepconv.interop._files.description import Layer
from flax_sepconv.interop._files.hdf5 import Dataset, Group
from flax_sepconv.interop._files.pairing import Places
from flax_sepconv.interop._files.pairing_archive import groups_by_rule
from flax_sepconv.interop._files.pairing_hdf5 import attribute_list, holders
from flax_sepconv.interop._flax_layers import KerasLayer, Path, is_known, named, weight_names

# Besides the layers, Keras's own format has these in the model's group.
_NO_LAYERS = ("optimizer", "metrics")
# The state of a random generator, which is not a weight.
_SEED = "seed_generator"
# The group of the model's own weights in an HDF5 file.
_TOP_LEVEL = "top_level_model_weights"
_STEPS = 10  # for each group on the path to an array, and each array


@dataclasses.dataclass
class Placed:
    """A layer and where its arrays are.

    Attributes:
        class_name: its class, as `KerasLayer` has it.
        config: its config.
        places: its arrays by Keras's names, for each place where the file has them; Keras uses the last.
    """

    class_name: str
    config: dict[str, Any]
    places: list[dict[str, Dataset]]

    @property
    def weights(self) -> dict[str, Dataset]:
        """Its arrays as Keras would load them."""
        return self.places[-1] if self.places else {}

    def read(self) -> KerasLayer:
        """Reads the layer with the values of its weights."""
        weights = {name: array.read() for name, array in self.weights.items()}
        return KerasLayer(self.class_name, self.config, weights)


def in_archive(model: Layer, root: Group, keras2: bool, found: Places) -> dict[Path, Placed]:
    """Finds the layers of a file in Keras's own format, in the order of the model.

    Args:
        model: the tree of its layers.
        root: the root of its HDF5 file.
        keras2: whether Keras 2 wrote it.
        found: the weights of the `SeparableConv1D` layers, some of which no rule finds.
    """
    groups = groups_by_rule(model, root, keras2, every=True)
    # By the addresses of their groups; an array's own group is `vars`, inside the layer's.
    owners = {
        array.parent.parent.address: layer
        for layer, places in found.items()
        for place in places
        for array in place.values()
        if array.parent and array.parent.parent
    }
    for layer in model.walk():
        group = groups.get(layer)
        if group is not None and layer.same_as is None:
            owners.setdefault(group.address, layer)
    arrays: dict[Layer, dict[str, Dataset]] = collections.defaultdict(dict)
    for group in root.walk():
        inside, here = [], group
        while here.address not in owners and here.parent:
            inside.insert(0, here.name)
            here = here.parent
            root.file.budget.step(_STEPS)
        owner, outermost = owners.get(here.address, model), inside[:1]
        inside = [name for name in inside if name != "vars"]
        if _SEED in inside or (owner is model and outermost and outermost[0] in _NO_LAYERS):
            continue
        for name in sorted(group.names(), key=lambda name: (len(name), name)):
            array = group.child(name)
            if isinstance(array, Dataset) and array.is_float:
                arrays[owner]["/".join([*inside, name])] = array
    return _by_path(model, {layer: [found] for layer, found in arrays.items()})


def in_hdf5(model: Layer, root: Group) -> dict[Path, Placed]:
    """Finds the layers of an HDF5 file, in the order of the model.

    Args:
        model: the tree of its layers.
        root: the group that contains a group for each layer of the outermost model.
    """
    places: dict[Layer, list[dict[str, Dataset]]] = collections.defaultdict(list)
    outermost = holders(model, root)
    undescribed: dict[str, Dataset] = {}  # arrays of layers that a user's own class leaves out of its config
    for name in dict.fromkeys((*attribute_list(root, "layer_names"), _TOP_LEVEL)):
        group = root.group(name)
        if group is None:
            continue
        for layer, arrays in _shared_out(outermost.get(name, model), group).items():
            if layer is model:
                prefix = "" if name == _TOP_LEVEL else f"{name}/"
                undescribed |= {f"{prefix}{leaf.removeprefix(prefix)}": each for leaf, each in arrays.items()}
            else:
                places[layer.original].append(arrays)
    if undescribed:
        places[model].append(undescribed)
    return _by_path(model, places)


def _shared_out(holder: Layer, group: Group) -> dict[Layer, dict[str, Dataset]]:
    """Assigns each array of an outermost layer's group to the layer that it belongs to."""
    below = [*holder.walk()][1:]
    by_name: dict[str, list[Layer]] = collections.defaultdict(list)
    for layer in below:
        by_name[layer.name].append(layer)
    found: dict[Layer, dict[str, Dataset]] = collections.defaultdict(dict)
    nameless: dict[tuple[str, ...], dict[str, Dataset]] = collections.defaultdict(dict)
    for full in attribute_list(group, "weight_names"):
        array = group.get(full)
        if not isinstance(array, Dataset) or not array.is_float:
            continue
        group.file.budget.step(_STEPS)
        *names, leaf = full.partition(":")[0].split("/")
        at = next((at for at in reversed(range(len(names))) if names[at] in by_name), None)
        if at is not None:
            group.file.budget.step(len(by_name[names[at]]))
            # Among several layers with one name, take the one whose holders' names are there too.
            layer = max(by_name[names[at]], key=lambda layer: len({*layer.path.split("/")} & {*names}))
            found[layer]["/".join([*names[at + 1 :], leaf])] = array
        else:
            inside = names[names.index(holder.name) + 1 :] if holder.name in names else names[1:]
            nameless[tuple(names)]["/".join([*inside, leaf])] = array
    # Keras 2 names the variables of a wrapped layer after the wrapper, so the order has to tell.
    left = [layer for layer in below if layer not in found and is_known(layer.full_name)]
    left = sorted(left, key=lambda layer: not layer.trainable)
    by_order = [
        (layer, weight_names(layer.full_name, layer.config, len(arrays)), arrays)
        for layer, arrays in zip(left, nameless.values(), strict=False)
    ]
    if len(left) == len(nameless) and all(names[:1] != ("0",) for _, names, _ in by_order):
        return found | {
            layer: dict(zip(names, arrays.values(), strict=True)) for layer, names, arrays in by_order
        }
    for arrays in nameless.values():
        found[holder] |= arrays
    return found


def _by_path(model: Layer, places: dict[Layer, list[dict[str, Dataset]]]) -> dict[Path, Placed]:
    """Returns by path the layers that hold no other layer, and those that do but have arrays of their own."""
    found: dict[Path, Placed] = {}
    names = description.Names()
    for path, layer in _paths(model, ()):
        if layer.same_as is None and (layer in places or not any(child.is_layer for child in layer.children)):
            numbered = names.unused("/".join(path))
            path = path if numbered == "/".join(path) else (*path[:-1], numbered.rpartition("/")[2])
            config = dict(layer.config)
            where = [named(layer.full_name, config, arrays) for arrays in places.get(layer, ())]
            found[path] = Placed(layer.full_name, config, where)
    return found


def _paths(layer: Layer, path: Path) -> Iterator[tuple[Path, Layer]]:
    """Yields this layer and all layers below it, each with its path of names."""
    yield path, layer
    for child in layer.children:
        if child.is_layer:
            yield from _paths(child, (*path, child.name))
