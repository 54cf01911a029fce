"""Both steps as one dense convolution, for few channels with about as many multipliers as taps, on CPUs.

    y[n, o] = windows[n, o, (t, c)] * d[(t, c)]        d[t, c, f] = sum over m of k[t, c, m] * p[c, m, f]

The product then has no more columns than that of the second step, and the first is gone.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from flax_sepconv._kernels import pointwise, taps
from flax_sepconv._window import Window


def compute(slots: Mapping[str, Any], result: str, window: Window, precision, flat: bool) -> jax.Array:
    """A contraction of both steps; `flat` is for the products."""
    size = window.kernel_size

    def windows(x) -> jax.Array:
        """`(N, L, C)` to `(N, O, K * C)`."""
        x = taps.pad(x, window.low, window.samples - window.low - x.shape[1], flat=False)
        last = (window.output_length - 1) * window.strides
        starts = range(0, window.span, window.dilation)
        return lax.concatenate([lax.slice_in_dim(x, t, t + last + 1, window.strides, 1) for t in starts], 2)

    if result in ("kernel", "pointwise"):
        x, y = slots["input"], slots["output"]
        gradient = pointwise.kernel_gradient(windows(x), y, precision, flat).reshape(size, x.shape[2], 1, -1)
        if result == "kernel":
            return lax.reduce_sum(gradient * slots["pointwise"][None], (3,))
        return lax.reduce_sum(gradient * slots["kernel"][..., None], (0,))
    kernel, p = slots["kernel"], slots["pointwise"]
    dense = lax.reduce_sum(kernel[..., None] * p[None], (2,)).reshape(size * kernel.shape[1], -1)
    if result == "output":
        return pointwise.output(windows(slots["input"]), dense, precision, flat)
    h = pointwise.input_gradient(dense, slots["output"], precision)
    reach, terms = (window.output_length - 1) * window.strides + 1, []
    for t, of_tap in enumerate(lax.split(h, [kernel.shape[1]] * size, 2)):
        start = t * window.dilation - window.low
        config = [(0, 0, 0), (start, window.length - start - reach, window.strides - 1), (0, 0, 0)]
        terms.append(lax.pad(of_tap, lax.full_like(h, 0, shape=()), config))
    return functools.reduce(lax.add, terms)
