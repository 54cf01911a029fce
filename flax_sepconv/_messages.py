"""How error messages show the value that was received."""

from collections.abc import Mapping
from typing import Any

_LENGTH, _DEPTH = 100, 20


def shown(value: Any) -> str:
    """Shows a value in a message: at most one line, and for an array its shape and dtype."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and hasattr(value, "dtype"):
        return f"an array of the shape {shape} and dtype {value.dtype}"
    text = " ".join(_beginning(value, _DEPTH).split())
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def _beginning(value: Any, depth: int) -> str:
    """Returns as much of `repr(value)` as is shown and little more, however large the value is."""
    if isinstance(value, str | bytes):
        return repr(value[: 2 * _LENGTH])
    if type(value) is int and value.bit_length() > 10_000:  # Python refuses to write it
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        opening, closing = "{", "}"
        pieces = (
            f"{_beginning(key, depth - 1)}: {_beginning(each, depth - 1)}" for key, each in value.items()
        )
    elif type(value) is list or type(value) is tuple:
        opening, closing = ("[", "]") if type(value) is list else ("(", ",)" if len(value) == 1 else ")")
        pieces = (_beginning(each, depth - 1) for each in value)
    else:
        return repr(value)
    if depth <= 0:
        return "..."
    text = opening
    for number, piece in enumerate(pieces):
        text += f", {piece}" if number else piece
        if len(text) > _LENGTH:
            return text
    return text + closing


def printable(text: str) -> str:
    """Escapes, as Python does, what a terminal would not show as it is. For text that comes from files."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
