"""Makes `motion.keras`, the model that the guide and the notebook port, and `motion.npz`, with what Keras predicts.

pip install keras jax
KERAS_BACKEND=jax python docs/notebooks/make_model.py
"""

import pathlib

import keras
import numpy as np
from motion import LENGTH, STEPS, windows

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Trains for a little while and writes both files."""
    keras.utils.set_random_seed(0)
    separable = keras.layers.SeparableConv1D
    bounded = keras.constraints.MaxNorm(1.4, axis=1)
    model = keras.Sequential(
        [
            keras.Input((LENGTH, 3)),
            separable(16, 9, padding="same", activation="relu", depthwise_regularizer="l2", name="first"),
            separable(
                16,
                9,
                strides=2,
                padding="same",
                activation="relu",
                pointwise_constraint=bounded,
                name="second",
            ),
            keras.layers.BatchNormalization(momentum=0.9, name="norm"),
            keras.layers.GlobalAveragePooling1D(name="mean"),
            keras.layers.Dense(len(STEPS), name="scores"),
        ],
        name="motion",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    x, motion = windows(512, seed=0)
    model.fit(x, motion, batch_size=32, epochs=2, verbose=2)
    model.save(HERE / "motion.keras")
    x, motion = windows(96, seed=1)
    np.savez_compressed(HERE / "motion.npz", x=x, motion=motion, predictions=model.predict(x, verbose=0))


if __name__ == "__main__":
    main()
