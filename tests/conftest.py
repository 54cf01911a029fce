"""Settings of every test: CPU, hypothesis without deadlines (a first call compiles), and memory given back."""

import ctypes
import gc
import os
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow on the CPU, quietly.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")

# The oldest supported Flax asks the oldest supported JAX for names that it deprecates.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flax.nnx  # noqa: F401

LIBC = ctypes.CDLL(None)
KEPT = 250  # programs, which take about a megabyte each


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """JAX keeps what it compiled, which adds up to gigabytes: forgotten after each module, and where it is much."""
    leaves_module = nextitem is None or nextitem.path != item.path
    if leaves_module or len(jax.devices()[0].client.live_executables()) > KEPT:
        jax.clear_caches()
        gc.collect()
        if hasattr(LIBC, "malloc_trim"):  # glibc keeps what was freed
            LIBC.malloc_trim(0)
