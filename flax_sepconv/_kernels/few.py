"""Few taps on CPUs: nothing is copied, because each tap's products are padded within the sum."""

import functools

import jax
from jax import lax

from flax_sepconv._kernels import xla
from flax_sepconv._window import Window


def output(x, kernel, window: Window) -> jax.Array:
    """Maps `(N, L, C)` and `(K, C)` to `(N, O, C)`."""
    return xla.unfused(_sum)(x, kernel, window=window)


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


def _sum(x, kernel, *, window: Window) -> jax.Array:
    terms = []
    for t in range(window.kernel_size):
        read, first, stop = _met(x, window, t)
        terms.append(_padded(read * kernel[None, t : t + 1], first, window.output_length - stop))
    return functools.reduce(lax.add, terms)


def _block_sums(x, cotangent, *, window: Window, block: int) -> list[jax.Array]:
    """Computes each tap's sums over blocks, `(N, blocks, C)`."""
    outputs = window.output_length
    block = min(range(block, 2 * block), key=lambda n: -outputs % n)
    products = []
    for t in range(window.kernel_size):
        read, first, stop = _met(x, window, t)
        product = read * lax.slice_in_dim(cotangent, first, stop, 1, 1)
        product = _padded(product, first, outputs - stop + -outputs % block)
        products.append(product.reshape(product.shape[0], -1, block, product.shape[2]))
    zeros = [lax.full_like(x, 0, shape=())] * len(products)
    return lax.reduce(products, zeros, lambda a, b: [*map(lax.add, a, b)], (2,))


def _met(x, window: Window, t: int) -> tuple[jax.Array, int, int]:
    """Returns the samples of `x` that tap `t` reads, the first output that reads one, and the end of these outputs."""
    first, stop = window.inside(t)
    start = first * window.strides + t * window.dilation - window.low
    last = start + (stop - first - 1) * window.strides
    read = lax.slice_in_dim(x, start, last + 1, window.strides, 1) if first < stop else x[:, :0]
    return read, first, stop


def _padded(x, before: int, after: int) -> jax.Array:
    return lax.pad(x, lax.full_like(x, 0, shape=()), [(0, 0, 0), (before, after, 0), (0, 0, 0)])
