"""Arrays on their way to JAX, in exactly the dtype they have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_device(array: Any, name: str) -> jax.Array:
    """A copy of an array, of the same dtype, on JAX's default device.

    Args:
        array: what NumPy makes an array of.
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
