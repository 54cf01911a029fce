"""The kernel's gradient as sums of products: plain ones for GPUs, and forms that vectorize for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over what is reduced, and LLVM
vectorizes the outer one, over channels, only if it can unroll the inner one. So the sum over time is split in blocks:

- few taps: one variadic reduction over the outputs of a block, which reads each row of `x` and `g` once for all taps (3
  taps: 3.1 ms against 4.8 for the other form on 64, 500, 200; but 5 taps: 4.1 against 3.2 on 8, 4096, 128);
- more taps: an elementwise sum over the outputs of a block, for every tap, block and channel, and then plain
  reductions over the blocks.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._depthwise.at_once import at_once
from flax_sepconv._depthwise.fusion import unfused, unknown
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.partitioning import on_one_device
from flax_sepconv._depthwise.taps import TIME, is_copied, pad, product, rows, rows_read, slices

BLOCK = 8
"""Outputs in a block, at the least: with 16 for 5 to 9 taps all gradients take 0.96 of the time in the mean of eight
shapes, but 10 to 20 ms more to compile (9 taps and 2 multipliers on 4, 16000, 16: 173 to 192 ms)."""

FEW = 4
"""Taps that one reduction sums. With up to 9 gradients took as long in the mean (0.88 to 1.18 times, 7 taps on 128, 20,
64 the least and 8 on 8, 2048, 100 the most), but up to 45 ms more to compile (8 taps on 8, 2048, 64: 218 to 263).

With so few no gradient reads a copy of all rows with zeros around them, `reads_copy`: all gradients take 0.76 to 0.96
of the time then, 0.89 in the mean of eight shapes with 3 or 4 taps, for 20 to 45 ms more to compile. With 5 to 7 it
would be 0.83 to 0.97 of the time on three shapes, but 80 to 110 ms more.
"""

MOST = 80  # outputs in a block of a reduction times taps, about as many as LLVM will unroll
REST = 32  # units that such a reduction may leave, of all taps

WIDTH = 20
"""Taps of one elementwise sum, at most as many as there are outputs in its blocks: 17 taps take 117 ms of CPU to
compile, in two sums 134. Of 32, 6.4 against 3.6 ms for 31 taps on 16, 400, 256."""

UNROLLED = 4
"""Sums up to which there is no loop over them."""


def kernel_gradient(x, cotangent, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, N, O, 1, C)` to `(G, K, 1, C)`."""
    groups, *_, channels = cotangent.shape
    size = geometry.kernel_size
    if geometry.dilation > 1 and geometry.strides > 1 and size > FEW:
        return plain_sums(x, cotangent, geometry)  # configs refuse this pair, so it need not be fast
    if reads_copy(geometry):
        x, geometry = padded(x, geometry)
    form = _by_reduction if size <= FEW else _by_sums
    return form(x, cotangent, geometry).reshape(groups, size, 1, channels)


def reads_copy(geometry: Geometry) -> bool:
    """Whether the rows are read from a copy with zeros around them, `padded`."""
    size = geometry.kernel_size
    if size > FEW:
        return True
    return not geometry.is_inside and (is_copied(size, geometry) or sum(_division(geometry).left) > REST)


def padded(x, geometry: Geometry, times: int = 1) -> tuple[jax.Array, Geometry]:
    """All rows that are read here, zeros among them, and how they are read; each channel so many times.

    The output may read them too, of the same copy: XLA computes alike calls once, but would fuse a pad with each use of
    another shape.
    """
    before, after = geometry.low, max(_rows(geometry) - geometry.low - geometry.length, 0)
    if before == after == 0 and times == 1:
        return x, geometry
    # With rows and channels as one axis, channels that are divided among devices would be gathered.
    copy = unfused(_copy)(x, before=before, after=after, times=times, flat=on_one_device())
    return copy, geometry._replace(length=before + geometry.length + after, low=0, high=geometry.high - after)


def _copy(x, *, before: int, after: int, times: int, flat: bool) -> jax.Array:
    x = pad(x, before, after, flat)
    if times == 1:
        return x
    return lax.collapse(lax.broadcast_in_dim(x, (*x.shape, times), range(x.ndim)), x.ndim - 1)


def _rows(geometry: Geometry) -> int:
    """How many rows are read, from the first of the first window."""
    size, outputs, stride = geometry.kernel_size, geometry.output_length, geometry.strides
    if size <= FEW:
        return (outputs - 1) * stride + geometry.span
    if geometry.dilation > 1:
        return _rows(_folded(geometry)) * geometry.dilation
    count, width = _parts(size)
    block = _block_of_sums(geometry)
    return (count - 1) * width + (block - 1 + _whole(outputs, block)) * stride


