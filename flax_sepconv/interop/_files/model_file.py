"""Opens a model's file: finds its layers, and where their weights are.

    path ─► container ─► config, or the one that the caller gives ─► description ─┐
        │       └──────► weights ───────────────────────────────► pairing, placing ┴─► {path of names: layer}
        └─► folder ────► a SavedModel

Any error in a file's content is a `ValueError` that begins with the file's name; an error with the path (no such file,
no permission) stays an `OSError`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax_sepconv._keras.layer_config import Refused
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files import (
    container,
    description,
    given_config,
    pairing_archive,
    pairing_hdf5,
    placing,
    saved_model,
    untrusted_json,
)
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.description import Layer
from flax_sepconv.interop._files.pairing import Places
from flax_sepconv.interop._files.placing import Placed
from flax_sepconv.interop._files.reading import Reading
from flax_sepconv.interop._files.regions import Regions
from flax_sepconv.interop._flax_layers import Path

SEPARABLE_2D = "SeparableConv2D"
_REASON_LIMIT = 1000
_ARRAY_STEPS = 100  # to take an array to JAX


class Found(NamedTuple):
    """A layer in a file.

    Attributes:
        config: its config.
        places: its weights by name, for each place where the file has them; Keras uses the last.
        refused: the arguments that are not understood, which have their defaults in the config.
    """

    config: SeparableConv1DConfig
    places: list[dict]
    refused: Mapping[str, Refused] = {}

    @property
    def weights(self) -> dict:
        """Its weights as Keras would load them."""
        return self.places[-1]


class ModelFile(NamedTuple):
    """What a file holds.

    Attributes:
        layers: the layers by their paths of names.
        left_out: why layers are left out, if that is allowed, by their paths.
        unknown: what looks like the weights of further layers whose config the file does not have.
        classes: the paths of the layers that may be worth a note, by their classes.
        source: the range that the positions of weights count from; `None` if they cannot be replaced in place.
        checksums: the positions of the source's checksum in the whole file.
        regions: marks everything that the file holds, given the weights to be written by their addresses.
        every: finds every layer of the model.
    """

    layers: dict[str, Found]
    left_out: dict[str, str]
    unknown: list[str]
    classes: dict[str, list[str]]
    every: Callable[[], dict[Path, Placed]]
    source: Source | None = None
    checksums: Sequence[int] = ()
    regions: Callable[[dict[int, str]], Regions] | None = None


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str],
    *,
    config: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
    strict: bool = True,
    name: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Iterator[ModelFile]:
    """Opens a model's file until the context ends.

    Args:
        path: a `.keras` or `.h5` file with any name, a folder of a `.keras` file's files, or a SavedModel folder.
        config: the model's config, if the file has weights alone.
        custom_objects: the meaning of the names in the file that are not Keras's own.
        strict: whether a layer that cannot be read is an error.
        name: the file's name in messages; the path if `None`.
        weights: the file to read in place of the one with the weights in a Keras folder.

    Raises:
        ValueError: its content is damaged, hostile, or of an unsupported kind.
        TypeError: `config` or `custom_objects` has a wrong type.
        OSError: it does not exist, or may not be read.
    """
    reading = Reading.begun(custom_objects, strict)
    with contextlib.ExitStack() as stack:
        with naming(name or path):
            if os.path.isdir(path) and saved_model.is_saved_model(os.fsdecode(path)):
                file = _saved_model(os.fsdecode(path), config, stack, reading)
            else:
                file = _model(container.opened(path, stack, reading.budget, weights), config, stack, reading)
            _check_apart((found.places for found in file.layers.values()), reading.budget)
        yield file


@contextlib.contextmanager
def naming(name: str | os.PathLike[str]) -> Iterator[None]:
    """Puts a file's name before any error about its content."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        reason = str(error)
        reason = reason if len(reason) <= _REASON_LIMIT else f"{reason[:_REASON_LIMIT]}..."
        raise ValueError(f"{os.fsdecode(name)}: {reason}") from None


