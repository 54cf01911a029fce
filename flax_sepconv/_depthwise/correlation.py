"""The kernel's gradient as a reduction that vectorizes, for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over what is reduced, and LLVM
vectorizes the outer one, over channels, only if it can unroll the inner one. So the sum over time is split in blocks
of `BLOCK` outputs, reduced for `GROUP` taps at once in one variadic reduction: each row of `x` and `g` is read once
for all of them. What is left, one entry for each block, is summed after.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.taps import TIME, rows, rows_read

BLOCK = 8  # outputs; with GROUP, as much as LLVM will unroll: BLOCK * GROUP of about 80
GROUP = 9  # taps


def kernel_gradient(x, cotangent, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, N, O, M, C)` to `(G, K, M, C)`."""
    first, last = geometry.interior
    last = first + (last - first) // BLOCK * BLOCK
    if 2 * (last - first) <= geometry.output_length:  # mostly edge: a padded copy costs little
        whole = -(-geometry.output_length // BLOCK) * BLOCK
        missing = whole - geometry.output_length
        padding = [(0, 0, 0)] * cotangent.ndim
        padding[TIME] = (0, missing, 0)
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), padding)
        padded = geometry._replace(high=geometry.high + missing * geometry.strides)
        return _in_blocks(rows_read(x, padded, 0, whole), cotangent, 0, geometry)
    start = first * geometry.strides - geometry.low
    gradient = _in_blocks(x, lax.slice_in_dim(cotangent, first, last, 1, TIME), start, geometry)
    for a, b in ((0, first), (last, geometry.output_length)):
        if a < b:
            edge = lax.slice_in_dim(cotangent, a, b, 1, TIME)
            gradient += _row_by_row(rows_read(x, geometry, a, b), edge, geometry)
    return gradient


def _in_blocks(x, cotangent, start: int, geometry: Geometry) -> jax.Array:
    """For windows inside of `x`, the first at row `start`, as many as fill whole blocks."""
    groups, batch, count, multiplier, channels = cotangent.shape

    def blocks(rows):
        return rows.reshape(groups, batch, count // BLOCK, BLOCK, channels)

    entries = [(t, m) for t in range(geometry.kernel_size) for m in range(multiplier)]
    reductions = -(-len(entries) // GROUP)
    sums = []
    for i in range(reductions):
        together = entries[i * len(entries) // reductions : (i + 1) * len(entries) // reductions]
        products = [
            blocks(rows(x, start + t * geometry.dilation, count, geometry.strides))
            * blocks(cotangent[:, :, :, m])
            for t, m in together
        ]
        zeros = [jnp.zeros((), x.dtype)] * len(products)
        partial = lax.reduce(
            products, zeros, lambda a, b: [u + v for u, v in zip(a, b, strict=True)], (TIME + 1,)
        )
        sums += [each.sum((1, 2)) for each in partial]
    return jnp.stack(sums, 1).reshape(groups, geometry.kernel_size, multiplier, channels)


def _row_by_row(x, cotangent, geometry: Geometry) -> jax.Array:
    """For the few windows of an edge, from the first row of `x` on."""
    count = cotangent.shape[TIME]
    return jnp.stack(
        [
            jnp.einsum(
                "gnoc,gnomc->gmc",
                rows(x, t * geometry.dilation, count, geometry.strides),
                cotangent,
                precision="highest",
            )
            for t in range(geometry.kernel_size)
        ],
        1,
    )
