"""Files that are either written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the context ends well, and vanishes otherwise.

    It is made beside `path`, reaches the disk before it is renamed, and may be read as it is written. Where
    `path` is a link, what it leads to is replaced.

    Args:
        path: the name that the file gets.

    Raises:
        OSError: there can be no such file.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".flax_sepconv-")
    os.close(descriptor)
    try:
        with open(name, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the name is only safe once its folder is on disk too
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
