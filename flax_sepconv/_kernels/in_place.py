"""Sums of shifted products without a padded copy: outputs at both ends, which read padding, have their own sums.

On GPUs, XLA would compute each entry of a padded copy again for every tap. On CPUs, a copy is a pass over the input.
"""

import jax
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


def output(x, kernel, window: Window, *, apart: bool = False) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`; with `apart`, XLA does not fuse it with other operations."""
    return (
        xla.unfused(_output)(x, kernel, window=window, flat=True)
        if apart
        else _output(x, kernel, window=window)
    )


def _output(x, kernel, *, window: Window, flat: bool = False) -> jax.Array:
    steps = {"stride": window.strides, "dilation": window.dilation}

    def at_edge(start: int, stop: int) -> list[jax.Array]:
        if start == stop:
            return []
        read = _samples_read(x, window, start, stop, flat)
        return [taps.sums(read, kernel, count=stop - start, **steps)]

    outputs, (first, last) = window.output_length, window.interior
    if window.is_mostly_edge:
        return at_edge(0, outputs)[0]
    start = first * window.strides - window.low
    # `first=` instead of a slice of `x`, of which XLA's CPU backend would make a copy.
    inside = taps.sums(x, kernel, count=last - first, first=start, **steps)
    sums = [*at_edge(0, first), inside, *at_edge(last, outputs)]
    return lax.concatenate(sums, 1) if len(sums) > 1 else inside


def input_gradient(kernel, cotangent, window: Window) -> jax.Array:
    """Maps `(K, C)` and `(N, O, C)` to `(N, L, C)`."""
    if window.strides > 1:
        return taps.strided_input_gradient(kernel, cotangent, window=window, flat=False)
    return output(cotangent, lax.rev(kernel, (0,)), window.transposed())


def kernel_gradient(x, cotangent, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`, with one plain reduction for each tap."""
    x = _samples_read(x, window, 0, window.output_length)
    reach = (window.output_length - 1) * window.strides + 1
    starts = range(0, window.span, window.dilation)
    each = [lax.slice_in_dim(x, t, t + reach, window.strides, 1) * cotangent for t in starts]
    return lax.concatenate([lax.reduce_sum(term, (0, 1))[None] for term in each], 0)


def _samples_read(x, window: Window, start: int, stop: int, flat: bool = False) -> jax.Array:
    """Returns the samples that outputs from `start` to `stop` read, with zeros outside of `x`; `flat` as for `pad`."""
    first = start * window.strides - window.low
    last = (stop - 1) * window.strides - window.low + window.span
    inside = lax.slice_in_dim(x, min(max(first, 0), window.length), min(max(last, 0), window.length), 1, 1)
    before, after = max(-first, 0), max(last - window.length, 0)
    return taps.pad(inside, min(before, last - first), min(after, last - first), flat)
