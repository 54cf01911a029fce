"""The part of HDF5 that Keras's files consist of, read from the bytes.

    file ─► group ─► B-tree ─► symbol nodes ─► names and positions of groups and datasets
              └► object header ─► messages: attributes; a dataset's type, shape and place in the file

Files are untrusted, and h5py is not made for such. Of 4,000 weight files of at most 60 kB, damaged at random as
`tests.interop.fuzz` does it, h5py 3.16 (HDF5 2.0.0) had not come back from 13 after 10 s, nor from any of those
tried again after 25 s: it loops in C, where no exception or signal handler of Python's reaches it. Memory rose to
2 GiB. Keras only writes HDF5's oldest format (through h5py, whatever its version): groups with symbol tables,
datasets in one piece. That is little enough to read here, in Python, where nothing can crash: each position is
checked against the file's end before anything is read there, and each structure is counted against a limit, so that
neither loops nor sizes that somebody made up cost time or memory. Everything else HDF5 can do is refused by name:
links that lead elsewhere, external and virtual data, filters, unusual types.

Because a dataset is one piece of the file, its values can also be replaced in place.

Source: "HDF5 File Format Specification Version 3.0", The HDF Group. Section numbers below are its.
"""

import functools
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from flax_sepconv.interop import _hdf5_messages as decode
from flax_sepconv.interop._archive import Source
from flax_sepconv.interop._hdf5_messages import Datatype, Message

_MAGIC = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1
# A step is a structure, an item in one, or 256 bytes read. A model of 1,000 layers, with Adam, takes 100,000.
_STEP_LIMIT, _STEP_BYTES = 1_000_000, 256
_METADATA_LIMIT = 16 * 2**20
_NAME_LIMIT, _PATH_LIMIT = 1024, 4096
_NEWER = "it is in a newer form of HDF5, which Keras does not write. Load it in Keras and save it again."


def is_hdf5(source: Source) -> bool:
    """Whether this begins as an HDF5 file does."""
    return source.size >= len(_MAGIC) and source.read(0, len(_MAGIC)) == _MAGIC


