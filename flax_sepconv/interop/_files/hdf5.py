"""Reads the part of HDF5 that Keras's files use, from the bytes.

    file ─► group ─► B-tree ─► symbol nodes ─► names and positions of groups and datasets
              └► object header ─► messages: attributes; a dataset's type, shape and place in the file

Files are untrusted, and h5py is not made for such. Of 4,000 weight files of at most 60 kB, damaged at random as
`tests.interop.fuzz` does it, h5py 3.16 (HDF5 2.0.0) had not come back from 13 after 10 s, nor from any of those
tried again after 25 s: it loops in C, where no exception or signal handler of Python's reaches it. Memory rose to
2 GiB. Keras only writes HDF5's oldest format (through h5py, whatever its version): groups with symbol tables,
datasets in one piece. That is little enough to read here, in Python, where nothing can crash: each position is
checked against the file's end before anything is read there, each structure is read once, wherever it is linked, and
counted in the file's budget, so that neither loops nor sizes that somebody made up cost time or memory. Everything
else HDF5 can do is refused by name: links that lead elsewhere, external and virtual data, filters, unusual types.

Because a dataset is one piece of the file, its values can also be replaced in place.

Source: "HDF5 File Format Specification Version 3.0", The HDF Group. Section numbers below are its.
"""

import array
import contextlib
import functools
import struct
from collections.abc import Iterator

from flax_sepconv.interop._files import hdf5_messages as decode
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.hdf5_messages import Message
from flax_sepconv.interop._files.hdf5_objects import Dataset, Object

_MAGIC = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1
_STRUCTURE_LIMIT, _NAME_LIMIT = 16 * 2**20, 1024
# Costs in steps: reading a structure, reading a message or an entry in one, looking up a name; and bytes per step.
_STRUCTURE, _ENTRY, _NAME, _STEP_BYTES = 8, 2, 3, 256
# Bytes that Python holds for a structure, and for an entry in one.
_OBJECT_BYTES, _ENTRY_BYTES = 2000, 150
_NEWER = "it is in a newer form of HDF5, which Keras does not write. Load it in Keras and save it again."


def is_hdf5(source: Source) -> bool:
    """Returns whether this begins as an HDF5 file does."""
    return source.size >= len(_MAGIC) and source.read(0, len(_MAGIC)) == _MAGIC


