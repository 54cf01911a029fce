"""The pointwise step: a matrix product and its gradients."""

import math

import jax
from jax import lax

from flax_sepconv._dtypes import wide


def output(h, kernel, precision, as_convolution: bool = False) -> jax.Array:
    """Maps `(N, O, R)` and `(R, F)` to `(N, O, F)`, in float32 or wider.

    XLA's CPU backend is faster at a convolution of one tap than at a product, and writes what follows over its result.
    """
    dtype = wide(h.dtype)
    if not as_convolution:
        return _product(h, kernel, 2, 0, precision, dtype)
    static = {
        "precision": precision,
        "preferred_element_type": dtype,
        "dimension_numbers": ("NWC", "WIO", "NWC"),
    }
    return lax.conv_general_dilated(h, kernel[None], (1,), "VALID", **static)


def input_gradient(kernel, cotangent, precision) -> jax.Array:
    """Maps `(R, F)` and `(N, O, F)` to `(N, O, R)`."""
    return _product(cotangent, kernel, 2, 1, precision, kernel.dtype)


def kernel_gradient(h, cotangent, precision, parts: int = 0) -> jax.Array:
    """Maps `(N, O, R)` and `(N, O, F)` to `(R, F)`.

    With `parts` it is a sum of about that many products, each over one axis: to sum over two, XLA's CPU backend would
    first transpose a copy of `h`. XLA splits the result among threads, not the sum, so a small result is faster in
    several parts.
    """
    rows = h.shape[0] * h.shape[1]
    if not parts or type(rows) is not int:  # symbolic, under `jax.export`
        over = (((0, 1), (0, 1)), ((), ()))
        return lax.dot_general(h, cotangent, over, precision=precision, preferred_element_type=h.dtype)
    parts = math.gcd(parts, rows)
    h, cotangent = (array.reshape(parts, rows // parts, array.shape[2]) for array in (h, cotangent))
    over = (((1,), (1,)), ((0,), (0,)))
    sums = lax.dot_general(h, cotangent, over, precision=precision, preferred_element_type=wide(h.dtype))
    return (lax.squeeze(sums, (0,)) if parts == 1 else lax.reduce_sum(sums, (0,))).astype(h.dtype)


def _product(a, b, axis_a: int, axis_b: int, precision, dtype) -> jax.Array:
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)
