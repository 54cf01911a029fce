"""How messages show what came."""

from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """A value for a message, at most a line of it; of an array its shape and dtype."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(value, "dtype"):
        return f"an array of the shape {shape} and dtype {value.dtype}"
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key!r}: {shown(each)}' for key, each in value.items())}}}"
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def printable(text: str) -> str:
    """A text of a file on its way to a person: what a terminal would not show as it is, escaped as in Python."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