class File:
    """An HDF5 file, and everything that may be read from it.

    Args:
        source: its bytes.
        budget: what reading it may cost.
        stack: releases everything that was read when it ends.

    Attributes:
        taken: the position and then the size of each structure that was read.
        heaps: the global heaps that were read, by their positions.

    Raises:
        ValueError: it is damaged or in a form that Keras does not write; so do all methods here.
    """

    def __init__(self, source: Source, budget: Budget, stack: contextlib.ExitStack):
        self.source, self.budget = source, budget
        self.taken = array.array("Q")
        self._objects: dict[int, Group | Dataset] = {}
        stack.callback(self._objects.clear)  # they refer to this, too
        self.heaps: dict[int, dict[int, tuple[int, int]]] = {}
        if not is_hdf5(source):
            raise ValueError("it is not an HDF5 file.")
        version, offset_size, length_size = struct.unpack("<8xB4xBB", self.read(0, 15))  # II.A
        if version > 1:
            raise ValueError(_NEWER)
        leaf, inner = struct.unpack("<2H", self.read(16, 4))
        # Names are in nodes of fixed sizes, which may be partly empty: one for leaves, one for the nodes above.
        self.node_sizes = (min(8 + 80 * leaf, _STRUCTURE_LIMIT), min(32 + 32 * inner, _STRUCTURE_LIMIT))
        base, _, end, _, _, root = struct.unpack("<6Q", self.read(24 + 4 * version, 48))
        self.take(0, 96 + 4 * version)
        if (offset_size, length_size, base) != (8, 8, 0):
            raise ValueError("it is in a form of HDF5 that Keras does not write, or damaged.")
        if end > source.size:
            raise ValueError(f"it is cut off: of its {end} bytes {source.size} are there.")
        self._root = root

    @property
    def root(self) -> "Group":
        """Returns the group at its root."""
        found = self.child(self._root, None, "")
        if not isinstance(found, Group):
            raise ValueError("it is damaged: its root is no group.")
        return found

    def read(self, at: int, size: int) -> bytes:
        """Reads the `size` bytes of a structure at `at`, counts them and marks them as taken."""
        if size > _STRUCTURE_LIMIT:
            raise ValueError("it is damaged: one of its structures is larger than any of Keras's.")
        self.budget.step(_STRUCTURE + size // _STEP_BYTES)
        data = self.source.read(at, size)
        self.take(at, size)
        return data

    def take(self, at: int, size: int) -> None:
        """Marks what belongs to a structure as taken."""
        if self.taken and self.taken[-2] <= at <= self.taken[-2] + self.taken[-1]:
            # It begins where the last one ended.
            self.taken[-1] = max(self.taken[-1], at + size - self.taken[-2])
        else:
            self.taken.append(at)
            self.taken.append(size)

    def entries(self, count: int) -> None:
        """Counts the entries of a structure."""
        self.budget.step(_ENTRY * count)
        self.budget.hold(_ENTRY_BYTES * count)

    def child(self, address: int, parent: "Group | None", name: str) -> "Group | Dataset":
        """Returns the group or dataset at an address, with the first name that led to it."""
        if address not in self._objects:
            self.budget.hold(_OBJECT_BYTES + len(name))
            header = self._header(address, name)
            kinds = {kind for kind, _ in header}
            if Message.LINK_INFO in kinds or Message.LINK in kinds:
                raise ValueError(_NEWER)
            cls = Group if Message.SYMBOL_TABLE in kinds else Dataset
            self._objects[address] = cls(self, address, parent, name, header)
        return self._objects[address]

    def _header(self, address: int, name: str) -> list[tuple[int, bytes]]:
        """Reads the messages of the header at an address, each as its type and its body (IV.A.1.a)."""
        version, total, size = struct.unpack("<BxH4xI4x", prefix := self.read(address, 16))
        if prefix[:4] == b"OHDR":
            raise ValueError(_NEWER)
        if version != 1:
            raise ValueError(f"it is damaged: {name or 'its root'!r} has no header.")
        self.entries(total)
        found, blocks = [], [(address + 16, size)]
        for start, length in blocks:  # grows where the header is continued elsewhere
            block, at = self.read(start, length), 0
            self.budget.hold(length)
            while at + 8 <= length and len(found) < total:
                kind, size, flags = struct.unpack_from("<HHB", block, at)
                body = block[at + 8 : at + 8 + size]
                if flags & 2:
                    kind = -1  # its body is elsewhere, and Keras writes no such message
                if kind == Message.CONTINUATION:
                    blocks.append(decode.unpack("<2Q", body))
                found.append((kind, body))
                at += 8 + size
        return found


class Group(Object):
    """A group: names, and the groups and datasets they stand for."""

    def get(self, path: str) -> "Group | Dataset | None":
        """Returns what a path leads to from here, or `None` if there is nothing."""
        names = path.split("/")
        self.file.budget.step(_NAME * len(names) + len(path) // _STEP_BYTES)
        here: Group | Dataset = self
        for name in filter(None, names):
            if not isinstance(here, Group) or name not in here.addresses:
                return None
            here = here.child(name)
        return here

    def group(self, path: str) -> "Group | None":
        """Returns the group that a path leads to, or `None` if there is nothing or a dataset."""
        found = self.get(path)
        return found if isinstance(found, Group) else None

    def names(self) -> list[str]:
        """Lists the names in this group."""
        self.file.budget.step(1 + len(self.addresses) // 16)
        return list(self.addresses)

    def child(self, name: str) -> "Group | Dataset":
        """Returns what one of the names stands for."""
        address = self.addresses[name]
        if address is None:
            path = f"{self.path}/{name}".removeprefix("/")
            raise ValueError(f"{path!r} is a link to something else, which Keras never writes.")
        return self.file.child(address, self, name)

    def walk(self) -> Iterator["Group"]:
        """Yields this group and every group below it, once each, however they are linked.

        Groups named `vars` hold arrays, and no groups, in Keras's own format.
        """
        stack: list[Group] = [self]
        seen = {self.address}
        while stack:
            group = stack.pop()
            yield group
            for name in reversed(group.names() if group.name != "vars" else []):
                child = group.child(name)
                self.file.budget.step(_NAME)
                if isinstance(child, Group) and child.address not in seen:
                    seen.add(child.address)
                    stack.append(child)

    @functools.cached_property
    def addresses(self) -> dict[str, int | None]:
        """The position of the object behind each name; `None` for a link to a path (III.A, III.C, III.D)."""
        tree, heap = decode.unpack("<2Q", self.messages[Message.SYMBOL_TABLE])
        magic, size, start = struct.unpack("<4s4xQ8xQ", self.file.read(heap, 32))
        names = self.file.read(start, size) if magic == b"HEAP" else b""
        found: dict[str, int | None] = {}
        for node in self._symbol_nodes(tree):
            magic, count = struct.unpack("<4s2xH", self.file.read(node, 8))
            if magic != b"SNOD":
                raise ValueError(f"it is damaged: the names in {self.path or 'its root'!r} are lost.")
            self.file.entries(count)
            self.file.take(node, self.file.node_sizes[0])
            for name_at, address, kind in struct.iter_unpack("<2QI20x", self.file.read(node + 8, 40 * count)):
                name = _terminated(names, name_at)
                self.file.budget.hold(len(name))
                found[name] = None if kind == 2 or address == _UNDEFINED else address
        return found

    def _symbol_nodes(self, root: int) -> Iterator[int]:
        """Yields the leaves of a group's B-tree, in order."""
        seen, stack = set(), [(root, None)]
        while stack:
            address, expected = stack.pop()
            magic, kind, level, count = struct.unpack("<4sBBH", self.file.read(address, 8))
            wrong_level = expected is not None and level != expected
            if magic != b"TREE" or kind != 0 or wrong_level or address in seen:
                raise ValueError(f"it is damaged: the names in {self.path or 'its root'!r} are lost.")
            seen.add(address)
            self.file.budget.step(count)
            self.file.take(address, self.file.node_sizes[1])
            children = [
                child for (child,) in struct.iter_unpack("<8xQ", self.file.read(address + 24, 16 * count))
            ]
            if level == 0:
                yield from children
            else:
                stack += [(child, level - 1) for child in reversed(children)]


def _terminated(names: bytes, at: int) -> str:
    end = names.find(b"\0", at, at + _NAME_LIMIT)
    if end < 0:
        raise ValueError("it is damaged: a name is lost.")
    try:
        return names[at:end].decode()
    except UnicodeDecodeError:
        raise ValueError("it is damaged: a name is no text.") from None
