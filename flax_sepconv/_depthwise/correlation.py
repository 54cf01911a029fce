"""The kernel's gradient as sums of products: plain ones for GPUs, and forms that vectorize for CPUs.

    dk[t] = sum over n, o of x[n, o * strides + t * dilation - low] * g[n, o]

XLA's CPU backend emits a reduction as a loop over the result with an inner loop over what is reduced, and LLVM
vectorizes the outer one, over channels, only if it can unroll the inner one. So the sum over time is split in blocks:

- few taps: one variadic reduction over blocks of `BLOCK` outputs, which reads each row of `x` and `g` once for all
  taps (3 taps: 4.4 ms against 5.7 for the other form on 64, 500, 200; 5 taps: 4.0 against 6.0 on 8, 4096, 128);
- more taps: a loop adds one block after the other to sums for every tap, channel and place in cache. Its program does
  not grow with the number of reductions (13 taps: 0.25 s to compile against 0.7, and 3.9 ms against 10.7 on
  128, 128, 128; 16 taps: 2.6 against 5.2 on 16, 2048, 64).
"""

import math

import jax
import jax.numpy as jnp
from jax import export, lax

from flax_sepconv._depthwise.blocks import WAY
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.taps import TIME, is_copied, pad, padded, repeated, rows, rows_read

BLOCK = 8  # outputs in a block of a reduction
MOST = 80  # outputs in a block of a reduction times taps, about as many as LLVM will unroll
FEW = 9  # taps that one reduction sums
WIDTH = 16  # taps that one fusion of the loop sums, at most as many as there are outputs in one of its blocks

LEAST_BLOCK = 16
"""Outputs in a block of the loop. XLA computes what has 15 uses or fewer anew for each, here the slice of a step, and
then vectorizes nothing: 34 against 9 ms for 15 and for 16 outputs on 32, 300, 256 with 39 taps."""

MOST_BLOCK = 20
"""Up to how many it may be to make whole blocks: 16 outputs and 4 rows of zeros take 8.8 ms there, 20 outputs 9.3, but
25 take 14.3."""

SPARE = 8  # lanes that set rows apart which would share sets of the cache

STEP = 1 << 20  # bytes that one step of the loop reads; a quarter or four times as many were slower


