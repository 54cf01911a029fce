"""The contractions of both steps: one step after the other, and for CPUs joined.

What is here takes the three arrays of a contraction in the order of the slots, input, kernel, pointwise, output.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from flax_sepconv._depthwise import (
    Geometry,
    blocks,
    compute,
    contract,
    correlation,
    implementations,
    multipliers_first,
    multipliers_last,
    taps,
)
from flax_sepconv._depthwise.partitioning import by_parts, on_one_device
from flax_sepconv._depthwise.primitive import alike
from flax_sepconv._dtypes import wide

AXES = {"input": "nlc", "kernel": "kcm", "pointwise": "rf", "output": "nof"}
"""The axes of each slot, by letters: batch, length, channel, tap, multiplier, row, filter, output."""

SLOTS = tuple(AXES)


def apart(*arrays, result: str, precision, bias: bool, **params):
    """One step after the other, as `_separable.primitive.contract` says.

    Between them multipliers come before channels, as they do in `_depthwise`, and so do the rows of what meets that.
    """
    depthwise = functools.partial(contract, precision=precision, **params)
    x, kernel, pointwise, y = _by_slot(result, arrays)
    channels, multiplier = _sizes(x, kernel, pointwise)
    if pointwise is not None:
        weights, last = pointwise[: channels * multiplier], pointwise[channels * multiplier :]
        weights = _rows_swapped(weights, channels)
    if result in ("input", "kernel"):
        return _depthwise_gradient(x, kernel, _product_transposed(y, weights, precision), depthwise)
    h = _depthwise_output(x, kernel, depthwise)
    if result == "output":
        y = _product(h, weights, precision)
        return y + last[None].astype(y.dtype) if bias else y
    gradient = _rows_swapped(_over_rows(h, y, precision), multiplier)
    return jnp.concatenate([gradient, y.sum((0, 1)).astype(x.dtype)[None]]) if bias else gradient


def recomputing(*arrays, result: str, **params):
    """`apart`, but the pointwise kernel's gradient computes the depthwise output again.

    Without a barrier XLA keeps that of the forward pass, as large as the input, until the backward pass comes to it.
    """
    arrays = lax.optimization_barrier(arrays) if result == "pointwise" else arrays
    return apart(*arrays, result=result, **params)


def joined(
    *arrays,
    result: str,
    geometry: Geometry,
    precision,
    implementation: str | None,
    bias: bool,
    differentiated: bool,
):
    """The same as XLA's CPU backend likes it, which works on float32 and float64.

    - The bias is a row of the product, with a channel of ones: another pass over the output takes as long as a third
      of the product (4.6 to 3.3 ms for all on 8, 1600, 64 to 256 filters with 33 taps and strides of 2). But on
      several devices, and where there are gradients, it is apart, which is faster to compile (`_pointwise_step`).
    - A convolution of one tap is a product for which XLA takes Eigen, not YNNPACK: 2.6 against 3.5 ms for 65536 rows
      of 12 channels to 64 filters, 6.1 against 7.7 for 4900 of 276 to 276, and seldom slower, but for what `_tiled`
      says. The product with the transposed kernel is YNNPACK's: Eigen's needs a transposed copy, 30 ms to compile, for
      3 % of all gradients' time.
    - Few channels and many multipliers are one dense convolution, `_dense`. Other multipliers are one, of an input with
      each channel as often, for which nothing is put in another order: 195 to 135 ms to compile all gradients of 4,
      16000, 16 with 9 taps and 2, in 0.85 to 1.13 times the time, 1.0 in the mean of ten shapes.
    - The pointwise kernel's gradient shares the forward pass's depthwise output if XLA sees both in one program:
      memory is as for plain autodiff then, and time a tenth less.
    """
    differentiated = differentiated or result != "output"
    params = {"precision": precision, "bias": bias, "differentiated": differentiated}
    x, kernel, pointwise, _ = _by_slot(result, arrays)
    channels, multiplier = _sizes(x, kernel, pointwise)
    narrow = jnp.finfo(arrays[0].dtype).bits < 32
    plain = narrow or export.is_symbolic_dim(geometry.length)
    if not plain and implementation is None and _dense_is_faster(geometry.kernel_size, channels, multiplier):
        return _dense(*arrays, result=result, geometry=geometry, **params)
    contraction = "output" if result == "pointwise" else result
    name = implementation or implementations.favoured(contraction, geometry, channels * multiplier, "cpu")
    if plain or (multiplier > 1 and name != "taps"):
        return apart(*arrays, result=result, geometry=geometry, implementation=implementation, **params)
    return _in_rows(*arrays, result=result, geometry=geometry, implementation=name, **params)


def _in_rows(
    *arrays, result: str, geometry: Geometry, precision, implementation: str, bias: bool, differentiated: bool
):
    """One step after the other, with channels and their multipliers between them in the order of Keras's rows."""
    x, kernel, pointwise, y = _by_slot(result, arrays)
    channels, multiplier = _sizes(x, kernel, pointwise)
    rows, size = channels * multiplier, geometry.kernel_size
    even = (y if x is None else x).shape[0] * geometry.output_length % 2 == 0
    broad = multiplier > 1 and channels >= implementations.BROAD
    params = {"precision": precision, "implementation": implementation, "differentiated": differentiated}
    params["geometry"] = geometry
    if broad and not differentiated and on_one_device():  # the output of several, in `_depthwise`'s order
        weights = _rows_swapped(pointwise[:rows], channels)
        pointwise = lax.concatenate([weights, pointwise[rows:]], 0)
    elif multiplier > 1:
        if x is not None:
            x, params["geometry"] = _repeated(x, geometry, multiplier)
        if kernel is not None:
            kernel = kernel.reshape(size, rows, 1)
    depthwise = functools.partial(compute, platform="cpu", **params)
    if result == "kernel":
        gradient = _depthwise_gradient(x, None, _product_transposed(y, pointwise, precision), depthwise)
        return gradient.reshape(size, channels, multiplier)
    if result == "input":
        depthwise = functools.partial(depthwise, fused=broad and size * multiplier <= blocks.TERMS)
        gradient = _depthwise_gradient(None, kernel, _product_transposed(y, pointwise, precision), depthwise)
        return gradient if multiplier == 1 else _added(gradient, multiplier)
    filters = (pointwise if y is None else y).shape[-1]
    by_rows = implementation == "taps" and not blocks.pay(geometry, rows)
    crowded = by_rows and even and _crowded(rows, filters, size)
    # Channels with one more could not stay divided among devices as they are.
    with_ones = bias and on_one_device() and (crowded or not differentiated)
    h = _depthwise_output(x, kernel, functools.partial(depthwise, fused=with_ones))
    return _pointwise_step(h, pointwise, y, precision, bias, differentiated, with_ones=with_ones)


