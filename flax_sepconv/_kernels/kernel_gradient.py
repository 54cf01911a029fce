"""The kernel's gradient as sums over blocks of outputs, for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over the reduced axes, and LLVM
vectorizes the outer loop only if it can unroll the inner one. So the gradient is computed in two stages: for every tap
and block an elementwise sum over the block's outputs, which always vectorizes, then a plain reduction over blocks:

    sums[b, t] = sum over j < block of x[(b * block + j) * strides + t] * g[b * block + j]

For each `j` all blocks read a slice, so the sum over `j` is one fusion, for as many taps as a block has outputs.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


class Blocks(NamedTuple):
    """How taps and outputs are split: `parts` sums of `width` taps each, over blocks of `block` outputs."""

    parts: int
    width: int
    block: int
    outputs: int  # including those that fill the last block

    @classmethod
    def of(cls, window: Window, width: int, block: int) -> "Blocks":
        """Returns blocks of about `block` outputs and sums of at most `width` taps, without dilation."""
        parts = -(-window.kernel_size // width)
        width = -(-window.kernel_size // parts)
        outputs = window.output_length
        sizes = range(max(width, block // 2), max(width, block) * 5 // 4 + 1)
        # The cost: outputs added to fill blocks, samples read beyond them, and entries written.
        block = min(sizes, key=lambda n: 2 * (-outputs % n) + n + outputs * width / n)
        return cls(parts, width, block, outputs + -outputs % block)


def rows_read(window: Window, **sizes: int) -> int:
    """Counts the time steps read from the first window's first sample on; `sizes` are those of `kernel_gradient`."""
    if window.dilation > 1:
        return rows_read(_folded(window), **sizes) * window.dilation
    blocks = Blocks.of(window, **sizes)
    return (blocks.parts - 1) * blocks.width + (blocks.block - 1 + blocks.outputs) * window.strides


def kernel_gradient(x, cotangent, window: Window, *, width: int, block: int) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`.

    Each sum has at most `width` taps, over blocks of about `block` outputs, but no fewer outputs than taps.
    """
    sizes = {"width": width, "block": block}
    rows = rows_read(window, **sizes)
    if window.low or rows > x.shape[1]:
        x = taps.padded(x, window, rows)
    batch, outputs, channels = cotangent.shape
    if window.dilation > 1:  # `dilation` time steps become one step of `dilation * C` channels
        dilation, window = window.dilation, _folded(window)
        x = lax.slice_in_dim(x, 0, rows, 1, 1).reshape(batch, rows // dilation, dilation * channels)
        cotangent = taps.pad(cotangent, 0, window.output_length * dilation - outputs, flat=True)
        cotangent = cotangent.reshape(batch, window.output_length, dilation * channels)
        gradient = _over_blocks(x, cotangent, Blocks.of(window, **sizes), 1)
        return lax.reduce_sum(gradient.reshape(-1, dilation, channels), (1,))[: window.kernel_size]
    return _over_blocks(x, cotangent, Blocks.of(window, **sizes), window.strides)[: window.kernel_size]


def _folded(window: Window) -> Window:
    """Returns the window after `dilation` time steps are folded into one; strides are 1."""
    outputs = -(-window.output_length // window.dilation)
    return Window(outputs + window.kernel_size - 1, window.kernel_size, 1, 1, 0, 0)


def _over_blocks(x, cotangent, blocks: Blocks, stride: int) -> jax.Array:
    """Computes `(parts * width, C)` from all samples from the first window's first on."""
    g = taps.pad(cotangent, 0, blocks.outputs - cotangent.shape[1], flat=True)
    part = functools.partial(xla.unfused(_part), x, g, blocks=blocks, stride=stride)
    if blocks.parts == 1:
        return part().reshape(-1, x.shape[2])
    parts = [part(xla.opaque(i * blocks.width)) for i in range(blocks.parts)]
    return lax.concatenate(parts, 0).reshape(-1, x.shape[2])


def _part(x, g, *first, blocks: Blocks, stride: int) -> jax.Array:
    """Computes `(width * C)` for the taps from `first` on. It is flat, or XLA would copy it into another order."""
    shape = (x.shape[0], blocks.outputs // blocks.block, blocks.width, x.shape[2])
    # A call of its own, or XLA would fuse the products with the reduction.
    sums = xla.unfused(_sums)(x, g, *first, shape=shape, block=blocks.block, stride=stride)
    return lax.collapse(lax.reduce_sum(sums, (0, 1)), 0)


@xla.emitted
def _sums(ops, x, g, *first, shape, block: int, stride: int):
    """Maps `(N, rows, C)` and `(N, outputs, C)` to `(N, blocks, width, C)`.

    A first tap that XLA does not know is a dynamic slice for each output of a block; none of these is written.
    """
    batch, count, width, channels = shape
    rows = (batch, count * block * stride, channels)
    g = ops.reshape(g, (batch, count, block * channels))
    terms = []
    for j in range(block):
        if first:
            zero = ops.full((), 0, "int32")
            start = ops.add(*first, ops.full((), j * stride, "int32"))
            read = ops.dynamic_slice(x, (zero, start, zero), rows)
        else:
            read = ops.slice(x, (0, j * stride, 0), (batch, j * stride + rows[1], channels), (1, 1, 1))
        read = ops.reshape(read, (batch, count, block * stride, channels))
        read = ops.slice(read, (0, 0, 0, 0), (batch, count, width, channels), (1, 1, 1, 1))
        output = ops.slice(g, (0, 0, j * channels), (batch, count, (j + 1) * channels), (1, 1, 1))
        terms.append(ops.mul(read, ops.broadcast_in_dim(output, shape, (0, 1, 3))))
    return functools.reduce(ops.add, terms)
