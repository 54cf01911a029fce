"""Made data of the kind a sensor on the wrist gives, for the guide and the notebook that port a Keras model."""

import numpy as np

RATE, LENGTH = 25, 75  # samples a second, and in a window
STEPS = {"rest": 0.0, "walk": 1.8, "run": 2.8}  # steps a second


def windows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three-axis accelerations `(count, LENGTH, 3)`, and which motion each is `(count,)`."""
    rng = np.random.default_rng(seed)
    motion = rng.integers(0, len(STEPS), count)
    pace = np.array([*STEPS.values()])[motion, None] * rng.uniform(0.85, 1.15, (count, 1))
    phase = 2 * np.pi * (pace * np.arange(LENGTH) / RATE + rng.uniform(size=(count, 1)))
    axes = np.stack([np.sin(phase), np.sin(2 * phase), np.cos(phase)], axis=1)
    moving = (motion > 0)[:, None, None] * rng.uniform(0.3, 1.0, (count, 3, 1)) * axes
    noisy = moving + 0.3 * rng.standard_normal((count, 3, LENGTH))
    return noisy.swapaxes(1, 2).astype("float32"), motion
