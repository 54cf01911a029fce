"""The geometry of a 1-D convolution: which samples a window reads, and how many windows fit.

Output sample `o` reads the padded input at `o * strides + k * dilation_rate` for `k < kernel_size`, so a
window spans `(kernel_size - 1) * dilation_rate + 1` samples. Everything else here follows from that.
"""

import jax
import numpy as np

PADDINGS = ("valid", "same", "causal")


def span(kernel_size: int, dilation_rate: int) -> int:
    """Counts the samples from the first one that a window reads to the last, both included."""
    return (kernel_size - 1) * dilation_rate + 1


def shortest(kernel_size: int, padding: str, dilation_rate: int) -> int:
    """Returns the length of the shortest sequence that gives an output."""
    return span(kernel_size, dilation_rate) if padding == "valid" else 1


def signed(lengths):
    """Returns lengths in an integer type in which nothing wraps: signed, and at least 32 bits wide."""
    wide = np.int32 if lengths.dtype.itemsize < 4 else np.int64
    if lengths.dtype.kind == "i" and lengths.dtype.itemsize >= 4:
        return lengths
    return lengths.astype(wide if isinstance(lengths, np.ndarray) else jax.dtypes.canonicalize_dtype(wide))


def output_length(length, kernel_size: int, strides: int, padding: str, dilation_rate: int):
    """Counts the windows that fit; not positive where none does. `length` may be an array."""
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
    # "same": just what the last window lacks. At stride 1 that is `reach` at any length; at a larger stride
    # it depends on the length, and the smaller half comes first (TensorFlow's rule).
    windows = output_length(length, kernel_size, strides, padding, dilation_rate)
    total = (windows - 1) * strides + reach + 1 - length
    total = total.clip(0) if hasattr(total, "clip") else max(total, 0)
    return total // 2, total - total // 2
