"""The definition of the depthwise step and its gradients: `lax.conv_general_dilated` with `feature_group_count`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from flax_sepconv._dtypes import wide
from flax_sepconv._kernels import sharding
from flax_sepconv._window import Window


def definition(x, kernel, window: Window, precision, channel_axis: int = -1) -> jax.Array:
    """Computes the depthwise step by a convolution that JAX's own rules differentiate, transpose and batch.

    Maps `(N, L, C)`, or `(N, C, L)` if `channel_axis` is -2, and `(K, C, M)` to `(N, O, C * M)` or `(N, C * M, O)`.
    float16 and bfloat16 accumulate in float32.
    """
    static = {"window": window, "precision": precision, "channel_axis": channel_axis}
    convolution = functools.partial(_convolution, **static)
    wide_x, wide_kernel = x.astype(wide(x.dtype)), kernel.astype(wide(kernel.dtype))
    if kernel.shape[2] == 1:
        return convolution(wide_x, wide_kernel).astype(x.dtype)

    convolution = jax.custom_jvp(convolution)

    @functools.partial(convolution.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        terms = [
            _by_output_channel(a, b, **static)
            for a, b in [(dx, kernel), (x, dkernel)]
            if not isinstance(a, SymbolicZero) and not isinstance(b, SymbolicZero)
        ]
        return convolution(x, kernel), sum(terms[1:], terms[0])

    return convolution(wide_x, wide_kernel).astype(x.dtype)


def _convolution(x, kernel, *, window: Window, precision, channel_axis: int = -1) -> jax.Array:
    layout = "NWC" if channel_axis == -1 else "NCW"
    size, channels, multiplier = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel.reshape(size, 1, channels * multiplier),
        window_strides=(window.strides,),
        padding=[(window.low, window.high)],
        rhs_dilation=(window.dilation,),
        dimension_numbers=(layout, "WIO", layout),
        feature_group_count=channels,
        precision=precision,
    )


def _by_output_channel(x, kernel, *, channel_axis: int = -1, **params) -> jax.Array:
    """Convolves with a group for each output channel: XLA would gather a sharded batch for the gradients of others."""
    size, _, multiplier = kernel.shape
    x = jnp.repeat(x, multiplier, channel_axis) if multiplier > 1 else x
    return _convolution(x, kernel.reshape(size, -1, 1), channel_axis=channel_axis, **params)


def output(x, kernel, *, window: Window, precision) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C, M)` to `(N, O, C, M)`."""
    y = _convolution(x, kernel, window=window, precision=precision)
    return y.reshape(*y.shape[:2], *kernel.shape[1:])


def input_gradient(kernel, cotangent, *, window: Window, precision) -> jax.Array:
    """Maps `(K, C, M)` and `(N, O, C, M)` to `(N, L, C)`."""
    shape = (cotangent.shape[0], window.length, cotangent.shape[2])
    x, _ = sharding.alike([lax.full_like(cotangent, 0, shape=shape), cotangent])
    step = functools.partial(_by_output_channel, kernel=kernel, window=window, precision=precision)
    return jax.linear_transpose(step, x)(lax.collapse(cotangent, 2))[0]


def kernel_gradient(x, cotangent, *, window: Window, precision) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C, M)` to `(K, C, M)`."""
    shape = (window.kernel_size, *cotangent.shape[2:])
    kernel, _ = sharding.alike([lax.full_like(x, 0, shape=shape), x])
    step = functools.partial(_by_output_channel, x, window=window, precision=precision)
    return jax.linear_transpose(step, kernel)(lax.collapse(cotangent, 2))[0]
