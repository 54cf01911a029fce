"""Sums over packed rows at stride 1, on every platform: a window reads the samples of its own run only.

    y[o] = sum over t of k[t] * x[o + t * dilation - low]      where that sample is in the run of `o`

`runs` numbers the run of each time step; where it is 0 nothing is read and nothing is written. One comparison for each
time step serves all channels, so a term costs little more than without.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window

_READS_NONE, _WRITES_NONE, _OUTSIDE = -1, -2, -3
"""Run numbers that equal no other."""


def output(x, kernel, window: Window, *, runs, width: int) -> jax.Array:
    """Maps `(N, L, C)`, `(K, C)` and runs `(N, L)` to `(N, L, C)`, as sums of at most `width` taps."""
    reads, writes = _readers_and_writers(runs)
    return _output(x, kernel, window, reads, writes, width)


def input_gradient(kernel, cotangent, window: Window, *, runs, width: int) -> jax.Array:
    """Maps `(K, C)`, `(N, L, C)` and runs `(N, L)` to `(N, L, C)`."""
    reads, writes = _readers_and_writers(runs)
    return _output(cotangent, lax.rev(kernel, (0,)), window.transposed(), writes, reads, width)


def kernel_gradient(x, cotangent, window: Window, *, runs, width: int, block: int) -> jax.Array:
    """Maps two `(N, L, C)` and runs `(N, L)` to `(K, C)`: the sums of `kernel_gradient` over terms within a run."""
    (batch, length, channels), dilation = x.shape, window.dilation
    parts = -(-window.kernel_size // width)
    width = -(-window.kernel_size // parts)
    block = max(block, width)
    count = -(-length // (block * dilation))  # blocks of rows of `dilation` time steps each
    rows = (parts * width + (count + 1) * block) * dilation

    def in_rows(array, before: int, total: int, value) -> jax.Array:
        array = taps.pad(array, before, total - before - length, value)
        return array.reshape(batch, total // dilation, -1)

    reads, writes = _readers_and_writers(runs)
    of_reads = in_rows(x, window.low, rows, 0), in_rows(reads, window.low, rows, _OUTSIDE)
    of_writes = (
        in_rows(cotangent, 0, count * block * dilation, 0),
        in_rows(writes, 0, count * block * dilation, _WRITES_NONE),
    )
    sums = functools.partial(xla.unfused(_block_sums), *of_reads, *of_writes, width=width, block=block)
    each = [sums()] if parts == 1 else [sums(xla.opaque(i * width)) for i in range(parts)]
    gradient = lax.concatenate([xla.unfused(_over_blocks)(part) for part in each], 0)
    return lax.reduce_sum(gradient.reshape(-1, dilation, channels), (1,))[: window.kernel_size]


def _readers_and_writers(runs) -> list[jax.Array]:
    """Returns the run that each time step is read in, and the one that it writes to."""
    return [jnp.where(runs > 0, runs, none) for none in (_READS_NONE, _WRITES_NONE)]


def _output(x, kernel, window: Window, reads, writes, width: int) -> jax.Array:
    parts = -(-window.kernel_size // width)
    width = -(-window.kernel_size // parts)
    missing = parts * width - window.kernel_size
    kernel = taps.pad(kernel, 0, missing, axis=0)
    after = window.high + missing * window.dilation
    x, reads = taps.pad(x, window.low, after), taps.pad(reads, window.low, after, _OUTSIDE)
    part = xla.unfused(_sum)
    if parts == 1:
        return part(x, reads, writes, kernel, dilation=window.dilation)
    pieces = enumerate(jnp.split(kernel, parts))
    sums = [
        part(x, reads, writes, k, xla.opaque(i * width * window.dilation), dilation=window.dilation)
        for i, k in pieces
    ]
    return taps.summed(sums, lax)


def _sum(x, reads, writes, kernel, *first, dilation: int) -> jax.Array:
    length, terms = writes.shape[1], []
    for t in range(kernel.shape[0]):
        read, run = (_from(array, t * dilation, length, *first) for array in (x, reads))
        terms.append(jnp.where((run == writes)[..., None], read, 0) * kernel[None, t : t + 1])
    return taps.summed(terms, lax)


def _block_sums(x, reads, g, writes, *first, width: int, block: int) -> jax.Array:
    """Maps `(N, rows, dilation * C)` and runs `(N, rows, dilation)` to `(N, blocks, width, dilation * C)`."""
    length, dilation, terms = g.shape[1], writes.shape[2], []

    def blocks(array) -> jax.Array:
        return array.reshape(array.shape[0], length // block, block, *array.shape[2:])

    g, writes = blocks(g), blocks(writes)
    for j in range(block):
        read, run = (blocks(_from(array, j, length, *first))[:, :, :width] for array in (x, reads))
        of_run = run == writes[:, :, j : j + 1]
        if dilation > 1:  # repeated for each channel
            of_run = jnp.broadcast_to(of_run[..., None], (*of_run.shape, g.shape[3] // dilation)).reshape(
                read.shape
            )
        terms.append(jnp.where(of_run, read, 0) * g[:, :, j : j + 1])
    return functools.reduce(jnp.add, terms)


def _over_blocks(sums) -> jax.Array:
    return lax.collapse(lax.reduce_sum(sums, (0, 1)), 0)  # XLA may copy one of rows


def _from(array, start: int, length, *first) -> jax.Array:
    """Returns `length` time steps from `start` on, counted from `first`, which XLA does not know, if it is given."""
    if first:
        return lax.dynamic_slice_in_dim(array, first[0] + start, length, 1)
    return lax.slice_in_dim(array, start, start + length, 1, 1)
