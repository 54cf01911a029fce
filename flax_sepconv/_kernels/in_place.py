"""Sums of shifted products for GPUs, without a copy.

Of a padded copy XLA would compute each entry anew for every tap, so the outputs at both ends have sums of their own.
"""

import jax
from jax import lax

from flax_sepconv._kernels import taps
from flax_sepconv._window import Window


def output(x, kernel, window: Window) -> jax.Array:
    """`(N, L, C)` and `(K, C)` to `(N, O, C)`."""

    def at_edge(start: int, stop: int) -> jax.Array:
        read = _samples_read(x, window, start, stop)
        return taps.sums(read, kernel, count=stop - start, stride=window.strides, dilation=window.dilation)

    outputs, (first, last) = window.output_length, window.interior
    if 2 * (last - first) <= outputs:  # mostly edge
        return at_edge(0, outputs)
    pieces = [(0, first), (first, last), (last, outputs)]
    sums = [at_edge(start, stop) for start, stop in pieces if start < stop]
    return lax.concatenate(sums, 1) if len(sums) > 1 else sums[0]


def input_gradient(kernel, cotangent, window: Window) -> jax.Array:
    """`(K, C)` and `(N, O, C)` to `(N, L, C)`."""
    if window.strides > 1:
        return taps.strided_input_gradient(kernel, cotangent, window=window, flat=False)
    return output(cotangent, lax.rev(kernel, (0,)), window.transposed())


def kernel_gradient(x, cotangent, window: Window) -> jax.Array:
    """`(N, L, C)` and `(N, O, C)` to `(K, C)`, one plain reduction for each tap."""
    x = _samples_read(x, window, 0, window.output_length)
    reach = (window.output_length - 1) * window.strides + 1
    starts = range(0, window.span, window.dilation)
    each = [lax.slice_in_dim(x, t, t + reach, window.strides, 1) * cotangent for t in starts]
    return lax.concatenate([lax.reduce_sum(term, (0, 1))[None] for term in each], 0)


def _samples_read(x, window: Window, start: int, stop: int) -> jax.Array:
    """What outputs from `start` to `stop` read, zeros where they read outside of `x`."""
    first = start * window.strides - window.low
    last = (stop - 1) * window.strides - window.low + window.span
    inside = lax.slice_in_dim(x, min(max(first, 0), window.length), min(max(last, 0), window.length), 1, 1)
    before, after = max(-first, 0), max(last - window.length, 0)
    return taps.pad(inside, min(before, last - first), min(after, last - first), flat=False)
