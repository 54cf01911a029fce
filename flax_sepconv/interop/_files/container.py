"""Opens a model's file of any kind: finds the model's config and the HDF5 group with the weights.

    .keras archive, or a folder of the same files   config.json, metadata.json, model.weights.h5
    .h5 of a whole model                            model_config, keras_version, model_weights
    .h5 and .weights.h5 of weights alone            no config

The kind of a file is told by its first bytes, not by its name.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax_sepconv.interop._files import archive, byte_source, hdf5, hdf5_regions, untrusted_json
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.hdf5 import Group
from flax_sepconv.interop._files.pairing_hdf5 import attribute_list
from flax_sepconv.interop._files.regions import Regions

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


class Container(NamedTuple):
    """A file, opened.

    Attributes:
        config: the model's config as JSON; `None` for weights alone.
        version: the version of the Keras that wrote the file, as the file has it, unchecked.
        weights: the group with the weights.
        is_named: whether the weights are in HDF5 groups named for the layers, rather than in Keras's own format.
        source: the range that the positions of weights count from; `None` if they cannot be replaced in place.
        checksums: the positions of the source's checksum in the whole file.
        regions: marks everything that the file holds, given the weights to be written by their addresses.
    """

    config: str | bytes | None
    version: Any
    weights: Group
    is_named: bool
    source: Source | None
    checksums: Sequence[int]
    regions: Callable[[dict[int, str]], Regions]


def is_keras_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether this is a folder that Keras 3 wrote with `zipped=False`."""
    return all(os.path.isfile(os.path.join(path, name)) for name in (CONFIG, WEIGHTS))


def opened(
    path: str | os.PathLike[str],
    stack: contextlib.ExitStack,
    budget: Budget,
    weights: str | os.PathLike[str] | None = None,
) -> Container:
    """Opens a Keras file or folder until the stack ends.

    Args:
        path: the file or folder.
        stack: closes it.
        budget: what reading it may cost.
        weights: the file to read in place of the one with the weights in a folder.

    Raises:
        ValueError: it is damaged, hostile, or of an unsupported kind.
        OSError: it does not exist, or may not be read.
    """
    if os.path.isdir(path):
        return _folder(os.fsdecode(path), stack, budget, weights)
    source = byte_source.opened(path, stack)
    if archive.is_archive(source):
        return _archive(source, stack, budget)
    if hdf5.is_hdf5(source):
        return _hdf5(source, stack, budget)
    if untrusted_json.is_json(source):
        raise ValueError(_of_json(untrusted_json.parse(source.read(0, _checked_size(source)), budget)))
    is_safetensors = source.size > 8 and source.read(8, 1) == b"{"
    hint = (
        " It seems to be a safetensors file, for `flax_sepconv.interop.safetensors`."
        if is_safetensors
        else ""
    )
    raise ValueError(f"it is neither a .keras archive nor an HDF5 file, whatever its name says.{hint}")


def _folder(
    path: str, stack: contextlib.ExitStack, budget: Budget, weights: str | os.PathLike[str] | None
) -> Container:
    if not is_keras_folder(path):
        raise ValueError(
            f"it is a folder, and neither a SavedModel nor one of Keras 3's with a {CONFIG!r} and a {WEIGHTS!r}. A "
            ".keras or .h5 file would do."
        )

    def text(name: str) -> bytes:
        source = byte_source.opened(os.path.join(path, name), stack, path)
        return source.read(0, _checked_size(source))

    metadata = text(METADATA) if os.path.isfile(os.path.join(path, METADATA)) else b"{}"
    if weights is None:
        source = byte_source.opened(os.path.join(path, WEIGHTS), stack, path)
    else:
        source = byte_source.opened(weights, stack)
    file = hdf5.File(source, budget, stack)
    return _own_format(text(CONFIG), metadata, file, source, (), lambda taken: None)


def _archive(whole: Source, stack: contextlib.ExitStack, budget: Budget) -> Container:
    entries = archive.members(whole, budget)
    members = {member.name: member for member in entries}
    if WEIGHTS not in members or CONFIG not in members:
        raise ValueError(
            f"it is a zip archive, but none of a Keras model: it has no {CONFIG!r} or no {WEIGHTS!r}. "
            "A file saved with `model.save('name.keras')` would do."
        )

    def text(name: str) -> bytes:
        source = archive.content(whole, members[name], untrusted_json.SIZE_LIMIT)
        return source.read(0, source.size)

    metadata = text(METADATA) if METADATA in members else b"{}"
    config = text(CONFIG)
    source = archive.content(whole, members[WEIGHTS])
    file = hdf5.File(source, budget, stack)
    if source.file is not whole.file:
        return _own_format(config, metadata, file, None, (), lambda taken: None)
    checksums = archive.checksum_positions(whole, members[WEIGHTS])

    def take_rest(taken: Regions) -> None:
        archive.take_regions(whole, entries, members[WEIGHTS], taken)

    return _own_format(config, metadata, file, source, checksums, take_rest)


def _own_format(
    config: bytes,
    metadata: bytes,
    file: hdf5.File,
    source: Source | None,
    checksums: Sequence[int],
    take_rest: Callable[[Regions], None],
) -> Container:
    """Returns the container for the files of Keras's own format, wherever they are."""
    about: Any = untrusted_json.parse(metadata, file.budget)
    version = about.get("keras_version") if isinstance(about, dict) else None
    return Container(config, version, file.root, False, source, checksums, _regions(file, take_rest))


def _hdf5(source: Source, stack: contextlib.ExitStack, budget: Budget) -> Container:
    file = hdf5.File(source, budget, stack)
    root, regions = file.root, _regions(file)
    config, weights = root.attribute("model_config"), root.group("model_weights")
    if isinstance(config, str) and weights is not None:
        version = root.attribute("keras_version") or weights.attribute("keras_version")
        return Container(config, version, weights, True, source, (), regions)
    is_named = bool(attribute_list(root, "layer_names"))
    if not is_named and not any(
        root.group(name) for name in ("layers", "vars", "_layer_checkpoint_dependencies")
    ):
        raise ValueError(
            "it is an HDF5 file without a model's config or weights. A file saved with "
            "`model.save('name.keras')` or `model.save_weights('name.weights.h5')` would do."
        )
    return Container(None, root.attribute("keras_version"), root, is_named, source, (), regions)


def _regions(
    file: hdf5.File, take_rest: Callable[[Regions], None] = lambda taken: None
) -> Callable[[dict[int, str]], Regions]:
    """Returns a function that marks everything in an HDF5 file, and the rest of the file that contains it."""

    def regions(weights: dict[int, str]) -> Regions:
        taken = Regions(file.budget)
        take_rest(taken)
        hdf5_regions.take_regions(file, weights, taken)
        return taken

    return regions


def _checked_size(source: Source) -> int:
    if source.size > untrusted_json.SIZE_LIMIT:
        raise ValueError(f"its JSON has {source.size} bytes, more than any model's.")
    return source.size


def _of_json(content: Any) -> str:
    """Says why a JSON file does not hold a model."""
    if isinstance(content, dict) and "weight_map" in content:
        return (
            "it is the index of weights in several files, as `save_weights` with `max_shard_size` writes them. Write "
            "one file in Keras, `model.save_weights('name.weights.h5')`, and use that."
        )
    return (
        "it is JSON without weights. If it is a model's config, as `to_json()` gives it, pass the file of the weights "
        "as the path, and this one as `config`."
    )
