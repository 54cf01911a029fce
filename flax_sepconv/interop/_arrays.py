"""Moves arrays to JAX in exactly the dtype they have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_device(array: Any, name: str) -> jax.Array:
    """Copies an array to JAX's default device, in the same dtype.

    Args:
        array: anything that NumPy makes an array of.
        name: what messages call it.

    Raises:
        ValueError: JAX would narrow it.
    """
    array = np.asarray(array)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{name} is {array.dtype}, which needs jax.config.update('jax_enable_x64', True); got it off."
        )
    return jnp.array(array)
