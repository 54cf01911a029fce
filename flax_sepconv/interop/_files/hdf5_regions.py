"""Finds everything that an HDF5 file holds, to know which of its bytes are taken and by what."""

import collections
import math

from flax_sepconv.interop._files import hdf5_messages as decode
from flax_sepconv.interop._files import hdf5_text
from flax_sepconv.interop._files.hdf5 import Dataset, File, Group
from flax_sepconv.interop._files.regions import Regions

_VARIABLE, _NESTED = 9, (6, 10)  # datatypes whose data is elsewhere, or may be


def take_regions(file: File, weights: dict[int, str], regions: Regions) -> None:
    """Marks every structure and every array of a file as taken.

    Args:
        file: the file.
        weights: the datasets to be written, by their addresses, each with its name in messages.
        regions: where to mark them.

    Raises:
        ValueError: a dataset to be written has several names, or the place of something in the file is not known.
    """
    links: collections.Counter[int] = collections.Counter()
    stack: list[Group | Dataset] = [file.root]
    seen = {file.root.address}
    links[file.root.address] += 1
    while stack:
        here = stack.pop()
        _take_attributes(here)
        if isinstance(here, Dataset):
            _take_array(here, weights.get(here.address), regions)
            continue
        for name in here.names():
            child = here.child(name)
            file.budget.step(3)
            links[child.address] += 1
            if child.address not in seen:
                seen.add(child.address)
                stack.append(child)
    for address, what in weights.items():
        _check_links(file.child(address, None, ""), what, links)
    for position, size in zip(file.taken[::2], file.taken[1::2], strict=True):
        size = min(size, file.source.size - position)
        regions.take(file.source.start + position, size, "a structure of the HDF5 file")


def _check_links(dataset: Group | Dataset, what: str, links: collections.Counter[int]) -> None:
    """Refuses an array with two names, because whoever reads it by the other would find new values there."""
    here: Group | Dataset | None = dataset
    while here:
        if links[here.address] != 1:
            raise ValueError(f"{what} has several names in the file, for {here.path or '/'!r} has.")
        here = here.parent


def _take_array(dataset: Dataset, what: str | None, regions: Regions) -> None:
    kind = decode.datatype(dataset.messages.get(decode.Message.DATATYPE, bytes(8)))
    if decode.Message.LAYOUT not in dataset.messages:  # a named type
        return
    place = dataset.place()
    body = dataset.messages[decode.Message.LAYOUT]
    if kind.kind in (_VARIABLE, *_NESTED) or (place is None and decode.unpack("<2B", body) != (3, 0)):
        raise ValueError(
            f"{dataset.path!r} is not stored in one piece, as Keras stores arrays, so that nothing can be "
            "written beside it. Load the file in Keras and save it again."
        )
    if place is not None:
        position, size = place
        end = min(position + size, dataset.file.source.size)
        start = dataset.file.source.start
        regions.take(
            start + position, end - position, what or f"the array {dataset.path!r}", what is not None
        )


def _take_attributes(here: Group | Dataset) -> None:
    """Marks the heaps that hold attributes of variable length; other attributes are within the header."""
    for name, body in here.attributes.items():
        kind, shape, data = decode.attribute(body)
        count = math.prod(shape)
        if kind.kind in _NESTED and count:
            raise ValueError(
                f"the attribute {name!r} of {here.path or '/'!r} is of a type that Keras never writes."
            )
        if kind.kind == _VARIABLE and count > 0:
            here.file.entries(min(count, len(data)))
            for at in range(0, min(16 * count, len(data) - 15), 16):
                length, collection, _ = decode.unpack("<IQI", data[at:])
                if length:
                    hdf5_text.heap(here.file, collection)
