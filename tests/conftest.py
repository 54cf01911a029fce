"""Settings of every test: CPU, and hypothesis without deadlines (a first call compiles)."""

import os
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")

# The oldest supported Flax asks the oldest supported JAX for names that it deprecates.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flax.nnx  # noqa: F401