def kernel_gradient(x, cotangent, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, N, O, M, C)` to `(G, K, M, C)`."""
    groups, *_, multiplier, channels = cotangent.shape
    if cotangent.size == 0:  # an empty batch has no piece to loop over
        return lax.full_like(x, 0, shape=(groups, geometry.kernel_size, multiplier, channels))
    if multiplier > 1:  # the forms below have one
        wide = cotangent.reshape(*cotangent.shape[:3], 1, multiplier * channels)
        if geometry.kernel_size <= FEW and is_copied(geometry.kernel_size, geometry, differentiated=True):
            x, geometry = padded(x, geometry)
        gradient = kernel_gradient(repeated(x, multiplier), wide, geometry)
        return gradient.reshape(groups, geometry.kernel_size, multiplier, channels)
    if geometry.kernel_size <= FEW:
        return _by_reduction(x, cotangent, geometry)
    if geometry.dilation > 1 and geometry.strides > 1:
        return plain_sums(x, cotangent, geometry)  # configs refuse this pair, so it need not be fast
    if geometry.dilation > 1:
        return _folded(x, cotangent, geometry)
    return _by_loop(x, cotangent, geometry)


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


def _by_reduction(x, cotangent, geometry: Geometry) -> jax.Array:
    outputs, (first, last) = geometry.output_length, geometry.interior
    if is_copied(geometry.kernel_size, geometry, differentiated=True):
        # The depthwise output then reads a padded copy too: the same, if there are whole blocks.
        block = _block(outputs, BLOCK, MOST // geometry.kernel_size)
        missing = -outputs % block
        wider = geometry._replace(high=geometry.high + missing * geometry.strides)
        x, cotangent = rows_read(x, wider, 0, outputs + missing), pad(cotangent, 0, missing)
        return _in_blocks(x, cotangent, 0, block, geometry)
    last = first + (last - first) // BLOCK * BLOCK
    start = first * geometry.strides - geometry.low
    middle = lax.slice_in_dim(cotangent, first, last, 1, TIME)
    gradient = _in_blocks(x, middle, start, BLOCK, geometry)
    edges = [(a, b) for a, b in ((0, first), (last, outputs)) if a < b]
    if not edges:
        return gradient
    # Both edges side by side, with zeros up to whole blocks.
    count = -(-max(b - a for a, b in edges) // BLOCK) * BLOCK
    reach = (count - 1) * geometry.strides + geometry.span
    some_x, some_g = (
        lax.concatenate([pad(part, 0, length - part.shape[TIME]) for part in parts], 1)
        for parts, length in (
            ([rows_read(x, geometry, a, b) for a, b in edges], reach),
            ([lax.slice_in_dim(cotangent, a, b, 1, TIME) for a, b in edges], count),
        )
    )
    return gradient + _in_blocks(some_x, some_g, 0, BLOCK, geometry)


def _in_blocks(x, cotangent, start: int, block: int, geometry: Geometry) -> jax.Array:
    """For windows inside of `x`, the first at row `start`, as many as fill whole blocks."""
    groups, batch, count, _, channels = cotangent.shape

    def blocks(array):
        return array.reshape(groups, batch, count // block, block, channels)

    products = [
        blocks(rows(x, start + t * geometry.dilation, count, geometry.strides)) * blocks(cotangent)
        for t in range(geometry.kernel_size)
    ]
    of_blocks = lax.reduce(
        products,
        [jnp.zeros((), x.dtype)] * len(products),
        lambda a, b: [u + v for u, v in zip(a, b, strict=True)],
        (TIME + 1,),
    )
    return jnp.stack([each.sum((1, 2)) for each in of_blocks], 1)[:, :, None]


# --- More taps: a loop ---------------------------------------------------------------------------------------


def _folded(x, cotangent, geometry: Geometry) -> jax.Array:
    """A dilation is none between every so many rows: these become channels."""
    dilation, (groups, batch, _, _, channels) = geometry.dilation, cotangent.shape
    outputs = -(-geometry.output_length // dilation)
    length = outputs + geometry.kernel_size - 1
    x = pad(x, geometry.low, length * dilation - geometry.low - geometry.length)
    cotangent = pad(cotangent, 0, outputs * dilation - geometry.output_length)
    plain = Geometry(length, geometry.kernel_size, strides=1, dilation=1, low=0, high=0)
    gradient = _by_loop(
        x.reshape(groups, batch, length, dilation * channels),
        cotangent.reshape(groups, batch, outputs, 1, dilation * channels),
        plain,
    )
    return gradient.reshape(groups, geometry.kernel_size, dilation, 1, channels).sum(2)


def _by_loop(x, cotangent, geometry: Geometry) -> jax.Array:
    """With output `b * block + j` for block `b`, `sums[b, t] += x[b * block * strides + j * strides + t] * g[b, j]`.

    For one `j`, what the blocks read are slices of `x` and `g`, so all `j` make one elementwise fusion for as many
    taps as a block reaches. A step of the loop takes some sequences of the batch, or some blocks of one.
    """
    groups, batch, count, _, channels = cotangent.shape
    size, stride = geometry.kernel_size, geometry.strides
    width = -(-size // -(-size // WIDTH))  # taps of one fusion
    block = _block(count, LEAST_BLOCK, MOST_BLOCK)
    blocks = -(-count // block)
    block_bytes = groups * block * (stride + 1) * channels * x.dtype.itemsize
    # Two steps at the least: of one, XLA makes no loop, and copies all windows (1.0 against 0.3 ms on 64, 32, 16).
    sequences = _divisor(batch, STEP // (blocks * block_bytes))
    parts = max(-(-blocks * block_bytes // STEP), 2 if batch == 1 else 1) if sequences == 1 else 1
    at_once = -(-blocks // parts)
    blocks = parts * at_once
    reach = (block - 1) * stride + (size - 1) // width * width  # rows that a step reads beyond its blocks
    # A sum reads `block` rows of each, so far apart that many may share sets in cache: 39 to 9 ms for 17 taps 8 apart
    # on 23, 400, 128, 9.2 to 7.0 for 32 taps on 8, 400, 512; but with half as many in a set 5.0 to 6.7 on 16, 400, 256.
    lanes = SPARE if math.gcd(channels, WAY) + math.gcd(stride * channels, WAY) >= WAY else 0
    x_pads = (geometry.low, blocks * block * stride + reach - geometry.low - geometry.length, lanes)
    g_pads = (0, blocks * block - count, lanes)
    cotangent = cotangent.reshape(groups, batch, count, channels)
    if parts > 1:  # a part begins anywhere, so zeros come first; else each step adds its own, in cache
        x, cotangent = pad(x, *x_pads), pad(cotangent, *g_pads)
        x_pads = g_pads = (0, 0, 0)
    shapes = [
        (groups, sequences, at_once, min(width, size - first), 1, channels + lanes)
        for first in range(0, size, width)
    ]

    def piece(array, n, start, length, pads):
        # Rows and channels are one axis to be sliced, for the same reason as in `pad`; but in a pad of what is sliced
        # they are not, which would not vectorize: 1.6 to 2.9 ms on 128, 128, 128 with 13 taps.
        row = array.shape[3]
        where = (0, n * sequences, start * row)
        shape = (groups, sequences, length * row)
        flat = lax.dynamic_slice(lax.collapse(array, TIME), where, shape, allow_negative_indices=False)
        return pad(flat.reshape(groups, sequences, length, row), *pads, flat=False)

    def step(i, sums):
        n, part = (i, 0) if parts == 1 else _divided(i, parts)
        first = part * at_once * block
        x_rows, g_rows = at_once * block * stride + reach, at_once * block
        if parts == 1:  # the zeros are not there yet
            x_rows, g_rows = x.shape[TIME], cotangent.shape[TIME]
        # Else XLA sees through the zeros, and slices, within every sum, the windows that meet none: 1.2 against 4.5 ms
        # for 20 taps 2 apart on 16, 500, 64.
        some_x = lax.optimization_barrier(piece(x, n, first * stride, x_rows, x_pads))
        some_g = piece(cotangent, n, first, g_rows, g_pads)
        some_g = some_g.reshape(groups, sequences, at_once, block, 1, channels + lanes)
        return [_add(each, some_x, some_g, width * n, stride) for n, each in enumerate(sums)]

    zeros = [lax.full_like(x, 0, shape=shape) for shape in shapes]
    sums = lax.fori_loop(0, batch // sequences * parts, step, zeros)
    gradient = lax.concatenate([each.sum((1, 2)) for each in sums], 1)
    return lax.slice_in_dim(gradient, 0, channels, 1, 3)


def _divided(i, n: int):
    """Quotient and remainder of a small integer, without a division: XLA would make a kernel for that alone."""
    quotient = lax.convert_element_type((lax.convert_element_type(i, jnp.float32) + 0.5) * (1 / n), i.dtype)
    return quotient, i - quotient * n


def _add(sums, x, g, first: int, stride: int):
    """Adds to the sums of the taps from `first` on what one step's rows `(G, n, rows, C)` and blocks contribute."""
    groups, sequences, blocks, width, _, channels = sums.shape
    block = g.shape[3]
    for j in range(block):
        start = first + j * stride
        some = lax.slice_in_dim(x, start, start + blocks * block * stride, 1, TIME)
        windows = some.reshape(groups, sequences, blocks, block * stride, channels)
        windows = lax.slice_in_dim(windows, 0, width, 1, 3)
        outputs = lax.index_in_dim(g, j, 3, keepdims=False)
        product = lax.mul(
            lax.broadcast_in_dim(windows, sums.shape, (0, 1, 2, 3, 5)),
            lax.broadcast_in_dim(outputs, sums.shape, (0, 1, 2, 4, 5)),
        )
        sums = lax.add(sums, product)
    return sums


def _block(count: int, least: int, most: int) -> int:
    """Outputs in a block: a divisor of `count` if there is one in the range, so that no zeros need be added."""
    return next((n for n in range(least, most + 1) if count % n == 0), least)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most` and half of `n`, or 1; and 1 of a symbolic batch."""
    if export.is_symbolic_dim(n):
        return 1
    return max((d for d in range(1, min(n // 2, most) + 1) if n % d == 0), default=1)
