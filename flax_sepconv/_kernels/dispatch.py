"""Every choice in one place: the form that computes a contraction, and the sizes of its blocks.

|           | output, input's gradient                         | kernel's gradient               |
| --------- | ------------------------------------------------ | ------------------------------- |
| CPU       | `few`; `taps`; `blocked`; `fft`                  | `few`; `kernel_gradient`; `fft` |
| GPU       | `in_place`; `fft`                                | `in_place`; `fft`               |
| elsewhere | `xla_conv`                                       | `xla_conv`                      |

Forms further right are for more taps, and `blocked` is for many channels. Elsewhere nothing was measured, and XLA's
own grouped convolution is known to be safe. It also computes symbolic lengths, under `jax.export`, because no other
form could loop over or transform them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from flax_sepconv._kernels import blocked, few, fft, in_place, kernel_gradient, packed, taps, xla_conv
from flax_sepconv._window import Window

IMPLEMENTATIONS = ("taps", "fourier", "lax")
"""What `implementation` may name: the platform's sums of products, Fourier transforms, or XLA's own convolution."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The numbers of a platform; docs/performance.md says what each buys."""

    fft_from: int  # taps from which transforms are faster for the output and the input's gradient
    fft_kernel_from: int  # the same for the kernel's gradient

    def fourier_from(self, result: str, window: Window, channels: int) -> int:
        """Returns the number of taps from which transforms are faster for a contraction."""
        return self.fft_kernel_from if result == "kernel" else self.fft_from


@dataclasses.dataclass(frozen=True)
class CPUTuning(Tuning):
    """The numbers of a CPU."""

    fft_unblocked_from: int  # upper bound of `fourier_from` where channels are not computed in blocks
    few: int  # shifts (`few.shifts`) up to which nothing is copied for the output and the input's gradient
    few_kernel: int  # taps up to which nothing is copied for the kernel's gradient,
    few_block: int  # in blocks of at least this many outputs
    width: int  # taps in one sum of `kernel_gradient`, at most
    block: int  # outputs in one block of `kernel_gradient`, about
    lanes: int  # channels in a block of `blocked`, and the fewest channels that it is used for
    blocked_from: int  # taps from which `blocked` is faster,
    blocked_floats: int  # if the kernel has at least this many entries: too many for L1 cache
    blocked_most: int  # taps above which `blocked` is always faster, in a loop over sums
    piece: int  # taps in one sum of that loop, about
    parts: int  # number of sums that the pointwise kernel's gradient is split into, about,
    parts_most: int  # if it has at most this many entries

    def is_blocked(self, result: str, window: Window, channels: int) -> bool:
        """Returns whether blocks of channels are faster than one sum over all channels."""
        size = window.kernel_size
        far = size >= self.blocked_from and size * channels >= self.blocked_floats
        strided = result == "input" and window.strides > 1
        many = far or size > self.blocked_most
        return many and channels >= self.lanes and result != "kernel" and not strided

    def fourier_from(self, result: str, window: Window, channels: int) -> int:
        """Returns a number that grows with strides, which leave fewer products to sum but transforms as long."""
        taps = super().fourier_from(result, window, channels) * (window.strides if result != "input" else 1)
        return taps if self.is_blocked(result, window, channels) else min(taps, self.fft_unblocked_from)


TUNINGS: dict[str | None, Tuning] = {
    "cpu": CPUTuning(
        fft_from=500,
        fft_kernel_from=64,
        fft_unblocked_from=120,
        few=8,
        few_kernel=5,
        few_block=8,
        width=20,
        block=16,
        blocked_from=24,
        blocked_floats=7168,
        lanes=8,
        blocked_most=96,
        piece=32,
        parts=16,
        parts_most=8192,
    ),
    "cuda": Tuning(fft_from=80, fft_kernel_from=20),
    "rocm": Tuning(fft_from=80, fft_kernel_from=20),
}


PACKED = {"width": 32}
PACKED_KERNEL = {**PACKED, "block": 8}
"""For packed rows: taps in one sum, at most, and time steps in a block of the kernel's gradient, at least."""


