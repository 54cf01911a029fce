"""The output and the input's gradient as sums of shifted products, for CPUs and GPUs.

    y[o] = x[o * strides - low] * k[0] + x[o * strides - low + dilation] * k[1] + ...

All the taps make one elementwise fusion: each entry of `y` is written once, the rows of `x` that it reads are in
cache from the entries before it, and the lanes of a vector run over the channels. At stride 1 the input's gradient
is the same sum over the cotangent with the kernel flipped; at larger strides one small sum for each phase.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._depthwise.geometry import Geometry

TIME = 2  # the axis of `(G, N, L, C)` and `(G, N, O, M, C)`

WAY = 1024
"""Floats in a way of a CPU's first cache. Rows that many apart, or half or a quarter as many, fight for its sets."""

CROWDED = 8 * WAY
"""Floats that the rows of one window may take, counted as if they were as far apart as the sets they share."""

SPARE = 8
"""Lanes that set such rows apart: 13.8 to 7.0 ms on 4, 800, 512 with 51 taps, 6.7 to 4.3 on 8, 400, 512 with 32, and
4.4 to 2.8 for a whole forward pass on 4, 800, 128 with 31 taps 8 apart."""

COPIED = 16
"""Taps up to which that does not pay for the copy it needs: 13.5 to 19.1 ms forward on 4, 800, 1024 with 8."""

EDGED = 40
"""Taps, times multipliers, up to which only the edges are padded. It saves a copy: 3.1 against 6.2 ms on 64, 500, 200
with 3 taps, and 5 to 20 % of a forward pass with 31 or 39. But 45 are slower (5.1 against 4.4 ms on 16, 400, 128), and
more sums take longer to compile (0.3 to 0.5 s for that pass with 31)."""

FEW = 20
"""Of these, how many have a sum for each edge. One sum for both takes longer to compile for 3 taps (0.12 to 0.22 s
forward), as long for 13, and less for 31 (1.7 to 1.4 s with gradients)."""

TERMS = 96
"""Products in one sum of the input's gradient; beyond, each multiplier has a sum of its own, in a loop. On 8, 1000, 64:
15 taps and 2 multipliers 1.1 against 2.1 ms, 40 and 2 or 24 and 4 equal, 32 and 4 28 against 7.1, 100 and 2 72 against
13, because XLA vectorizes no sum of 128. It compiles faster too (64 and 16 with strides of 3: 7.3 to 0.6 s)."""

CHAIN = 8
"""Terms that are added one after the other. The error is then about that of XLA's grouped convolution, however many
taps there are, and time is the same; four chains had 1.2 and 1.4 times that error for 64 and 128 taps."""


def flat_output(x, kernel, geometry: Geometry) -> jax.Array:
    """`output`, computed with `multiplier * channels` channels.

    Two axes, of multipliers and of channels, become one in a product that follows. XLA does that within the sums before
    it, which makes them scalar: 9.5 against 6.5 ms forward on 4, 16000, 16 with 9 taps and 2 multipliers.
    """
    groups, size, multiplier, channels = kernel.shape
    if multiplier <= 1:  # none, for the kernels of an empty axis
        return output(x, kernel, geometry)
    if size > EDGED and geometry.strides > 1:
        # Not later, when it is `multiplier` times as large: 3.8 to 2.6 ms on 32, 400, 12 with 60 taps and 4.
        x = rows_read(x, geometry, 0, geometry.output_length)
        geometry = geometry._replace(length=x.shape[TIME], low=0, high=0)
    y = output(repeated(x, multiplier), kernel.reshape(groups, size, 1, multiplier * channels), geometry)
    return y.reshape(*y.shape[:3], multiplier, channels)


