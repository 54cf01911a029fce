"""The output and the input's gradient as one sum of shifted products, for CPUs and GPUs.

    y[o] = x[o * strides - low] * k[0] + x[o * strides - low + dilation] * k[1] + ...

All taps are one elementwise fusion: each entry of `y` is written once, the samples that it reads are still in cache
from the entries before it, and the lanes of a vector run over the channels. At stride 1 the input's gradient is the
same sum over the cotangent with the kernel reversed; at larger strides it is one sum for all phases.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._kernels import xla
from flax_sepconv._window import Window

CHAIN = 8
"""Terms added one after another. With this many, the error is that of XLA's grouped convolution at any kernel size."""


def output(x, kernel, *, window: Window, rows: int) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`, from a padded copy of at least `rows` steps."""
    steps = {"count": window.output_length, "stride": window.strides, "dilation": window.dilation}
    x = copied(x, kernel.shape[1], window.low, max(rows, window.samples) - window.low - window.length)
    return xla.unfused(sums)(x, kernel, **steps)


def sums(x, kernel, *, count: int, stride: int, dilation: int, time: int = 1, first: int = 0) -> jax.Array:
    """Computes `count` outputs along the axis `time` of `x`; the first one reads from sample `first` on.

    After its taps, the kernel has the axes of `x` other than the first and `time`.
    """
    starts = tuple(first + t * dilation for t in range(kernel.shape[0]))
    shape = (*x.shape[:time], count, *x.shape[time + 1 :])
    return shifted_sums(x, kernel, shape=shape, starts=starts, stride=stride, time=time)


def input_gradient(kernel, cotangent, *, window: Window) -> jax.Array:
    """Maps `(K, C)` and `(N, O, C)` to `(N, L, C)` at strides above 1."""
    return xla.unfused(sums_of_phases)(kernel, cotangent, window=window, flat=True)


def sums_of_phases(kernel, cotangent, *, window: Window, flat: bool = False) -> jax.Array:
    """Computes `input_gradient`.

    Output `o` reads input sample `i` with tap `t` where `i + low = o * strides + t * dilation`. With samples and taps
    in groups of `strides`, `i + low = r * strides + phase` and `t * dilation = q * strides + phase`, so `o = r - q`:
    all phases are one sum over groups of taps.
    """
    stride, low = window.strides, window.low
    batch, outputs, channels = cotangent.shape
    first, last = low // stride, (low + window.length - 1) // stride  # groups of samples
    count = -(-window.span // stride)  # groups of taps
    spread = (0, count * stride - window.span, window.dilation - 1)
    groups = lax.pad(kernel, lax.full_like(kernel, 0, shape=()), [spread, (0, 0, 0)])
    groups = lax.rev(groups.reshape(count, stride, channels), (0,))
    before, after = max(count - 1 - first, 0), max(last + 1 - outputs, 0)
    g = pad(cotangent, before, after, flat=flat)
    starts = tuple(first - q + before for q in reversed(range(count)))
    shape = (batch, last + 1 - first, stride, channels)
    gradient = shifted_sums(g, groups, shape=shape, starts=starts, stride=1)
    start = low - first * stride
    return lax.slice_in_dim(lax.collapse(gradient, 1, 3), start, start + window.length, 1, 1)


@xla.emitted
def shifted_sums(ops, x, kernel, *, shape, starts: Sequence[int], stride: int, time: int = 1):
    """Sums, over taps `t`, `x` from `starts[t]` on along its axis `time`, times `kernel[t]`.

    If the kernel has an axis before the channels that `x` lacks, `x` is broadcast along it.
    """
    terms, (taps, rows, *rest) = [], kernel.shape
    kernel = ops.reshape(kernel, (taps * rows, *rest))
    axes = [axis for axis in range(1, len(shape)) if axis != time]
    for t, start in enumerate(starts):
        first, last, strides = [0] * len(x.shape), [*x.shape], [1] * len(x.shape)
        first[time], last[time], strides[time] = start, start + (shape[time] - 1) * stride + 1, stride
        read = ops.slice(x, first, last, strides)
        if len(x.shape) < len(shape):
            read = ops.broadcast_in_dim(read, shape, (0, 1, len(shape) - 1))
        tap = ops.slice(kernel, (t * rows, *[0] * len(rest)), ((t + 1) * rows, *rest), [1] * (1 + len(rest)))
        terms.append(ops.mul(read, ops.broadcast_in_dim(tap, shape, axes)))
    return summed(terms, ops)


def summed(terms: list, ops):
    """Adds chains of about `CHAIN` terms, then the sums pairwise, which rounds less than one long chain."""
    count = max((len(terms) + CHAIN // 2) // CHAIN, 1)
    ends = [i * len(terms) // count for i in range(count + 1)]
    sums = [functools.reduce(ops.add, terms[a:b]) for a, b in itertools.pairwise(ends)]
    while len(sums) > 1:
        sums = [functools.reduce(ops.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return sums[0]


def copied(x, channels: int, before: int = 0, after: int = 0, value: int = 0) -> jax.Array:
    """Repeats each channel of `(N, L, C)` for its multipliers and pads the time, in a call, if there is anything to do.

    XLA compiles equal calls once, and keeps what they return out of the result's memory, where a sum may be instead.
    """
    if x.shape[2] == channels and before == after == 0:
        return x
    return xla.unfused(_copied)(x, channels=channels, before=before, after=after, value=value)


def _copied(x, *, channels: int, before: int, after: int, value: int) -> jax.Array:
    return pad(repeated(x, channels), before, after, value, flat=True)


def repeated(x, channels: int) -> jax.Array:
    """Repeats each channel of `(N, L, C)` for its multipliers."""
    return x if x.shape[2] == channels else jnp.repeat(x, channels // x.shape[2], 2)


def pieces(kernel, most: int) -> jax.Array:
    """Splits `(K, ...)` into `(pieces, width, ...)` of at most `most` taps, of which piece `i` starts at tap
    `min(i * width, K - width)`.

    The last one has zeros for what it repeats. With zeros beyond the window, a NaN there would reach an output.
    """
    size, *rest = kernel.shape
    count = -(-size // most)
    width = -(-size // count)
    last = width * (count - 1)
    zeros = lax.full_like(kernel, 0, shape=(last + width - size, *rest))
    return lax.concatenate([kernel[:last], zeros, kernel[last:]], 0).reshape(count, width, *rest)


def pad(x, before: int, after: int, value: int = 0, *, axis: int = 1, flat: bool = False) -> jax.Array:
    """Pads one axis with a value; negative amounts cut some off.

    `flat` is for the time of `(N, L, C)`. It merges time and channels into one axis, over which XLA's CPU backend emits
    one long loop: twice as fast, and four times as fast to compile.
    """
    if before == after == 0:
        return x
    if flat:
        batch, length, channels = x.shape
        copy = pad(lax.collapse(x, 1), before * channels, after * channels, value)
        return copy.reshape(batch, before + length + after, channels)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, lax.full_like(x, value, shape=()), config)
