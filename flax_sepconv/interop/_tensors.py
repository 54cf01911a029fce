"""Files in the safetensors format: arrays of floats by name. They are as untrusted as Keras's files."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flax_sepconv._validation import FLOATS
from flax_sepconv.interop._files import byte_source, untrusted_json
from flax_sepconv.interop._files.atomic import replacing

DTYPES = dict(zip(("F16", "BF16", "F32", "F64"), FLOATS, strict=True))
"""The dtypes that are read and written, by their names in files."""


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file either whole or not at all."""
    content = _package().numpy.save(dict(tensors), metadata)
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """Opens a file of this format; errors about its content say what it does not hold."""
    package = _package()
    with contextlib.ExitStack() as stack:
        try:
            source = byte_source.opened(path, stack)
            # The package takes a header of up to 100 MB, which makes gigabytes of objects.
            if int.from_bytes(source.read(0, 8), "little") > untrusted_json.SIZE_LIMIT:
                raise ValueError(
                    f"its header has more than {untrusted_json.SIZE_LIMIT} bytes. For Keras's files, use "
                    "`flax_sepconv.interop.keras`."
                )
            yield stack.enter_context(package.safe_open(os.fspath(path), "np"))
        except (ValueError, TypeError, OverflowError, RecursionError, package.SafetensorError) as error:
            raise ValueError(f"{os.fspath(path)}: it does not hold {what}: {error}") from None


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file begins as this format does: with a length and JSON."""
    if not os.path.isfile(path):
        return False
    with contextlib.ExitStack() as stack:
        source = byte_source.opened(path, stack)
        return source.size > 8 and source.read(8, 1) == b"{"


def floating(value: Any, argument: str) -> np.ndarray:
    """Returns an array as the package takes it; an error names the argument."""
    array = np.asarray(value, order="C")
    if array.dtype not in FLOATS:
        raise TypeError(f"{argument} must hold floating-point numbers; got {array.dtype}.")
    return array


def _package() -> Any:
    """Imports the package of this name, on first use."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'safetensors files need the package `safetensors`: pip install "flax-sepconv[safetensors]".'
        ) from None
    return safetensors
