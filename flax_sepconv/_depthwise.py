"""How the depthwise step is computed: one seam, one entry for each implementation.

    y[n, o, c * M + m] = sum_k x[n, o * strides + k * dilation_rate - low, c] * kernel[k, c, m]

with zeros outside of `x`. The definition is `lax.conv_general_dilated` with `feature_group_count`.
"""

import jax
import jax.numpy as jnp
from jax import lax


def _lax(x, kernel, *, strides, dilation_rate, padding, channel_axis, precision) -> jax.Array:
    size, channels, multiplier = kernel.shape
    layout = "NWC" if channel_axis == -1 else "NCW"
    return lax.conv_general_dilated(
        x,
        kernel.reshape(size, 1, channels * multiplier),
        window_strides=(strides,),
        padding=[padding],
        rhs_dilation=(dilation_rate,),
        dimension_numbers=(layout, "WIO", layout),
        feature_group_count=channels,
        precision=precision,
    )


IMPLEMENTATIONS = {"lax": _lax}
"""What `implementation` may name."""


def depthwise(x, kernel, *, implementation: str | None, **geometry) -> jax.Array:
    """The depthwise step on `(batch, length, channels)`, or `(batch, channels, length)`, in one dtype.

    float16 and bfloat16 are multiplied and summed in float32, where their products are exact, and rounded
    once at the end.
    """
    dtype = x.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    y = IMPLEMENTATIONS[implementation or "lax"](x.astype(wide), kernel.astype(wide), **geometry)
    return y.astype(dtype)