def plain_sums(x, cotangent, geometry: Geometry) -> jax.Array:
    """The same, one plain reduction for each tap, as GPUs like it."""
    x = rows_read(x, geometry, 0, geometry.output_length)
    return jnp.stack(
        [
            jnp.sum(
                rows(x, t * geometry.dilation, geometry.output_length, geometry.strides)[:, :, :, None]
                * cotangent,
                (1, 2),
            )
            for t in range(geometry.kernel_size)
        ],
        1,
    )


# --- Few taps: one reduction ---------------------------------------------------------------------------------


class _Division(NamedTuple):
    """How the outputs that each tap meets are divided between a reduction, for all taps at once, and what it leaves."""

    first: list[int]  # output that each tap meets
    count: int  # outputs from there on that the reduction sums
    block: int  # outputs in a block of it
    left: list[int]  # for each tap, in units
    unit: int  # as many outputs as divide what every tap has left


def _division(geometry: Geometry) -> _Division:
    size, outputs, stride = geometry.kernel_size, geometry.output_length, geometry.strides
    # From the row that the first window reads to the input's first.
    before = [geometry.low - t * geometry.dilation for t in range(size)]
    first = [max(-(-n // stride), 0) for n in before]
    stop = [min(-(-(geometry.length + n) // stride), outputs) for n in before]
    least = min(b - a for a, b in zip(first, stop, strict=True))
    blocks = range(BLOCK, MOST // size + 1)
    divisors = ((n, block) for n in range(least, 0, -1) for block in blocks if n % block == 0)
    count, block = next(divisors, (least, max(least, 1)))
    left = [b - a - count for a, b in zip(first, stop, strict=True)]
    unit = max(math.gcd(*left), 1)
    return _Division(first, count, block, [n // unit for n in left], unit)


def _by_reduction(x, cotangent, geometry: Geometry) -> jax.Array:
    g = lax.squeeze(cotangent, (3,))
    if not any(_division(geometry).left):
        return _of_blocks(x, g, geometry)
    # A call, or XLA copies the sum of both to drop its axis of size one.
    return unfused(_of_blocks_and_rest)(x, g, geometry=geometry)


def _of_blocks_and_rest(x, g, geometry: Geometry) -> jax.Array:
    return _of_blocks(x, g, geometry) + _of_rest(x, g, geometry)


def _of_blocks(x, g, geometry: Geometry) -> jax.Array:
    """What one reduction sums."""
    groups, batch, _, channels = g.shape
    division = _division(geometry)
    shape = (groups, batch, division.count // division.block, division.block, channels)
    products = [
        _products(x, g, geometry, t, start, division.count).reshape(shape)
        for t, start in enumerate(division.first)
    ]
    of_blocks = lax.reduce(
        products,
        [lax.full_like(x, 0, shape=())] * len(products),
        lambda a, b: [lax.add(u, v) for u, v in zip(a, b, strict=True)],
        (TIME + 1,),
    )
    return _side_by_side([lax.reduce_sum(each, (1, 2)) for each in of_blocks])


def _of_rest(x, g, geometry: Geometry) -> jax.Array:
    """What that leaves, elementwise sums of a few rows for each tap."""
    groups, batch, _, channels = g.shape
    first, count, _, left, unit = _division(geometry)
    zeros = lax.full_like(g, 0, shape=(groups, batch, unit, channels))

    def of_tap(t):
        starts = [first[t] + count + i * unit for i in range(left[t])]
        return functools.reduce(
            lax.add, [_products(x, g, geometry, t, start, unit) for start in starts], zeros
        )

    each = [lax.expand_dims(of_tap(t), (2,)) for t in range(geometry.kernel_size)]
    return lax.collapse(lax.reduce_sum(lax.concatenate(each, 2), (1, 3)), 1)


def _products(x, g, geometry: Geometry, t: int, start: int, count: int) -> jax.Array:
    """Of so many outputs with what a tap meets there."""
    read = start * geometry.strides + t * geometry.dilation - geometry.low
    return lax.mul(rows(x, read, count, geometry.strides), rows(g, start, count, 1))


# --- More taps: elementwise sums -----------------------------------------------------------------------------


def _by_sums(x, cotangent, geometry: Geometry) -> jax.Array:
    """For block `b`, `sums[b, t] = sum over j of x[(b * block + j) * strides + t] * g[b * block + j]`.

    For one `j`, what the blocks read are slices of `x` and `g`, so all `j` make one elementwise fusion for as many
    taps as a block reaches. It writes about as much as the cotangent has. In a loop that adds a few blocks at a time to
    sums that stay in cache, the same took 0.5 to 1.8 times as long, and 1.0 to 2.4 times as long to compile.
    """
    groups, batch, _, _, channels = cotangent.shape
    size, dilation, outputs = geometry.kernel_size, geometry.dilation, geometry.output_length
    if dilation > 1:  # none between every so many rows, which become channels
        plain = _folded(geometry)
        x = rows(x, 0, plain.length * dilation, 1).reshape(groups, batch, plain.length, dilation * channels)
        cotangent = pad(cotangent, 0, plain.output_length * dilation - outputs)
        cotangent = cotangent.reshape(groups, batch, plain.output_length, 1, dilation * channels)
        gradient = _by_sums(x, cotangent, plain)
        return gradient.reshape(groups, size, dilation, channels).sum(2)
    block = _block_of_sums(geometry)
    whole = _whole(outputs, block)
    blocks = pad(cotangent, 0, whole - outputs).reshape(groups, batch, whole // block, block, channels)
    count, width = _parts(size)

    def part(first):
        return unfused(_part)(x, blocks, first, width=width, stride=geometry.strides)

    if count <= UNROLLED:
        *parts, last = (part(unknown(i * width)) for i in range(count))
        rest = (size - (count - 1) * width) * channels
        gradient = _side_by_side([*parts, lax.slice_in_dim(last, 0, rest, 1, 1)])
    else:
        gradient = lax.map(part, width * jnp.arange(count, dtype="int32")).swapaxes(0, 1)
        gradient = lax.slice_in_dim(lax.collapse(gradient, 1), 0, size * channels, 1, 1)
    return gradient.reshape(groups, size, channels)


def _side_by_side(parts: Sequence[jax.Array]) -> jax.Array:
    """Joins `(G, n)` along the second axis; without the first, if it is of size one, for XLA to join them at once."""
    if parts[0].shape[0] > 1:
        return lax.concatenate(parts, 1)
    return lax.expand_dims(lax.concatenate([lax.squeeze(part, (0,)) for part in parts], 0), (0,))


def _part(x, g, first, *, width: int, stride: int) -> jax.Array:
    """`(G, taps * C)`, in a call of its own, which frees the sums soon: 20.7 to 14.2 MB on 16, 400, 256 with 31 taps.

    Flat, because XLA copies `(taps, C)` to make it `(taps, C, 1)`, and LLVM unrolls what joins parts of 64 channels: 75
    against 7 ms to compile for 39 taps.
    """
    shape = (*g.shape[:3], width, g.shape[4])
    sums = unfused(_sums)(x, g, first, shape=shape, stride=stride)
    return lax.collapse(lax.reduce_sum(sums, (1, 2)), 1)


@at_once
def _sums(ops, x, g, first, *, shape, stride: int):
    """`(G, N, rows, C)` and `(G, N, blocks, block, C)` to `(G, N, blocks, width, C)`, of so many taps from `first` on.

    For each output of a block a slice from a moving start; XLA would write one slice for all of them.
    """
    groups, batch, blocks, block, channels = g.shape
    zero = ops.full((), 0, "int32")

    def of_output(j, outputs):
        start = ops.add(first, ops.full((), j * stride, "int32"))
        read = (groups, batch, blocks * block * stride, channels)
        windows = ops.dynamic_slice(x, (zero, zero, start, zero), read)
        windows = ops.reshape(windows, (groups, batch, blocks, block * stride, channels))
        windows = rows(windows, 0, shape[3], 1, axes=(3, 4), ops=ops)
        return product(windows, outputs, shape, range(5), ops)

    return functools.reduce(ops.add, itertools.starmap(of_output, enumerate(slices(g, 3, ops))))


def _folded(geometry: Geometry) -> Geometry:
    """The same taps side by side, over rows of as many channels as there are rows in a dilation."""
    outputs = -(-geometry.output_length // geometry.dilation)
    plain = Geometry(outputs + geometry.kernel_size - 1, geometry.kernel_size, 1, 1, low=0, high=0)
    return plain._replace(length=_rows(plain), high=plain.length - _rows(plain))


def _block_of_sums(geometry: Geometry) -> int:
    least = max(_parts(geometry.kernel_size)[1], BLOCK)
    return _block(geometry.output_length, least, least * 5 // 4)


def _block(count: int, least: int, most: int) -> int:
    """Outputs in a block: a divisor of `count` if there is one in the range, so that no zeros need be added."""
    return next((n for n in range(least, most + 1) if count % n == 0), least)


def _whole(count: int, block: int) -> int:
    """As many as fill blocks."""
    return -(-count // block) * block


def _parts(size: int) -> tuple[int, int]:
    """How many sums, and taps of each."""
    count = -(-size // WIDTH)
    return count, -(-size // count)
