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
from jax import export, lax

from flax_sepconv._kernels import blocked, few, fft, in_place, kernel_gradient, packed, taps, xla_conv
from flax_sepconv._window import Window

IMPLEMENTATIONS = ("taps", "fourier", "lax")
"""What `implementation` may name: the platform's sums of products, Fourier transforms, or XLA's own convolution."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The numbers of a platform; docs/performance.md says what each buys."""

    fft_from: int = 80  # taps from which transforms are faster for the output and the input's gradient
    fft_kernel_from: int = 20  # the same for the kernel's gradient

    def fourier_from(self, result: str, window: Window, channels: int) -> int:
        """Returns the number of taps from which transforms are faster for a contraction."""
        return self.fft_kernel_from if result == "kernel" else self.fft_from


@dataclasses.dataclass(frozen=True)
class CPUTuning(Tuning):
    """The numbers of a CPU."""

    fft_from: int = 500
    fft_kernel_from: int = 64
    fft_unblocked_from: int = 120  # upper bound of `fourier_from` unless channels are computed in blocks
    few: int = 8  # shifts (`few.shifts`) up to which the output and the input's gradient copy nothing
    few_kernel: int = 5  # taps up to which the kernel's gradient copies nothing,
    few_block: int = 8  # in blocks of at least this many outputs
    width: int = 20  # taps in one sum of `kernel_gradient`, at most
    block: int = 16  # outputs in one block of `kernel_gradient`, about
    lanes: int = 8  # channels in a block of `blocked`, and the fewest channels that it is used for
    blocked_from: int = 24  # taps from which `blocked` is faster,
    blocked_floats: int = 7168  # if the kernel has at least this many entries: too many for L1 cache
    blocked_most: int = 96  # taps above which `blocked` is always faster, in a loop over sums
    piece: int = 32  # taps in one sum of that loop, at most
    parts: int = 16  # number of sums that the pointwise kernel's gradient is split into, about,
    parts_most: int = 8192  # if it has at most this many entries

    def is_blocked(self, result: str, window: Window, channels: int) -> bool:
        """Returns whether blocks of channels are faster than one sum over all channels."""
        size = window.kernel_size
        far = size >= self.blocked_from and size * channels >= self.blocked_floats
        return result == "output" and channels >= self.lanes and (far or size > self.blocked_most)

    def fourier_from(self, result: str, window: Window, channels: int) -> int:
        """Returns a number that grows with strides, which leave fewer products to sum but transforms as long."""
        taps = super().fourier_from(result, window, channels) * (window.strides if result != "input" else 1)
        return taps if self.is_blocked(result, window, channels) else min(taps, self.fft_unblocked_from)


TUNINGS: dict[str | None, Tuning] = {"cpu": CPUTuning(), "cuda": Tuning(), "rocm": Tuning()}

PACKED = {"width": 32}
PACKED_KERNEL = {**PACKED, "block": 8}
"""For packed rows, on every platform: taps in one sum, at most, and outputs in a block of the kernel's gradient."""


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
    one form only, on every platform.
    """
    if is_packed:
        return Plan("packed", PACKED_KERNEL if result == "kernel" else PACKED)
    if result == "input" and window.strides == 1:
        result, window = "output", window.transposed()
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
    blocks = {"width": tuning.width, "block": tuning.block}
    if result == "kernel":
        is_few = window.kernel_size <= tuning.few_kernel
        return Plan("few", {"block": tuning.few_block}) if is_few else Plan("kernel_gradient", blocks)
    if tuning.is_blocked(result, window, channels):
        return Plan("blocked", {"lanes": tuning.lanes, "most": tuning.blocked_most, "piece": tuning.piece})
    if result == "output" and few.shifts(window) <= tuning.few:
        return Plan("few")
    # A copy that the kernel's gradient shares has the time steps that it reads. Others have as many: equal sums are
    # compiled once.
    rows = {"rows": kernel_gradient.rows_read(window, **blocks)} if result == "output" else {}
    return Plan("taps", rows)


def parts(entries: int, platform: str | None) -> int:
    """Returns how many sums a pointwise kernel gradient of `entries` is split into; 0 leaves it to XLA."""
    tuning = TUNINGS.get(platform)
    if not isinstance(tuning, CPUTuning):
        return 0
    return tuning.parts if entries <= tuning.parts_most else 1


_MODULES = (few, taps, blocked, kernel_gradient, in_place, packed, fft, xla_conv)
FORMS: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
"""Modules with `output`, `kernel_gradient`, and `input_gradient` for strides, or some of these."""


def contraction(plan: Plan, result: str, a, b, *runs, window: Window, precision) -> jax.Array:
    """Computes `plan` from two of the arrays `(N, L, C)`, `(K, C, M)` and `(N, O, C, M)`, and from runs `(N, L)`."""
    module, name = FORMS[plan.form], "output" if result == "output" else f"{result}_gradient"
    sizes = {"window": window, **plan.sizes}
    if plan.form == "fft":
        return getattr(fft, name)(a, b, **sizes)
    if plan.form == "xla_conv":
        return getattr(xla_conv, name)(a, b, precision=precision, **sizes)
    # The other forms know no multipliers: if the input has fewer channels, they repeat each of them.
    channels, multiplier = b.shape[-2:]
    b = b.reshape(*b.shape[:-2], channels * multiplier)
    if result == "input":
        a = a.reshape(a.shape[0], channels * multiplier)
        if window.strides > 1:
            gradient = module.input_gradient(a, b, **sizes)
        else:  # the output for the cotangent and the kernel reversed
            gradient = module.output(b, lax.rev(a, (0,)), *runs, **sizes | {"window": window.transposed()})
        each = gradient.reshape(*gradient.shape[:2], channels, multiplier)
        return functools.reduce(lax.add, [each[..., m] for m in range(multiplier)])
    out = getattr(module, name)(a, b, *runs, **sizes)
    return out.reshape(*out.shape[:-1], channels, multiplier)
