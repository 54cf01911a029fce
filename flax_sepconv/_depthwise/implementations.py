"""What computes each contraction, and which of it is chosen.

| implementation | output and input's gradient | kernel's gradient |
| --- | --- | --- |
| `"taps"` | sums of shifted products | sums over blocks, on a GPU plain ones |
| `"fourier"` | transforms along time | transforms along time |
| `"lax"` | XLA's grouped convolution | XLA's grouped convolution |

The last is for where nothing was measured. A config that names it gets `_depthwise.definition`, which is no primitive.
"""

import functools
from collections.abc import Callable

from jax import export

from flax_sepconv._depthwise import correlation, fourier, grouped, taps
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.partitioning import AXES, by_parts


def _by_parts(function: Callable, result: str) -> Callable:
    return by_parts(function, [axes for slot, axes in AXES.items() if slot != result], AXES[result])


# Each a function of the two arrays that are given, in the order input, kernel, output, and the geometry.
_FUNCTIONS: dict[str, dict[str, Callable]] = {
    "taps": {
        "output": taps.output,
        "input": taps.input_gradient,
        "kernel": _by_parts(correlation.kernel_gradient, "kernel"),
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

# The same as a platform likes it.
_TAPS_ON_GPU: dict[str, Callable] = {
    "output": functools.partial(taps.output, in_place=True),
    "input": functools.partial(taps.input_gradient, in_place=True),
    "kernel": correlation.plain_sums,
}
_ON_PLATFORM: dict[tuple[str, str | None], dict[str, Callable]] = {
    **{("taps", gpu): _TAPS_ON_GPU for gpu in GPU},
    ("fourier", "cpu"): {
        "output": _by_parts(fourier.in_double(fourier.output), "output"),
        "input": _by_parts(fourier.in_double(fourier.input_gradient), "input"),
        "kernel": _FUNCTIONS["fourier"]["kernel"],
    },
}

# From how many taps on a Fourier transform is faster: for the output and the input's gradient, and for the kernel's.
# CPU (two cores of an AMD EPYC, jax 0.10): 120 taps 8.8 ms against 6.9 by transforms on 8, 1000, 64 and 18.5 against
# 24.0 on 4, 800, 512, but 128 taps, whose sum XLA does not vectorize, 18.5 against 8.2 and 85 against 22, for the
# output; 39 taps 2.4 against 3.9 and 51 taps 16 against 12 for the kernel's gradient.
# GPU (H100, jax 0.11): 75 taps 0.46 ms against 0.47, 257 taps 20 against 0.31 for the output; 13 taps 0.36 against
# 0.38 and 33 taps 0.73 against 0.36 for the kernel's gradient. XLA's grouped convolution takes 2 to 12 times as long
# as the better one there (bench/README.md), and on other devices nothing was measured.
_FOURIER_FROM: dict[str | None, dict[str, int]] = {
    "cpu": {"output": 128, "input": 128, "kernel": 48},
    **{gpu: {"output": 80, "input": 80, "kernel": 20} for gpu in GPU},
}


def choose(
    result: str, geometry: Geometry, precision, platform: str | None, implementation: str | None
) -> Callable:
    """The function of two arrays that computes the slot `result`.

    Args:
        result: `"output"`, `"input"` or `"kernel"`.
        geometry: the step's static numbers.
        precision: for XLA's convolution; the others always work in full precision.
        platform: what is being lowered for, `None` for any but `PLATFORMS`.
        implementation: a name of `NAMES`, or `None` for the one that measurement favours, and XLA's own, which is
            known to be safe, where nothing was measured.
    """
    if implementation is None:
        measured = _FOURIER_FROM.get(platform)
        # A length that is symbolic, under jax.export, is nothing that the others could loop over or transform.
        if measured is None or export.is_symbolic_dim(geometry.length):
            implementation = "lax"
        else:
            implementation = "taps" if geometry.kernel_size < measured[result] else "fourier"
    functions = _ON_PLATFORM.get((implementation, platform), _FUNCTIONS[implementation])
    options = {"precision": precision} if implementation == "lax" else {}
    return functools.partial(functions[result], geometry=geometry, **options)
