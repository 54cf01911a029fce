"""Where in a file the weights of each `SeparableConv1D` are: the naming rules of Keras's two formats.

Keras's own format (`.keras`) puts a layer's weights in the order of their creation into a group that is named
for where the layer is held, not for the layer:

    layers/separable_conv1d/vars/0          first of its class in the model's list of layers: depthwise kernel
    layers/functional_1/layers/…            in the second of the models nested in it
    layers/time_distributed/layer/vars/1    wrapped: pointwise kernel

HDF5 files (`.h5`) have a group for each layer of the outermost model, by name, and in it the weights of all
that this layer holds, trainable ones first, under the names of TensorFlow's variables:

    model_weights/inner/first/depthwise_kernel:0

Which names those are has changed with every version. They serve to tell layers apart; where they do not, the
order does, as in Keras itself.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import TypeAlias

from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files.description import Layer, snake_case
from flax_sepconv.interop._files.hdf5 import Dataset, Group

Weights: TypeAlias = dict[str, Dataset]
"""The weights of a layer by their names in `params`."""

Places: TypeAlias = dict[Layer, list[Weights]]
"""The weights of each layer, at each place where the file has them."""

_LEAVES = ("depthwise_kernel", "pointwise_kernel", "bias")


def in_archive(model: Layer, root: Group, keras2: bool) -> tuple[Places, list[str]]:
    """The places of all weights in the HDF5 file of Keras's own format.

    Args:
        model: the tree of its layers.
        root: the file's root.
        keras2: whether a Keras 2 wrote it, which counts shared layers otherwise.

    Returns:
        The places, and the groups that look like the weights of layers which the config does not describe.

    Raises:
        ValueError: a layer's weights are missing, or it cannot be told which are whose.
    """
    groups = groups_by_rule(model, root, keras2)
    layers = [layer for layer in model.separable() if layer.same_as is None]
    places: Places = {}
    taken: set[int] = set()

    def take(layer: Layer, group: Group, weights: Weights):
        places[layer] = [weights]
        taken.add(group.address)

    for layer in layers:
        group = groups[layer]
        group = group.group("vars") if group else None
        weights = _fitting(layer, group)
        if group and weights and _name(group) in (layer.name, None) and group.address not in taken:
            take(layer, group, weights)
    # What is left is in a class that holds its layers under other names than its config.
    below: dict[int, _Below] = {}
    for layer in layers:
        if layer not in places:
            parent = groups[layer.parent or layer]
            if parent is None:
                raise ValueError(_missing(layer))
            if parent.address not in below:
                below[parent.address] = _Below(parent)
            take(layer, *below[parent.address].find(layer, taken))
    places = {layer: places[layer] for layer in layers}
    unknown = [group.path for group in root.walk() if group.address not in taken and _form(_vars(group))]
    return places, unknown


def in_hdf5(model: Layer, root: Group) -> tuple[Places, list[str]]:
    """The places of all weights in the group `model_weights` of an HDF5 file.

    Args:
        model: the tree of its layers.
        root: that group.

    Returns:
        The places, and the weights that look like those of layers which the config does not describe.

    Raises:
        ValueError: a layer's weights are missing, or it cannot be told which are whose.
    """
    places: Places = {}
    unknown = []
    holders = {child.name: child for child in model.children if child.holds}
    for name in dict.fromkeys((*attribute_list(root, "layer_names"), *holders)):
        group = root.group(name)
        runs = dict(_runs(group, name)) if group else {}
        for layer, weights in _paired(holders[name].separable() if name in holders else [], runs):
            places.setdefault(layer.original, []).append(weights)
        unknown += [f"{name}/{prefix}" for prefix, weights in runs.items() if _form([*weights.values()])]
    for layer in model.separable():
        if layer.original not in places:
            raise ValueError(_missing(layer))
    return {layer: places[layer] for layer in model.separable() if layer in places}, unknown


def groups_by_rule(model: Layer, root: Group, keras2: bool, every: bool = False) -> dict[Layer, Group | None]:
    """The group of each layer where every class holds its layers as its config names them.

    Of the layers that are or hold a `SeparableConv1D`, or of every one.
    """
    # The first versions of the format, in TF 2.12 and 2.13, have another name for a model's list.
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
                # Keras 3 counts every layer. What Keras 2 counts has changed, but it has a group for each.
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
    """The numbers that the groups of each class have, in order: 0 for `dense`, 2 for `dense_2`."""
    numbers: dict[str, list[int]] = {}
    for name in group.names():
        numbers.setdefault(name, []).append(0)
        stem, _, number = name.rpartition("_")
        if number.isdecimal() and number.isascii() and len(number) < 10:
            numbers.setdefault(stem, []).append(int(number))
    return {stem: sorted(each) for stem, each in numbers.items()}


class _Below:
    """All groups below one that could hold the weights of a layer, by the layer's name and the weights' form.

    Args:
        parent: that group.
    """

    def __init__(self, parent: Group):
        self._groups: dict[tuple, list[Group]] = {}
        for group in parent.walk():
            form = _form(_vars(group))
            if form:
                self._groups.setdefault((_name(group), form), []).append(group)

    def find(self, layer: Layer, taken: set[int]) -> tuple[Group, Weights]:
        """The one group that fits a layer and is not taken: by name where the file has names, else by shape."""
        assert layer.settings is not None
        form = _form_of(layer.settings)
        candidates = self._untaken((layer.name, form), taken) or self._untaken((None, form), taken)
        if len(candidates) > 1:
            raise ValueError(
                f"layer {shown(layer.path)}: its weights may be those in "
                f"{' or '.join(repr(group.path) for group in candidates[:3])}, for "
                f"{layer.parent.class_name if layer.parent else 'the model'!r} is no class of Keras's. Load the file "
                "in Keras and pass the layer to `from_layer`."
            )
        weights = _fitting(layer, candidates[0]) if candidates else None
        if weights is None:
            raise ValueError(_missing(layer))
        return candidates[0], weights

    def _untaken(self, key: tuple, taken: set[int]) -> list[Group]:
        groups = [group for group in self._groups.get(key, ()) if group.address not in taken]
        if key in self._groups:
            self._groups[key] = groups
        return groups


def _fitting(layer: Layer, group: Group | None) -> Weights | None:
    """The weights in a group, where their number and shapes are those of the layer."""
    arrays = _vars(group) if group else []
    if layer.settings is None or not arrays or _form(arrays) != _form_of(layer.settings):
        return None
    return dict(zip(_LEAVES, arrays, strict=False))


def _name(group: Group) -> str | None:
    """The name of the layer whose weights a group holds, where the file has it."""
    name = group.attribute("name")
    return name if isinstance(name, str) else None


def _vars(group: Group) -> list[Dataset]:
    """The arrays of a group of Keras's own format, in order; none for other groups."""
    count = len(group.addresses)
    if count not in (2, 3) or any(str(i) not in group.addresses for i in range(count)):
        return []
    arrays = [group.child(str(i)) for i in range(count)]
    return [array for array in arrays if isinstance(array, Dataset)]


