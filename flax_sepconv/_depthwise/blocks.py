"""The sums of `taps` over blocks of channels, for many taps on CPUs.

A block is as many channels as a vector has lanes, with all its rows side by side. What XLA's CPU backend makes of the
sums then keeps the taps of a block in registers and in the first cache while it goes along a sequence, where with rows
of all channels it reads every tap anew for every row: 33 taps on 8, 800, 256 at 120 instead of 36 GFLOP/s. Each way
between the layouts is a pass.
"""

import math

import jax
from jax import lax

from flax_sepconv._depthwise.at_once import at_once
from flax_sepconv._depthwise.fusion import unfused, unknown
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.taps import (
    TERMS,
    backwards,
    each_multiplier,
    product,
    repeated,
    rows,
    slices,
    summed,
)

LANES = 8

WAY = 1024
"""Floats in a way of a CPU's first cache. Rows that many apart, or half or a quarter as many, fight for its sets."""

SOME = 20
"""Taps from which the two passes pay, if the taps of all channels are more than `NEAR`."""

NEAR = 16 * WAY
"""Floats that stay in the nearer caches together with what they meet."""

CROWDED = 20 * WAY
"""Floats that the rows of one window may take, counted as if they were as far apart as the sets they share."""

PIECE = 64
"""Taps of one sum, where there are more than `TERMS`, which take longer to compile: 0.4 to 0.9 s of CPU for 257."""

UNROLLED = 8
"""Such sums up to which there is no loop over them, in which 257 taps on 8, 2048, 64 take 9.7 instead of 7.7 ms, and
200 on 4, 800, 256 7.8 instead of 6.2. More take long to compile: 64 sums 8 s with gradients, in a loop 0.3."""


def may_take(result: str, geometry: Geometry, channels: int) -> bool:
    """Whether there is a form for the slot `result`, and a vector is filled by so many channels times multipliers."""
    return channels >= LANES and (result == "output" or geometry.strides == 1)


def pay(result: str, geometry: Geometry, channels: int) -> bool:
    """Whether these are faster than `taps`.

    By how much depends on the processor. With a first cache of 32 kB (AMD Zen) the output takes, in ms, 5.4 by `taps`
    and 3.4 by these for 75 taps on 4, 800, 512; for 33 on 8, 800, 256 2.9 and 1.8; for 16 on 4, 800, 1024 9.6 and 5.3;
    for 60 on 32, 400, 96 3.0 and 1.7. With 48 kB (Intel Xeon with AVX-512) both steps take 12.8 and 9.8; but 4.5 and
    5.8, 4.5 and 7.7, 2.8 and 2.9. Layouts take longer to compile too (33 taps with gradients: 188 against 221 ms), so
    the sizes above are from where these are faster on both.
    """
    size = geometry.kernel_size
    by_taps, by_rows = math.gcd(channels, WAY), math.gcd(geometry.dilation * channels, WAY)
    crowded = size * (by_taps + by_rows) // 2 >= CROWDED
    many = size > TERMS or (size >= SOME and size * channels > NEAR) or crowded
    return many and may_take(result, geometry, channels)


