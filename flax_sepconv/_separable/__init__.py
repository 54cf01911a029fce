"""How both steps are computed: one seam, `separable`, in front of every way to join them."""

import jax
from jax import lax

from flax_sepconv._depthwise import Geometry
from flax_sepconv._separable.primitive import contract

__all__ = ["separable"]


def separable(
    x,
    depthwise_kernel,
    pointwise_kernel,
    bias,
    geometry: Geometry,
    precision,
    implementation: str | None,
) -> jax.Array:
    """The depthwise step and the pointwise one, of which no derivative keeps what is between them.

    Args:
        x: `(N, L, C)`.
        depthwise_kernel: `(K, C, M)`, of the same dtype.
        pointwise_kernel: `(C * M, F)`, of the same dtype.
        bias: `(F,)` of at least float32, or `None`.
        geometry: of the depthwise step.
        precision: for convolutions and products of matrices.
        implementation: one of `_depthwise.IMPLEMENTATIONS`, or `None`.

    Returns:
        `(N, O, F)`, in at least float32.
    """
    slots = {"input": x, "kernel": depthwise_kernel, "pointwise": pointwise_kernel}
    params = {"geometry": geometry, "precision": precision, "implementation": implementation}
    if bias is None or bias.dtype != x.dtype:  # in half precision it is added to what is not rounded yet
        y = contract(slots, bias=False, **params)
        return y if bias is None else y + bias[None, None]
    slots["pointwise"] = lax.concatenate([pointwise_kernel, bias[None]], 0)
    return contract(slots, bias=True, **params)