def _form(arrays: list[Dataset]) -> tuple | None:
    """Kernel size, depth multiplier, filters, and whether there is a bias, of weights that a layer may have."""
    shapes = [array.shape for array in arrays]
    if [len(shape) for shape in shapes] not in ([3, 3], [3, 3, 1]) or 0 in shapes[0]:
        return None
    (size, channels, multiplier), (one, between, filters), *bias = shapes
    fits = one == 1 and between == channels * multiplier and bias in ([], [(filters,)])
    return (size, multiplier, filters, bool(bias)) if fits else None


def _form_of(settings: SeparableConv1DConfig) -> tuple:
    """The form of a layer's weights."""
    return settings.kernel_size, settings.depth_multiplier, settings.filters, settings.use_bias


def _runs(group: Group, holder: str) -> Iterator[tuple[str, Weights]]:
    """The weights in an HDF5 file's group that stand together as those of a `SeparableConv1D` do, by prefix."""
    names = attribute_list(group, "weight_names")
    group.file.budget.step(5 * len(names))
    if len(set(names)) != len(names):
        raise ValueError(f"it is damaged: several weights of layer {shown(holder)} have one name.")
    at = 0
    while at < len(names):
        prefix = names[at].rpartition("/")[0]
        leaves = [_leaf(name) for name in names[at : at + 3] if name.rpartition("/")[0] == prefix]
        length = next((n for n in (3, 2) if leaves[:n] == [*_LEAVES[:n]]), 0)
        arrays = [group.get(name) for name in names[at : at + length]]
        if length and all(isinstance(array, Dataset) for array in arrays):
            yield prefix, dict(zip(_LEAVES, arrays, strict=False))  # pyright: ignore[reportReturnType]
        at += length or 1


def _paired(layers: list[Layer], runs: dict[str, Weights]) -> Iterator[tuple[Layer, Weights]]:
    """Each layer with its weights, which are taken out of `runs`."""
    by_name: dict[tuple, dict[str, None]] = {}  # the prefixes by their last name and the form of the weights
    forms = {prefix: _form([*weights.values()]) for prefix, weights in runs.items()}
    for prefix, form in forms.items():
        by_name.setdefault((prefix.rpartition("/")[2], form), {})[prefix] = None
    rest = []
    for layer in layers:
        assert layer.settings is not None
        # Keras 2 names the variables of a wrapped layer for the wrapper.
        for name in (layer.name, layer.parent.name if layer.parent else None):
            named = by_name.get((name, _form_of(layer.settings)), {})
            if len(named) == 1:
                prefix, _ = named.popitem()
                yield layer, runs.pop(prefix)
                break
        else:
            rest.append(layer)
    if rest and len(rest) != len(runs):
        raise ValueError(_missing(rest[0]))
    in_order = sorted(rest, key=lambda layer: not layer.trainable)
    for layer, prefix in zip(in_order, [*runs], strict=False):
        assert layer.settings is not None
        if forms[prefix] != _form_of(layer.settings):
            raise ValueError(_missing(layer))
        yield layer, runs.pop(prefix)


def _leaf(name: str) -> str:
    leaf = name.rpartition("/")[2]
    stem, _, number = leaf.rpartition(":")
    return stem if number.isdecimal() else leaf


def attribute_list(group: Group, name: str) -> list[str]:
    """A list of strings; Keras splits those too large for one attribute."""
    found = group.attribute(name)
    if found is not None:
        return found if isinstance(found, list) else [found]
    parts = (group.attribute(f"{name}{number}") for number in itertools.count())
    return [*itertools.chain.from_iterable(itertools.takewhile(lambda part: isinstance(part, list), parts))]


def _missing(layer: Layer) -> str:
    return (
        f"layer {shown(layer.path)}: the file has no weights that fit {layer.settings}. It is damaged, or was saved "
        "before the model was built."
    )
