"""The three contractions by XLA's own grouped convolution: what they mean, and what is safe on every platform."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._depthwise.geometry import Geometry


def output(x, kernel, geometry: Geometry, precision) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`, groups and multipliers as groups of channels."""
    groups, batch, length, channels = x.shape
    _, size, multiplier, _ = kernel.shape
    y = lax.conv_general_dilated(
        x.transpose(1, 2, 0, 3).reshape(batch, length, groups * channels),
        kernel.transpose(1, 0, 3, 2).reshape(size, 1, groups * channels * multiplier),
        window_strides=(geometry.strides,),
        padding=[(geometry.low, geometry.high)],
        rhs_dilation=(geometry.dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups * channels,
        precision=precision,
    )
    y = y.reshape(batch, geometry.output_length, groups, channels, multiplier)
    return y.transpose(2, 0, 1, 4, 3)


def input_gradient(kernel, cotangent, geometry: Geometry, precision) -> jax.Array:
    """`(G, K, M, C)` and `(G, N, O, M, C)` to `(G, N, L, C)`."""
    groups, batch, _, multiplier, channels = cotangent.shape
    x = jax.ShapeDtypeStruct((groups * multiplier, batch, geometry.length, channels), cotangent.dtype)
    kernel, cotangent = _as_groups(kernel, 2), _as_groups(cotangent, 3)
    (gradient,) = jax.linear_transpose(lambda x: output(x, kernel, geometry, precision), x)(cotangent)
    return gradient.reshape(groups, multiplier, *gradient.shape[1:]).sum(1)


def kernel_gradient(x, cotangent, geometry: Geometry, precision) -> jax.Array:
    """`(G, N, L, C)` and `(G, N, O, M, C)` to `(G, K, M, C)`."""
    groups, _, _, multiplier, channels = cotangent.shape
    kernel = jax.ShapeDtypeStruct((groups * multiplier, geometry.kernel_size, 1, channels), x.dtype)
    x, cotangent = jnp.repeat(x, multiplier, 0), _as_groups(cotangent, 3)
    (gradient,) = jax.linear_transpose(lambda k: output(x, k, geometry, precision), kernel)(cotangent)
    return gradient.reshape(groups, multiplier, geometry.kernel_size, channels).swapaxes(1, 2)


def _as_groups(array, axis: int) -> jax.Array:
    """The multipliers, at `axis`, as more groups of one multiplier each.

    Where the batch is divided among devices, XLA gathers it for the gradients of several multipliers.
    """
    return jnp.expand_dims(lax.collapse(jnp.moveaxis(array, axis, 1), 0, 2), axis)
