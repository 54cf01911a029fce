"""Reads the `SeparableConv1D` layers of a file, and says why others cannot be read."""

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from flax_sepconv._keras.layer_config import Refused
from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files import model_file
from flax_sepconv.interop._files.model_file import Found, ModelFile

Layers: TypeAlias = dict[str, tuple[SeparableConv1DConfig, dict[str, np.ndarray]]]


def read(
    path: str | os.PathLike[str],
    *,
    config: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> tuple[Layers, list[str]]:
    """Reads the config and the weights of each layer in a file, with notes on what was left out.

    Args:
        path: the file.
        config: the model's config, if the file has weights alone.
        custom_objects: the meaning of the names in the file that are not Keras's own.
        strict: whether a layer that cannot be read is an error, rather than left out.

    Raises:
        ValueError: its content is damaged, hostile, or of an unsupported kind.
        TypeError: `config` or `custom_objects` has a wrong type.
        OSError: it does not exist, or may not be read.
    """
    opened = model_file.opened(path, config=config, custom_objects=custom_objects, strict=strict)
    with opened as file, model_file.naming(path):
        refused = {name: found.refused for name, found in file.layers.items() if found.refused}
        if refused and strict:
            raise ValueError(_refusal(refused))
        left_out = file.left_out | {name: _reason(each) for name, each in refused.items()}
        layers = {
            name: (found.config, _values(found)) for name, found in file.layers.items() if not found.refused
        }
        notes = [f"layer {shown(name)} is left out: {reason}" for name, reason in left_out.items()]
        notes += _hints(file)
    return layers, [f"{os.fsdecode(path)}: {note}" for note in notes]


def _values(found: Found) -> dict[str, np.ndarray]:
    return {leaf: array.read() for leaf, array in found.weights.items()}


def _refusal(refused: Mapping[str, Mapping[str, Refused]]) -> str:
    """Says why a file is refused: the first argument that nothing can name, or else all names the caller can give."""
    unknown: dict[str, list[str]] = {}
    for path, arguments in refused.items():
        for argument, (name, reason) in arguments.items():
            if name is None:
                return f"layer {shown(path)}: {reason}"
            unknown.setdefault(name, []).append(f"{argument} of layer {shown(path)}")
    example = ", ".join(f"{shown(name)}: ..." for name in [*unknown][:3])
    those = "; ".join(f"{shown(name)}, {' and '.join(places)}" for name, places in unknown.items())
    return (
        f"it has names that are not Keras's own, and nothing is imported by name. Pass what they stand for, "
        f"`custom_objects={{{example}}}`, or leave their layers out, `strict=False`. They are {those}."
    )


def _reason(refused: Mapping[str, Refused]) -> str:
    """Says why a layer is left out."""
    return " ".join(
        f"`{argument}` is {shown(name)}, which is not Keras's own. Pass what it stands for, "
        f"`custom_objects={{{shown(name)}: ...}}`."
        if name
        else reason
        for argument, (name, reason) in refused.items()
    )


def _hints(file: ModelFile) -> list[str]:
    """Returns notes on what else the file has that the caller may have looked for."""
    if file.left_out:  # the unknown weights may be those of the layers left out
        return []
    own = [name for name in file.classes if name != model_file.SEPARABLE_2D]
    if file.unknown and own:
        return [
            f"{shown(file.unknown)} look like the weights of SeparableConv1D layers and are left out. If the class "
            f"{shown(own[0])} is one, say so: `custom_objects={{{shown(own[0])}: SeparableConv1DConfig}}`."
        ]
    if file.unknown:
        return [
            f"it has weights like those of SeparableConv1D layers at {shown(file.unknown)}, but no config of them; "
            "they are left out. A class of your own must write its layers into its `get_config` to have them found; "
            "or load the file in Keras and pass them to `from_layer`."
        ]
    if not file.layers and model_file.SEPARABLE_2D in file.classes:
        return [
            f"it has no SeparableConv1D, but SeparableConv2D layers, {shown(file.classes[model_file.SEPARABLE_2D])}. "
            "This library has none of these; `load_variables` and `layers` read their weights."
        ]
    return []
