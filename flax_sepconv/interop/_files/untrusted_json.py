"""Parses the JSON of untrusted files, within a budget."""

import json
from typing import Any

import numpy as np

from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source

# Keras's configs are nested about 20 levels deep.
SIZE_LIMIT, _DEPTH_LIMIT = 16 * 2**20, 200
# The cost of one value, in steps and in bytes.
_STEPS, _BYTES = 1, 64


def parse(text: bytes | str, budget: Budget) -> Any:
    """Parses a JSON text. If an entry is there twice, the last counts, as in Keras.

    Raises:
        ValueError: it is not JSON, too large, or too deeply nested.
    """
    if len(text) > SIZE_LIMIT:
        raise ValueError(f"its model config has {len(text)} bytes, more than any model's.")
    budget.hold(len(text))
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"its model config is not JSON: {error}.") from None
    values = 1 + sum(map(text.count, ",:[{"))
    budget.step(_STEPS * values)
    budget.hold(_BYTES * values)
    if _depth(text, values) > _DEPTH_LIMIT:
        raise ValueError("its model config is nested deeper than any model's.")
    try:
        return json.loads(text)
    except ValueError as error:  # also for an integer with more digits than Python reads
        raise ValueError(f"its model config is not JSON: {error}.") from None


def is_json(source: Source) -> bool:
    """Returns whether this begins like a JSON object."""
    return source.read(0, min(source.size, 64)).lstrip()[:1] == b"{"


def _depth(text: str, values: int) -> int:
    """Returns the depth of JSON with at most this many values, without recursion."""
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * values:  # each value is at most one string, and may have another as its name
        raise ValueError("its model config is not JSON.")
    outside = "".join(bare.split('"')[::2]).encode(errors="replace")
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.where(opening, np.int8(1), np.int8(-1)).cumsum(dtype=np.int32).max(initial=0))


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
