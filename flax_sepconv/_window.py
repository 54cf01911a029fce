"""The windows of a 1-D convolution: which samples each one reads, and how many fit.

Output sample `o` reads the padded input at `o * strides + k * dilation_rate` for `k < kernel_size`, so a
window spans `(kernel_size - 1) * dilation_rate + 1` samples. Everything else here follows from that.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

PADDINGS = ("valid", "same", "causal")


def span(kernel_size: int, dilation_rate: int) -> int:
    """Counts the samples from the first to the last that a window reads, both included."""
    return (kernel_size - 1) * dilation_rate + 1


def shortest(kernel_size: int, padding: str, dilation_rate: int) -> int:
    """Returns the length of the shortest sequence with an output."""
    return span(kernel_size, dilation_rate) if padding == "valid" else 1


def signed(lengths):
    """Returns lengths in an integer type where nothing wraps: signed, and at least 32 bits wide."""
    wide = np.int32 if lengths.dtype.itemsize < 4 else np.int64
    if lengths.dtype.kind == "i" and lengths.dtype.itemsize >= 4:
        return lengths
    return lengths.astype(wide if isinstance(lengths, np.ndarray) else jax.dtypes.canonicalize_dtype(wide))


def output_length(length, kernel_size: int, strides: int, padding: str, dilation_rate: int):
    """Counts the windows that fit; zero or negative where none does. `length` may be an array."""
    if padding == "valid":
        length = length - span(kernel_size, dilation_rate) + 1
    return (length + strides - 1) // strides


def padding_amounts(length, kernel_size: int, strides: int, padding: str, dilation_rate: int) -> tuple:
    """Returns how many zeros go before and after a sequence of `length` samples. `length` may be an array."""
    reach = span(kernel_size, dilation_rate) - 1
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return reach, 0
    # "same": just what the last window lacks. At stride 1 that is `reach` at any length. At larger strides it
    # depends on the length, and the smaller half comes first (TensorFlow's rule).
    windows = output_length(length, kernel_size, strides, padding, dilation_rate)
    total = (windows - 1) * strides + reach + 1 - length
    total = total.clip(0) if hasattr(total, "clip") else max(total, 0)
    return total // 2, total - total // 2


class Window(NamedTuple):
    """The static numbers of a depthwise step: output `o` reads `o * strides + t * dilation - low`, `t < kernel_size`.

    Samples outside of the sequence are zero. `length` may be a symbolic dimension of `jax.export`.
    """

    length: Any
    kernel_size: int
    strides: int
    dilation: int
    low: int
    high: int

    @classmethod
    def over(cls, length, *, kernel_size: int, strides: int, padding: str, dilation_rate: int) -> "Window":
        """Makes the window of a layer's arguments over a sequence of `length` samples."""
        amounts = padding_amounts(length, kernel_size, strides, padding, dilation_rate)
        return cls(length, kernel_size, strides, dilation_rate, *amounts)

    @property
    def span(self) -> int:
        """Number of samples from the first to the last that a window reads, both included."""
        return span(self.kernel_size, self.dilation)

    @property
    def output_length(self):
        """Number of outputs."""
        return (self.low + self.length + self.high - self.span) // self.strides + 1

    @property
    def samples(self):
        """Number of samples from the first to the last that are read, padding included."""
        return (self.output_length - 1) * self.strides + self.span

    @property
    def interior(self) -> tuple[int, int]:
        """The first output that reads no padding, and the next one that does."""
        first = min(max(0, -(-self.low // self.strides)), self.output_length)
        last = (self.length - self.span + self.low) // self.strides + 1
        return first, max(min(last, self.output_length), first)

    @property
    def is_mostly_edge(self) -> bool:
        """Whether most outputs read padding."""
        first, last = self.interior
        return 2 * (last - first) <= self.output_length

    def inside(self, t: int) -> tuple[int, int]:
        """Returns the first output whose tap `t` reads no padding, and the next whose does; equal if there is none."""
        start = t * self.dilation - self.low
        first = min(max(-(start // self.strides), 0), self.output_length)
        stop = min(max(-(-(self.length - start) // self.strides), 0), self.output_length)
        return first, max(first, stop)

    def transposed(self) -> "Window":
        """Returns the window of the input's gradient at stride 1: over the cotangent, with the kernel reversed."""
        reach = self.span - 1
        return self._replace(length=self.output_length, low=reach - self.low, high=reach - self.high)
