"""Writes files either whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` if the context ends without an error, and is removed otherwise.

    It is made beside `path` as `.flax_sepconv-` and 16 digits, which nobody else may read. It is on disk before it is
    renamed, and may be read while it is written. If `path` is a link, the link's target is replaced. The file is left
    behind only if the process is killed. A failure after the renaming is not an error.

    Args:
        path: the name that the file gets.
        mode: the permissions of a new file, before the process's mask. A file that replaces another keeps the
            other's permissions.

    Raises:
        OSError: there can be no such file, or something other than a file is there; the error names `path`.
    """
    given = os.fsdecode(path)
    target = os.path.realpath(given)
    folder = os.path.dirname(target)
    name = os.path.join(folder, f".flax_sepconv-{secrets.token_hex(8)}")
    try:
        there = _replaced(given)
        permissions = _masked(name, mode) if there is None else stat.S_IMODE(there.st_mode) & 0o777
        with open(name, "x+b", opener=lambda name, flags: os.open(name, flags | _FLAGS, 0o600)) as file:
            yield file
            file.flush()
            os.chmod(name, permissions)
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.errno and error.filename in (None, name):
            raise OSError(error.errno, error.strerror, given) from None  # with the name that the caller knows
        raise
    with contextlib.suppress(OSError):  # the name is safe only once its folder is on disk too
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replaced(path: str) -> os.stat_result | None:
    """Returns the status of the file at a path, or `None` if there is nothing yet."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        if path.endswith((os.sep, os.altsep or os.sep)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path) from None
        return None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(there.st_mode):
        raise OSError(errno.EINVAL, "is there and no regular file", path)
    return there


def _masked(name: str, mode: int) -> int:
    """Finds the permissions of a new file by making one: the mask cannot be read without changing it."""
    descriptor = os.open(name, _FLAGS, mode & 0o777)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o777
    finally:
        os.close(descriptor)
        os.unlink(name)
