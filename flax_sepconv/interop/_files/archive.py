"""Reads the zip archive that a `.keras` file is.

Keras stores an archive's members uncompressed, so a member is a range of the file, its bytes can be replaced in place,
and nothing is ever unpacked to disk. A member that somebody compressed is unpacked in memory, within bounds. The
directory's entry for a member counts; the header before the member only has to have the same name.

The standard library's `zipfile` reads archives too, but does not tell where a member's bytes are, nor how large a
directory is before it has read it all.
"""

import io
import struct
import zlib
from typing import BinaryIO, NamedTuple

from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import MEBIBYTE, Source
from flax_sepconv.interop._files.regions import Regions

_DIRECTORY_LIMIT = 4 * MEBIBYTE
_MEMBER_STEPS, _MEMBER_BYTES = 15, 500
# Weights hardly compress: whatever expands further than this is not a model, small members excepted.
_EXPANSION_LIMIT, _SMALL_CHANGE = 8, 4 * MEBIBYTE


class Member(NamedTuple):
    """A member of an archive, as its directory describes it.

    Attributes:
        name: its name.
        raw_name: its name as it is in the archive.
        flags: bit 0 is set if it is encrypted, bit 3 if its checksum comes after it.
        method: 0 if it is stored as it is, 8 if it is deflated.
        crc: the checksum of its content.
        packed: its size in the archive.
        size: its size.
        header: position of the header before it.
        entry: position of its entry in the directory.
    """

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int
    entry: int


def is_archive(source: Source) -> bool:
    """Returns whether this begins as a zip archive does."""
    return source.size >= 4 and source.read(0, 4) == b"PK\3\4"


def members(source: Source, budget: Budget) -> list[Member]:
    """Lists the members of an archive. Of several with one name the last counts, as in other readers.

    Raises:
        ValueError: there is no directory, or it is damaged or too large.
    """
    start, size = _directory(source)
    if size > _DIRECTORY_LIMIT:
        raise ValueError(f"its zip directory has {size} bytes, more than a model's ever has.")
    budget.hold(size)
    directory = source.read(start, size)
    found, at = [], 0
    while at < size:
        budget.step(_MEMBER_STEPS)
        budget.hold(_MEMBER_BYTES)
        try:
            magic, flags, method, crc, packed, unpacked, *lengths, header = struct.unpack_from(
                "<4s4x2H4x3I3H8xI", directory, at
            )
            name_at, extra_at = at + 46, at + 46 + lengths[0]
            name = directory[name_at:extra_at]
            extra = directory[extra_at : extra_at + lengths[1]]
            packed, unpacked, header = _zip64(extra, packed, unpacked, header)
        except struct.error:
            raise ValueError("its zip directory is damaged.") from None
        if magic != b"PK\1\2":
            raise ValueError("its zip directory is damaged.")
        sizes = (method, crc, packed, unpacked, header, start + at)
        found.append(Member(name.decode(errors="replace"), name, flags, *sizes))
        at = extra_at + lengths[1] + lengths[2]
    return found


def content(source: Source, member: Member, limit: int | None = None) -> Source:
    """Returns a member's content: a range of the archive if it is stored, or bytes in memory if it is deflated.

    Args:
        source: the archive.
        member: one of its members.
        limit: the most bytes that it may have, if there is a limit.

    Raises:
        ValueError: it is damaged, encrypted, in an unknown form, or expands beyond measure.
    """
    if member.flags & 1:
        raise ValueError(f"its member {member.name!r} is encrypted.")
    if limit is not None and member.size > limit:
        raise ValueError(f"its member {member.name!r} has {member.size} bytes, more than any model's.")
    start = content_start(source, member)
    packed = Source(source.file, source.start + start, member.packed)
    if member.method == 0 and member.packed == member.size:
        unpacked = packed
    elif member.method == 8:
        if member.size > _EXPANSION_LIMIT * member.packed + _SMALL_CHANGE:
            raise ValueError(
                f"its member {member.name!r} says that {member.packed} bytes expand to {member.size}, which no "
                "model's do."
            )
        unpacked = Source(_inflate(packed, member))
    else:
        raise ValueError(f"its member {member.name!r} is packed in a way that Keras does not use.")
    if unpacked.crc32() != member.crc:
        raise ValueError(f"its member {member.name!r} is damaged: its checksum differs.")
    return unpacked


