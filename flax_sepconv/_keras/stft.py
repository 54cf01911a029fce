"""The kernels of Keras's `STFT` initializer: windowed Fourier atoms, one per frequency."""

from typing import Any

import numpy as np

from flax_sepconv._keras.objects import values
from flax_sepconv._messages import shown


def window(name: str, value: Any) -> str | tuple[float, ...] | None:
    """Returns a checked window: the name of one in `scipy.signal`, its values as a tuple, or `None`."""
    if isinstance(value, str):
        try:
            _named(value, 1, False)
        except ValueError:
            raise ValueError(
                f"`{name}` must be a window that scipy.signal knows; got {shown(value)}."
            ) from None
        return value
    return None if value is None else values(name, value)


def check_shape(shape: tuple[int | None, ...], window: Any, periodic: bool) -> None:
    """Refuses the shapes and windows that `atoms` refuses, without making any atoms."""
    # Keras divides zero by zero for a single frequency, and cannot use a kernel with several channels.
    if len(shape) != 3 or shape[1] not in (1, None) or (shape[2] or 2) < 2:
        raise ValueError(
            f"`STFT` must be given a shape (times, 1, frequencies), with two or more; got {shape}."
        )
    times = shape[0]
    # Some windows are zero at their ends; only short ones are zero everywhere.
    if isinstance(window, str) and times:
        fits = _named(window, min(times, 16), periodic).any()
    else:
        fits = window is None or (np.shape(window) == (times,) and np.any(window))
    if not fits:
        raise ValueError(f"`window` must have {times} values, not all zero; got {shown(window)}.")


def atoms(shape: tuple[int, ...], side: str, window: Any, scaling: str | None, periodic: bool) -> np.ndarray:
    """Computes `cos` or `sin(-pi t f / (frequencies - 1))`, windowed, at times `t` and frequencies `f`.

    Args:
        shape: `(times, 1, frequencies)`.
        side: `"real"` (cosines) or `"imag"` (sines).
        window: what the function of that name returned.
        scaling: `"density"` divides by the window's Euclidean norm, `"spectrum"` by its sum; or `None`.
        periodic: whether a named window is periodic, not symmetric.

    Raises:
        ValueError: another shape, or a window of another length or of zeros.
    """
    check_shape(shape, window, periodic)
    times, _, frequencies = shape
    phase = -np.pi * np.outer(np.arange(times), np.arange(frequencies)) / (frequencies - 1)
    kernel = np.cos(phase) if side == "real" else np.sin(phase)
    if window is None:
        return kernel.reshape(shape)
    weights = _named(window, times, periodic) if isinstance(window, str) else np.asarray(window, float)
    scale = {"density": np.linalg.norm(weights), "spectrum": np.abs(weights).sum(), None: 1.0}[scaling]
    return (kernel * weights[:, None] / scale).reshape(shape)


def _named(name: str, times: int, periodic: bool) -> np.ndarray:
    from scipy import signal  # comes with JAX; slow to import, and rarely needed

    return np.asarray(signal.get_window(name, times, periodic))
