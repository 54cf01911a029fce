"""Damages Keras's files at random and sees how the reader takes it: it may succeed or raise `ValueError`.

    python -m tests.interop.fuzz 5000 [SEED]            damages sound files, of every form (`corpus`)
    python -m tests.interop.fuzz 5000 [SEED] built      builds files that lie (`handmade`)

loads that many files in subprocesses, writes other weights to those that it can load, watches memory and time, and
prints what came of it. A file of weights alone has the model's config beside it, in a file of its name and `.json`.
"""

import collections
import contextlib
import json
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

from flax_sepconv.interop import keras
from tests.interop import corpus, handmade
from tests.interop.damage import bombs, damaged, damaged_archive, damaged_json, dumped

DATA, FILES = corpus.DATA, corpus.FILES


def case(path, rng, folder):
    """Writes a damaged copy of a file, or of one file in a folder, and returns its path."""
    target = folder / f"damaged{path.suffix}"
    beside, config = (each.with_name(f"{each.name}.json") for each in (target, path))
    if path.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(path, target)
        inside = target / rng.choice(corpus.inside(path))
        inside.write_bytes(damaged_text(inside, rng))
        return target
    beside.unlink(missing_ok=True)
    data = path.read_bytes()
    if config.exists():
        shutil.copy(config, beside)
        if rng.random() < 0.3:
            beside.write_bytes(damaged_text(beside, rng))
        else:
            data = damaged(data, rng)
    elif rng.random() < 0.01:
        data = bombs(rng)
    elif path.suffix == ".keras" and rng.random() < 0.7:
        data = damaged_archive(data, rng)
    else:
        data = damaged(data, rng)
    target.write_bytes(data)
    return target


def damaged_text(path, rng):
    """The content of a file with damage, of JSON mostly to its values."""
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        return dumped(damaged_json(json.loads(data), rng))
    return damaged(data, rng)


def outcome(path):
    """Loads a damaged file and, where that succeeds, writes other weights to a copy: what came of it.

    Raises:
        Exception: anything but the `ValueError` that is promised.
    """
    options = options_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            lenient = keras.load(path, strict=False, **options)
        except ValueError as error:
            return named(error, path, "refused")
        try:
            layers = keras.load(path, **options)
        except ValueError as error:
            return named(error, path, "loaded in part" if lenient else "refused")
        if layers.keys() != lenient.keys():
            return "FAILED to load the same layers in both ways"
        if not layers:
            return "no layers"
        if options:
            with contextlib.suppress(ValueError):  # where names and shapes do not tell
                keras.load(path, config={name: config for name, (config, _) in layers.items()})
        if path.suffix in (".tf", ".saved_model"):
            return "loaded"
        return written(path, layers, options)


def options_of(path):
    """What else a file is loaded with."""
    config = path.with_name(f"{path.name}.json")
    return {"config": config} if config.exists() else {}


def written(path, layers, options):
    """What came of writing a file that could be loaded."""
    new = {
        name: {leaf: other(np.asarray(value)) for leaf, value in params.items()}
        for name, (_, params) in layers.items()
    }

    def same(path, out):
        keras.save_variables(path, keras.load_variables(path, **options), out, **options)

    def changed(path, out):
        keras.save(path, new, out, **options)

    for write in (same, changed):
        out = path.with_name("out")
        shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
        in_place = path.is_dir()
        if in_place:
            shutil.copytree(path, out)
        try:
            write(out if in_place else path, out)
        except ValueError as error:
            if content(out) != (content(path) if in_place else []):
                return "FAILED and left another file"
            return named(error, out if in_place else path, "loaded, not written")
        if write is same and content(out) != content(path):
            return "FAILED to write all weights as they were"
    there = {name: params for name, (_, params) in keras.load(out, **options).items()}
    is_same = there.keys() == new.keys() and all(
        np.asarray(value).tobytes() == np.asarray(new[name][leaf]).tobytes()
        for name, params in there.items()
        for leaf, value in params.items()
    )
    return "loaded and written" if is_same else "FAILED to write the weights"


def content(path):
    """The bytes of a file, or of the files in a folder."""
    files = [path, *sorted(path.rglob("*"))]
    return [each.read_bytes() for each in files if each.is_file()]


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
            keras.load(path, **options_of(path))
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
