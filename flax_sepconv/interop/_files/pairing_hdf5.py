"""Where the weights of each `SeparableConv1D` are in HDF5 files, `.h5`, of whole models and of weights alone.

They have a group for each layer of the outermost model, by name, and in it the weights of all that this layer holds,
trainable ones first, under the names of TensorFlow's variables:

    model_weights/inner/first/depthwise_kernel:0

Which names those are has changed with every version. They serve to tell layers apart; where they do not, the
order does, as in Keras itself.
"""

import itertools
from collections.abc import Iterable, Iterator

from flax_sepconv._messages import shown
from flax_sepconv.interop._files.description import Layer
from flax_sepconv.interop._files.hdf5 import Dataset, Group
from flax_sepconv.interop._files.pairing import LEAVES, Form, Places, Weights, fitting, form, missing, taken
from flax_sepconv.interop._files.reading import Reading


def separable(model: Layer, root: Group, reading: Reading) -> tuple[Places, list[str]]:
    """The places of the weights of all `SeparableConv1D` layers.

    Args:
        model: the tree of the model's layers.
        root: the group that has one for each layer of the outermost model.
        reading: how the file is read.

    Returns:
        The places, and the weights that look like those of layers which the config does not describe.

    Raises:
        ValueError: a layer's weights are missing, or it cannot be told which are whose.
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
    """The layers of the outermost model by the names that the file has for them.

    A model that was built again has other numbers in the names that Keras gives: then the order tells.
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
    """Names by what is before their numbers, in the order of these."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        numbered = stem and number.isdecimal() and number.isascii() and len(number) < 10
        found.setdefault(stem if numbered else name, []).append((int(number) if numbered else 0, name))
    return {stem: [name for _, name in sorted(each)] for stem, each in found.items()}


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
        length = next((n for n in (3, 2) if leaves[:n] == [*LEAVES[:n]]), 0)
        arrays = [group.get(name) for name in names[at : at + length]]
        if length and all(isinstance(array, Dataset) for array in arrays):
            yield prefix, dict(zip(LEAVES, arrays, strict=False))  # pyright: ignore[reportReturnType]
        at += length or 1


def _paired(
    layers: list[Layer], runs: dict[str, Weights], reading: Reading
) -> Iterator[tuple[Layer, Weights]]:
    """Each layer with its weights, which are taken out of `runs`."""
    by_name: dict[str, dict[Form | None, dict[str, None]]] = {}  # the prefixes by their last name
    forms = {prefix: form([*weights.values()]) for prefix, weights in runs.items()}
    for prefix, each in forms.items():
        by_name.setdefault(prefix.rpartition("/")[2], {}).setdefault(each, {})[prefix] = None

    def take(layer: Layer, prefix: str) -> tuple[Layer, Weights]:
        return layer, taken(layer, [*runs.pop(prefix).values()])

    rest = []
    for layer in layers:
        # Keras 2 names the variables of a wrapped layer for the wrapper.
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
    """A list of strings; Keras splits those too large for one attribute."""
    found = group.attribute(name)
    if found is not None:
        return found if isinstance(found, list) else [found]
    parts = (group.attribute(f"{name}{number}") for number in itertools.count())
    return [*itertools.chain.from_iterable(itertools.takewhile(lambda part: isinstance(part, list), parts))]
