"""Few shifts on CPUs: nothing is copied, because products are padded within the sum.

Taps that meet the sequence at the same outputs are padded as one. At stride 1 each tap has a shift of its own; with
strides, about as many taps as a stride has samples share one.

Up to 8 shifts, LLVM makes loops of their own for the outputs that read padding. With more it gives up, and tests in the
inner loop whether each product is padding: 6 times slower.
"""

import itertools
from typing import Any

import jax
from jax import lax

from flax_sepconv._kernels import taps, xla
from flax_sepconv._window import Window


def shifts(window: Window) -> int:
    """Counts the groups of taps that are padded as one."""
    return len({window.inside(t) for t in range(window.kernel_size)})


def output(x, kernel, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`."""
    return xla.unfused(_output)(x, kernel, window=window)


def input_gradient(kernel, cotangent, window: Window) -> jax.Array:
    """Maps `(K, C)` and `(N, O, C)` to `(N, L, C)`, at stride 1."""
    return output(cotangent, lax.rev(kernel, (0,)), window.transposed())


def kernel_gradient(x, cotangent, window: Window, *, block: int) -> jax.Array:
    """Maps `(N, L, C)` and `(N, O, C)` to `(K, C)`: one variadic reduction over blocks of at least `block` outputs.

    Where taps and outputs per block are few, LLVM unrolls it, and each sample is read once for all taps.
    """
    sums = xla.unfused(_block_sums)(x, cotangent, window=window, block=block)
    flat = lax.concatenate([lax.reduce_sum(each, (0, 1)) for each in sums], 0)  # XLA may copy one of rows
    return flat.reshape(-1, x.shape[2])


def _output(x, kernel, *, window: Window) -> jax.Array:
    shape = (x.shape[0], window.output_length, x.shape[2])
    return _sum(x, kernel, lax.full_like(x, 0, shape=()), shape=shape, window=window)


@xla.emitted
def _sum(ops, x, kernel, zero, *, shape, window: Window):
    batch, outputs, channels = shape
    terms, kernel = [], ops.reshape(kernel, (window.kernel_size * channels,))
    for (first, stop), group in itertools.groupby(range(window.kernel_size), window.inside):
        products = []
        for t in group:
            tap = ops.slice(kernel, (t * channels,), ((t + 1) * channels,), (1,))
            tap = ops.broadcast_in_dim(tap, (batch, stop - first, channels), (2,))
            products.append(ops.mul(_met(x, window, t, ops), tap))
        padding = [(0, 0, 0), (first, outputs - stop, 0), (0, 0, 0)]
        terms.append(ops.pad(taps.summed(products, ops), zero, padding))
    return taps.summed(terms, ops)


def _block_sums(x, cotangent, *, window: Window, block: int) -> list[jax.Array]:
    """Computes each tap's sums over blocks, `(N, blocks, C)`."""
    outputs = window.output_length
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