class Plan(NamedTuple):
    """A form, by the name of its module, and its sizes."""

    form: str
    sizes: Mapping[str, int] = {}

    @property
    def is_local(self) -> bool:
        """Whether XLA must be told that each device can contract its own shard."""
        return self.form not in ("xla_conv", "in_place")


def plan(
    result: str, window: Window, channels: int, platform: str | None, implementation=None, is_packed=False
) -> Plan:
    """Chooses the form that computes the slot `result` on a platform; `channels` are the depthwise output's.

    `implementation` is one of `IMPLEMENTATIONS`, or `None` for the form that was measured as fastest. Packed rows have
    one form only.
    """
    if is_packed:
        return Plan("packed", PACKED_KERNEL if result == "kernel" else PACKED)
    tuning = TUNINGS.get(platform)
    if implementation is None and tuning and not export.is_symbolic_dim(window.length):
        many = window.kernel_size >= tuning.fourier_from(result, window, channels)
        implementation = "fourier" if many else "taps"
    if implementation in ("lax", None):
        return Plan("xla_conv")
    if implementation == "fourier":
        return Plan("fft", {"double": True} if platform == "cpu" and result != "kernel" else {})
    if not isinstance(tuning, CPUTuning):
        return Plan("in_place")
    sums = {"width": tuning.width, "block": tuning.block}
    strided, size = window.strides > 1, window.kernel_size
    if result == "kernel":
        is_few = size <= tuning.few_kernel
        return Plan("few", {"block": tuning.few_block}) if is_few else Plan("kernel_gradient", sums)
    if tuning.is_blocked(result, window, channels):
        return Plan("blocked", {"lanes": tuning.lanes, "most": tuning.blocked_most, "piece": tuning.piece})
    if few.shifts(window) <= tuning.few and not (result == "input" and strided):
        return Plan("few")
    # The copy is shared with the kernel's gradient, so it has the time steps that this reads.
    read = window.transposed() if result == "input" and not strided else window
    return Plan("taps", {"rows": kernel_gradient.rows_read(read, **sums)})


def parts(entries: int, platform: str | None) -> int:
    """Returns how many sums a pointwise kernel gradient of `entries` is split into; 0 leaves it to XLA."""
    tuning = TUNINGS.get(platform)
    if not isinstance(tuning, CPUTuning):
        return 0
    return tuning.parts if entries <= tuning.parts_most else 1


_MODULES = (few, taps, blocked, kernel_gradient, in_place, packed, fft, xla_conv)
FORMS: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
"""Modules with `output`, `input_gradient` and `kernel_gradient`, or some of these."""

_NATIVE = (fft.output, fft.input_gradient, fft.kernel_gradient, xla_conv.output)
"""Functions that know multipliers. For the others, each channel is repeated `depth_multiplier` times."""


def contraction(plan: Plan, result: str, a, b, window: Window, precision, runs=None) -> jax.Array:
    """Computes `plan` from two of the arrays `(N, L, C)`, `(K, C, M)` and `(N, O, C, M)`, and from runs `(N, L)`."""
    form = getattr(FORMS[plan.form], {"output": "output"}.get(result, f"{result}_gradient"))
    more = {"xla_conv": {"precision": precision}, "packed": {"runs": runs}}
    sizes = {**plan.sizes, **more.get(plan.form, {})}
    if form in _NATIVE:
        return form(a, b, window, **sizes)
    channels, multiplier = b.shape[-2:]
    b = b.reshape(*b.shape[:-2], channels * multiplier)
    if result == "input":
        gradient = form(a.reshape(*a.shape[:-2], channels * multiplier), b, window, **sizes)
        each = gradient.reshape(*gradient.shape[:2], channels, multiplier)
        return functools.reduce(lax.add, [each[..., m] for m in range(multiplier)])
    if multiplier > 1:
        a = jnp.repeat(a, multiplier, 2)
    out = form(a, b, window, **sizes)
    return out.reshape(*out.shape[:-1], channels, multiplier)
