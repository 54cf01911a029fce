"""Finds the weights of each `SeparableConv1D` in Keras's own format, and the groups of all other layers.

The format puts a layer's weights, in the order of their creation, into a group that is named for where the layer is
held, not for the layer:

    layers/separable_conv1d/vars/0          first of its class in the model's list of layers: depthwise kernel
    layers/functional_1/layers/…            in the second of the nested models
    layers/time_distributed/layer/vars/1    wrapped: pointwise kernel
"""

import collections
from collections.abc import Callable

from flax_sepconv._messages import shown
from flax_sepconv.interop._files.description import Layer, snake_case
from flax_sepconv.interop._files.hdf5 import Dataset, Group
from flax_sepconv.interop._files.pairing import Form, Places, fitting, form, missing, taken
from flax_sepconv.interop._files.reading import Reading


def separable(
    model: Layer, groups: Callable[[Layer], Group | None], root: Group, reading: Reading, alone: bool
) -> tuple[Places, list[str]]:
    """Finds the places of the weights of all `SeparableConv1D` layers.

    Args:
        model: the tree of the model's layers.
        groups: returns the group that a layer has by rule.
        root: the root of the HDF5 file.
        reading: how the file is read.
        alone: whether the file has weights alone, so that layers may have other names in the given config.

    Returns:
        The places, and the paths of groups that look like the weights of layers that the config does not describe.

    Raises:
        ValueError: a layer's weights are missing or ambiguous.
    """
    layers = [layer for layer in model.separable() if layer.same_as is None]
    names = {layer.name for layer in layers}
    places: Places = {}
    used: set[int] = set()

    def take(layer: Layer, group: Group) -> None:
        places[layer] = [taken(layer, _vars(group))]
        used.add(group.address)

    for layer in layers:
        group = groups(layer)
        group = group.group("vars") if group else None
        found = form(_vars(group)) if group else None
        if group and found and fitting(layer, {found: group}) and group.address not in used:
            name = _name(group)
            if name in (layer.name, None) or (alone and name not in names):
                take(layer, group)
    # The remaining layers are in classes that hold their layers under other names than their configs.
    below: dict[int, _Below] = {}
    for layer in layers:
        if layer not in places:
            parent = groups(layer.parent or layer)
            if parent and parent.address not in below:
                below[parent.address] = _Below(parent)
            try:
                group = below[parent.address].find(layer, used) if parent else None
            except ValueError as error:
                reading.fail(layer.path, str(error))
                continue
            if group is None:
                reading.fail(layer.path, missing(layer))
            else:
                take(layer, group)
    places = {layer: places[layer] for layer in layers if layer in places}
    unknown = [group.path for group in root.walk() if group.address not in used and form(_vars(group))]
    return places, unknown


def groups_by_rule(model: Layer, root: Group, keras2: bool, every: bool = False) -> dict[Layer, Group | None]:
    """Returns each layer's group, provided that every class holds its layers under the names in its config.

    Covers the layers that are or hold a `SeparableConv1D`, or every layer.
    """
    # The first versions of the format, in TF 2.12 and 2.13, have another name for a model's list of layers.
    old = root.group("layers") is None and root.group("_layer_checkpoint_dependencies") is not None
    groups: dict[Layer, Group | None] = {model: root}
    for layer in model.walk() if every else model.holding():
        used: collections.Counter[tuple[str, str]] = collections.Counter()
        numbers: dict[str, dict[str, list[int]]] = {}
        for child in layer.children:
            slot = "_layer_checkpoint_dependencies" if old and child.slot == "layers" else child.slot
            group = groups[layer]
            group = group.group(slot) if group else None
            if child.in_list and group:
                name = snake_case(child.class_name, keras2)
                number = used[slot, name]
                # Keras 3 counts every layer. What Keras 2 counts changed over time, but each has a group.
                if keras2 and slot not in numbers:
                    numbers[slot] = _numbers(group)
                if keras2 and number < len(numbers[slot].get(name, ())):
                    number = numbers[slot][name][number]
                used[slot, name] += not (keras2 and child.same_as)
                group = group.group(f"{name}_{number}" if number else name) if every or child.holds else None
            if every or child.holds:
                groups[child] = group
    return groups


def _numbers(group: Group) -> dict[str, list[int]]:
    """Returns the numbers of each class's groups, in order: 0 for `dense`, 2 for `dense_2`."""
    numbers: dict[str, list[int]] = {}
    for name in group.names():
        numbers.setdefault(name, []).append(0)
        stem, _, number = name.rpartition("_")
        if number.isdecimal() and number.isascii() and len(number) < 10:
            numbers.setdefault(stem, []).append(int(number))
    return {stem: sorted(each) for stem, each in numbers.items()}


class _Below:
    """All groups below a parent that could hold the weights of a layer, by the layer's name and the weights' form.

    Args:
        parent: the parent group.
    """

    def __init__(self, parent: Group):
        self._budget = parent.file.budget
        self._groups: dict[str | None, dict[Form, list[Group]]] = {}
        for group in parent.walk():
            found = form(_vars(group))
            if found:
                self._groups.setdefault(_name(group), {}).setdefault(found, []).append(group)

    def find(self, layer: Layer, used: set[int]) -> Group | None:
        """Finds the one unused group that fits a layer: by name if the file has names, else by shape.

        Raises:
            ValueError: several groups fit.
        """
        candidates = self._unused(layer.name, layer, used) or self._unused(None, layer, used)
        if len(candidates) > 1:  # with one name: the names of the layers that hold them may differ
            path = layer.path.split("/")
            candidates = [group for group in candidates if _names_along(group) == path] or candidates
        if len(candidates) > 1:
            raise ValueError(
                f"its weights may be those in {' or '.join(shown(group.path) for group in candidates[:3])}: the file "
                "does not say. Load it in Keras and pass the layer to `from_layer`."
            )
        return candidates[0] if candidates else None

    def _unused(self, name: str | None, layer: Layer, used: set[int]) -> list[Group]:
        """Finds the unused groups with that name that fit a layer."""
        found, forms = [], self._groups.get(name, {})
        self._budget.step(1 + len(forms))
        for each in fitting(layer, forms):
            forms[each] = [group for group in forms[each] if group.address not in used]
            found += forms[each]
        self._budget.step(len(found))
        return found


def _names_along(group: Group) -> list[str | None]:
    """Returns the names that the file has for the layers from below the model down to a group's own layer."""
    names: list[str | None] = []
    here = group.parent
    while here and here.parent:
        holder = here.group("vars")
        if holder:
            names.insert(0, _name(holder))
        here = here.parent
    return names


def _name(group: Group) -> str | None:
    """Returns the name of the layer whose weights a group holds, if the file has it."""
    name = group.attribute("name")
    return name if isinstance(name, str) else None


def _vars(group: Group) -> list[Dataset]:
    """Returns the arrays of a group in Keras's own format, in order; none for other groups."""
    count = len(group.addresses)
    if count not in (2, 3) or any(str(i) not in group.addresses for i in range(count)):
        return []
    arrays = [group.child(str(i)) for i in range(count)]
    return [array for array in arrays if isinstance(array, Dataset)]
