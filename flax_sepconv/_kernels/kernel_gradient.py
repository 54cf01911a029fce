"""The kernel's gradient as sums over blocks of outputs, for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over the reduced axes, and LLVM
vectorizes the outer loop only if it can unroll the inner one. So the gradient is computed in two stages: for every tap
and block an elementwise sum over the block's outputs, which always vectorizes, then a plain reduction over blocks:

    sums[b, t] = sum over j < block of x[(b * block + j) * strides + t] * g[b * block + j]

For each `j` all blocks read a slice, so the sum over `j` is one fusion, for as many taps as a block has outputs.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import export, lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


class Blocks(NamedTuple):
    """How taps and outputs are split: `parts` sums of `width` taps each, over blocks of `block` outputs."""

    parts: int
    width: int
    block: int
    outputs: Any  # including those that fill the last block

    @classmethod
    def of(cls, window: Window, width: int, block: int) -> "Blocks":
        """Returns sums of at most `width` taps over blocks of about `block` outputs, but no fewer than taps.

        With a dilation, an output stands for `dilation` of them.
        """
        outputs = -(-window.output_length // window.dilation)
        parts = -(-window.kernel_size // width)
        width = -(-window.kernel_size // parts)
        block = max(width, block)
        if not export.is_symbolic_dim(outputs):
            sizes = range(max(width, block // 2), block * 5 // 4 + 1)
            # The cost: a copy if outputs must be added to fill blocks, samples read beyond them, and entries written.
            block = min(sizes, key=lambda n: outputs * (outputs % n > 0) + n + outputs * width / n)
        return cls(parts, width, block, outputs + -outputs % block)


def rows_read(window: Window, **sizes: int) -> int:
    """Counts the time steps read from the first window's first sample on; `sizes` are those of `Blocks`."""
    blocks = Blocks.of(window, **sizes)
    rows = (blocks.parts - 1) * blocks.width + (blocks.block - 1 + blocks.outputs) * window.strides
    return rows * window.dilation


def kernel_gradient(x, cotangent, *runs, window: Window, **sizes: int) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`; `sizes` are those of `Blocks`.

    `runs` are the run `(N, L)` of each sample, and again with no run where nothing is written.
    """
    channels, swaps = cotangent.shape[2], window.strides == 1
    if swaps:
        # The cotangent is padded instead of the input, as it is for the input's gradient. This reverses the taps.
        x, cotangent, window = cotangent, x, window.transposed()
    after = rows_read(window, **sizes) - window.low - x.shape[1]
    after = after if swaps else max(after, 0)
    x = taps.copied(x, channels, window.low, after)
    if runs:
        runs = taps.copied(runs[0], 1, window.low, after), runs[1]
    # One call, so that other copies are freed soon. Its result is flat, or XLA would copy it into another order.
    static = {"window": window, "blocks": Blocks.of(window, **sizes), "reverse": swaps}
    return xla.unfused(_flat)(x, cotangent, *runs, channels=channels, **static).reshape(-1, channels)


def _flat(x, cotangent, *runs, window: Window, blocks: Blocks, channels: int, reverse: bool) -> jax.Array:
    """Computes `(K * C)` from `x` that is padded as it is read; `reverse` puts the last tap first."""
    dilation = window.dilation

    def rows(array) -> jax.Array:
        """Makes `dilation` time steps one: `(N, rows, dilation * C)`."""
        count = array.shape[1] // dilation
        return lax.slice_in_dim(array, 0, count * dilation, axis=1).reshape(array.shape[0], count, -1)

    after = blocks.outputs * dilation - cotangent.shape[1]
    arrays = [rows(x), rows(taps.copied(cotangent, channels, 0, after))]
    if runs:  # as one channel; outputs that fill the last block are in none
        arrays += [rows(runs[0]), rows(taps.copied(runs[1], 1, 0, after, -1))]
    static = {"blocks": blocks, "stride": window.strides, "packed": bool(runs), "reverse": reverse}
    part = functools.partial(xla.unfused(_part), *arrays, **static)
    first = [()] if blocks.parts == 1 else [(xla.opaque(i * blocks.width),) for i in range(blocks.parts)]
    parts = [part(*at) for at in first]
    gradient = lax.concatenate(parts[::-1] if reverse else parts, 0)
    size = window.kernel_size * dilation * channels
    gradient = gradient[-size:] if reverse else gradient[:size]
    return lax.collapse(lax.reduce_sum(gradient.reshape(-1, dilation, channels), (1,)), 0)


def _part(x, g, *more, blocks: Blocks, **static) -> jax.Array:
    """Computes `(width * dilation * C)` for one sum's taps; flat, or XLA would copy it into another order."""
    shape = (x.shape[0], blocks.outputs // blocks.block, blocks.width, x.shape[2])
    zero = lax.full_like(x, 0, shape=())
    # A call of its own, or XLA would fuse the products with the reduction.
    sums = xla.unfused(_sums)(x, g, zero, *more, shape=shape, block=blocks.block, **static)
    return lax.collapse(lax.reduce_sum(sums, (0, 1)), 0)


@xla.emitted
def _sums(ops, x, g, zero, *more, shape, block: int, stride: int, packed: bool, reverse: bool):
    """Maps `(N, rows, C)` and `(N, outputs, C)` to `(N, blocks, width, C)`.

    `more` are the runs of both, if rows are packed, and the first tap, if XLA must not know it. That is a dynamic
    slice for each output of a block; none of these is written.
    """
    (batch, count, width, channels), first, terms = shape, more[2 * packed :], []

    def read(array, j: int):
        channels = array.shape[2]
        rows = (batch, count * block * stride, channels)
        if first:
            none = ops.full((), 0, "int32")
            start = ops.add(*first, ops.full((), j * stride, "int32"))
            array = ops.dynamic_slice(array, (none, start, none), rows)
        else:
            array = ops.slice(array, (0, j * stride, 0), (batch, j * stride + rows[1], channels), (1, 1, 1))
        array = ops.reshape(array, (batch, count, block * stride, channels))
        return ops.slice(array, (0, 0, 0, 0), (batch, count, width, channels), (1, 1, 1, 1))

    def output(array, j: int):
        channels = array.shape[2]
        array = ops.reshape(array, (batch, count, block * channels))
        array = ops.slice(array, (0, 0, j * channels), (batch, count, (j + 1) * channels), (1, 1, 1))
        return ops.broadcast_in_dim(array, (batch, count, width, channels), (0, 1, 3))

    for j in range(block):
        term = read(x, j)
        if packed:
            runs, of_output = more[:2]
            own = ops.eq(read(runs, j), output(of_output, j))
            each = (*own.shape, channels // own.shape[3])
            own = ops.reshape(ops.broadcast_in_dim(own, each, (0, 1, 2, 3)), shape)
            term = ops.select(own, term, ops.broadcast_in_dim(zero, shape, ()))
        terms.append(ops.mul(term, output(g, j)))
    total = functools.reduce(ops.add, terms)
    return ops.rev(total, (2,)) if reverse else total
