"""A copy of a model's file with other weights in it, and every other byte as it was.

    original ─► copy ─► where its weights are, and all else ─► weights and checksum written ─► opened again, compared

Nothing is written where anything but these weights is. The copy is opened again before it may take the original's
place: what `load` would read are the weights that were given.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from flax_sepconv._messages import shown
from flax_sepconv.interop import _model_file
from flax_sepconv.interop._bytes import MEBIBYTE, Source
from flax_sepconv.interop._model_file import ModelFile

Params = Mapping[str, Mapping[str, Any]]


def rewrite(original: Source, copy: BinaryIO, params: Params, name: str) -> None:
    """Makes `copy` a copy of a model's file with other weights.

    Args:
        original: the file.
        copy: an empty file, readable.
        params: parameters of layers by the layers' names.
        name: what messages call the original.

    Raises:
        ValueError: the file is none that can be written, or the parameters do not fit it.
        TypeError: `params` is no dict.
    """
    original.file.seek(0)
    shutil.copyfileobj(original.file, copy)
    copy.flush()
    with _model_file.opened(copy.name, name=name) as file:
        try:
            pieces = _pieces(file, params)
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
    _verify(original, copy, [(position, len(data)) for position, data in pieces], params, name)


def _pieces(file: ModelFile, params: Params) -> list[tuple[int, bytes]]:
    """The bytes to be written, each with its position in the whole file, where nothing else is."""
    if file.source is None or file.regions is None:
        raise ValueError(
            "its weights are compressed, as Keras never does, and cannot be replaced. Load it in Keras and save "
            "it again."
        )
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a dict of layers' parameters; got {type(params).__name__}.")
    pieces, written = [], {}
    for key, given in params.items():
        if key not in file.layers:
            known = shown(list(file.layers))[1:-1] or "none"
            raise ValueError(
                f"`params` must have only layers of the file, which has {known}; got {shown(key)}."
            )
        for place in file.layers[key].places:
            if not isinstance(given, Mapping) or set(given) != set(place):
                got = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
                wanted = ", ".join(map(repr, place))
                raise ValueError(f"`params[{key!r}]` must have {wanted}; got {got or 'an empty dict'}.")
            for leaf, there in place.items():
                value = np.asarray(given[leaf])
                dtype = there.dtype.newbyteorder("=")
                if (value.shape, value.dtype) != (there.shape, dtype):
                    raise ValueError(
                        f"`params[{key!r}][{leaf!r}]` must have the shape {there.shape} and dtype {dtype}; got "
                        f"{value.shape} and {value.dtype}."
                    )
                written[there.address] = f"the {leaf} of layer {shown(key)}"
                pieces.append((file.source.start + there.position, value.astype(there.dtype).tobytes()))
    if pieces:
        file.regions(written).check()
    return pieces


def _verify(
    original: Source, copy: BinaryIO, pieces: list[tuple[int, int]], params: Params, name: str
) -> None:
    """Refuses a copy that differs from the original elsewhere, or from which other weights would be read."""
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
    with _model_file.opened(copy.name, name=name) as file:
        for key, given in params.items():
            for place in file.layers[key].places:
                if any(
                    array.read().tobytes() != np.asarray(given[leaf]).tobytes()
                    for leaf, array in place.items()
                ):
                    raise ValueError(f"{name}: it is damaged: layer {shown(key)} cannot be written to it.")
