"""A model's file, opened: which `SeparableConv1D` layers it holds, and where their weights are.

    path ─► archive (.keras) ─► config.json, model.weights.h5 ─┐
        ├─► HDF5 (.h5) ────────► model_config, model_weights ──┼─► {path of names: (config, weights)}
        └─► folder ────────────► a SavedModel ─────────────────┘

What a file is, its first bytes tell, not its name. Everything that is wrong with its content is a `ValueError`
that begins with the file's name; what is wrong with the path (no such file, no permission) stays an `OSError`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files import (
    archive,
    byte_source,
    description,
    hdf5,
    hdf5_regions,
    pairing,
    placing,
    saved_model,
    untrusted_json,
)
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.placing import Placed
from flax_sepconv.interop._files.regions import Regions
from flax_sepconv.interop._flax_layers import Path

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_REASON_LIMIT = 1000
_ARRAY_STEPS = 100  # on its way to JAX


class Found(NamedTuple):
    """A layer in a file.

    Attributes:
        config: its config.
        places: its weights by name, once for each place where the file has them; Keras uses the last.
    """

    config: SeparableConv1DConfig
    places: list[dict]

    @property
    def weights(self) -> dict:
        """Its weights as Keras would load them."""
        return self.places[-1]


class ModelFile(NamedTuple):
    """What a file holds.

    Attributes:
        layers: the layers by their paths of names.
        unknown: what looks like the weights of further layers, which the file has no config of.
        source: what the positions of weights count from; `None` where they cannot be replaced in place.
        checksums: where in the whole file the checksum of the source stands.
        regions: for the weights that are to be written, by their addresses, marks all that the file holds.
        every: finds every layer of the model; `None` where only `SeparableConv1D` layers can be found.
    """

    layers: dict[str, Found]
    unknown: list[str]
    source: Source | None = None
    checksums: Sequence[int] = ()
    regions: Callable[[dict[int, str]], Regions] | None = None
    every: Callable[[], dict[Path, Placed]] | None = None


def read(
    path: str | os.PathLike,
) -> tuple[dict[str, tuple[SeparableConv1DConfig, dict[str, np.ndarray]]], str]:
    """The config and the weights of each layer in a file, and a note on what was left out, else an empty string.

    Raises:
        ValueError: its content is damaged, hostile, or of a kind that is not read.
        OSError: there is none, or it may not be read.
    """
    with opened(path) as file:
        note = (
            ""
            if not file.unknown
            else (
                f"{os.fsdecode(path)} has weights like those of SeparableConv1D layers at {shown(file.unknown)}, but "
                "no config of them; they are left out. A class of your own must write its layers into its `get_config` "
                "to have them found; or load the file in Keras and pass them to `from_layer`."
            )
        )
        layers = {
            name: (found.config, {leaf: array.read() for leaf, array in found.weights.items()})
            for name, found in file.layers.items()
        }
    return layers, note


@contextlib.contextmanager
def opened(path: str | os.PathLike, name: str | os.PathLike | None = None) -> Iterator[ModelFile]:
    """Opens the file of a model for as long as the context lasts.

    Args:
        path: a `.keras` or `.h5` file of any name, or a SavedModel folder.
        name: what messages call it; the path if `None`.

    Raises:
        ValueError: its content is damaged, hostile, or of a kind that is not read.
        OSError: there is none, or it may not be read.
    """
    with contextlib.ExitStack() as stack:
        budget = Budget()
        with naming(name or path):
            file = _read(path, stack, budget)
            _check_apart((found.places for found in file.layers.values()), budget)
        yield file


@contextlib.contextmanager
def naming(name: str | os.PathLike) -> Iterator[None]:
    """Puts a file's name before whatever is wrong with its content."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        reason = str(error)
        reason = reason if len(reason) <= _REASON_LIMIT else f"{reason[:_REASON_LIMIT]}..."
        raise ValueError(f"{os.fsdecode(name)}: {reason}") from None


def every_layer(file: ModelFile) -> dict[Path, Placed]:
    """Every layer of an opened file.

    Raises:
        ValueError: it is damaged, or a SavedModel.
    """
    if file.every is None:
        raise ValueError(
            "of a SavedModel only SeparableConv1D layers are read. Load it in Keras, save it as .keras, and use that."
        )
    return file.every()


