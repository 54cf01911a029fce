"""Copies a model's file with other weights in it, and every other byte unchanged.

    original ─► copy ─► places of its weights and all else ─► weights and checksum written ─► opened again, compared

Nothing is written to a place that holds anything but these weights. The copy is opened again before it may take the
original's place, to check that `load` would read the weights that were given.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from flax_sepconv.interop._files import byte_source, container, model_file
from flax_sepconv.interop._files.atomic import replacing
from flax_sepconv.interop._files.byte_source import MEBIBYTE, Source
from flax_sepconv.interop._files.hdf5 import Dataset
from flax_sepconv.interop._files.model_file import ModelFile


class Write(NamedTuple):
    """An array of a file, and its new value.

    Attributes:
        there: the array.
        value: its new value.
        argument: the value's name in messages.
        what: the array's name in messages.
    """

    there: Dataset
    value: Any
    argument: str
    what: str


Writes = Callable[[ModelFile], Iterable[Write]]
"""Returns what to write to an opened file, or raises an error that says why it cannot be written."""

Opened = Callable[[], contextlib.AbstractContextManager[ModelFile]]
"""Opens the copy."""


def rewrite(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    writes: Writes,
    *,
    config: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> None:
    """Writes a copy of a model's file with other weights, which gets its name once it is whole.

    Args:
        path: the file. In a Keras folder, the file with the weights is written.
        out: the path of the copy; for a folder, the folder itself.
        writes: returns what to write; called with the copy before and after writing.
        config: the model's config, if the file has weights alone.
        custom_objects: the meaning of the names in the file that are not Keras's own.

    Raises:
        ValueError: the file is not one that can be written, or the weights do not fit it.
        TypeError: `writes` raises it, or `config` or `custom_objects` has a wrong type.
        OSError: there is no such file, or `out` cannot be written.
    """
    name = os.fsdecode(path)
    folder = name if os.path.isdir(name) else None
    file, target = (_within(folder, out) if folder else path), out
    if folder:
        target = file
    with contextlib.ExitStack() as stack:
        with model_file.naming(name):
            original = byte_source.opened(file, stack, folder)
        mode = os.fstat(original.file.fileno()).st_mode
        copy = stack.enter_context(replacing(target, mode))
        opened = functools.partial(
            model_file.opened,
            folder or copy.name,
            name=name,
            weights=copy.name if folder else None,
            config=config,
            custom_objects=custom_objects,
        )
        _rewrite(original, copy, writes, name, opened)


def _within(folder: str, out: str | os.PathLike[str]) -> str:
    """Returns the path of the file with the weights in a folder, which can only be written in place."""
    if not container.is_keras_folder(folder):
        raise ValueError(
            f"{folder}: a folder cannot be written, but for those of Keras 3's. Load it in Keras, save it as .keras, "
            "and use that."
        )
    if not (os.path.exists(out) and os.path.samefile(folder, out)):
        raise ValueError(
            f"{folder}: a folder is written in its place only; got `out` {os.fsdecode(out)!r}. Copy the folder first, "
            "`shutil.copytree(path, out)`, and write `out` to `out`."
        )
    return os.path.join(folder, container.WEIGHTS)


def _rewrite(original: Source, copy: BinaryIO, writes: Writes, name: str, opened: Opened) -> None:
    original.file.seek(0)
    shutil.copyfileobj(original.file, copy)
    copy.flush()
    with opened() as file:
        try:
            pieces = _pieces(file, writes)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {error}") from None
    for position, data in pieces:
        copy.seek(position)
        copy.write(data)
    copy.flush()
    if pieces and file.checksums and file.source:
        checksum = Source(copy, file.source.start, file.source.size).crc32().to_bytes(4, "little")
        pieces += [(position, checksum) for position in file.checksums]
        for position in file.checksums:
            copy.seek(position)
            copy.write(checksum)
        copy.flush()
    _check_rest(original, copy, [(position, len(data)) for position, data in pieces], name)
    with opened() as file:
        for there, value, _, what in writes(file):
            if there.read().tobytes() != np.asarray(value).tobytes():
                raise ValueError(f"{name}: it is damaged: {what} cannot be written to it.")


def _pieces(file: ModelFile, writes: Writes) -> list[tuple[int, bytes]]:
    """Returns the bytes to write with their positions in the whole file; refuses positions where anything else is."""
    if file.source is None or file.regions is None:
        raise ValueError(
            "its weights are compressed, as Keras never does, and cannot be replaced. Load it in Keras and save "
            "it again."
        )
    pieces, written = [], {}
    for there, value, argument, what in writes(file):
        value = np.asarray(value)
        dtype = there.dtype.newbyteorder("=")
        if (value.shape, value.dtype) != (there.shape, dtype):
            raise ValueError(
                f"`{argument}` must have the shape {there.shape} and dtype {dtype}; got {value.shape} and "
                f"{value.dtype}."
            )
        written[there.address] = what
        pieces.append((file.source.start + there.position, value.astype(there.dtype).tobytes()))
    if pieces:
        file.regions(written).check()
    return pieces


def _check_rest(original: Source, copy: BinaryIO, pieces: list[tuple[int, int]], name: str) -> None:
    """Refuses a copy that differs from the original anywhere except at these positions and sizes."""
    at = 0
    for position, size in [*sorted(pieces), (original.size, 0)]:
        while at < position:
            length = min(MEBIBYTE, position - at)
            copy.seek(at)
            if copy.read(length) != original.read(at, length):
                raise ValueError(f"{name}: it changed while it was copied.")
            at += length
        at = position + size
    if os.fstat(copy.fileno()).st_size != original.size:
        raise ValueError(f"{name}: it changed while it was copied.")
