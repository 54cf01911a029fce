"""Pairs arrays of a file with the `SeparableConv1D` layers: what the rules for Keras's formats have in common.

    pairing_archive     Keras's own format numbers the layers of each class
    pairing_hdf5        HDF5 files name them

The form of the weights (kernel size and so on) has to be the layer's. It also tells what the file's config leaves out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from flax_sepconv.interop._files.description import Layer
from flax_sepconv.interop._files.hdf5 import Dataset

Weights: TypeAlias = dict[str, Dataset]
"""The weights of a layer by their names in `params`."""

Places: TypeAlias = dict[Layer, list[Weights]]
"""The weights of each layer, at each place where the file has them."""

LEAVES = ("depthwise_kernel", "pointwise_kernel", "bias")


class Form(NamedTuple):
    """What the shapes of a layer's weights tell."""

    kernel_size: int
    depth_multiplier: int
    filters: int
    use_bias: bool


def form(arrays: list[Dataset]) -> Form | None:
    """Returns the form of arrays that can be a layer's weights, or `None` for others."""
    shapes = [array.shape for array in arrays]
    if [len(shape) for shape in shapes] not in ([3, 3], [3, 3, 1]) or 0 in shapes[0]:
        return None
    (size, channels, multiplier), (one, between, filters), *bias = shapes
    fits = one == 1 and between == channels * multiplier and bias in ([], [(filters,)])
    return Form(size, multiplier, filters, bool(bias)) if fits else None


def fitting(layer: Layer, forms: Mapping[Form, Any]) -> list[Form]:
    """Returns the forms that the layer's weights may have: at most one, unless the config leaves something out."""
    if layer.settings is None:
        return []
    config, _, unsaid = layer.settings
    own = Form(*(getattr(config, name) for name in Form._fields))
    if not unsaid:
        return [own] if own in forms else []
    said = [at for at, name in enumerate(Form._fields) if name not in unsaid]
    return [each for each in forms if all(each[at] == own[at] for at in said)]


def taken(layer: Layer, arrays: list[Dataset]) -> Weights:
    """Returns a layer's weights by their names, and sets what its config leaves out from their shapes."""
    found = form(arrays)
    assert layer.settings is not None
    assert found is not None
    said = {name: getattr(found, name) for name in layer.settings.unsaid}
    config = dataclasses.replace(layer.settings.config, **said)
    layer.settings = layer.settings._replace(config=config, unsaid=frozenset())
    return dict(zip(LEAVES, arrays, strict=False))


def missing(layer: Layer) -> str:
    """Says why a layer has no weights."""
    assert layer.settings is not None
    return (
        f"the file has no weights that fit {layer.settings.config}. It is damaged, was saved before the model was "
        "built, or is of another model."
    )