def _check_apart(layers: Iterable[list[dict[str, Any]]], budget: Budget) -> None:
    """Refuses weights of a wrong type or place, and layers that share some; of each layer there are all places."""
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


def _read(path: str | os.PathLike, stack: contextlib.ExitStack, budget: Budget) -> ModelFile:
    if os.path.isdir(path):
        folder = os.fsdecode(path)
        if not saved_model.is_saved_model(folder):
            raise ValueError("it is a folder, and no SavedModel. A .keras or .h5 file would do.")
        found = saved_model.read(folder, stack, budget)
        return ModelFile({key: Found(config, [weights]) for key, (config, weights) in found.items()}, [])
    source = byte_source.opened(path, stack)
    if archive.is_archive(source):
        return _read_archive(source, stack, budget)
    if hdf5.is_hdf5(source):
        return _read_hdf5(source, stack, budget)
    raise ValueError("it is neither a .keras archive nor an HDF5 file, whatever its name says.")


def _read_archive(whole: Source, stack: contextlib.ExitStack, budget: Budget) -> ModelFile:
    entries = archive.members(whole, budget)
    members = {member.name: member for member in entries}
    if _WEIGHTS not in members or _CONFIG not in members:
        raise ValueError(
            f"it is a zip archive, but none of a Keras model: it has no {_CONFIG!r} or no {_WEIGHTS!r}. "
            "A file saved with `model.save('name.keras')` would do."
        )

    def text(name: str) -> bytes:
        source = archive.content(whole, members[name], untrusted_json.SIZE_LIMIT)
        return source.read(0, source.size)

    metadata: Any = untrusted_json.parse(text(_METADATA), budget) if _METADATA in members else {}
    keras2 = description.is_keras2(metadata.get("keras_version")) if isinstance(metadata, dict) else None
    model = description.read(text(_CONFIG), keras2, budget)
    source = archive.content(whole, members[_WEIGHTS])
    file = hdf5.File(source, budget, stack)
    places, unknown = pairing.in_archive(model, file.root, keras2=bool(keras2))
    layers = _by_name(places)

    def every() -> dict[Path, Placed]:
        found = placing.in_archive(model, file.root, bool(keras2), places)
        _check_apart((placed.places for placed in found.values()), budget)
        return found

    if source.file is not whole.file:
        return ModelFile(layers, unknown, every=every)

    def regions(weights: dict[int, str]) -> Regions:
        taken = Regions(budget)
        archive.take_regions(whole, entries, members[_WEIGHTS], taken)
        hdf5_regions.take_regions(file, weights, taken)
        return taken

    checksums = archive.checksum_positions(whole, members[_WEIGHTS])
    return ModelFile(layers, unknown, source, checksums, regions, every)


def _read_hdf5(source: Source, stack: contextlib.ExitStack, budget: Budget) -> ModelFile:
    file = hdf5.File(source, budget, stack)
    root = file.root
    config, weights = root.attribute("model_config"), root.group("model_weights")
    if not isinstance(config, str) or weights is None:
        raise ValueError(
            "it is an HDF5 file without a model's config, which a file of weights alone is. A file saved with "
            "`model.save('name.keras')` or `model.save('name.h5')` would do."
        )
    keras2 = description.is_keras2(root.attribute("keras_version") or weights.attribute("keras_version"))
    model = description.read(config, keras2, budget)
    places, unknown = pairing.in_hdf5(model, weights)

    def every() -> dict[Path, Placed]:
        found = placing.in_hdf5(model, weights)
        _check_apart((placed.places for placed in found.values()), budget)
        return found

    def regions(weights: dict[int, str]) -> Regions:
        taken = Regions(budget)
        hdf5_regions.take_regions(file, weights, taken)
        return taken

    return ModelFile(_by_name(places), unknown, source, (), regions, every)


def _by_name(places: pairing.Places) -> dict[str, Found]:
    """The layers by their paths of names."""
    names = description.Names()
    return {
        names.unused(layer.path): Found(layer.settings, where)
        for layer, where in places.items()
        if layer.settings
    }
