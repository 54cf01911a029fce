"""How messages show what came."""

from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """A value for a message, at most a line of it; of an array its shape and dtype."""
    if getattr(value, "shape", None) and hasattr(value, "dtype"):
        return f"an array of the shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key!r}: {shown(each)}' for key, each in value.items())}}}"
    else:
        text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
