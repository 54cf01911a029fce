"""The sums of `taps` over blocks of channels, for many taps on CPUs.

A block has as many channels as a vector has lanes, with all its time steps side by side. The code that XLA's CPU
backend generates then keeps a block's taps in registers and in L1 cache while it goes along a sequence. In the ordinary
layout it would load every tap again at each time step. Each change of layout is one pass over the data.
"""

import jax
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


def output(x, kernel, *, window: Window, lanes: int, most: int, piece: int) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`.

    A block has `lanes` channels. Up to `most` taps are one sum. More are a loop over sums of at most `piece` taps,
    because XLA does not vectorize a sum of 125.
    """
    size, channels = kernel.shape
    blocks = xla.unfused(_blocks)(taps.copied(x, channels), window=window, lanes=lanes)
    by_block = taps.pad(kernel, 0, -channels % lanes).reshape(size, -1, lanes)
    steps = {"count": window.output_length, "stride": window.strides, "dilation": window.dilation, "time": 2}
    if size <= most:
        total = xla.unfused(taps.sums)(blocks, by_block, **steps)
        return xla.unfused(_channels)(total, channels=channels)
    pieces = taps.pieces(by_block, piece)
    width = pieces.shape[1]
    reach = (window.output_length - 1) * window.strides + (width - 1) * window.dilation + 1

    def step(i, total):
        first = lax.min(i * width, size - width) * window.dilation
        some = lax.dynamic_slice_in_dim(blocks, first, reach, 2)
        return xla.unfused(_more)(total, some, lax.dynamic_index_in_dim(pieces, i, keepdims=False), **steps)

    total = lax.full_like(blocks, 0, shape=(*blocks.shape[:2], window.output_length, lanes))
    return xla.unfused(_channels)(lax.fori_loop(0, len(pieces), step, total), channels=channels)


def _more(total, blocks, kernel, **steps: int) -> jax.Array:
    return total + taps.sums(blocks, kernel, **steps)


def _blocks(x, *, window: Window, lanes: int) -> jax.Array:
    """Lays out all samples that are read, `(N, L, C)`, as `(N, blocks, rows, lanes)`."""
    x = taps.pad(x, 0, -x.shape[2] % lanes, axis=2)
    x = x.reshape(*x.shape[:2], x.shape[2] // lanes, lanes).swapaxes(1, 2)
    return taps.pad(x, window.low, window.samples - window.low - x.shape[2], axis=2)


def _channels(blocks, *, channels: int) -> jax.Array:
    """Maps `(N, blocks, O, lanes)` to `(N, O, C)`."""
    return lax.slice_in_dim(lax.collapse(blocks.swapaxes(1, 2), 2), 0, channels, 1, 2)
