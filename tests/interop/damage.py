"""Ways to damage a file: its bytes, and what they mean."""

import functools
import io
import json
import struct
import warnings
import zipfile
import zlib

NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    24,
    96,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 10**9, 10**30, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", "linear", "l2", "SeparableConv1D", "Functional", "os.system", "a" * 300, "\0", "layers", "../../x"),
    *([], {}, [[]], [3, 3], {"class_name": "SeparableConv1D", "config": {}}),
    *({"class_name": "__lambda__", "config": {"value": "4wEA"}}, {"class_name": "L2", "config": {"l2": -1}}),
    *({"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {}}}},),
]


# ---- Ways to damage bytes ----


def flip(data, rng):
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data, rng):
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(len(data))] = rng.choice([0, 1, 8, 127, 128, 255, rng.randrange(256)])


def number(data, rng):
    """Another integer in a place where one may well be."""
    for _ in range(rng.choice([1, 1, 3])):
        size = rng.choice([2, 4, 8])
        at = rng.randrange(max(1, len(data) - 8)) & -rng.choice([1, size])
        value = rng.choice([*NUMBERS, rng.randrange(len(data)), len(data)]) % 2 ** (8 * size)
        data[at : at + size] = value.to_bytes(size, "little")


def truncate(data, rng):
    del data[rng.randrange(len(data)) :]


def cut(data, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 512)]


def duplicate(data, rng):
    at, to = rng.randrange(len(data)), rng.randrange(len(data))
    data[to:to] = data[at : at + rng.randrange(1, 512)]


def copy(data, rng):
    """A piece of the file in the place of another, such as one structure for another."""
    at, to = rng.randrange(len(data)) & -8, rng.randrange(len(data)) & -8
    piece = data[at : at + rng.choice([8, 16, 24, 40, 328, 544])]
    data[to : to + len(piece)] = piece


def fill(data, rng):
    at, length = rng.randrange(len(data)), rng.randrange(1, 512)
    data[at : at + length] = bytes([rng.choice([0, 255, rng.randrange(256)])]) * length


def structure(data, rng):
    """A number within one of HDF5's structures, found by its signature."""
    signatures = [b"TREE", b"SNOD", b"HEAP", b"GCOL", b"\x89HDF"]
    places = [at for each in signatures for at in positions(data, each)]
    if not places:
        return number(data, rng)
    at = rng.choice(places) + rng.randrange(4, 64)
    size = rng.choice([1, 2, 4, 8])
    others = [*NUMBERS, *places, rng.randrange(len(data))]
    data[at : at + size] = (rng.choice(others) % 2 ** (8 * size)).to_bytes(size, "little")


def positions(data, needle):
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


DAMAGES = [flip, overwrite, number, truncate, cut, duplicate, copy, fill, structure, structure, number, flip]


def damaged(data, rng):
    """Bytes with one or a few kinds of damage."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if data:
            rng.choice(DAMAGES)(data, rng)
    return bytes(data)


# ---- Ways to damage what the bytes mean ----


def damaged_json(value, rng):
    """JSON with some values replaced, moved, removed or nested."""
    places = []

    def visit(holder):
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                visit(holder[key])

    visit(value)
    interesting = [each for each in places if each[1] not in ("module", "registered_name")]
    for _ in range(rng.choice([1, 1, 2, 5])):
        holder, key = rng.choice(interesting)
        other, name = rng.choice(places)
        try:
            match rng.randrange(6):
                case 0 | 1 | 2:
                    holder[key] = rng.choice(VALUES)
                case 3:
                    holder[key] = json.loads(json.dumps(other[name]))
                case 4:
                    del holder[key]
                case 5:
                    wrap = rng.choice([lambda inner: [inner], lambda inner: {"layers": inner}])
                    for _ in range(rng.choice([3, 190, 3000])):
                        holder[key] = wrap(holder[key])
        except (KeyError, IndexError, RecursionError):  # gone by an earlier round, or nested by one
            pass
    return value


def damaged_archive(data, rng):
    """A zip archive whose members are damaged, with right checksums, or which is put together wrongly."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([*members, "model.weights.h5", "model.weights.h5", "config.json"])
    if name == "config.json" and rng.random() < 0.8:
        members[name] = dumped(damaged_json(json.loads(members[name]), rng))
    else:
        members[name] = damaged(members[name], rng)
    out = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(out, "w", rng.choice([0, 0, 0, zipfile.ZIP_DEFLATED, 12])) as archive,
    ):
        warnings.simplefilter("ignore")
        for each, content in members.items():
            match rng.randrange(30):
                case 0:
                    continue
                case 1:
                    each = rng.choice([f"../{each}", f"/{each}", each.upper(), "x"])
                case 2:
                    archive.writestr(each, damaged(content, rng))
                case 3:
                    content = content + bytes(rng.choice([10**6, 5 * 10**6]))
            archive.writestr(each, content)
    return damaged(out.getvalue(), rng) if rng.random() < 0.2 else out.getvalue()


def dumped(value):
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 10**5 + b"]" * 10**5


@functools.cache
def squeezed():
    """100 MB of zeros, deflated."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join([*(squeeze.compress(bytes(10**6)) for _ in range(100)), squeeze.flush()])


def bombs(rng):
    """Small files that say they are large."""
    config = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": []}}).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "config.json", rng.choice([config, b"[" * 10**6, b'{"a":' * 10**6, b" " * 2 * 10**7])
        )
        archive.writestr("model.weights.h5", rng.choice([b"\x89HDF\r\n\x1a\n", bytes(10**7), squeezed()]))
    data = bytearray(out.getvalue())
    if rng.random() < 0.5:  # says another size than it has
        for at in positions(bytes(data), b"PK\1\2"):
            struct.pack_into("<I", data, at + 24, rng.choice(NUMBERS[:13]))
    return bytes(data)
