"""Finds the weights of each `SeparableConv1D` in HDF5 files, `.h5`, of whole models and of weights alone.

These files have a group for each layer of the outermost model, by name. It holds the weights of the layer and of all
layers in it, trainable ones first, under the names of TensorFlow's variables:

    model_weights/inner/first/depthwise_kernel:0

These names have changed with every version. They serve to tell layers apart; if they cannot, the order does, as in
Keras itself.
"""

import itertools
from collections.abc import Iterable, Iterator

from flax_sepconv._messages import shown
from flax_sepconv.interop._files.description import Layer
from flax_sepconv.interop._files.hdf5 import Dataset, Group
from flax_sepconv.interop._files.pairing import LEAVES, Form, Places, Weights, fitting, form, missing, taken
from flax_sepconv.interop._files.reading import Reading


def separable(model: Layer, root: Group, reading: Reading) -> tuple[Places, list[str]]:
    """Finds the places of the weights of all `SeparableConv1D` layers.

    Args:
        model: the tree of the model's layers.
        root: the group that contains a group for each layer of the outermost model.
        reading: how the file is read.

    Returns:
        The places, and the paths of what looks like the weights of layers that the config does not describe.

    Raises:
        ValueError: a layer's weights are missing or ambiguous.
    """
    places: Places = {}
    unknown = []
    outermost = holders(model, root)
    for name in dict.fromkeys(attribute_list(root, "layer_names")):
        group = root.group(name)
        runs = dict(_runs(group, name)) if group else {}
        layers = outermost[name].separable() if name in outermost else []
        for layer, weights in _paired(layers, runs, reading):
            places.setdefault(layer.original, []).append(weights)
        unknown += [f"{name}/{prefix}" for prefix, weights in runs.items() if form([*weights.values()])]
    for layer in model.separable():
        if layer.original not in places:
            reading.fail(layer.path, missing(layer))
    return {layer: places[layer] for layer in model.separable() if layer in places}, unknown


def holders(model: Layer, root: Group) -> dict[str, Layer]:
    """Returns the layers of the outermost model by their names in the file.

    If the model was built again, the names that Keras gives have other numbers: then the order tells.
    """
    children = {child.name: child for child in model.children if child.is_layer}
    names = dict.fromkeys(attribute_list(root, "layer_names"))
    found = {name: children[name] for name in names if name in children}
    ours, theirs = (
        _by_stem(each) for each in (children.keys() - names.keys(), names.keys() - children.keys())
    )
    for stem, numbered in ours.items():
        if len(numbered) == len(theirs.get(stem, ())):
            found |= {theirs[stem][at]: children[numbered[at]] for at in range(len(numbered))}
    return found


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names by the part before their numbers, in the order of the numbers."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        numbered = stem and number.isdecimal() and number.isascii() and len(number) < 10
        found.setdefault(stem if numbered else name, []).append((int(number) if numbered else 0, name))
    return {stem: [name for _, name in sorted(each)] for stem, each in found.items()}


def _runs(group: Group, holder: str) -> Iterator[tuple[str, Weights]]:
    """Yields, by prefix, the weights in a group that are listed together like the weights of a `SeparableConv1D`."""
    names = attribute_list(group, "weight_names")
    group.file.budget.step(5 * len(names))
    if len(set(names)) != len(names):
        raise ValueError(f"it is damaged: several weights of layer {shown(holder)} have one name.")
    at = 0
    while at < len(names):
        prefix = names[at].rpartition("/")[0]
        leaves = [_leaf(name) for name in names[at : at + 3] if name.rpartition("/")[0] == prefix]
        length = next((n for n in (3, 2) if leaves[:n] == [*LEAVES[:n]]), 0)
        arrays = [group.get(name) for name in names[at : at + length]]
        if length and all(isinstance(array, Dataset) for array in arrays):
            yield prefix, dict(zip(LEAVES, arrays, strict=False))  # pyright: ignore[reportReturnType]
        at += length or 1


def _paired(
    layers: list[Layer], runs: dict[str, Weights], reading: Reading
) -> Iterator[tuple[Layer, Weights]]:
    """Yields each layer with its weights, which are removed from `runs`."""
    by_name: dict[str, dict[Form | None, dict[str, None]]] = {}  # the prefixes by their last name
    forms = {prefix: form([*weights.values()]) for prefix, weights in runs.items()}
    for prefix, each in forms.items():
        by_name.setdefault(prefix.rpartition("/")[2], {}).setdefault(each, {})[prefix] = None

    def take(layer: Layer, prefix: str) -> tuple[Layer, Weights]:
        return layer, taken(layer, [*runs.pop(prefix).values()])

    rest = []
    for layer in layers:
        # Keras 2 names the variables of a wrapped layer after the wrapper.
        for name in (layer.name, layer.parent.name if layer.parent else ""):
            named = {each: prefixes for each, prefixes in by_name.get(name, {}).items() if each and prefixes}
            reading.budget.step(len(named))
            fit = fitting(layer, named)
            if len(fit) == 1 and len(named[fit[0]]) == 1:
                prefix, _ = named[fit[0]].popitem()
                yield take(layer, prefix)
                break
        else:
            rest.append(layer)
    in_order = sorted(rest, key=lambda layer: not layer.trainable)
    same_number = len(rest) == len(runs)
    for layer, prefix in itertools.zip_longest(in_order, [*runs]):
        if layer is None:
            break
        found = forms[prefix] if same_number else None
        if found and fitting(layer, {found: None}):
            yield take(layer, prefix)
        else:
            reading.fail(layer.path, missing(layer))


def _leaf(name: str) -> str:
    leaf = name.rpartition("/")[2]
    stem, _, number = leaf.rpartition(":")
    return stem if number.isdecimal() else leaf


def attribute_list(group: Group, name: str) -> list[str]:
    """Reads a list of strings; Keras splits lists that are too large for one attribute."""
    found = group.attribute(name)
    if found is not None:
        return found if isinstance(found, list) else [found]
    parts = (group.attribute(f"{name}{number}") for number in itertools.count())
    return [*itertools.chain.from_iterable(itertools.takewhile(lambda part: isinstance(part, list), parts))]
