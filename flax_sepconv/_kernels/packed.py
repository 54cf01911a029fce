"""Sums over packed rows at stride 1, on every platform: a window reads the samples of its own run only.

    y[o] = sum over t of k[t] * x[o + t * dilation - low]      where that sample is in the run of `o`

`runs` numbers the run of each time step from 1; where it is 0 nothing is read and nothing is written. One comparison
for each time step serves all channels, so a term costs little more than without.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._kernels import kernel_gradient as sums_over_blocks
from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


def output(x, kernel, runs, *, window: Window, width: int) -> jax.Array:
    """Maps `(N, L, C)`, `(K, C)` and runs `(N, L)` to `(N, L, C)`, as sums of at most `width` taps."""
    pieces = taps.pieces(kernel, width)
    x = taps.copied(x, kernel.shape[1], window.low, window.high)
    reads, writes = taps.pad(runs, window.low, window.high), _writers(runs)
    sums = []
    for i, piece in enumerate(pieces):
        first = min(i * pieces.shape[1], window.kernel_size - pieces.shape[1]) * window.dilation
        at = [xla.opaque(first)] if len(pieces) > 1 else []
        sums.append(xla.unfused(_sum)(x, reads, writes, piece, *at, dilation=window.dilation))
    return taps.summed(sums, lax)


def kernel_gradient(x, cotangent, runs, **sizes) -> jax.Array:
    """Maps two `(N, L, C)` and runs `(N, L)` to `(K, C)`."""
    return sums_over_blocks.kernel_gradient(x, cotangent, runs[..., None], _writers(runs)[..., None], **sizes)


def _writers(runs) -> jax.Array:
    """Returns the run that each time step writes to, and a number that no run has where it is padding."""
    return jnp.where(runs > 0, runs, -1)


def _sum(x, reads, writes, kernel, *first, dilation: int) -> jax.Array:
    length, terms = writes.shape[1], []

    def shifted(array, t: int) -> jax.Array:
        if first:
            return lax.dynamic_slice_in_dim(array, first[0] + t * dilation, length, 1)
        return lax.slice_in_dim(array, t * dilation, t * dilation + length, 1, 1)

    for t in range(kernel.shape[0]):
        is_own = shifted(reads, t) == writes
        terms.append(jnp.where(is_own[..., None], shifted(x, t), 0) * kernel[None, t : t + 1])
    return taps.summed(terms, lax)