def output(x, kernel, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`."""
    *outer, multiplier, channels = kernel.shape
    if multiplier > 1 and channels % LANES:  # fewer lanes are spare with both in one axis
        y = output(repeated(x, multiplier), kernel.reshape(*outer, 1, multiplier * channels), geometry)
        return y.reshape(*y.shape[:3], multiplier, channels)
    return _correlation(lax.expand_dims(x, (3,)), kernel, geometry)


def input_gradient(kernel, cotangent, geometry: Geometry) -> jax.Array:
    """`(G, K, M, C)` and `(G, N, O, M, C)` to `(G, N, L, C)`, at stride 1."""
    multiplier = kernel.shape[2]
    if multiplier > 1 and geometry.kernel_size * multiplier > TERMS:
        return each_multiplier(input_gradient, kernel, cotangent, geometry)
    return lax.squeeze(_correlation(cotangent, kernel, backwards(geometry), added=multiplier), (3,))


def _correlation(array, kernel, geometry: Geometry, added: int | None = None) -> jax.Array:
    """`(G, N, L, M or 1, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`, or `1` for `M` with so many `added`.

    These are for the input's gradient, which has the taps in the other order.
    """
    count, stride, dilation = geometry.output_length, geometry.strides, geometry.dilation
    size, channels = kernel.shape[1], kernel.shape[3]
    pieces = 1 if size <= TERMS else -(-size // PIECE)
    width = -(-size // pieces)
    last = (count - 1) * stride + geometry.span - geometry.low  # rows from the input's first that are read
    blocks = _blocks(array, before=geometry.low, after=last - geometry.length)
    static = {"count": count, "stride": stride, "dilation": dilation, "added": added}
    if pieces == 1:
        return _channels(unfused(_sums)(blocks, kernel, **static), channels=channels)
    # The last piece meets some rows again, with taps of zero: of rows beyond its window a NaN would reach an output.
    rest = size - (pieces - 1) * width
    kernel = _inserted(kernel, rest if added else size - rest, width - rest)

    def step(i, total):
        return unfused(_more)(i, total, blocks, kernel, size=size, width=width, **static)

    total = lax.full_like(blocks, 0, shape=_shape_of_sums(blocks, kernel, count, added))
    if pieces <= UNROLLED:
        for i in range(pieces):
            total = step(unknown(i), total)
    else:
        total = lax.fori_loop(0, pieces, step, total)
    return _channels(total, channels=channels)


def _more(i, total, blocks, kernel, *, size: int, width: int, count: int, stride: int, dilation: int, added):
    """`total`, and the sums of the `i`-th `width` taps of `size`."""
    reach = (count - 1) * stride + (width - 1) * dilation + 1
    some = lax.dynamic_slice_in_dim(blocks, lax.min(i * width, size - width) * dilation, reach, 4)
    first = kernel.shape[1] - width - i * width if added else i * width
    taps = lax.dynamic_slice_in_dim(kernel, first, width, 1)
    return total + _sums(some, taps, count=count, stride=stride, dilation=dilation, added=added)


def _shape_of_sums(blocks, kernel, count: int, added: int | None) -> tuple[int, ...]:
    return (*blocks.shape[:2], 1 if added else kernel.shape[2], blocks.shape[3], count, LANES)


def _sums(blocks, kernel, *, count: int, stride: int, dilation: int, added: int | None) -> jax.Array:
    """Of all taps, `count` for each block."""
    kernel = _spare(kernel)
    kernel = kernel.reshape(*kernel.shape[:3], kernel.shape[3] // LANES, LANES)
    shape = _shape_of_sums(blocks, kernel, count, added)
    return _sums_of_taps(blocks, kernel, shape=shape, stride=stride, dilation=dilation, added=added)


@at_once
def _sums_of_taps(ops, blocks, kernel, *, shape, stride: int, dilation: int, added: int | None):
    """`(G, N, M, blocks, O, LANES)` of `(G, N, M or 1, blocks, rows, LANES)` and `(G, K, M, blocks, LANES)`."""
    taps = slices(kernel, 1, ops)
    meets = (
        [enumerate(slices(tap, 2, ops)) for tap in reversed(taps)]
        if added
        else [[(None, tap)] for tap in taps]
    )

    def terms():
        for t, meet in enumerate(meets):
            for m, tap in meet:
                some = rows(blocks, t * dilation, shape[4], stride, m, axes=(4, 2), ops=ops)
                some = some if some.shape == shape else ops.broadcast_in_dim(some, shape, range(6))
                yield product(some, tap, shape, (0, 1, 2, 3, 5), ops)

    return summed(terms(), ops)


def _inserted(kernel, at: int, count: int) -> jax.Array:
    """So many taps of zero in the midst of others."""
    shape = (kernel.shape[0], count, *kernel.shape[2:])
    zeros = lax.full_like(kernel, 0, shape=shape)
    return lax.concatenate([kernel[:, :at], zeros, kernel[:, at:]], 1)


@unfused
def _blocks(array, *, before: int, after: int) -> jax.Array:
    """`(G, N, L, M, C)`, with so many rows of zeros around it, to `(G, N, M, blocks, rows, LANES)`."""
    array = _spare(array)
    array = array.reshape(*array.shape[:4], array.shape[4] // LANES, LANES).transpose(0, 1, 3, 4, 2, 5)
    return _zeros(array, 4, before, after)


@unfused
def _channels(array, *, channels: int) -> jax.Array:
    """`(G, N, M, blocks, O, LANES)` to `(G, N, O, M, C)`."""
    array = array.transpose(0, 1, 4, 2, 3, 5)
    return lax.slice_in_dim(lax.collapse(array, 4), 0, channels, 1, 4)


def _spare(array) -> jax.Array:
    """Zeros behind the channels, up to whole blocks."""
    return _zeros(array, array.ndim - 1, 0, -array.shape[-1] % LANES)


def _zeros(array, axis: int, before: int, after: int) -> jax.Array:
    """Zeros around what is along an axis; fewer than none take some of it away."""
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (before, after, 0)
    return lax.pad(array, lax.full_like(array, 0, shape=()), config)
