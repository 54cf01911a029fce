"""The output and the input's gradient as sums of shifted products, for CPUs and GPUs.

    y[o] = x[o * strides - low] * k[0] + x[o * strides - low + dilation] * k[1] + ...

All the taps make one elementwise fusion: each entry of `y` is written once, the rows of `x` that it reads are in
cache from the entries before it, and the lanes of a vector run over the channels. At stride 1 the input's gradient
is the same sum over the cotangent with the kernel flipped; at larger strides one small sum for each phase. For many
taps on CPUs, `blocks` has the same sums in another layout.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
from jax import lax

from flax_sepconv._depthwise.at_once import at_once
from flax_sepconv._depthwise.geometry import Geometry

TIME = 2  # the axis of `(G, N, L, C)` and `(G, N, O, M, C)`

EDGED = 40
"""Taps up to which only the edges are padded. It saves a copy: 3.1 against 6.2 ms on 64, 500, 200
with 3 taps, and 5 to 20 % of a forward pass with 31 or 39. But 45 are slower (5.1 against 4.4 ms on 16, 400, 128). More
sums take longer to compile, so where there are gradients it is up to `correlation.FEW`."""

FEW = 20
"""Of these, how many have a sum for each edge. One sum for both takes longer to compile for 3 taps (0.12 to 0.22 s
forward), as long for 13, and less for 31 (1.7 to 1.4 s when gradients had edges too)."""

CHAIN = 8
"""Terms that are added one after the other. The error is then about that of XLA's grouped convolution, however many
taps there are, and time is the same; four chains had 1.2 and 1.4 times that error for 64 and 128 taps."""


def output(x, kernel, geometry: Geometry, in_place: bool = False) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`.

    `in_place` reads `x` without a copy, however many taps there are: on a GPU, XLA would make it anew for every tap.
    """

    def sums(x, kernel, start, count):
        starts = tuple(start + t * geometry.dilation for t in range(geometry.kernel_size))
        shape = (*x.shape[:2], count, *kernel.shape[2:])
        return _output_sums(x, kernel, shape=shape, starts=starts, stride=geometry.strides)

    return _by_pieces(x, kernel, geometry, in_place, sums)


@at_once
def _output_sums(ops, x, kernel, *, shape, starts: Sequence[int], stride: int):
    """`(G, N, O, M, C)` of `(G, N, rows, C)` and `(G, K, M, C)`, whose taps meet rows from `starts` on."""
    x = ops.broadcast_in_dim(x, (*x.shape[:3], *shape[3:]), (0, 1, 2, 4))
    return summed(
        (
            product(rows(x, start, shape[2], stride, ops=ops), tap, shape, (0, 2, 3, 4), ops)
            for start, tap in zip(starts, slices(kernel, 1, ops), strict=True)
        ),
        ops,
    )


def input_gradient(kernel, cotangent, geometry: Geometry, in_place: bool = False) -> jax.Array:
    """`(G, K, M, C)` and `(G, N, O, M, C)` to `(G, N, L, C)`; at stride 1 always in place, as for `output`."""
    size = geometry.kernel_size
    if geometry.strides > 1:
        return _strided_input_gradient(kernel, cotangent, geometry, in_place)

    def sums(g, kernel, start, count):
        starts = tuple(start + t * geometry.dilation for t in range(size))
        return _gradient_sums(g, kernel, shape=(*g.shape[:2], count, 1, g.shape[4]), starts=starts)

    return lax.squeeze(_by_pieces(cotangent, kernel, backwards(geometry), True, sums), (3,))


def _gradient_sums(g, kernel, shape: Sequence[int], starts: Sequence[int]) -> jax.Array:
    """`(G, N, rows, strides, C)` of `(G, N, O, M, C)` and `(G, K, M, C)`.

    Taps are in groups of `strides`, one for each phase, and each group meets rows of `g` from one of `starts` on, the
    last group from the first.
    """
    return _sums_of_groups(g, kernel, lax.full_like(kernel, 0, shape=()), shape=shape, starts=starts)