def _model(
    held: container.Container, config: Any, stack: contextlib.ExitStack, reading: Reading
) -> ModelFile:
    """Finds the layers of a file by its own config or by the given one."""
    if held.config is not None and config is not None:
        raise ValueError("it has its model's config, and `config` is for weights alone. Leave that out.")
    if held.config is None and config is None:
        raise ValueError(
            "it holds weights alone, without their model's config. Write that in Keras, `open('model.json', "
            "'w').write(model.to_json())`, and pass it as well, `config='model.json'`. `config` is "
            f"{given_config.WANTED}."
        )
    keras2 = description.is_keras2(held.version)
    by_path = given_config.by_path(config)
    if by_path and config is not None:
        model = given_config.tree(config)
    else:
        if held.config is not None:
            entry = untrusted_json.parse(held.config, reading.budget)
        else:
            entry = given_config.entry(config, stack, reading)
            if keras2 is None and isinstance(entry, dict):
                keras2 = description.is_keras2(entry.get("keras_version"))
        model = description.tree(entry, keras2, reading)
    places, unknown = _paired(model, held, bool(keras2), by_path, config is not None, reading)

    def every() -> dict[Path, Placed]:
        if by_path:
            raise ValueError(
                "configs of SeparableConv1D layers do not say what its other layers are. Pass what the model's "
                "`to_json()` gives as `config`."
            )
        if held.is_named:
            found = placing.in_hdf5(model, held.weights)
        else:
            found = placing.in_archive(model, held.weights, bool(keras2), places)
        _check_apart((placed.places for placed in found.values()), reading.budget)
        return found

    return ModelFile(
        _by_name(places),
        reading.left_out,
        unknown,
        _classes(model, reading),
        every,
        held.source,
        held.checksums,
        held.regions,
    )


def _paired(
    model: Layer, held: container.Container, keras2: bool, by_path: bool, alone: bool, reading: Reading
) -> tuple[Places, list[str]]:
    if held.is_named:
        return pairing_hdf5.separable(model, held.weights, reading)
    if by_path:  # nothing is known about the layers around these
        return pairing_archive.separable(model, lambda layer: held.weights, held.weights, reading, alone)
    groups = pairing_archive.groups_by_rule(model, held.weights, keras2)
    return pairing_archive.separable(model, groups.__getitem__, held.weights, reading, alone)


def _saved_model(folder: str, config: Any, stack: contextlib.ExitStack, reading: Reading) -> ModelFile:
    if config is not None:
        raise ValueError("it has its model's config, and `config` is for weights alone. Leave that out.")

    def every() -> dict[Path, Placed]:
        raise ValueError(
            "of a SavedModel only SeparableConv1D layers are read. Load it in Keras, save it as .keras, and use that."
        )

    found = saved_model.read(folder, stack, reading)
    layers = {
        key: Found(settings.config, [weights], settings.refused) for key, (settings, weights) in found.items()
    }
    return ModelFile(layers, reading.left_out, [], {}, every)


def _check_apart(layers: Iterable[list[dict[str, Any]]], budget: Budget) -> None:
    """Refuses weights of a wrong type or place, and layers whose weights overlap; each layer has all its places."""
    spans: dict[tuple, list[tuple[int, int]]] = {}
    sources: dict[int, tuple] = {}
    for places in layers:
        for place in places:
            for array in place.values():
                budget.step(_ARRAY_STEPS)
                if id(array.source) not in sources:
                    sources[id(array.source)] = array.source.identity
                spans.setdefault(sources[id(array.source)], []).append((array.position, array.nbytes))
    for each in spans.values():
        each.sort()
        if any(at + size > after for (at, size), (after, _) in itertools.pairwise(each)):
            raise ValueError("it is damaged: the weights of different layers overlap.")


def _by_name(places: Places) -> dict[str, Found]:
    """Returns the layers by their paths of names."""
    names = description.Names()
    return {
        names.unused(layer.path): Found(layer.settings.config, where, layer.settings.refused)
        for layer, where in places.items()
        if layer.settings
    }


_OWN_ENTRIES = {"filters", "kernel_size", "depthwise_initializer", "pointwise_initializer"}


def _classes(model: Layer, reading: Reading) -> dict[str, list[str]]:
    """Finds, by class, the paths of layers that look derived from `SeparableConv1D`, and of Keras's 2D layers."""
    found: dict[str, list[str]] = {}
    for layer in model.walk():
        reading.budget.step()
        if layer.full_name == SEPARABLE_2D or (
            layer.full_name not in (layer.class_name, "") and layer.config.keys() >= _OWN_ENTRIES
        ):
            found.setdefault(layer.class_name, []).append(layer.path)
    return found