class File:
    """An HDF5 file, and all that may be read of it.

    Args:
        source: its bytes.

    Raises:
        ValueError: it is damaged or in a form that Keras does not write; so do all methods here.
    """

    def __init__(self, source: Source):
        self.source = source
        self._steps = 0
        if not is_hdf5(source):
            raise ValueError("it is not an HDF5 file.")
        version, offset_size, length_size = struct.unpack("<8xB4xBB", self.read(0, 15))  # II.A
        if version > 1:
            raise ValueError(_NEWER)
        base, _, end, _, _, root = struct.unpack("<6Q", self.read(24 + 4 * version, 48))
        if (offset_size, length_size, base) != (8, 8, 0):
            raise ValueError("it is in a form of HDF5 that Keras does not write, or damaged.")
        if end > source.size:
            raise ValueError(f"it is cut off: of its {end} bytes {source.size} are there.")
        self.root = Group(self, root, "")

    def read(self, at: int, size: int) -> bytes:
        """The `size` bytes of a structure at `at`; counted."""
        if size > _METADATA_LIMIT:
            raise ValueError("it is damaged: one of its structures is larger than any of Keras's.")
        self.count(1 + size // _STEP_BYTES)
        return self.source.read(at, size)

    def count(self, steps: int) -> None:
        """Counts against the limit of what is read of one file."""
        self._steps += steps
        if self._steps > _STEP_LIMIT:
            raise ValueError("it is damaged or far larger than any model's: it holds too many structures.")


class _Object:
    """What a group and a dataset have in common: a header made of messages."""

    def __init__(self, file: File, address: int, path: str):
        self.file, self.address, self.path = file, address, path

    @functools.cached_property
    def messages(self) -> list[tuple[int, bytes]]:
        """The header's messages, each as its type and its body (IV.A.1.a)."""
        prefix = self.file.read(self.address, 16)
        version, total, size = struct.unpack("<BxH4xI4x", prefix)
        if prefix[:4] == b"OHDR":
            raise ValueError(_NEWER)
        if version != 1:
            raise ValueError(f"it is damaged: {self.path or 'its root'} has no header.")
        self.file.count(total)
        found, blocks = [], [(self.address + 16, size)]
        for start, length in blocks:  # grows where the header is continued elsewhere
            block, at = self.file.read(start, length), 0
            while at + 8 <= length and len(found) < total:
                kind, size, flags = struct.unpack_from("<HHB", block, at)
                body = block[at + 8 : at + 8 + size]
                if flags & 2:
                    kind = -1  # its body is elsewhere, and not one that Keras writes
                if kind == Message.CONTINUATION:
                    blocks.append(decode.unpack("<2Q", body))
                found.append((kind, body))
                at += 8 + size
        return found

    def message(self, kind: int) -> bytes | None:
        """The body of the first message of a type."""
        return next((body for each, body in self.messages if each == kind), None)

    def attribute(self, name: str) -> Any:
        """An attribute's value: a string, a list of strings, or `None` where it is missing or anything else."""
        body = self._attributes.get(name.encode())
        return None if body is None else _strings(self.file, *decode.attribute(body))

    @functools.cached_property
    def _attributes(self) -> dict[bytes, bytes]:
        bodies = [body for kind, body in self.messages if kind == Message.ATTRIBUTE]
        return {decode.attribute_name(body): body for body in bodies}


class Dataset(_Object):
    """An array of floating-point numbers in one piece of the file."""

    @property
    def source(self) -> Source:
        """What its position counts in."""
        return self.file.source

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return decode.shape(self._required(Message.DATASPACE))

    @property
    def dtype(self) -> np.dtype:
        """Its dtype, with the byte order of the file."""
        dtype = decode.float_dtype(self._required(Message.DATATYPE))
        if dtype is None:
            raise ValueError(f"{self.path!r} does not hold floating-point numbers.")
        return dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def position(self) -> int:
        """Where in the file its values begin; they are all within the file."""
        if self.message(Message.FILTERS) or self.message(Message.EXTERNAL):
            raise ValueError(f"{self.path!r} is compressed or kept in another file, which Keras never does.")
        body = self._required(Message.LAYOUT)  # IV.A.2.i
        if decode.unpack("<2B", body) != (3, 1):
            raise ValueError(f"{self.path!r} is not stored in one piece, as Keras stores arrays.")
        position, size = decode.unpack("<2x2Q", body)
        if size != self.nbytes or position + size > self.file.source.size:
            raise ValueError(f"{self.path!r} is damaged: its size or place in the file is wrong.")
        return position

    def read(self) -> np.ndarray:
        """A copy of its values, in the machine's byte order."""
        data = self.file.source.read(self.position, self.nbytes)
        dtype = self.dtype
        return np.frombuffer(data, dtype).reshape(self.shape).astype(dtype.newbyteorder("="))

    def _required(self, kind: int) -> bytes:
        body = self.message(kind)
        if body is None:
            raise ValueError(f"{self.path!r} is damaged, or not an array.")
        return body


class Group(_Object):
    """A group: names, and the groups and datasets they stand for."""

    def get(self, path: str) -> "Group | Dataset | None":
        """What a path leads to from here, `None` where there is nothing."""
        here: Group | Dataset = self
        for name in filter(None, path.split("/")):
            if not isinstance(here, Group) or name not in here._addresses:
                return None
            here = here._child(name)
        return here

    def group(self, path: str) -> "Group | None":
        """The group that a path leads to, `None` where there is nothing or a dataset."""
        found = self.get(path)
        return found if isinstance(found, Group) else None

    def names(self) -> list[str]:
        """The names in this group."""
        return list(self._addresses)

    def walk(self) -> Iterator["Group"]:
        """This group and every group below it, once each, however they are linked."""
        stack: list[Group] = [self]
        seen = {self.address}
        while stack:
            group = stack.pop()
            yield group
            for name in reversed(group.names()):
                child = group._child(name)
                if isinstance(child, Group) and child.address not in seen:
                    seen.add(child.address)
                    stack.append(child)

    def _child(self, name: str) -> "Group | Dataset":
        if name in self._children:
            return self._children[name]
        path = f"{self.path}/{name}" if self.path else name
        self.file.count(len(path) // 16)
        if len(path) > _PATH_LIMIT:
            raise ValueError("it is damaged: its groups are nested deeper than any model's.")
        address = self._addresses[name]
        if address is None:
            raise ValueError(f"{path!r} is a link to something else, which Keras never writes.")
        child = _Object(self.file, address, path)
        cls = Group if child.message(Message.SYMBOL_TABLE) else Dataset
        if any(child.message(kind) is not None for kind in (Message.LINK_INFO, Message.LINK)):
            raise ValueError(_NEWER)
        found = cls(self.file, address, path)
        found.messages = child.messages
        self._children[name] = found
        return found

    @functools.cached_property
    def _children(self) -> dict[str, "Group | Dataset"]:
        """What was looked up before."""
        return {}

    @functools.cached_property
    def _addresses(self) -> dict[str, int | None]:
        """The position of what each name stands for; `None` for a link to a path (III.A, III.C, III.D)."""
        table = self.message(Message.SYMBOL_TABLE)
        if table is None:
            raise ValueError(f"it is damaged: {self.path or 'its root'} is no group.")
        tree, heap = decode.unpack("<2Q", table)
        magic, size, start = struct.unpack("<4s4xQ8xQ", self.file.read(heap, 32))
        names = self.file.read(start, size) if magic == b"HEAP" else b""
        found: dict[str, int | None] = {}
        for node in self._symbol_nodes(tree):
            magic, count = struct.unpack("<4s2xH", self.file.read(node, 8))
            if magic != b"SNOD":
                raise ValueError(f"it is damaged: the names in {self.path or 'its root'} are lost.")
            self.file.count(count)
            for name_at, address, kind in struct.iter_unpack("<2QI20x", self.file.read(node + 8, 40 * count)):
                name = _terminated(names, name_at)
                self.file.count(len(name) // 16)
                found[name] = None if kind == 2 or address == _UNDEFINED else address
        return found

    def _symbol_nodes(self, root: int) -> Iterator[int]:
        """The leaves of a group's B-tree, in order."""
        seen, stack = set(), [(root, None)]
        while stack:
            address, expected = stack.pop()
            magic, kind, level, count = struct.unpack("<4sBBH", self.file.read(address, 8))
            wrong_level = expected is not None and level != expected
            if magic != b"TREE" or kind != 0 or wrong_level or address in seen:
                raise ValueError(f"it is damaged: the names in {self.path or 'its root'} are lost.")
            seen.add(address)
            self.file.count(count)
            children = [
                child for (child,) in struct.iter_unpack("<8xQ", self.file.read(address + 24, 16 * count))
            ]
            if level == 0:
                yield from children
            else:
                stack += [(child, level - 1) for child in reversed(children)]


def _strings(file: File, kind: Datatype, shape: tuple[int, ...], data: bytes) -> Any:
    """An attribute's value, where it is a string or a list of them."""
    count = math.prod(shape)
    if count == 0:
        return []  # Keras's empty lists have no type
    if kind.kind not in (3, 9) or (kind.kind == 9 and kind.bits & 15 != 1):
        return None
    if kind.size * count > len(data) or kind.size == 0:
        raise ValueError("it is damaged: an attribute is cut off.")
    file.count(count)
    items = [data[kind.size * i :][: kind.size] for i in range(count)]
    if kind.kind == 9:  # of variable length, kept elsewhere
        references = [decode.unpack("<IQI", item) for item in items]
        if sum(length for length, _, _ in references) > _METADATA_LIMIT:
            raise ValueError("it is damaged: an attribute is larger than any of Keras's.")
        items = [_from_heap(file, *reference) for reference in references]
    try:
        strings = [item.split(b"\0", 1)[0].decode() for item in items]
    except UnicodeDecodeError:
        raise ValueError("it is damaged: an attribute is no text.") from None
    return strings if shape else strings[0]


def _from_heap(file: File, length: int, collection: int, index: int) -> bytes:
    """An object of a global heap (III.E)."""
    if length == 0:
        return b""
    magic, size = struct.unpack("<4s4xQ", file.read(collection, 16))
    at, end = collection + 16, collection + size
    while magic == b"GCOL" and at + 16 <= end:
        found, object_size = struct.unpack("<H6xQ", file.read(at, 16))
        if found == index and length <= object_size:
            return file.read(at + 16, length)
        if found == 0:  # what remains is free
            break
        at += 16 + -(-object_size // 8) * 8
    raise ValueError("it is damaged: the text of an attribute is lost.")


def _terminated(names: bytes, at: int) -> str:
    end = names.find(b"\0", at, at + _NAME_LIMIT)
    if end < 0:
        raise ValueError("it is damaged: a name is lost.")
    try:
        return names[at:end].decode()
    except UnicodeDecodeError:
        raise ValueError("it is damaged: a name is no text.") from None