def output(x, kernel, geometry: Geometry, in_place: bool = False) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`.

    `in_place` reads `x` without a copy, however many taps and multipliers: on a GPU, XLA would make it anew for every
    tap.
    """
    _, size, multiplier, channels = kernel.shape

    def sums(x, tap, start, count):
        shape = (*x.shape[:TIME], count, multiplier, channels)
        return _sum(
            lax.mul(
                lax.broadcast_in_dim(
                    rows(x, start + t * geometry.dilation, count, geometry.strides), shape, (0, 1, 2, 4)
                ),
                lax.broadcast_in_dim(tap(t), shape, (0, 3, 4)),
            )
            for t in range(size)
        )

    return _by_pieces(x, kernel, geometry, in_place, sums)


def input_gradient(kernel, cotangent, geometry: Geometry, in_place: bool = False) -> jax.Array:
    """`(G, K, M, C)` and `(G, N, O, M, C)` to `(G, N, L, C)`; `in_place` as for `output`."""
    groups, size, multiplier, channels = kernel.shape
    if multiplier > 1 and -(-size // geometry.strides) * multiplier > TERMS and not in_place:

        def add(m, total):
            kernel_m, cotangent_m = (
                lax.dynamic_slice_in_dim(array, m, 1, array.ndim - 2) for array in (kernel, cotangent)
            )
            return total + input_gradient(kernel_m, cotangent_m, geometry)

        shape = (groups, cotangent.shape[1], geometry.length, channels)
        return lax.fori_loop(0, multiplier, add, lax.full_like(cotangent, 0, shape=shape))
    if geometry.strides > 1:
        return _strided_input_gradient(kernel, cotangent, geometry)
    reach = geometry.span - 1
    back = geometry._replace(
        length=geometry.output_length, low=reach - geometry.low, high=reach - geometry.high
    )

    def sums(g, tap, start, count):
        return _sum(
            _product(rows(g, start + reach - t * geometry.dilation, count, 1), tap(t), m)
            for t in reversed(range(size))
            for m in range(multiplier)
        )

    return _by_pieces(cotangent, kernel, back, in_place, sums)


def _product(cotangent, tap, m: int):
    """`(G, N, O, M, C)` and `(G, M, C)` to `(G, N, O, C)`, of one multiplier."""
    cotangent = lax.index_in_dim(cotangent, m, 3, keepdims=False)
    tap = lax.index_in_dim(tap, m, 1, keepdims=False)
    return lax.mul(cotangent, lax.broadcast_in_dim(tap, cotangent.shape, (0, 3)))


def _strided_input_gradient(kernel, cotangent, geometry: Geometry) -> jax.Array:
    """Row `i` of the input meets output `o` at tap `t` where `i + low = o * strides + t * dilation`.

    The rows `q * strides + phase` of one phase meet the same taps, each at an output `q + offset`.
    """
    stride, count = geometry.strides, -(-geometry.length // geometry.strides)
    groups, batch, _, multiplier, channels = cotangent.shape
    tap = _taps(kernel)
    meets: list[list[tuple[int, int]]] = [[] for _ in range(stride)]  # taps and offsets of each phase
    for t in range(geometry.kernel_size):
        steps, phase = divmod(t * geometry.dilation - geometry.low, stride)
        meets[phase].append((t, -steps))
    offsets = [offset for phase in meets for _, offset in phase]
    before = max(-min(offsets), 0)
    g = pad(cotangent, before, max(max(offsets) + count - geometry.output_length, 0))
    phases = [
        _sum(
            _product(rows(g, offset + before, count, 1), tap(t), m)
            for t, offset in phase
            for m in range(multiplier)
        )
        if phase
        else jnp.zeros((groups, batch, count, channels), cotangent.dtype)
        for phase in meets
    ]
    gradient = jnp.stack(phases, TIME + 1).reshape(groups, batch, count * stride, channels)
    return gradient[:, :, : geometry.length]


def rows(x, start: int, count: int, stride: int) -> jax.Array:
    """`count` rows in steps of `stride`."""
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, TIME)


def rows_read(x, geometry: Geometry, first: int, last: int, lanes: int = 0):
    """The rows that outputs `first` to `last - 1` read, zeros where they read outside of `x`; `lanes` more channels."""
    start = first * geometry.strides - geometry.low
    stop = (last - 1) * geometry.strides - geometry.low + geometry.span
    low, high = min(max(start, 0), geometry.length), min(max(stop, 0), geometry.length)
    inside = lax.slice_in_dim(x, low, max(low, high), 1, TIME)
    before, after = max(-start, 0), max(stop - geometry.length, 0)
    return pad(inside, min(before, stop - start), min(after, stop - start), lanes)


def pad(x, before: int, after: int, lanes: int = 0) -> jax.Array:
    """Zeros around the rows and, if asked for, behind the channels."""
    if before == after == lanes == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[TIME], config[-1] = (before, after, 0), (0, lanes, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def repeated(x, multiplier: int) -> jax.Array:
    """The channels once for each multiplier, which makes a layer of one multiplier."""
    return lax.concatenate([x] * multiplier, x.ndim - 1)


def _by_pieces(x, kernel, geometry: Geometry, in_place: bool, sums: Callable) -> jax.Array:
    """`sums(x, tap, start, count)` for all outputs; `tap(t)` is the kernel at one tap, `(G, M, C)`."""
    _, size, multiplier, channels = kernel.shape
    outputs, (first, last) = geometry.output_length, geometry.interior
    edges = [(a, b) for a, b in ((0, first), (last, outputs)) if a < b]
    mostly_edge = 2 * (last - first) <= outputs  # a padded copy costs little then
    copied = bool(edges) and (mostly_edge or (size * multiplier > EDGED and not in_place))
    if not in_place and _crowded(size, multiplier, channels, geometry.dilation, copied):
        # The barrier, because XLA sees through a slice of zeros around an array and reads the array itself.
        wider = lax.optimization_barrier(
            (rows_read(x, geometry, 0, outputs, SPARE), pad(kernel, 0, 0, SPARE))
        )
        x, kernel = (lax.slice_in_dim(array, 0, channels, 1, array.ndim - 1) for array in wider)
        return sums(x, _taps(kernel), 0, outputs)
    tap = _taps(kernel)
    if copied:
        return sums(rows_read(x, geometry, 0, outputs), tap, 0, outputs)
    middle = sums(x, tap, first * geometry.strides - geometry.low, last - first)
    if not edges:
        return middle
    if in_place or size * multiplier <= FEW:
        ends = [sums(rows_read(x, geometry, a, b), tap, 0, b - a) for a, b in edges]
    else:
        ends = _in_one_sum(x, edges, geometry, lambda x, count: sums(x, tap, 0, count))
    before = 1 if first > 0 else 0
    return lax.concatenate([*ends[:before], middle, *ends[before:]], TIME)


def _crowded(size: int, multiplier: int, channels: int, dilation: int, copied: bool) -> bool:
    """Whether spare lanes pay: a little does where `x` is copied in any case, else it must pay for the copy as well."""
    # How far apart, in that sense.
    taps, rows = math.gcd(multiplier * channels, WAY), math.gcd(dilation * channels, WAY)
    return (copied and size * channels >= CROWDED) or (size > COPIED and size * (taps + rows) // 2 >= CROWDED)


def _in_one_sum(x, edges: list[tuple[int, int]], geometry: Geometry, sums: Callable) -> list[jax.Array]:
    """`sums(rows, count)` of each edge, from all rows one behind the other. XLA computes no window in between."""
    pieces, starts, rows = [], [], 0
    for first, last in edges:
        piece = rows_read(x, geometry, first, last)
        pieces.append(pad(piece, 0, -piece.shape[TIME] % geometry.strides))
        starts.append(rows // geometry.strides)
        rows += pieces[-1].shape[TIME]
    total = sums(lax.concatenate(pieces, TIME), (rows - geometry.span) // geometry.strides + 1)
    return [
        lax.slice_in_dim(total, start, start + last - first, 1, TIME)
        for start, (first, last) in zip(starts, edges, strict=True)
    ]


def _taps(kernel) -> Callable[[int], jax.Array]:
    return lambda t: lax.index_in_dim(kernel, t, 1, keepdims=False)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    """Adds chains of about `CHAIN` terms, then the sums in pairs, which rounds less than one long chain."""
    terms = list(terms)
    count = max((len(terms) + CHAIN // 2) // CHAIN, 1)
    ends = [i * len(terms) // count for i in range(count + 1)]
    sums = [functools.reduce(lax.add, terms[a:b]) for a, b in itertools.pairwise(ends)]
    while len(sums) > 1:
        sums = [functools.reduce(lax.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]