@at_once
def _sums_of_groups(ops, g, kernel, zero, *, shape, starts: Sequence[int]):
    stride, size = shape[3], kernel.shape[1]

    def group_of_taps(first):
        """`(G, strides, M, C)`"""
        missing = max(first + stride - size, 0)
        group = ops.slice(kernel, (0, first, 0, 0), (shape[0], first + stride - missing, *kernel.shape[2:]))
        return ops.pad(group, zero, [(0, 0, 0), (0, missing, 0), (0, 0, 0), (0, 0, 0)]) if missing else group

    terms = []
    for start, first in zip(starts, reversed(range(0, size, stride)), strict=True):
        for m, phases in enumerate(slices(group_of_taps(first), 2, ops)):
            read = ops.broadcast_in_dim(rows(g, start, shape[2], 1, m, ops=ops), shape, range(5))
            tap = ops.reshape(phases, (shape[0], 1, 1, *shape[3:]))
            terms.append(product(read, tap, shape, range(5), ops))
    return summed(terms, ops)


def backwards(geometry: Geometry) -> Geometry:
    """How the input's gradient correlates the cotangent with the reversed kernel, at stride 1."""
    reach = geometry.span - 1
    return geometry._replace(
        length=geometry.output_length, low=reach - geometry.low, high=reach - geometry.high
    )


