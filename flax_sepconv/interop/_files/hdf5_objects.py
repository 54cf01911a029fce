"""Objects in HDF5 files: what groups and datasets have in common, and datasets."""

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_sepconv.interop._files import hdf5_messages as decode
from flax_sepconv.interop._files import hdf5_text
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.hdf5_messages import Message

if TYPE_CHECKING:
    from flax_sepconv.interop._files.hdf5 import File, Group

_STEP_BYTES = 256  # bytes of text that take one step


class Object:
    """What a group and a dataset have in common: a header made of messages."""

    def __init__(
        self,
        file: "File",
        address: int,
        parent: "Group | None",
        name: str,
        header: list[tuple[int, bytes]],
    ):
        self.file, self.address, self.parent, self.name = file, address, parent, name
        self.header = header
        self.messages = dict(reversed(header))  # the first of each type

    @property
    def path(self) -> str:
        """The names from the root down to this object; the end of a long path."""
        names, here = [], self
        while here.parent and len(names) < 100:
            names.append(here.name)
            here = here.parent
        self.file.budget.step(1 + len(names) + sum(map(len, names)) // _STEP_BYTES)
        return "/".join([*(["..."] if here.parent else []), *reversed(names)])

    @functools.cached_property
    def attributes(self) -> dict[bytes, bytes]:
        """The bodies of the messages that hold attributes, by the attributes' names."""
        bodies = [body for kind, body in self.header if kind == Message.ATTRIBUTE]
        return {decode.attribute_name(body): body for body in bodies}

    def attribute(self, name: str) -> Any:
        """Returns an attribute's value: a string, a list of strings, or `None` if it is missing or anything else."""
        self.file.budget.step()
        if name not in self._values:
            body = self.attributes.get(name.encode())
            self._values[name] = None if body is None else hdf5_text.value(self.file, body)
        return self._values[name]

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        """The attributes that were asked for before."""
        return {}


class Dataset(Object):
    """An array of floating-point numbers in one piece of the file."""

    @property
    def source(self) -> Source:
        """The bytes that its position refers to."""
        return self.file.source

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return decode.shape(self._required(Message.DATASPACE))

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Its dtype, with the byte order of the file."""
        dtype = decode.float_dtype(self._required(Message.DATATYPE))
        if dtype is None:
            raise ValueError(f"{self.path!r} does not hold floating-point numbers.")
        return dtype

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return decode.float_dtype(self._required(Message.DATATYPE)) is not None

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def position(self) -> int:
        """The position of its first value in the file; all its values are within the file."""
        place = self.place()
        if place is None:
            raise ValueError(f"{self.path!r} is not stored in one piece, as Keras stores arrays.")
        position, size = place
        if size != self.nbytes or position + size > self.file.source.size:
            raise ValueError(f"{self.path!r} is damaged: its size or place in the file is wrong.")
        return position

    def place(self) -> tuple[int, int] | None:
        """Returns the position and size of its data, unchecked; `None` if it is not in one piece (IV.A.2.i)."""
        if Message.FILTERS in self.messages or Message.EXTERNAL in self.messages:
            raise ValueError(f"{self.path!r} is compressed or kept in another file, which Keras never does.")
        body = self._required(Message.LAYOUT)
        return decode.unpack("<2x2Q", body) if decode.unpack("<2B", body) == (3, 1) else None

    def read(self) -> np.ndarray:
        """Reads its values, in the machine's byte order."""
        data = self.file.source.read(self.position, self.nbytes)
        dtype = self.dtype
        return np.frombuffer(data, dtype).reshape(self.shape).astype(dtype.newbyteorder("="), copy=False)

    def _required(self, kind: int) -> bytes:
        if kind not in self.messages:
            raise ValueError(f"{self.path!r} is damaged, or not an array.")
        return self.messages[kind]
