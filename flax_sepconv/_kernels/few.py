"""Few shifts on CPUs: nothing is copied, because products are padded within the sum.

Taps that meet the sequence at the same outputs are padded as one. At stride 1 each tap has a shift of its own. Up to 8
of them LLVM finds fast loops; with more it tests in the inner loop whether each product is padding: 6 times slower.

With strides, several taps share a shift, and the tests must be nested: the sum of a shift is padded to the outputs of
the next one and added to it, and so on.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


def shifts(window: Window) -> int:
    """Counts the groups of taps that are padded as one."""
    return len({window.inside(t) for t in range(window.kernel_size)})


def output(x, kernel, *, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`."""
    return xla.unfused(_output)(taps.copied(x, kernel.shape[1]), kernel, window=window)


def _output(x, kernel, *, window: Window) -> jax.Array:
    shape = (x.shape[0], window.output_length, x.shape[2])
    return _sum(x, kernel, lax.full_like(x, 0, shape=()), shape=shape, window=window)


def kernel_gradient(x, cotangent, *, window: Window, block: int) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`: one variadic reduction over blocks of at least `block` outputs.

    Where taps and outputs per block are few, LLVM unrolls it, and each sample is read once for all taps.
    """
    sums = xla.unfused(_block_sums)(x, cotangent, window=window, block=block)
    flat = lax.concatenate([lax.reduce_sum(each, (0, 1)) for each in sums], 0)  # XLA may copy one of rows
    return flat.reshape(-1, cotangent.shape[2])


@xla.emitted
def _sum(ops, x, kernel, zero, *, shape, window: Window):
    batch, outputs, channels = shape
    kernel = ops.reshape(kernel, (window.kernel_size * channels,))

    def padded(array, before: int, after: int):
        return ops.pad(array, zero, [(0, 0, 0), (before, after, 0), (0, 0, 0)])

    def product(t: int, count: int):
        tap = ops.slice(kernel, (t * channels,), ((t + 1) * channels,), (1,))
        return ops.mul(_met(x, window, t, ops), ops.broadcast_in_dim(tap, (batch, count, channels), (2,)))

    sums = {
        (first, stop): taps.summed([product(t, stop - first) for t in same], ops)
        for (first, stop), same in itertools.groupby(range(window.kernel_size), window.inside)
    }
    if window.strides > 1:
        sums = _nested(sums, padded, ops)
    return taps.summed([padded(total, first, outputs - stop) for (first, stop), total in sums.items()], ops)


def _nested(sums: dict, padded: Callable, ops) -> dict:
    """Adds sums over ranges of outputs to sums over wider ranges, until no range is within another."""
    rest: dict[tuple[int, int], Any] = {}
    for (first, stop), total in sorted(sums.items(), key=lambda item: item[0][1] - item[0][0]):
        inner = next((part for part in rest if first <= part[0] and part[1] <= stop), None)
        if inner:
            total = ops.add(total, padded(rest.pop(inner), inner[0] - first, stop - inner[1]))
        rest[first, stop] = total
    return rest


def _block_sums(x, cotangent, *, window: Window, block: int) -> list[jax.Array]:
    """Computes each tap's sums over blocks, `(N, blocks, C)`."""
    outputs, x = window.output_length, taps.copied(x, cotangent.shape[2])
    block = min(range(block, 2 * block), key=lambda n: -outputs % n)
    products = []
    for t in range(window.kernel_size):
        first, stop = window.inside(t)
        product = _met(x, window, t) * lax.slice_in_dim(cotangent, first, stop, 1, 1)
        product = taps.pad(product, first, outputs - stop + -outputs % block)
        products.append(product.reshape(product.shape[0], -1, block, product.shape[2]))
    zeros = [lax.full_like(x, 0, shape=())] * len(products)
    return lax.reduce(products, zeros, lambda a, b: [*map(lax.add, a, b)], (2,))


def _met(x, window: Window, t: int, ops=lax) -> Any:
    """Returns the samples of `x` that tap `t` reads."""
    batch, _, channels = x.shape
    first, stop = window.inside(t)
    start = first * window.strides + t * window.dilation - window.low if first < stop else 0
    last = start + (stop - first - 1) * window.strides + 1 if first < stop else 0
    return ops.slice(x, (0, start, 0), (batch, last, channels), (1, window.strides, 1))