def _strided_input_gradient(kernel, cotangent, geometry: Geometry, in_place: bool) -> jax.Array:
    """Row `i` of the input meets output `o` at tap `t` where `i + low = o * strides + t * dilation`.

    With rows and taps in groups of `strides`, `i + low = r * strides + phase` and `t * dilation = q * strides + phase`,
    that is output `r - q`: all phases are one sum over groups of taps.
    """
    stride, low = geometry.strides, geometry.low
    groups, batch, outputs, _, channels = cotangent.shape
    first, last = low // stride, (low + geometry.length - 1) // stride  # groups of rows
    count = -(-geometry.span // stride)  # groups of taps
    if geometry.dilation > 1:
        spread = [(0, 0, geometry.dilation - 1 if axis == 1 else 0) for axis in range(kernel.ndim)]
        kernel = lax.pad(kernel, lax.full_like(kernel, 0, shape=()), spread)
    before, after = max(count - 1 - first, 0), max(last + 1 - outputs, 0)
    g = pad(cotangent, before, after, flat=not in_place)
    shape = (groups, batch, last + 1 - first, stride, channels)
    starts = tuple(first - q + before for q in reversed(range(count)))
    gradient = _gradient_sums(g, kernel, shape=shape, starts=starts)
    gradient, start = gradient.reshape(groups, batch, -1, channels), low - first * stride
    return lax.slice_in_dim(gradient, start, start + geometry.length, 1, TIME)


def product(x, tap, shape: Sequence[int], axes: Sequence[int], ops):
    """`x` times one tap, which has these axes of the shape."""
    return ops.mul(x, ops.broadcast_in_dim(tap, shape, axes))


def slices(array, axis: int, ops) -> list:
    """All slices of size one along an axis."""
    starts, stops = [0] * len(array.shape), [*array.shape]
    each = []
    for i in range(array.shape[axis]):
        starts[axis], stops[axis] = i, i + 1
        each.append(ops.slice(array, starts, stops) if array.shape[axis] > 1 else array)
    return each


def rows(
    x,
    start: int,
    count: int,
    stride: int,
    m: int | None = None,
    axes: tuple[int, int] = (TIME, TIME + 1),
    ops=lax,
):
    """`count` rows in steps of `stride`, of one multiplier if `m` is given, for axes of rows and of multipliers."""
    starts, stops, strides = [0] * len(x.shape), [*x.shape], [1] * len(x.shape)
    starts[axes[0]], stops[axes[0]] = start, start + max((count - 1) * stride + 1, 0)
    strides[axes[0]] = stride
    if m is not None:
        starts[axes[1]], stops[axes[1]] = m, m + 1
    if stops == [*x.shape] and not any(starts) and stride == 1:
        return x
    return ops.slice(x, starts, stops, strides if stride > 1 else None)


def rows_read(x, geometry: Geometry, first: int, last: int, flat: bool = True) -> jax.Array:
    """The rows that outputs `first` to `last - 1` read, zeros where they read outside of `x`; `flat` as for `pad`."""
    start = first * geometry.strides - geometry.low
    stop = (last - 1) * geometry.strides - geometry.low + geometry.span
    low, high = min(max(start, 0), geometry.length), min(max(stop, 0), geometry.length)
    inside = lax.slice_in_dim(x, low, max(low, high), 1, TIME)
    before, after = max(-start, 0), max(stop - geometry.length, 0)
    return pad(inside, min(before, stop - start), min(after, stop - start), flat=flat)


def pad(x, before: int, after: int, flat: bool = True) -> jax.Array:
    """Zeros around the rows.

    `flat` takes rows and all that is behind them as one axis, over which XLA's CPU backend makes one long loop: 0.28 to
    0.12 ms on 16000, 64, and half the time to compile, because LLVM unrolls a loop over 64 channels.
    """
    if before == after == 0:
        return x
    zero = lax.full_like(x, 0, shape=())
    if flat:
        *outer, length = x.shape[: TIME + 1]
        inner = x.shape[TIME + 1 :]
        row = math.prod(inner)
        padded = lax.pad(lax.collapse(x, TIME), zero, [(0, 0, 0)] * TIME + [(before * row, after * row, 0)])
        return padded.reshape(*outer, before + length + after, *inner)
    config = [(0, 0, 0)] * x.ndim
    config[TIME] = (before, after, 0)
    return lax.pad(x, zero, config)


def is_copied(taps: int, geometry: Geometry) -> bool:
    """Whether sums of so many taps are taken over a padded copy, not in place and with sums for the edges."""
    outputs, (first, last) = geometry.output_length, geometry.interior
    if geometry.is_inside:
        return False
    mostly_edge = 2 * (last - first) <= outputs  # it costs little then
    return mostly_edge or taps > EDGED


def _by_pieces(x, kernel, geometry: Geometry, in_place: bool, sums: Callable) -> jax.Array:
    """`sums(x, kernel, start, count)` for all outputs."""
    outputs, (first, last) = geometry.output_length, geometry.interior
    if is_copied(0 if in_place else geometry.kernel_size, geometry):
        return sums(rows_read(x, geometry, 0, outputs, flat=not in_place), kernel, 0, outputs)
    middle = sums(x, kernel, first * geometry.strides - geometry.low, last - first)
    edges = [(a, b) for a, b in ((0, first), (last, outputs)) if a < b]
    if not edges:
        return middle
    if in_place:
        ends = [sums(rows_read(x, geometry, a, b, flat=False), kernel, 0, b - a) for a, b in edges]
    else:
        ends = _of_edges(x, kernel, edges, geometry, sums)
    before = 1 if first > 0 else 0
    return lax.concatenate([*ends[:before], middle, *ends[before:]], TIME)


def _of_edges(
    x, kernel, edges: Sequence[tuple[int, int]], geometry: Geometry, sums: Callable
) -> list[jax.Array]:
    """`sums(x, kernel, start, count)` of each edge, over one copy of the rows of all, one behind the other."""
    pieces, starts, rows = [], [], 0
    for first, last in edges:
        piece = rows_read(x, geometry, first, last)
        pieces.append(pad(piece, 0, -piece.shape[TIME] % geometry.strides))
        starts.append(rows // geometry.strides)
        rows += pieces[-1].shape[TIME]
    read = lax.concatenate(pieces, TIME)
    each = [(start, last - first) for start, (first, last) in zip(starts, edges, strict=True)]
    if geometry.kernel_size <= FEW:
        return [sums(read, kernel, start * geometry.strides, count) for start, count in each]
    # XLA computes no window in between.
    total = sums(read, kernel, 0, (rows - geometry.span) // geometry.strides + 1)
    return [lax.slice_in_dim(total, start, start + count, 1, TIME) for start, count in each]


def summed(terms: Iterable, ops):
    """Adds chains of about `CHAIN` terms, then the sums in pairs, which rounds less than one long chain."""
    terms = list(terms)
    count = max((len(terms) + CHAIN // 2) // CHAIN, 1)
    ends = [i * len(terms) // count for i in range(count + 1)]
    sums = [functools.reduce(ops.add, terms[a:b]) for a, b in itertools.pairwise(ends)]
    while len(sums) > 1:
        sums = [functools.reduce(ops.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]
