"""The pointwise step: a product of matrices, and its gradients."""

import jax
from jax import lax

from flax_sepconv._dtypes import wide


def output(h, kernel, precision, flat: bool = False) -> jax.Array:
    """`(N, O, R)` and `(R, F)` to `(N, O, F)`, in at least float32.

    `flat` is a convolution of one tap, which XLA's CPU backend gives to Eigen: 1.1 times as fast as its dot.
    """
    (batch, outputs, _), dtype = h.shape, wide(h.dtype)
    if not flat or dtype != h.dtype or type(batch * outputs) is not int:  # symbolic, under `jax.export`
        return _product(h, kernel, 2, 0, precision, dtype)
    h, axes = h.reshape(1, batch * outputs, h.shape[2]), ("NWC", "WIO", "NWC")
    y = lax.conv_general_dilated(h, kernel[None], (1,), "VALID", dimension_numbers=axes, precision=precision)
    return y.reshape(batch, outputs, kernel.shape[1])


def input_gradient(kernel, cotangent, precision) -> jax.Array:
    """`(R, F)` and `(N, O, F)` to `(N, O, R)`."""
    return _product(cotangent, kernel, 2, 1, precision, kernel.dtype)


def kernel_gradient(h, cotangent, precision, flat: bool = False) -> jax.Array:
    """`(N, O, R)` and `(N, O, F)` to `(R, F)`.

    `flat` sums over one axis, not over two, for which XLA's CPU backend would transpose a copy of `h` before.
    """
    if flat:
        h, cotangent = (array.reshape(1, array.shape[0] * array.shape[1], -1) for array in (h, cotangent))
    dimensions = (((1,), (1,)), ((0,), (0,))) if flat else (((0, 1), (0, 1)), ((), ()))
    gradient = lax.dot_general(h, cotangent, dimensions, precision=precision, preferred_element_type=h.dtype)
    return lax.squeeze(gradient, (0,)) if flat else gradient


def _product(a, b, axis_a: int, axis_b: int, precision, dtype) -> jax.Array:
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)
