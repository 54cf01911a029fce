"""How the depthwise step is computed: one seam, `depthwise`, in front of every implementation."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.implementations import NAMES as IMPLEMENTATIONS
from flax_sepconv._depthwise.primitive import compute, contract
from flax_sepconv._dtypes import wide

__all__ = [
    "IMPLEMENTATIONS",
    "Geometry",
    "compute",
    "contract",
    "definition",
    "depthwise",
    "multipliers_first",
    "multipliers_last",
]


def depthwise(x, kernel, geometry: Geometry, precision, implementation: str | None) -> jax.Array:
    """The depthwise step in a layout that vectorizes.

    Args:
        x: `(N, L, C)`.
        kernel: `(K, C, M)`, of the same dtype.
        geometry: of the step.
        precision: for convolutions and products of matrices, if there are any.
        implementation: one of `IMPLEMENTATIONS`, or `None`.

    Returns:
        `(N, O, M, C)`: multipliers before channels, the other way round than in Keras.
    """
    slots = {"input": x[None], "kernel": multipliers_first(kernel)[None]}
    return contract(slots, geometry=geometry, precision=precision, implementation=implementation)[0]


def multipliers_first(kernel) -> jax.Array:
    """`(K, C, M)` to `(K, M, C)`, for one multiplier not as a transpose, whose gradient XLA would copy."""
    if kernel.shape[2] == 1:
        return lax.expand_dims(lax.squeeze(kernel, (2,)), (1,))
    return kernel.swapaxes(1, 2)


def multipliers_last(kernel) -> jax.Array:
    """`(K, M, C)` to `(K, C, M)`."""
    if kernel.shape[1] == 1:
        return lax.expand_dims(lax.squeeze(kernel, (1,)), (2,))
    return kernel.swapaxes(1, 2)


def definition(x, kernel, geometry: Geometry, channel_axis: int, precision) -> jax.Array:
    """The depthwise step by definition: `lax.conv_general_dilated` with `feature_group_count`.

    `(N, L, C)` to `(N, O, C * M)`, or `(N, C, L)` to `(N, C * M, O)`. Its derivatives are of the same
    convolution, which JAX's own rules transpose and batch.
    """
    layout = "NWC" if channel_axis == -1 else "NCW"

    @jax.custom_jvp
    def convolution(x, kernel):
        size, channels, multiplier = kernel.shape
        return lax.conv_general_dilated(
            x,
            kernel.reshape(size, 1, channels * multiplier),
            window_strides=(geometry.strides,),
            padding=[(geometry.low, geometry.high)],
            rhs_dilation=(geometry.dilation,),
            dimension_numbers=(layout, "WIO", layout),
            feature_group_count=channels,
            precision=precision,
        )

    # JAX's own derivatives, of as many groups as there are outputs, each of one: where the batch is divided among
    # devices, XLA gathers it for the gradients of groups with several outputs.
    @functools.partial(convolution.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        terms = [
            convolution(jnp.repeat(a, b.shape[2], channel_axis), b.reshape(b.shape[0], -1, 1))
            for a, b in [(dx, kernel), (x, dkernel)]
            if not isinstance(a, SymbolicZero) and not isinstance(b, SymbolicZero)
        ]
        return convolution(x, kernel), sum(terms[1:], terms[0])

    return convolution(x.astype(wide(x.dtype)), kernel.astype(wide(kernel.dtype))).astype(x.dtype)
