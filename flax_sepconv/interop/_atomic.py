"""Files that are either written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the context ends well, and vanishes otherwise.

    It is made beside `path`, reaches the disk before it is renamed, and may be read as it is written. Where
    `path` is a link, what it leads to is replaced. The permissions are those of the file that is replaced, else
    those of any new file.

    Args:
        path: the name that the file gets.

    Raises:
        OSError: there can be no such file.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    name = os.path.join(folder, f".flax_sepconv-{secrets.token_hex(8)}")
    try:
        with open(name, "x+b") as file:
            if os.path.exists(target):
                shutil.copymode(target, name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename == name:
            # Under the name that the caller knows.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    if hasattr(os, "O_DIRECTORY"):  # the name is only safe once its folder is on disk too
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
