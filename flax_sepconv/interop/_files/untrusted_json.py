"""JSON of untrusted files, within a budget."""

import json
from typing import Any

import numpy as np

from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source

# Keras's configs are nested some 20 deep.
SIZE_LIMIT, _DEPTH_LIMIT = 16 * 2**20, 200
# Of one value.
_STEPS, _BYTES = 1, 64


def parse(text: bytes | str, budget: Budget) -> Any:
    """What a JSON text says. Of an entry that is there twice, the last counts, as it does for Keras.

    Raises:
        ValueError: not JSON, too large, or too deeply nested.
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
    except ValueError as error:  # also of an integer with more digits than Python reads
        raise ValueError(f"its model config is not JSON: {error}.") from None


def is_json(source: Source) -> bool:
    """Whether this begins as the JSON of an object does."""
    return source.read(0, min(source.size, 64)).lstrip()[:1] == b"{"


def _depth(text: str, values: int) -> int:
    """How deep JSON of at most so many values is nested, found without nesting anything."""
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * values:  # each value is one string at most, and may have another for its name
        raise ValueError("its model config is not JSON.")
    outside = "".join(bare.split('"')[::2]).encode(errors="replace")
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.where(opening, np.int8(1), np.int8(-1)).cumsum(dtype=np.int32).max(initial=0))


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
