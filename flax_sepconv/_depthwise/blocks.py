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
from flax_sepconv._depthwise.taps import product, rows, slices, summed

LANES = 8

WAY = 1024
"""Floats in a way of a CPU's first cache. Rows that many apart, or half or a quarter as many, fight for its sets."""

SOME = 20
"""Taps from which the two passes pay, if the taps of all channels are more than `NEAR`."""

NEAR = 16 * WAY
"""Floats that stay in the nearer caches together with what they meet."""

CROWDED = 20 * WAY
"""Floats that the rows of one window may take, counted as if they were as far apart as the sets they share."""

TERMS = 96
"""Products in one sum at the most: XLA vectorizes none of 125."""

PIECE = 64
"""Taps of one sum, where there are more than `TERMS`, which take longer to compile: 0.4 to 0.9 s of CPU for 257."""

UNROLLED = 8
"""Such sums up to which there is no loop over them, in which 257 taps on 8, 2048, 64 take 9.7 instead of 7.7 ms, and
200 on 4, 800, 256 7.8 instead of 6.2. More take long to compile: 64 sums 8 s with gradients, in a loop 0.3."""


def pay(geometry: Geometry, channels: int) -> bool:
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
    return many and channels >= LANES


def output(x, kernel, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, 1, C)` to `(G, N, O, 1, C)`."""
    kernel = lax.squeeze(kernel, (2,))
    count, stride, dilation = geometry.output_length, geometry.strides, geometry.dilation
    size, channels = kernel.shape[1:]
    pieces = 1 if size <= TERMS else -(-size // PIECE)
    width = -(-size // pieces)
    last = (count - 1) * stride + geometry.span - geometry.low  # rows from the input's first that are read
    blocks = _blocks(x, before=geometry.low, after=last - geometry.length)
    static = {"count": count, "stride": stride, "dilation": dilation}
    if pieces == 1:
        return _channels(unfused(_sums)(blocks, kernel, **static), channels=channels)
    # The last piece meets some rows again, with taps of zero: of rows beyond its window a NaN would reach an output.
    rest = size - (pieces - 1) * width
    kernel = _zeros_inserted(kernel, size - rest, width - rest)

    def step(i, total):
        return unfused(_more)(i, total, blocks, kernel, size=size, width=width, **static)

    total = lax.full_like(blocks, 0, shape=_shape_of_sums(blocks, count))
    if pieces <= UNROLLED:
        for i in range(pieces):
            total = step(unknown(i), total)
    else:
        total = lax.fori_loop(0, pieces, step, total)
    return _channels(total, channels=channels)


def _more(i, total, blocks, kernel, *, size: int, width: int, count: int, stride: int, dilation: int):
    """`total`, and the sums of the `i`-th `width` taps of `size`."""
    reach = (count - 1) * stride + (width - 1) * dilation + 1
    some = lax.dynamic_slice_in_dim(blocks, lax.min(i * width, size - width) * dilation, reach, 3)
    taps = lax.dynamic_slice_in_dim(kernel, i * width, width, 1)
    return total + _sums(some, taps, count=count, stride=stride, dilation=dilation)


def _shape_of_sums(blocks, count: int) -> tuple[int, ...]:
    return (*blocks.shape[:3], count, LANES)


def _sums(blocks, kernel, *, count: int, stride: int, dilation: int) -> jax.Array:
    """Of all taps, `count` for each block."""
    kernel = _spare(kernel)
    kernel = kernel.reshape(*kernel.shape[:2], kernel.shape[2] // LANES, LANES)
    return _sums_of_taps(
        blocks, kernel, shape=_shape_of_sums(blocks, count), stride=stride, dilation=dilation
    )


@at_once
def _sums_of_taps(ops, blocks, kernel, *, shape, stride: int, dilation: int):
    """`(G, N, blocks, O, LANES)` of `(G, N, blocks, rows, LANES)` and `(G, K, blocks, LANES)`."""
    return summed(
        (
            product(
                rows(blocks, t * dilation, shape[3], stride, axes=(3, 4), ops=ops),
                tap,
                shape,
                (0, 1, 2, 4),
                ops,
            )
            for t, tap in enumerate(slices(kernel, 1, ops))
        ),
        ops,
    )


def _zeros_inserted(kernel, at: int, count: int) -> jax.Array:
    """So many taps of zero in the midst of others."""
    shape = (kernel.shape[0], count, *kernel.shape[2:])
    zeros = lax.full_like(kernel, 0, shape=shape)
    return lax.concatenate([kernel[:, :at], zeros, kernel[:, at:]], 1)


@unfused
def _blocks(array, *, before: int, after: int) -> jax.Array:
    """`(G, N, L, C)`, with so many rows of zeros around it, to `(G, N, blocks, rows, LANES)`."""
    array = _spare(array)
    array = array.reshape(*array.shape[:3], array.shape[3] // LANES, LANES).swapaxes(2, 3)
    return _zeros(array, 3, before, after)


@unfused
def _channels(array, *, channels: int) -> jax.Array:
    """`(G, N, blocks, O, LANES)` to `(G, N, O, 1, C)`."""
    array = lax.slice_in_dim(lax.collapse(array.swapaxes(2, 3), 3), 0, channels, 1, 3)
    return lax.expand_dims(array, (3,))


def _spare(array) -> jax.Array:
    """Zeros behind the channels, up to whole blocks."""
    return _zeros(array, array.ndim - 1, 0, -array.shape[-1] % LANES)


def _zeros(array, axis: int, before: int, after: int) -> jax.Array:
    """Zeros around what is along an axis; fewer than none take some of it away."""
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (before, after, 0)
    return lax.pad(array, lax.full_like(array, 0, shape=()), config)
