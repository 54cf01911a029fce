"""Damages Keras's files at random and sees how the reader takes it: it may succeed or raise `ValueError`.

    python -m tests.interop.fuzz 5000 [SEED]            damages sound files
    python -m tests.interop.fuzz 5000 [SEED] built      builds files that lie (`handmade`)

loads that many files in subprocesses, writes other weights to those that it can load, watches memory and time, and
prints what came of it.
"""

import collections
import functools
import io
import json
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib

import numpy as np

from flax_sepconv.interop import keras
from tests.interop import handmade

DATA = pathlib.Path(__file__).parent / "data"
FILES = sorted(path for path in DATA.glob("*/*") if path.suffix in (".keras", ".h5", ".tf"))

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
        except (KeyError, IndexError):  # gone by an earlier round
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


# ---- One case, and many ----


def case(path, rng, folder):
    """Writes a damaged copy of a file, or of one file in a folder, and returns its path."""
    target = folder / f"damaged{path.suffix}"
    if path.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(path, target)
        inside = rng.choice(
            ["keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
        )
        (target / inside).write_bytes(damaged((target / inside).read_bytes(), rng))
        return target
    data = path.read_bytes()
    if rng.random() < 0.01:
        data = bombs(rng)
    elif path.suffix == ".keras" and rng.random() < 0.7:
        data = damaged_archive(data, rng)
    else:
        data = damaged(data, rng)
    target.write_bytes(data)
    return target


def outcome(path):
    """Loads a damaged file and, where that succeeds, writes other weights to a copy: what came of it.

    Raises:
        Exception: anything but the `ValueError` that is promised.
    """
    out = path.with_name("out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            layers = keras.load(path)
        except ValueError as error:
            return named(error, path, "refused")
        if not layers:
            return "no layers"
        if path.is_dir():
            return "loaded"
        whole = outcome_of_all(path, out)
        if whole.startswith("FAILED"):
            return whole
        new = {
            name: {leaf: other(np.asarray(value)) for leaf, value in params.items()}
            for name, (_, params) in layers.items()
        }
        out.unlink(missing_ok=True)
        try:
            keras.save(path, new, out)
        except ValueError as error:
            return named(error, path, "loaded, not written") if not out.exists() else "FAILED and left a file"
        there = {name: params for name, (_, params) in keras.load(out).items()}
    is_same = there.keys() == new.keys() and all(
        np.asarray(value).tobytes() == np.asarray(new[name][leaf]).tobytes()
        for name, params in there.items()
        for leaf, value in params.items()
    )
    return "loaded and written" if is_same else "FAILED to write the weights"


def outcome_of_all(path, out):
    """The same for every layer: with its own weights in it the copy is the file."""
    try:
        keras.save_variables(path, keras.load_variables(path), out)
    except ValueError as error:
        return named(error, path, "refused")
    return "written" if out.read_bytes() == path.read_bytes() else "FAILED to write all weights as they were"


def other(value):
    """Another array of the same form: the bytes, backwards."""
    return np.frombuffer(value.tobytes()[::-1], value.dtype).reshape(value.shape)


def named(error, path, result):
    """The result, for an error that names the file."""
    return result if str(error).startswith(f"{path}: ") else f"FAILED without a name: {error}"


def run(first, count, built):
    """Runs cases in this process and prints a line of JSON about each batch; used in a subprocess."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("more than 30 s")))
    outcomes, slowest, baseline = collections.Counter(), (0.0, 0), 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path in FILES:  # what a sound file takes is the baseline
            keras.load(path)
        baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + count):
            rng = random.Random(number)
            path = handmade.case(rng, folder) if built else case(rng.choice(FILES), rng, folder)
            print(number, file=sys.stderr, flush=True)
            signal.alarm(30)
            start = time.process_time()
            try:
                result = outcome(path)
            except Exception as error:
                result = f"FAILED {type(error).__name__}: {error} (case {number})"
            signal.alarm(0)
            slowest = max(slowest, (time.process_time() - start, number))
            outcomes[result] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"outcomes": outcomes, "slowest": slowest, "baseline": baseline, "peak": peak}))


def main(count, first=0, kind="damaged", batch=500):
    outcomes, slowest, extra, peak, start = collections.Counter(), (0.0, 0), 0, 0, time.perf_counter()
    for at in range(first, first + count, batch):
        size = min(batch, first + count - at)
        command = [sys.executable, "-m", "tests.interop.fuzz", "--run", str(at), str(size), kind]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            last = process.stderr.strip().splitlines()[-1:]
            outcomes[f"CRASHED with {process.returncode} at {last}"] += 1
            continue
        result = json.loads(process.stdout.splitlines()[-1])
        outcomes.update(result["outcomes"])
        slowest = max(slowest, tuple(result["slowest"]))
        extra, peak = max(extra, result["peak"] - result["baseline"]), max(peak, result["peak"])
        print(f"{at + size - first} files", file=sys.stderr)
    for result, number in outcomes.most_common():
        print(f"{number:7,}  {result}")
    print(
        f"slowest {slowest[0]:.2f} s of CPU time (case {slowest[1]}), all {time.perf_counter() - start:.0f} s"
    )
    print(f"peak memory {peak / 1024:.0f} MiB, {extra / 1024:.0f} MiB above that of sound files")
    return any(result.startswith(("FAILED", "CRASHED")) for result in outcomes)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "built")
    else:
        sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:]))
