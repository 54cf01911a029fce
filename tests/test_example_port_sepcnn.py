"""examples/port_sepcnn.py in its short form: Keras to JAX and back, each stage a process of its own."""

import io
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "port_sepcnn.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
}


def run(*arguments):
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ported(tmp_path_factory):
    """The folder of a run of all stages, and what it printed."""
    out = tmp_path_factory.mktemp("sepcnn")
    done = run("--short", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_predictions_are_equal_both_ways(ported):
    differences = [float(each) for each in re.findall(r"largest difference .*: (\S+)", ported[1])]
    assert len(differences) == 2
    assert max(differences) <= 1e-5


def test_training_goes_on(ported):
    losses = [float(each) for each in re.findall(r"cross-entropy (\d+\.\d+)", ported[1])]
    in_keras, as_loaded, trained, back = losses
    assert as_loaded == pytest.approx(in_keras, abs=2e-3)  # they are printed with three digits
    assert back == pytest.approx(trained, abs=2e-3)
    assert trained < as_loaded


def test_the_constraint_holds(ported):
    (norm,) = re.findall(r"largest norm in a pointwise kernel: (\S+),", ported[1])
    assert float(norm) <= 1.5


def test_every_layer_changed_and_nothing_else(ported):
    out, _ = ported

    def weights(name):
        found = {}
        with (
            zipfile.ZipFile(out / name) as archive,
            h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
        ):
            file.visititems(
                lambda path, item: found.update({path: item[()]} if hasattr(item, "dtype") else {})
            )
        return found

    before, after = weights("model.keras"), weights("tuned.keras")
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("layers/") and "seed" not in path}
    assert len([path for path in changed if "batch_normalization" in path]) == 2 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--epochs", 0), "--epochs must be at least 1"), (("--stage", "jax"), "--stage needs --out")],
)
def test_impossible_options_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
