"""What every peer is given, and the answer that it is held to: the definition in float64, by Fourier transform.

    y = relu(depthwise(x) · pointwise + bias), and the products of a fixed cotangent with its derivatives

The answer comes from none of the measured libraries, costs the same at any kernel size, and is exact to 1e-13.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from bench.shapes import Shape

TOLERANCE = 1e-4
"""Largest difference from the float64 answer, of the largest magnitude in it, that counts as the same numbers."""

NEAR_ZERO = 1e-4
"""Outputs before relu that are so small get no cotangent."""

GRADIENTS = ("x", "depthwise_kernel", "pointwise_kernel", "bias")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Float32 arrays in Keras's layout, by the names of `Shape.array_shapes`."""

    shape: Shape
    x: np.ndarray
    depthwise_kernel: np.ndarray
    pointwise_kernel: np.ndarray
    bias: np.ndarray
    cotangent: np.ndarray

    @classmethod
    def draw(cls, shape: Shape, seed: int = 0) -> "Problem":
        """Normal numbers, scaled so that input and output are of one size."""
        rng = np.random.default_rng(seed)
        arrays = {n: rng.standard_normal(s, dtype=np.float32) for n, s in shape.array_shapes().items()}
        arrays["depthwise_kernel"] /= np.float32(shape.kernel_size**0.5)
        arrays["pointwise_kernel"] /= np.float32(shape.wide**0.5)
        problem = cls(shape, **arrays)
        # Near zero a peer may round to the other side, where relu has another derivative.
        linear, _ = problem._linear()
        problem.cotangent[np.abs(linear) < NEAR_ZERO] = 0
        return problem

    def answer(self) -> dict[str, np.ndarray]:
        """`output` and, by the names of `GRADIENTS`, every gradient, in float64."""
        linear, gradients = self._linear()
        answer = {"output": np.maximum(linear, 0)}
        return answer | gradients(self.cotangent * (linear > 0)) if self.shape.gradient else answer

    def _linear(self) -> tuple[np.ndarray, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """The output before the activation, and the function of its cotangent that gives the gradients."""
        s = self.shape
        x, kernel, pointwise = (
            a.astype(np.float64) for a in (self.x, self.depthwise_kernel, self.pointwise_kernel[0])
        )
        n, length, channels = x.shape
        windows, low = s.output_length, s.pads[0]
        span = (s.kernel_size - 1) * s.dilation + 1
        size = 1 << (low + max(length, (windows - 1) * s.strides + 1) + span).bit_length()

        def transform(a):  # the time axis moved last
            return np.fft.rfft(np.moveaxis(a, 1, -1), size)

        def inverse(a, samples):
            return np.moveaxis(np.fft.irfft(a, size)[..., samples], -1, 1)

        taps = np.arange(s.kernel_size) * s.dilation
        steps = np.arange(windows) * s.strides
        fx = transform(np.pad(x, ((0, 0), (low, 0), (0, 0))))[:, :, None]  # (n, c, 1, frequency)
        spread = np.zeros((channels, span, s.multiplier))
        spread[:, taps] = kernel.transpose(1, 0, 2)
        fk = transform(spread)  # (c, m, frequency)
        wide = inverse(fx * fk.conj(), steps).reshape(n, windows, s.wide)

        def gradients(cotangent):
            spread = np.zeros((n, steps[-1] + 1, channels, s.multiplier))
            spread[:, steps] = (cotangent @ pointwise.T).reshape(n, windows, channels, s.multiplier)
            fy = transform(spread)  # (n, c, m, frequency)
            rows = cotangent.reshape(-1, s.filters)
            return {
                "x": inverse((fy * fk).sum(2), low + np.arange(length)),
                "depthwise_kernel": inverse((fx * fy.conj()).sum(0), taps).transpose(1, 0, 2),
                "pointwise_kernel": (wide.reshape(-1, s.wide).T @ rows)[None],
                "bias": rows.sum(0),
            }

        return wide @ pointwise + self.bias, gradients


def differences(got: dict[str, np.ndarray], answer: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each array, relative to the answer's largest magnitude; infinite where one is missing,
    mis-shaped or not finite."""
    result = {}
    for name, value in answer.items():
        if name not in got or got[name].shape != value.shape or not np.isfinite(got[name]).all():
            result[name] = float("inf")
        else:
            result[name] = float(np.abs(got[name] - value).max() / np.abs(value).max())
    return result
