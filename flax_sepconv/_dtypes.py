"""The one rule of dtypes: half precision is multiplied and accumulated in float32."""

import jax.numpy as jnp
import numpy as np


def wide(dtype) -> np.dtype:
    """Returns `dtype` if it is float32 or wider, else float32; works where a user has forbidden dtype promotion."""
    dtype = jnp.dtype(dtype)
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if inexact and jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def output_dtype(dtype, preferred: np.dtype | None) -> np.dtype:
    """Returns the output's dtype for a layer that computes in `dtype`; refuses one that would not be exact."""
    dtype = jnp.dtype(dtype)
    if preferred is None or preferred in (dtype, wide(dtype)):
        return dtype if preferred is None else preferred
    allowed = dtype.name if dtype == wide(dtype) else f"{dtype.name}, {wide(dtype).name}"
    raise ValueError(
        f"`preferred_element_type` must be one of None, {allowed}, as a layer of dtype {dtype.name} sums in "
        f"{wide(dtype).name}; got {preferred.name}."
    )
