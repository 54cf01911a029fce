"""Sums of shifted products without a padded copy, for GPUs: outputs that read padding have sums of their own.

XLA would compute each entry of a padded copy again for every tap.
"""

import jax
from jax import lax

from flax_sepconv._kernels import taps
from flax_sepconv._window import Window


def output(x, kernel, *, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`."""
    x = taps.repeated(x, kernel.shape[1])
    steps = {"stride": window.strides, "dilation": window.dilation}

    def at_edge(start: int, stop: int) -> list[jax.Array]:
        if start == stop:
            return []
        return [taps.sums(_samples_read(x, window, start, stop), kernel, count=stop - start, **steps)]

    outputs, (first, last) = window.output_length, window.interior
    if window.is_mostly_edge:
        return at_edge(0, outputs)[0]
    start = first * window.strides - window.low
    inside = taps.sums(x, kernel, count=last - first, first=start, **steps)
    sums = [*at_edge(0, first), inside, *at_edge(last, outputs)]
    return lax.concatenate(sums, 1) if len(sums) > 1 else inside


def input_gradient(kernel, cotangent, *, window: Window) -> jax.Array:
    """Maps `(K, C)` and `(N, O, C)` to `(N, L, C)` at strides above 1."""
    return taps.sums_of_phases(kernel, cotangent, window=window)


def kernel_gradient(x, cotangent, *, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`, with one plain reduction for each tap."""
    x = _samples_read(taps.repeated(x, cotangent.shape[2]), window, 0, window.output_length)
    reach = (window.output_length - 1) * window.strides + 1
    starts = range(0, window.span, window.dilation)
    each = [lax.slice_in_dim(x, t, t + reach, window.strides, 1) * cotangent for t in starts]
    return lax.concatenate([lax.reduce_sum(term, (0, 1))[None] for term in each], 0)


def _samples_read(x, window: Window, start: int, stop: int) -> jax.Array:
    """Returns the samples that outputs from `start` to `stop` read, with zeros outside of `x`."""
    first = start * window.strides - window.low
    last = (stop - 1) * window.strides - window.low + window.span
    inside = lax.slice_in_dim(x, min(max(first, 0), window.length), min(max(last, 0), window.length), 1, 1)
    before, after = max(-first, 0), max(last - window.length, 0)
    return taps.pad(inside, min(before, last - first), min(after, last - first))