def _repeated(x, geometry: Geometry, multiplier: int) -> tuple[jax.Array, Geometry]:
    """All rows that are read, with each channel as often as there are multipliers, and how they are read."""
    x, geometry = correlation.padded(lax.expand_dims(x, (0,)), geometry, multiplier)
    return lax.squeeze(x, (0,)), geometry


def _added(x, multiplier: int) -> jax.Array:
    """`(N, L, C * M)` to `(N, L, C)`."""
    each = x.reshape(*x.shape[:2], x.shape[2] // multiplier, multiplier)
    return functools.reduce(lax.add, [each[..., m] for m in range(multiplier)])


def _by_slot(result: str, arrays) -> list[Any]:
    """Input, kernel, pointwise and output, `None` for the result."""
    given = iter(arrays)
    return [None if slot == result else next(given) for slot in SLOTS]


def _sizes(x, kernel, pointwise) -> tuple[int, int]:
    """Channels and multipliers."""
    if kernel is not None:
        return kernel.shape[1:]
    return x.shape[-1], pointwise.shape[0] // x.shape[-1]


def _rows_swapped(weights, outer: int) -> jax.Array:
    """`(R, F)`, whose rows are of two axes, the first of `outer`, with the second before the first."""
    rows, filters = weights.shape
    if outer in (1, rows):
        return weights
    return weights.reshape(outer, rows // outer, filters).swapaxes(0, 1).reshape(rows, filters)


def _depthwise_output(x, kernel, depthwise: Callable) -> jax.Array:
    """`(N, L, C)` and `(K, C, M)` to `(N, O, M * C)`, by a contraction of slots."""
    slots = {"input": x, "kernel": multipliers_first(kernel)}
    y = depthwise({slot: lax.expand_dims(array, (0,)) for slot, array in slots.items()})
    return lax.collapse(lax.squeeze(y, (0,)), 2)


def _depthwise_gradient(x, kernel, h, depthwise: Callable) -> jax.Array:
    """The slot of `x` and `kernel` that is `None`, from the other and the gradient `(N, O, M * C)`."""
    slot, given = ("kernel", multipliers_first(kernel)) if x is None else ("input", x)
    h = h.reshape(1, *h.shape[:2], h.shape[2] // given.shape[-1], given.shape[-1])
    gradient = lax.squeeze(depthwise({slot: lax.expand_dims(given, (0,)), "output": h}), (0,))
    return gradient if x is None else multipliers_last(gradient)


def _crowded(channels: int, filters: int, kernel_size: int) -> bool:
    """Whether rows share sets of the cache in the pointwise gradient's sums, but for a channel of ones behind them.

    For multiples of 64 channels, with which 16384 rows to 64 filters take 1.6 instead of 3.5 ms, and all gradients
    0.78 to 0.95 times as long (13 taps on 128, 128, 128 to 64 filters, 5 on 16, 500, 256 to 64), and of 32 (3 taps on
    32, 1024, 32 to 64 filters 5.1 instead of 5.9 ms). But it is 20 to 45 ms more to compile, so it is not for many
    taps, which take long anyway. From 512 channels on it changes nothing (0.99 times as long in the mean of eight).
    """
    multiple = 32 if kernel_size <= 5 else 64
    return kernel_size <= 16 and channels < 512 and channels % multiple == 0 and channels * filters < 1 << 17


def _with_ones(h) -> jax.Array:
    """One more channel of ones."""
    return lax.concatenate([h, lax.full_like(h, 1, shape=(*h.shape[:2], 1))], 2)


def _pointwise_step(
    h, pointwise, y, precision, bias: bool, differentiated: bool, with_ones: bool
) -> jax.Array:
    """The output, or the pointwise gradient if `pointwise` is `None`, with a bias by a channel of ones or apart.

    Apart, it takes a pass over the output and one over its gradient, 0 to 7 % of the time of all gradients, but none of
    three kernels that join or part arrays, each of 16 to 40 ms to compile; and a loss may fuse the first.
    """
    halved = bias and with_ones
    if halved:
        h, bias = _with_ones(h), False  # it is one of the rows
    if y is None:
        weights = pointwise[:-1] if bias else pointwise
        y = _to_output(h, weights, precision, differentiated, halved=differentiated and halved)
        return y + pointwise[None, -1:] if bias else y
    gradient = _to_pointwise(h, y, precision, halved=halved)
    if not bias:
        return gradient
    return lax.concatenate([gradient, lax.expand_dims(lax.reduce_sum(y, (0, 1)), (0,))], 0)


def _product(h, pointwise, precision) -> jax.Array:
    """`(N, O, R)` and `(R, F)` to `(N, O, F)`, in at least float32."""
    dimensions, dtype = (((2,), (0,)), ((), ())), wide(h.dtype)
    return lax.dot_general(h, pointwise, dimensions, precision=precision, preferred_element_type=dtype)


def _product_transposed(y, pointwise, precision) -> jax.Array:
    """`(N, O, F)` and `(R, F)` to `(N, O, R)`."""
    return lax.dot_general(
        y, pointwise, (((2,), (1,)), ((), ())), precision=precision, preferred_element_type=pointwise.dtype
    )


def _over_rows(h, y, precision) -> jax.Array:
    """`(N, O, R)` and `(N, O, F)` to `(R, F)`."""
    return lax.dot_general(
        h, y, (((0, 1), (0, 1)), ((), ())), precision=precision, preferred_element_type=h.dtype
    )


def _to_output(h, pointwise, precision, differentiated: bool, halved: bool) -> jax.Array:
    """`_product` of `(N, O, R)` and `(R, F)`; each row by itself, so devices may divide the windows, `w`, too."""
    if _tiled(pointwise.shape[1]) and not differentiated:
        return by_parts(_product, ("nwr", "rf"), "nwf")(h, pointwise, precision=precision)
    return by_parts(_product_of_eigen, ("nwr", "rf"), "nwf")(h, pointwise, precision=precision, halved=halved)


def _tiled(filters: int) -> bool:
    """Whether so many fill one or two of YNNPACK's tiles with AVX-512, or some with AVX2: then its product is faster.

    Not by itself, but it wakes one thread less: 1.05 to 1.13 times as fast forward in the mean of six to twelve shapes
    in seven runs (Intel Xeon, two cores, jax 0.10), 0.99 and 0.97 with jax 0.8 and 0.12. With gradients, where other
    work waits for these threads, it takes 1.08 times as long, as it does forward with other numbers of filters.
    """
    return filters in (64, 128)


def _product_of_eigen(h, pointwise, precision, halved: bool) -> jax.Array:
    """`_product` as a convolution of one tap."""
    batch, outputs, _ = h.shape
    y = lax.conv_general_dilated(
        _as_rows(h, halved),
        lax.expand_dims(pointwise, (0,)),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision,
    )
    return y.reshape(batch, outputs, y.shape[2])


def _to_pointwise(h, y, precision, halved: bool) -> jax.Array:
    """`_over_rows` of `(N, O, R)` and `(N, O, F)`."""
    return by_parts(_pointwise_part, ("nor", "nof"), "rf")(h, y, precision=precision, halved=halved)


def _pointwise_part(h, y, precision, halved: bool) -> jax.Array:
    """Over one axis, with which XLA reads `h` as it is; over two it would transpose it before.

    With ones it is two sums over half the rows each, with which all gradients of eight shapes take 0.70 to 0.97 times
    as long; without ones 0.93 to 1.18 times. Both products with the depthwise output take it in halves then: XLA writes
    it, with its ones, once for each shape that it is taken in.
    """
    h, y = _as_rows(h, halved), _as_rows(y, halved)
    dimensions = (((1,), (1,)), ((0,), (0,)))
    parts = lax.dot_general(h, y, dimensions, precision=precision, preferred_element_type=h.dtype)
    return lax.reduce_sum(parts, (0,))


def _as_rows(array, halved: bool) -> jax.Array:
    """`(N, O, ...)` to `(1, N * O, ...)`, or if possible to two halves."""
    rows = array.shape[0] * array.shape[1]
    parts = 2 if halved and rows % 2 == 0 else 1
    return array.reshape(parts, rows // parts, array.shape[2])


# --- One dense convolution -----------------------------------------------------------------------------------


def _dense_is_faster(kernel_size: int, channels: int, multiplier: int) -> bool:
    """Whether its product has no more columns than that of the two steps, or hardly more of few.

    4 channels, 8 taps and 8 multipliers: 16.4 to 13.7 ms forward and 67 to 54 with gradients on 64, 1000 to 320
    filters; 9 channels, 5 taps and 4: 1.8 to 1.2 and 4.7 to 3.8 on 64, 128 to 64. But 16 channels, 5 taps and 4: 3.8
    to 4.9 and 10.7 to 10.8; 4 channels, 5 taps and 2: 1.4 to 1.9 and 4.4 to 5.7, both on 64, 200 or so to 64.
    """
    columns = kernel_size * channels
    return columns <= multiplier * channels or (columns <= 64 and 4 * kernel_size <= 5 * multiplier)


def _dense(
    *arrays, result: str, geometry: Geometry, precision, bias: bool, differentiated: bool
) -> jax.Array:
    """Windows as rows, `w[n, o, (t, c)]`, times `d[(t, c), f]`, the sum over `m` of `k[t, c, m] * p[(c, m), f]`."""
    x, kernel, pointwise, y = _by_slot(result, arrays)
    size, (channels, multiplier) = geometry.kernel_size, _sizes(x, kernel, pointwise)
    if pointwise is not None:
        weights, last = pointwise[: channels * multiplier], pointwise[channels * multiplier :]
        by_channel = weights.reshape(channels, multiplier, -1)
    if result in ("output", "input"):
        # As a product it would be one small product for each channel: 2.4 to 1.8 ms forward on 8, 100, 128 to 128
        # filters with 3 taps and 4 multipliers.
        dense = functools.reduce(
            jnp.add, [kernel[:, :, m, None] * by_channel[None, :, m] for m in range(multiplier)]
        ).reshape(size * channels, -1)
        if result == "input":
            windows = _product_transposed(y, dense, precision)
            x, _ = alike([jnp.zeros((y.shape[0], geometry.length, channels), y.dtype), windows])
            return jax.vjp(lambda x: _windows(x, geometry), x)[1](windows)[0]
        weights = lax.concatenate([dense, last], 0)
        windows = _windows(x, geometry)
        return _pointwise_step(windows, weights, None, precision, bias, differentiated, with_ones=True)
    # With ones in any case: it is the same product for the kernel and for the pointwise kernel with a bias.
    windows = _windows(x, geometry)
    gradient = _pointwise_step(windows, None, y, precision, True, differentiated, with_ones=True)
    by_tap = gradient[:-1].reshape(size, channels, 1, -1)
    if result == "kernel":
        return lax.reduce_sum(by_tap * by_channel, (3,))
    by_row = functools.reduce(jnp.add, [by_tap[t] * kernel[t, :, :, None] for t in range(size)])
    by_row = by_row.reshape(-1, y.shape[2])
    return lax.concatenate([by_row, gradient[-1:]], 0) if bias else by_row


def _windows(x, geometry: Geometry) -> jax.Array:
    """`(N, L, C)` to `(N, O, K * C)`."""
    count = geometry.output_length
    x = taps.rows_read(x[None], geometry, 0, count)
    each = [taps.rows(x, t * geometry.dilation, count, geometry.strides) for t in range(geometry.kernel_size)]
    return lax.concatenate(each, 3)[0]
