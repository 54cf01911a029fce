"""examples/many_devices.py: two processes, one of them killed, end at the weights of one device."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint", reason="needs pip install -e '.[examples]'")

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "many_devices.py"
SHORT = ("--steps", "12", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("compiled"))
    mine = {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    return os.environ | mine


def command(*arguments):
    return [sys.executable, "-u", str(PROGRAM), *map(str, arguments)]


def run(environment, *arguments):
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True)


def test_two_processes_of_which_one_is_killed_end_where_one_device_does(environment, tmp_path):
    alone = run(environment, *SHORT, "--processes", "1", "--devices", "1", "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert "1 devices of 1 processes" in alone.stdout

    printed = []
    with subprocess.Popen(
        command(*SHORT, "--out", tmp_path / "two"), env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            printed.append(line)
            if "checkpoint" in line and not any("a process died" in each for each in printed):
                (pids,) = (each.split()[1:] for each in printed if each.startswith("processes"))
                os.kill(int(pids[1]), signal.SIGKILL)
    everything = "".join(printed)
    assert process.returncode == 0, everything
    assert everything.count("a process died") == 1
    starts = [line for line in printed if "4 devices of 2 processes" in line]
    assert len(starts) == 2
    assert "batches among 2, sequences among 2; from step 0" in starts[0]
    assert "from step 0" not in starts[1]

    with np.load(tmp_path / "one/params.npz") as one, np.load(tmp_path / "two/params.npz") as two:
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_impossible_options_are_refused(environment, tmp_path):
    done = run(
        environment, "--processes", "1", "--devices", "1", "--sequence", "3", "--out", tmp_path / "none"
    )
    assert done.returncode == 1
    assert "--sequence must divide the 1 devices" in done.stderr
    done = run(environment, "--process-id", "0")
    assert done.returncode == 2
    assert "--coordinator and --process-id go together" in done.stderr
