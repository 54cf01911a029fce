"""The output and the input's gradient as sums of shifted products, for CPUs.

    y[o] = x[o * strides - low] * k[0] + x[o * strides - low + dilation] * k[1] + ...

All the taps make one elementwise fusion: each entry of `y` is written once, the rows of `x` that it reads are in
cache from the entries before it, and the lanes of a vector run over the channels. At stride 1 the input's gradient
is the same sum over the cotangent with the kernel flipped; at larger strides one small sum for each phase.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._depthwise.geometry import Geometry

TIME = 2  # the axis of `(G, N, L, C)` and `(G, N, O, M, C)`


def output(x, kernel, geometry: Geometry) -> jax.Array:
    """`(G, N, L, C)` and `(G, K, M, C)` to `(G, N, O, M, C)`."""

    def sums(x, start, count):
        taps = (
            rows(x, start + t * geometry.dilation, count, geometry.strides)[:, :, :, None]
            * kernel[:, None, None, t]
            for t in range(geometry.kernel_size)
        )
        return _sum(taps, geometry.kernel_size)

    return _by_pieces(x, geometry, sums)


def input_gradient(kernel, cotangent, geometry: Geometry) -> jax.Array:
    """`(G, K, M, C)` and `(G, N, O, M, C)` to `(G, N, L, C)`."""
    if geometry.strides > 1:
        return _strided_input_gradient(kernel, cotangent, geometry)
    reach = (geometry.kernel_size - 1) * geometry.dilation
    back = geometry._replace(
        length=geometry.output_length, low=reach - geometry.low, high=reach - geometry.high
    )

    def sums(g, start, count):
        taps = (
            rows(g[:, :, :, m], start + reach - t * geometry.dilation, count, 1) * kernel[:, None, None, t, m]
            for t in reversed(range(geometry.kernel_size))
            for m in range(kernel.shape[2])
        )
        return _sum(taps, geometry.kernel_size * kernel.shape[2])

    return _by_pieces(cotangent, back, sums)


def _strided_input_gradient(kernel, cotangent, geometry: Geometry) -> jax.Array:
    """Row `i` of the input meets output `o` at tap `t` where `i + low = o * strides + t * dilation`.

    The rows of one phase, `i % strides`, meet the same taps at the same distance.
    """
    stride, count = geometry.strides, -(-geometry.length // geometry.strides)
    groups, batch, _, multiplier, channels = cotangent.shape
    phases = []
    for phase in range(stride):
        meets = [
            (t, (phase + geometry.low - t * geometry.dilation) // stride)
            for t in range(geometry.kernel_size)
            if (phase + geometry.low - t * geometry.dilation) % stride == 0
        ]
        if not meets:
            phases.append(jnp.zeros((groups, batch, count, channels), cotangent.dtype))
            continue
        offsets = [offset for _, offset in meets]
        before = max(-min(offsets), 0)
        after = max(max(offsets) + count - geometry.output_length, 0)
        g = _pad(cotangent, before, after)
        taps = (
            rows(g[:, :, :, m], offset + before, count, 1) * kernel[:, None, None, t, m]
            for t, offset in meets
            for m in range(multiplier)
        )
        phases.append(_sum(taps, len(meets) * multiplier))
    gradient = jnp.stack(phases, TIME + 1).reshape(groups, batch, count * stride, channels)
    return gradient[:, :, : geometry.length]


def rows(x, start: int, count: int, stride: int) -> jax.Array:
    """`count` rows in steps of `stride`."""
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, TIME)


def rows_read(x, geometry: Geometry, first: int, last: int):
    """The rows that outputs `first` to `last - 1` read, zeros where they read outside of `x`."""
    start = first * geometry.strides - geometry.low
    stop = (last - 1) * geometry.strides - geometry.low + geometry.span
    low, high = min(max(start, 0), geometry.length), min(max(stop, 0), geometry.length)
    inside = lax.slice_in_dim(x, low, max(low, high), 1, TIME)
    return _pad(inside, min(max(-start, 0), stop - start), min(max(stop - geometry.length, 0), stop - start))


def _by_pieces(x, geometry: Geometry, sums) -> jax.Array:
    """`sums(x, start, count)` for the outputs inside and at both edges, so that no padded copy of `x` is made."""
    first, last = geometry.interior
    if 2 * (last - first) <= geometry.output_length:  # mostly edge: the copy costs little
        return sums(rows_read(x, geometry, 0, geometry.output_length), 0, geometry.output_length)
    parts = [sums(x, first * geometry.strides - geometry.low, last - first)]
    if first > 0:
        parts.insert(0, sums(rows_read(x, geometry, 0, first), 0, first))
    if last < geometry.output_length:
        parts.append(
            sums(rows_read(x, geometry, last, geometry.output_length), 0, geometry.output_length - last)
        )
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, TIME)


def _sum(taps, count: int) -> jax.Array:
    """Adds the taps, many of them in four chains: additions that do not wait for each other."""
    chains: list = [None] * (1 if count < 32 else 4)
    for i, tap in enumerate(taps):
        j = i * len(chains) // count
        chains[j] = tap if chains[j] is None else chains[j] + tap
    return sum(chains[1:], chains[0])


def _pad(x, low: int, high: int) -> jax.Array:
    config = [(0, 0, 0)] * x.ndim
    config[TIME] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
