"""Bytes by position, and the one way in which a file is opened to be read.

Files are untrusted. A `Source` gives the bytes at a position and refuses what lies beyond its end, before anything is
allocated. What is opened is a regular file, which is seen after it was opened: a FIFO or a device in its place is
neither waited for nor read.
"""

import contextlib
import errno
import io
import os
import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MEBIBYTE = 2**20

_NO_FILE = (errno.ENXIO, errno.EOPNOTSUPP)
# Not there on every system: to not wait for a FIFO's other end, to not become a terminal's process, binary mode.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class Source:
    """A range of a file that is open for reading.

    Args:
        file: opened in binary mode, seekable.
        start: position in it of the first byte.
        size: number of bytes; `None` for all the rest.
    """

    def __init__(self, file: BinaryIO, start: int = 0, size: int | None = None):
        self.file, self.start = file, start
        self.size = file.seek(0, io.SEEK_END) - start if size is None else size

    def read(self, at: int, size: int) -> bytes:
        """Exactly the `size` bytes at the position `at`.

        Raises:
            ValueError: they are not all within the source.
        """
        if at < 0 or size < 0 or at + size > self.size:
            raise ValueError(
                f"it is cut off or damaged: it refers to bytes {at} to {at + size} of {self.size}."
            )
        self.file.seek(self.start + at)
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError(f"it became shorter than its {self.size} bytes while it was read.")
        return data

    @property
    def identity(self) -> tuple[int, int]:
        """The same number for whatever is the same file, by whatever name it was opened; with the start in it."""
        if isinstance(self.file, io.BytesIO):
            return id(self.file), self.start
        there = os.fstat(self.file.fileno())
        return hash((there.st_dev, there.st_ino)), self.start

    def pieces(self) -> Iterator[bytes]:
        """All of it, a mebibyte at a time."""
        for at in range(0, self.size, MEBIBYTE):
            yield self.read(at, min(MEBIBYTE, self.size - at))

    def crc32(self) -> int:
        """The checksum that zip archives use."""
        crc = 0
        for piece in self.pieces():
            crc = zlib.crc32(piece, crc)
        return crc


def opened(path: str | os.PathLike, stack: contextlib.ExitStack, folder: str | None = None) -> Source:
    """A whole file, for as long as the stack lasts.

    Args:
        path: the file. A link is followed.
        stack: closes it.
        folder: where links may lead to, if not anywhere.

    Raises:
        ValueError: it is no regular file, or not in the folder.
        OSError: there is none, or it may not be read.
    """
    name = os.fsdecode(path)
    if folder is not None:
        root = os.path.realpath(folder)
        path = os.path.realpath(name)
        if os.path.commonpath([root, path]) != root:
            raise ValueError(f"its {os.path.relpath(name, folder)!r} is a link to somewhere else.")
    try:
        file = stack.enter_context(_reader(path))
    except OSError as error:
        if error.errno in _NO_FILE:  # a socket
            raise ValueError("it is neither a file nor a folder.") from None
        raise OSError(error.errno, error.strerror, name) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ValueError("it is neither a file nor a folder.")
    return Source(file)


def _reader(path: str | os.PathLike) -> BinaryIO:
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS))
