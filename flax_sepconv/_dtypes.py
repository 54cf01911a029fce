"""The one rule of dtypes: half precision is multiplied and summed in float32."""

import jax.numpy as jnp
import numpy as np


def wide(dtype) -> np.dtype:
    """Returns `dtype` if it is float32 or wider, else float32. (A user may have forbidden promotion.)"""
    dtype = jnp.dtype(dtype)
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if inexact and jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
