"""Reads bytes by position, and opens files for reading in the one way that is safe.

Files are untrusted. A `Source` gives the bytes at a position and refuses positions beyond its end before anything is
allocated. Only regular files are read, which is checked after opening: a FIFO or a device in a file's place is neither
waited for nor read.
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
# Flags that not every system has: do not wait for a FIFO's other end, do not take a controlling terminal, binary mode.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class Source:
    """A range of a file that is open for reading.

    Args:
        file: a seekable file, opened in binary mode.
        start: the position of the first byte.
        size: the number of bytes; `None` for all the rest.
    """

    def __init__(self, file: BinaryIO, start: int = 0, size: int | None = None):
        self.file, self.start = file, start
        self.size = file.seek(0, io.SEEK_END) - start if size is None else size

    def read(self, at: int, size: int) -> bytes:
        """Reads exactly `size` bytes at the position `at`.

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
        """A number for the file, the same by whatever name it was opened, and the start in it."""
        if isinstance(self.file, io.BytesIO):
            return id(self.file), self.start
        there = os.fstat(self.file.fileno())
        return hash((there.st_dev, there.st_ino)), self.start

    def pieces(self) -> Iterator[bytes]:
        """Yields all bytes, a mebibyte at a time."""
        for at in range(0, self.size, MEBIBYTE):
            yield self.read(at, min(MEBIBYTE, self.size - at))

    def crc32(self) -> int:
        """Computes the checksum that zip archives use."""
        crc = 0
        for piece in self.pieces():
            crc = zlib.crc32(piece, crc)
        return crc


def opened(path: str | os.PathLike, stack: contextlib.ExitStack, folder: str | None = None) -> Source:
    """Opens a whole file, for as long as the stack lasts.

    Args:
        path: the file. Links are followed.
        stack: closes the file.
        folder: the folder that links may not lead out of, if any.

    Raises:
        ValueError: it is not a regular file, or not in the folder.
        OSError: it does not exist, or may not be read.
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
