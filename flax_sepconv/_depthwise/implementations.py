"""What computes each contraction, and which of it is chosen.

| implementation | output and input's gradient | kernel's gradient |
| --- | --- | --- |
| `"taps"` | sums of shifted products | reductions over blocks |
| `"fourier"` | transforms along time | transforms along time |
| `"lax"` | XLA's grouped convolution | XLA's grouped convolution |
"""

import functools
from collections.abc import Callable

from jax import export

from flax_sepconv._depthwise import correlation, fourier, grouped, taps
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.partitioning import by_parts

# Each a function of the two arrays that are given, in the order input, kernel, output, and the geometry.
_FUNCTIONS: dict[str, dict[str, Callable]] = {
    "taps": {
        "output": taps.output,
        "input": taps.input_gradient,
        "kernel": correlation.kernel_gradient,
    },
    "fourier": {
        "output": by_parts(fourier.output, "output"),
        "input": by_parts(fourier.input_gradient, "input"),
        "kernel": by_parts(fourier.kernel_gradient, "kernel"),
    },
    "lax": {
        "output": grouped.output,
        "input": grouped.input_gradient,
        "kernel": grouped.kernel_gradient,
    },
}

NAMES = tuple(_FUNCTIONS)
"""What `implementation` may name."""

FOURIER_TAPS = 128
"""From here on a transform costs less than the taps on a CPU."""


def may_split(geometry: Geometry, implementation: str | None) -> bool:
    """Whether what is chosen, on whatever platform, may be a function that `by_parts` made."""
    return implementation == "fourier" or (implementation is None and geometry.kernel_size >= FOURIER_TAPS)


def choose(
    result: str, geometry: Geometry, precision, platform: str | None, implementation: str | None
) -> Callable:
    """The function of two arrays that computes the slot `result`.

    Args:
        result: `"output"`, `"input"` or `"kernel"`.
        geometry: the step's static numbers.
        precision: for XLA's convolution; the others always work in full precision.
        platform: what is being lowered for; `None` for any but `"cpu"`.
        implementation: a name of `NAMES`, or `None` for the one that measurement favours.
    """
    if implementation is None:
        # Only CPUs were measured. Elsewhere the grouped convolution of XLA is what is known to be safe.
        on_cpu = "taps" if geometry.kernel_size < FOURIER_TAPS else "fourier"
        # A length that is symbolic, under jax.export, is nothing that the others could loop over or transform.
        symbolic = export.is_symbolic_dim(geometry.length)
        implementation = on_cpu if platform == "cpu" and not symbolic else "lax"
    options = {"precision": precision} if implementation == "lax" else {}
    return functools.partial(_FUNCTIONS[implementation][result], geometry=geometry, **options)