def content_start(source: Source, member: Member) -> int:
    """Returns where a member's bytes begin: after a header, which alone tells its own length."""
    header = source.read(member.header, 30)
    if header[:4] != b"PK\3\4":
        raise ValueError(f"its member {member.name!r} is not where the zip directory says.")
    name_size, extra_size = struct.unpack_from("<2H", header, 26)
    start = member.header + 30 + name_size + extra_size
    if source.read(member.header + 30, name_size) != member.raw_name:
        raise ValueError(f"its member {member.name!r} has another name in the header before it.")
    if start + member.packed > source.size:
        raise ValueError(f"it is cut off or damaged: its member {member.name!r} goes beyond its end.")
    return start


def checksum_positions(source: Source, member: Member) -> list[int]:
    """Lists every position where the archive keeps a member's checksum: 4 bytes each, in little endian.

    Raises:
        ValueError: one of these places does not hold the member's checksum.
    """
    crc = member.crc.to_bytes(4, "little")
    places, header = [member.entry + 16], member.header + 14
    if not member.flags & 8:
        places.append(header)
    else:  # written to a stream that could not seek: it follows the content, with or without a magic number
        end = _end(source, member)
        has_magic = source.read(end, 4) == b"PK\7\x08" and source.read(end + 4, 4) == crc
        places.append(end + 4 if has_magic else end)
        if source.read(header, 4) == crc != bytes(4):
            places.append(header)
    for place in places:
        if source.read(place, 4) != crc:
            raise ValueError(f"its member {member.name!r} does not have the same checksum everywhere.")
    return places


def take_regions(source: Source, found: list[Member], inner: Member, regions: Regions) -> None:
    """Marks everything in an archive as taken, except for the content of one member.

    Raises:
        ValueError: a member is not where the directory says.
    """
    start, _ = _directory(source)
    regions.take(start, source.size - start, "the zip directory")
    for member in found:
        regions.budget.step(_MEMBER_STEPS)
        begin, end = content_start(source, member), _end(source, member)
        after = 24 if member.flags & 8 else 0
        regions.take(member.header, begin - member.header, f"the header of the member {member.name!r}")
        regions.take(end, after, f"what follows the member {member.name!r}")
        if member is not inner:
            regions.take(begin, end - begin, f"the member {member.name!r}")


def _end(source: Source, member: Member) -> int:
    return content_start(source, member) + member.packed


def _directory(source: Source) -> tuple[int, int]:
    """Reads the position and the size of the directory from the record at the archive's end."""
    tail_at = max(0, source.size - 22 - 0xFFFF)  # a comment of at most 0xFFFF bytes may follow the record
    tail = source.read(tail_at, source.size - tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise ValueError("it is cut off or damaged: it begins as a zip archive and does not end as one.")
    size, start = struct.unpack_from("<2I", tail, at + 12)
    locator = at - 20
    if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
        (record,) = struct.unpack_from("<Q", tail, locator + 8)
        size, start = struct.unpack("<2Q", source.read(record, 56)[40:56])
    return start, size


def _zip64(extra: bytes, packed: int, unpacked: int, header: int) -> tuple[int, int, int]:
    """Returns the three sizes of an entry; those too large for its 32-bit fields come from its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = (value for (value,) in struct.iter_unpack("<Q", extra[at + 4 :][: length // 8 * 8]))
            full = 0xFFFFFFFF
            unpacked, packed, header = (
                next(values, each) if each == full else each for each in (unpacked, packed, header)
            )
        at += 4 + length
    return packed, unpacked, header


def _inflate(packed: Source, member: Member) -> BinaryIO:
    inflate, out = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    try:
        for piece in packed.pieces():
            out.write(inflate.decompress(piece, member.size + 1 - out.tell()))
            if out.tell() > member.size:
                break
    except zlib.error as error:
        raise ValueError(f"its member {member.name!r} is damaged: {error}.") from None
    if out.tell() != member.size:
        raise ValueError(f"its member {member.name!r} is damaged: it has another size than it says.")
    return out
