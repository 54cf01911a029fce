"""flax_sepconv.parallel and divided batches, on eight devices that XLA is made to see on one machine."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests" / "eight_devices.py"
NAMES = [
    line.removeprefix("def ").partition("(")[0]
    for line in TESTS.read_text(encoding="utf-8").splitlines()
    if line.startswith("def test_")
]


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(name):
    """XLA reads how many devices it shall make when it starts, so each test has its own process."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"{TESTS}::{name}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
