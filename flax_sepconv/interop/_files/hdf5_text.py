"""Reads texts in HDF5 files: attributes, and the global heaps that hold those of variable length."""

import math
import struct
from typing import TYPE_CHECKING, Any

from flax_sepconv.interop._files import hdf5_messages as decode

if TYPE_CHECKING:
    from flax_sepconv.interop._files.hdf5 import File


def value(file: "File", body: bytes) -> Any:
    """Returns an attribute's value if it is a string or a list of strings, else `None`."""
    kind, shape, data = decode.attribute(body)
    count = math.prod(shape)
    if count == 0:
        return []  # Keras's empty lists have no type
    if kind.kind not in (3, 9) or (kind.kind == 9 and kind.bits & 15 != 1):
        return None
    if kind.size * count > len(data) or kind.size == 0:
        raise ValueError("it is damaged: an attribute is cut off.")
    file.entries(count)
    items = [data[kind.size * i :][: kind.size] for i in range(count)]
    if kind.kind == 9:  # of variable length, kept elsewhere
        items = [_from_heap(file, *decode.unpack("<IQI", item)) for item in items]
    try:
        strings = [item.split(b"\0", 1)[0].decode() for item in items]
    except UnicodeDecodeError:
        raise ValueError("it is damaged: an attribute is no text.") from None
    return strings if shape else strings[0]


def _from_heap(file: "File", length: int, collection: int, index: int) -> bytes:
    """Reads a text in a global heap."""
    if length == 0:
        return b""
    position, size = heap(file, collection).get(index, (0, 0))
    if length > size:
        raise ValueError("it is damaged: the text of an attribute is lost.")
    file.budget.hold(length)
    return file.read(position, length)


def heap(file: "File", collection: int) -> dict[int, tuple[int, int]]:
    """Returns the positions and sizes of the objects in a global heap, by their index (III.E)."""
    if collection not in file.heaps:
        file.heaps[collection] = found = {}
        magic, size = struct.unpack("<4s4xQ", file.read(collection, 16))
        at, end = collection + 16, collection + size
        if magic != b"GCOL" or end > file.source.size:
            raise ValueError("it is damaged: the text of an attribute is lost.")
        file.take(collection, size)
        while at + 16 <= end:
            index, length = struct.unpack("<H6xQ", file.read(at, 16))
            if index == 0:  # the rest is free space
                break
            found.setdefault(index, (at + 16, length))
            at += 16 + -(-length // 8) * 8
    return file.heaps[collection]
