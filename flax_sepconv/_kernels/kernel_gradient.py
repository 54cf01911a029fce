"""The kernel's gradient as sums over blocks of outputs, for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over what is reduced, and LLVM
vectorizes the outer one only if it can unroll the inner one. So first, for every tap and block, there is one
elementwise sum over the outputs of the block, which always vectorizes, and then a plain reduction over the blocks:

    sums[b, t] = sum over j < block of x[(b * block + j) * strides + t] * g[b * block + j]

For one `j`, what all blocks read are slices, so all `j` make one fusion for as many taps as a block reaches.
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
    outputs: int  # with those that fill the last block

    @classmethod
    def of(cls, window: Window, width: int, block: int) -> "Blocks":
        """Those of at most `width` taps and about `block` outputs, without dilation."""
        parts = -(-window.kernel_size // width)
        width = -(-window.kernel_size // parts)
        outputs = window.output_length
        sizes = range(max(width, block // 2), max(width, block) * 5 // 4 + 1)
        # What is added to fill blocks, what is read beyond them, and how much is written.
        block = min(sizes, key=lambda n: 2 * (-outputs % n) + n + outputs * width / n)
        return cls(parts, width, block, outputs + -outputs % block)


def rows_read(window: Window, **sizes: int) -> int:
    """Time steps that are read, from the first sample of the first window on; `sizes` as for `kernel_gradient`."""
    if window.dilation > 1:
        return rows_read(_folded(window), **sizes) * window.dilation
    blocks = Blocks.of(window, **sizes)
    return (blocks.parts - 1) * blocks.width + (blocks.block - 1 + blocks.outputs) * window.strides


def kernel_gradient(x, cotangent, window: Window, *, width: int, block: int) -> jax.Array:
    """`(N, L, C)` and `(N, O, C)` to `(K, C)`.

    Each sum is of `width` taps at most, over blocks of about `block` outputs, but no fewer than taps.
    """
    sizes = {"width": width, "block": block}
    rows = rows_read(window, **sizes)
    if window.low or rows > x.shape[1]:
        x = taps.padded(x, window, rows)
    batch, outputs, channels = cotangent.shape
    if window.dilation > 1:  # as many time steps as the dilation are one, of as many times the channels
        dilation, window = window.dilation, _folded(window)
        x = lax.slice_in_dim(x, 0, rows, 1, 1).reshape(batch, rows // dilation, dilation * channels)
        cotangent = taps.pad(cotangent, 0, window.output_length * dilation - outputs, flat=True)
        cotangent = cotangent.reshape(batch, window.output_length, dilation * channels)
        gradient = _over_blocks(x, cotangent, Blocks.of(window, **sizes), 1)
        return lax.reduce_sum(gradient.reshape(-1, dilation, channels), (1,))[: window.kernel_size]
    return _over_blocks(x, cotangent, Blocks.of(window, **sizes), window.strides)[: window.kernel_size]


def _folded(window: Window) -> Window:
    """That of as many time steps as the dilation taken as one; strides are 1."""
    outputs = -(-window.output_length // window.dilation)
    return Window(outputs + window.kernel_size - 1, window.kernel_size, 1, 1, 0, 0)


def _over_blocks(x, cotangent, blocks: Blocks, stride: int) -> jax.Array:
    """`(parts * width, C)`, of all samples from the first of the first window."""
    g = taps.pad(cotangent, 0, blocks.outputs - cotangent.shape[1], flat=True)
    part = functools.partial(xla.unfused(_part), x, g, blocks=blocks, stride=stride)
    if blocks.parts == 1:
        return part().reshape(-1, x.shape[2])
    parts = [part(xla.opaque(i * blocks.width)) for i in range(blocks.parts)]
    return lax.concatenate(parts, 0).reshape(-1, x.shape[2])


def _part(x, g, *first, blocks: Blocks, stride: int) -> jax.Array:
    """`(width * C)`, of the taps from `first` on: flat, or XLA copies it into another order."""
    shape = (x.shape[0], blocks.outputs // blocks.block, blocks.width, x.shape[2])
    # A call of its own, or XLA makes products and reduction one.
    sums = xla.unfused(_sums)(x, g, *first, shape=shape, block=blocks.block, stride=stride)
    return lax.collapse(lax.reduce_sum(sums, (0, 1)), 0)


@xla.emitted
def _sums(ops, x, g, *first, shape, block: int, stride: int):
    """`(N, blocks, width, C)` of `(N, rows, C)` and `(N, outputs, C)`.

    A first tap that XLA does not know is one slice for each output of a block, of which none is written.
    """
    batch, count, width, channels = shape
    rows = (batch, count * block * stride, channels)
    g = ops.reshape(g, (batch, count, block, channels))
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
        output = ops.slice(g, (0, 0, j, 0), (batch, count, j + 1, channels), (1, 1, 1, 1))
        output = ops.reshape(output, (batch, count, channels))
        terms.append(ops.mul(read, ops.broadcast_in_dim(output, shape, (0, 1, 3))))
    return functools.reduce(ops.add, terms)
