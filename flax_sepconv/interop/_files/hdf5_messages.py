"""Reads the messages in HDF5's object headers: types, shapes, attributes.

Each function takes a message's body as it is in the file and refuses one that is cut off. Section numbers are
those of "HDF5 File Format Specification Version 3.0", The HDF Group.
"""

import struct
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

_BFLOAT16 = np.dtype(jnp.bfloat16)
# A float's bit offset, precision, exponent's position and size, mantissa's position and size, and bias.
_FLOATS = {
    (0, 16, 10, 5, 0, 10, 15): np.dtype(np.float16),
    (0, 16, 7, 8, 0, 7, 127): _BFLOAT16,
    (0, 32, 23, 8, 0, 23, 127): np.dtype(np.float32),
    (0, 64, 52, 11, 0, 52, 1023): np.dtype(np.float64),
}


class Message:
    """The types of messages in object headers (IV.A.2)."""

    DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
    ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x0C, 0x10, 0x11
    LINK_INFO, LINK = 0x02, 0x06


class Datatype(NamedTuple):
    """A datatype as the file has it: class, bits that refine it, size of an element, the rest (IV.A.2.d)."""

    kind: int
    bits: int
    size: int
    more: bytes


def datatype(body: bytes) -> Datatype:
    """Returns the type that a datatype message gives."""
    version_and_class, low, middle, high, size = unpack("<4BI", body)
    return Datatype(version_and_class & 15, low | middle << 8 | high << 16, size, body[8:])


def float_dtype(body: bytes) -> np.dtype | None:
    """Returns the dtype of floating-point numbers, or `None` for other types."""
    kind = datatype(body)
    if kind.kind == 5 and kind.size == 2:
        return _BFLOAT16  # h5py has no name for it and writes two opaque bytes
    if kind.kind != 1 or len(kind.more) < 12:
        return None
    dtype = _FLOATS.get(struct.unpack_from("<HH4BI", kind.more))
    # The byte order has two bits, then comes how the mantissa is normalised (with its leading one left out), and in
    # the second byte where the sign is.
    if dtype is None or dtype.itemsize != kind.size or kind.bits & 64 or kind.bits >> 4 & 3 != 2:
        return None
    if kind.bits >> 8 & 255 != 8 * kind.size - 1:
        return None
    return dtype.newbyteorder(">" if kind.bits & 1 else "<")


def shape(body: bytes) -> tuple[int, ...]:
    """Returns the shape that a dataspace message gives (IV.A.2.b)."""
    version, rank, _, kind = unpack("<4B", body)
    at = {1: 8, 2: 4}.get(version)
    if at is None or rank > 32 or (version == 2 and kind == 2):
        raise ValueError("it is damaged: an array has no shape.")
    return unpack(f"<{at}x{rank}Q", body)


def attribute_name(body: bytes) -> bytes:
    """Returns the name of an attribute."""
    return _parts(body)[0].rstrip(b"\0")


def attribute(body: bytes) -> tuple[Datatype, tuple[int, ...], bytes]:
    """Returns an attribute's type, shape and data."""
    _, kind, space, data = _parts(body)
    return datatype(kind), shape(space), data


def _parts(body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Splits an attribute into the bytes of its name, type, shape and data (IV.A.2.m)."""
    version, _, *sizes = unpack("<BB3H", body)
    at = {1: 8, 2: 8, 3: 9}.get(version)
    if at is None:
        raise ValueError("it is damaged: an attribute is of an unknown form.")
    parts = []
    for size in sizes:
        parts.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size  # version 1 pads each part
    name, kind, space = parts
    return name, kind, space, body[at:]


def unpack(form: str, body: bytes) -> tuple:
    """Unpacks numbers from the beginning of a message."""
    try:
        return struct.unpack_from(form, body)
    except struct.error:
        raise ValueError("it is damaged: a structure is cut off.") from None
