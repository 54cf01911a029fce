"""What computes each contraction, and which of it is chosen.

| implementation | output and input's gradient | kernel's gradient |
| --- | --- | --- |
| `"taps"` | sums of shifted products (on a CPU `taps` or `blocks`) | plain sums, on a CPU `correlation` |
| `"fourier"` | transforms along time | transforms along time |
| `"lax"` | XLA's grouped convolution | XLA's grouped convolution |

The last is for where nothing was measured. A config that names it gets `_depthwise.definition`, which is no primitive.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import export, lax

from flax_sepconv._depthwise import blocks, correlation, fourier, grouped, taps
from flax_sepconv._depthwise.fusion import unfused
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.partitioning import AXES, by_parts


def _by_parts(function: Callable, result: str) -> Callable:
    return by_parts(function, [axes for slot, axes in AXES.items() if slot != result], AXES[result])


# Each a function of the two arrays that are given, in the order input, kernel, output, and the geometry.
_FUNCTIONS: dict[str, dict[str, Callable]] = {
    "taps": {
        "output": functools.partial(taps.output, in_place=True),
        "input": functools.partial(taps.input_gradient, in_place=True),
        "kernel": correlation.plain_sums,
    },
    "fourier": {
        "output": _by_parts(fourier.output, "output"),
        "input": _by_parts(fourier.input_gradient, "input"),
        "kernel": _by_parts(fourier.kernel_gradient, "kernel"),
    },
    "lax": {
        "output": grouped.output,
        "input": grouped.input_gradient,
        "kernel": grouped.kernel_gradient,
    },
}

NAMES = tuple(_FUNCTIONS)
"""What `implementation` may name."""

GPU = ("cuda", "rocm")
PLATFORMS = ("cpu", *GPU)
"""What is told apart here."""


BROAD = 16
"""Channels from which XLA vectorizes sums that have an axis for multipliers next to them. Forward nothing is repeated
for the output then: 5.6 to 3.4 ms for both steps on 32, 1024, 16 with 7 taps and 4, 2.3 to 1.4 on 100, 24, 113 with 5
and 2; but 1.7 to 1.9 on 32, 1000, 12 with 9 and 2, 2.4 to 2.8 on 32, 400, 8 with 9 and 8. And what adds up multipliers
is one pass with the sums of the input's gradient: all gradients in 0.90 to 0.97 of the time with 16 to 113 channels,
but in 1.3 to 1.4 with 8 and 12."""


def _output_on_cpu(x, kernel, geometry: Geometry, differentiated: bool, fused: bool) -> jax.Array:
    multiplier, channels = kernel.shape[2:]
    pay = blocks.pay(geometry, multiplier * channels)
    if pay or multiplier > 1:  # a call, or XLA makes one axis of two within sums
        form = blocks.output if pay else taps.output
        if multiplier > 1 and (pay or differentiated or channels < BROAD):
            form = _of_channels(form)
        return _by_parts(unfused(form), "output")(x, kernel, geometry=geometry)
    if differentiated:
        return _by_parts(_output_of_copy, "output")(x, kernel, geometry=geometry, fused=fused)
    return taps.output(x, kernel, geometry)


@functools.cache  # calls of one function are traced once
def _of_channels(output: Callable) -> Callable:
    """`output` of one multiplier for several, which are as many times the channels."""

    def call(x, kernel, geometry: Geometry) -> jax.Array:
        multiplier, channels = kernel.shape[2:]
        x, geometry = _repeated(x, geometry, multiplier)
        y = output(x, _flat(kernel), geometry)
        return y.reshape(*y.shape[:3], multiplier, channels)

    return call


def _output_of_copy(x, kernel, geometry: Geometry, fused: bool = False) -> jax.Array:
    """The output from the copy that the kernel's gradient reads, if one is needed.

    A call, if it is not fused, because XLA computes sums once for each shape that products take them in.
    """
    if correlation.reads_copy(geometry) and not geometry.is_inside:
        x, geometry = correlation.padded(x, geometry)
    return (taps.output if fused else unfused(taps.output))(x, kernel, geometry=geometry)


def _input_gradient_on_cpu(kernel, cotangent, geometry: Geometry, fused: bool) -> jax.Array:
    if kernel.shape[2] > 1:
        return _by_parts(unfused(_added_input_gradient), "input")(kernel, cotangent, geometry=geometry)
    if geometry.strides > 1:
        return _by_parts(unfused(taps.input_gradient), "input")(kernel, cotangent, geometry=geometry)
    return _by_parts(_input_gradient_as_output, "input")(kernel, cotangent, geometry=geometry, fused=fused)


def _added_input_gradient(kernel, cotangent, geometry: Geometry) -> jax.Array:
    """That of as many channels as there are with all multipliers, which are then added up, if possible in one pass."""
    _, size, multiplier, channels = kernel.shape
    fused = size * multiplier <= blocks.TERMS
    each = _input_gradient_on_cpu(_flat(kernel), _flat(cotangent), geometry, fused)
    each = each.reshape(*each.shape[:3], multiplier, channels)
    return functools.reduce(lax.add, [each[:, :, :, m] for m in range(multiplier)])


def _input_gradient_as_output(kernel, cotangent, geometry: Geometry, fused: bool) -> jax.Array:
    """The output of the cotangent and the reversed kernel; XLA compiles both once if they are of the same sizes.

    A call, if it is not fused, with the copy that it makes, which is freed soon then: 37.9 to 28.8 MB on 128, 128, 128
    with 13 taps.
    """
    cotangent, kernel, geometry = (
        lax.squeeze(cotangent, (3,)),
        lax.rev(kernel, (1,)),
        taps.backwards(geometry),
    )
    pay = blocks.pay(geometry, kernel.shape[3])
    if fused and not pay:
        return lax.squeeze(_output_of_copy(cotangent, kernel, geometry, fused=True), (3,))
    form = blocks.output if pay else _output_of_copy
    return lax.squeeze(unfused(form)(cotangent, kernel, geometry=geometry), (3,))


def _kernel_gradient_of_channels(x, cotangent, geometry: Geometry) -> jax.Array:
    multiplier, channels = cotangent.shape[3:]
    if multiplier > 1:
        x, geometry = _repeated(x, geometry, multiplier)
    gradient = correlation.kernel_gradient(x, _flat(cotangent), geometry)
    return gradient.reshape(*gradient.shape[:2], multiplier, channels)


def _repeated(x, geometry: Geometry, multiplier: int) -> tuple[jax.Array, Geometry]:
    """All rows that are read, with all channels once for each multiplier, and how they are read."""
    x, geometry = correlation.padded(x, geometry)
    return lax.concatenate([x] * multiplier, 3), geometry


def _flat(array) -> jax.Array:
    """Multipliers as channels: `(..., M, C)` to `(..., 1, M * C)`."""
    *outer, multiplier, channels = array.shape
    return array.reshape(*outer, 1, multiplier * channels)


# The same as a platform likes it.
_ON_PLATFORM: dict[tuple[str, str], dict[str, Callable]] = {
    ("taps", "cpu"): {
        "output": _output_on_cpu,
        "input": _input_gradient_on_cpu,
        "kernel": _by_parts(_kernel_gradient_of_channels, "kernel"),
    },
    ("fourier", "cpu"): {
        "output": _by_parts(fourier.in_double(fourier.output), "output"),
        "input": _by_parts(fourier.in_double(fourier.input_gradient), "input"),
        "kernel": _FUNCTIONS["fourier"]["kernel"],
    },
}

# From how many taps on a Fourier transform is faster: for the output and the input's gradient, and for the kernel's.
# CPU (two cores of an AMD EPYC, jax 0.10), where those for the output are in float64: blocks of channels take 6.2 ms
# against 10.3 by transforms for 257 taps on 8, 2048, 64, 7.5 against 8.8 for 400, 8.6 against 11.5 for 500 on 4, 800,
# 256, 1.5 against 1.5 on 4, 600, 64; with fewer channels than a block has lanes, 0.45 against 0.14 for 120 on 8, 1000,
# 1. On an Intel Xeon 500 on 4, 800, 256 take 10.5 against 13.7, 400 on 8, 2048, 64 10.9 against 13.3, and 600 as long
# by either. Strides make sums of fewer products and transforms of as many (500 taps and strides of 4: 4.4 against 11).
# The kernel's gradient: 51 taps 10 against 14 ms on 4, 800, 512 and 75 taps 11.6 against 13.6, but 0.7 s to compile
# against 0.2; 99 taps and strides of 4 20 against 45 on 23, 400, 512.
# GPU (H100, jax 0.11): 75 taps 0.46 ms against 0.47, 257 taps 20 against 0.31 for the output; 13 taps 0.36 against
# 0.38 and 33 taps 0.73 against 0.36 for the kernel's gradient. XLA's grouped convolution takes 2 to 12 times as long
# as the better one there (bench/README.md), and on other devices nothing was measured.
_FOURIER_FROM: dict[str | None, dict[str, int]] = {
    "cpu": {"output": 500, "input": 500, "kernel": 64},
    **{gpu: {"output": 80, "input": 80, "kernel": 20} for gpu in GPU},
}

_FOURIER_FROM_WITHOUT_BLOCKS = 120
"""The same on a CPU without blocks of channels: XLA vectorizes no sum of 125 products (28 ms against 9.7)."""


def choose(
    result: str,
    geometry: Geometry,
    channels: int,
    precision,
    platform: str | None,
    implementation: str | None,
    differentiated: bool,
    fused: bool = False,
) -> Callable:
    """The function of two arrays that computes the slot `result`.

    Args:
        result: `"output"`, `"input"` or `"kernel"`.
        geometry: the step's static numbers.
        channels: those of the output, times multipliers.
        precision: for XLA's convolution; the others always work in full precision.
        platform: what is being lowered for, `None` for any but `PLATFORMS`.
        implementation: a name of `NAMES`, or `None` for what `favoured` says.
        differentiated: whether there may be gradients in the same program, which should not take long to compile.
        fused: whether XLA should compute what follows in the same pass.
    """
    name = implementation or favoured(result, geometry, channels, platform)
    functions = _ON_PLATFORM.get((name, platform or ""), _FUNCTIONS[name])
    options: dict[str, Any] = {}
    if name == "lax":
        options["precision"] = precision
    elif (name, platform) == ("taps", "cpu") and result != "kernel":
        options |= {"fused": fused} | ({"differentiated": differentiated} if result == "output" else {})
    return functools.partial(functions[result], geometry=geometry, **options)


def favoured(result: str, geometry: Geometry, channels: int, platform: str | None) -> str:
    """The one of `NAMES` that measurement favours, and XLA's own, which is known to be safe, where none was done."""
    measured = _FOURIER_FROM.get(platform)
    # A length that is symbolic, under jax.export, is nothing that the others could loop over or transform.
    if measured is None or export.is_symbolic_dim(geometry.length):
        return "lax"
    fourier_from = measured[result]
    if platform == "cpu":
        fourier_from *= 1 if result == "input" else geometry.strides
        by_rows = result == "kernel" or (result == "input" and geometry.strides > 1)
        if by_rows or channels < blocks.LANES:
            fourier_from = min(fourier_from, _FOURIER_FROM_WITHOUT_BLOCKS)
    return "taps" if geometry.kernel_size < fourier_from else "fourier"
