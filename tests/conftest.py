"""Settings of every test: CPU, hypothesis without deadlines (a first call compiles), and memory given back."""

import ctypes
import gc
import os
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")

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


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_freed():
    """JAX keeps what it compiled, and glibc what was freed: some gigabytes over all modules."""
    yield
    jax.clear_caches()
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
