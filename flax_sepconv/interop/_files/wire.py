"""Reads, within bounds, the two formats of TensorFlow's files: protocol buffers and LevelDB's tables.

A protocol buffer is a sequence of fields, each with a number and a kind; fields may be messages again. A table is a
sequence of blocks of keys and values, in which a key is written as its difference from the previous one, and a last
block with the positions of the others.
"""

import struct
from collections.abc import Container, Iterator, Mapping
from typing import Any

from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import MEBIBYTE, Source

SIZE_LIMIT = 32 * MEBIBYTE
_BLOCK_LIMIT, _KEY_LIMIT = 16 * MEBIBYTE, 1024
# Costs in steps of a field and of a table's entry; bytes per step; bytes that Python holds.
_FIELD_STEPS, _ENTRY_STEPS, _STEP_BYTES, _ENTRY_BYTES = 3, 6, 256, 300
_TABLE_MAGIC = 0xDB4775248B80FB57


def table(source: Source, budget: Budget) -> dict[bytes, bytes]:
    """Reads all keys and values."""
    footer = source.read(max(0, source.size - 48), min(48, source.size))
    if len(footer) < 48 or struct.unpack("<Q", footer[40:])[0] != _TABLE_MAGIC:
        raise ValueError("its variables.index is cut off or damaged.")
    *_, at, size = _handle(footer, 2)
    found = {}
    for _, handle in _entries(_block(source, at, size, budget), budget):
        at, size = _handle(handle, 1)
        for key, value in _entries(_block(source, at, size, budget), budget):
            budget.hold(_ENTRY_BYTES + len(key) + len(value))
            found[key] = value
    return found


def _block(source: Source, at: int, size: int, budget: Budget) -> bytes:
    if size > _BLOCK_LIMIT:
        raise ValueError("its variables.index is damaged.")
    budget.step(1 + size // _STEP_BYTES)
    block = source.read(at, size + 1)  # a byte for the kind of compression follows
    if block[-1] != 0:
        raise ValueError("its variables.index is compressed, as TensorFlow's never is, or damaged.")
    return block[:-1]


def _entries(block: bytes, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    """Yields a block's keys and values. At its end are positions to begin a search at, and their number."""
    end = len(block) - 4
    end -= 4 * struct.unpack_from("<I", block, end)[0] if end >= 0 else 0
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        more, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or shared + more > _KEY_LIMIT or at + more + length > end:
            raise ValueError("its variables.index is damaged.")
        budget.step(_ENTRY_STEPS + length // _STEP_BYTES)
        key = key[:shared] + block[at : at + more]
        yield key, block[at + more : at + more + length]
        at += more + length


def _handle(data: bytes, count: int) -> list[int]:
    """Reads the positions and sizes of blocks."""
    numbers, at = [], 0
    for _ in range(2 * count):
        number, at = varint(data, at)
        numbers.append(number)
    return numbers


def fields(message: Any, budget: Budget, wanted: Container[int]) -> dict[int, list[Any]]:
    """Reads the wanted fields of a message by number: integers, and bytes for strings and messages."""
    if not isinstance(message, bytes):
        raise ValueError("it is damaged: a number stands where a message should.")
    fields: dict[int, list[Any]] = {}
    at = 0
    budget.step(_FIELD_STEPS)
    while at < len(message):
        is_short = message[at] < 128
        budget.step(_FIELD_STEPS if is_short else 2 * _FIELD_STEPS)
        tag, at = (message[at], at + 1) if is_short else varint(message, at)
        start = at
        match tag & 7:
            case 0:
                value, at = varint(message, at)
            case 1 | 5 as kind:
                at += 8 if kind == 1 else 4
                value = int.from_bytes(message[start:at], "little")
            case 2:
                is_short = at < len(message) and message[at] < 128
                size, start = (message[at], at + 1) if is_short else varint(message, at)
                at = start + size
                value = b""
            case _:
                raise ValueError("it is damaged: it is not a protocol buffer.")
        if at > len(message):
            raise ValueError("it is damaged: a protocol buffer is cut off.")
        if tag >> 3 in wanted:
            if tag & 7 == 2:
                value = message[start:at]
            budget.hold(50 + at - start)
            fields.setdefault(tag >> 3, []).append(value)
    return fields


def number(fields: Mapping[int, list[Any]], field: int) -> int:
    """Returns a field that holds an integer; 0 if it is left out."""
    value = fields.get(field, [0])[0]
    if not isinstance(value, int):
        raise ValueError("it is damaged: a message stands where a number should.")
    return value


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Reads an integer in as many bytes as it needs, seven bits each, and returns it with the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        number |= (data[at] & 127) << shift
        at += 1
        if not data[at - 1] & 128:
            return number, at
    raise ValueError("it is damaged: a number is cut off.")
