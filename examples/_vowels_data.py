"""The Japanese Vowels data as arrays: reading, standardizing and augmenting utterances."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PATH = pathlib.Path(__file__).parent / "data" / "japanese_vowels.npz"
SPEAKERS, PER_SPEAKER, CHANNELS, LONGEST = 9, 30, 12, 29


class Utterances(NamedTuple):
    """Sequences of many lengths in one array: what is beyond a length is padding, and may be anything."""

    frames: Any  # (utterances, time, CHANNELS)
    lengths: Any  # (utterances,)
    speakers: Any  # (utterances,), from 0

    @property
    def real(self):
        """Which frames are an utterance's own, and not padding: `(utterances, time)`."""
        return np.arange(self.frames.shape[1]) < self.lengths[:, None]

    def pick(self, index) -> "Utterances":
        """Those that `index` says, as indices or truth values."""
        return Utterances(*(array[index] for array in self))


def load(part: str) -> Utterances:
    """The `"train"` part, `PER_SPEAKER` utterances of each speaker in the order they were made, or the `"test"` one."""
    with np.load(PATH) as data:
        frames, lengths, speakers = (data[f"{part}_{name}"] for name in ("millionths", "lengths", "speakers"))
    utterances = Utterances(np.zeros((len(lengths), LONGEST, CHANNELS), np.float32), lengths, speakers - 1)
    utterances.frames[utterances.real] = frames / 1e6
    return utterances


def standardized(train: Utterances, held_out: Utterances) -> tuple[Utterances, Utterances]:
    """Both parts with each coefficient shifted and scaled so that the training part has mean 0 and deviation 1."""
    frames = train.frames[train.real]
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    train, held_out = (part._replace(frames=(part.frames - mean) / deviation) for part in (train, held_out))
    return train, held_out


def augmented(batch: Utterances, key) -> Utterances:
    """Utterances as they might have been: cut, faster or slower, through another microphone, with noise."""
    cut_key, start_key, rate_key, offset_key, noise_key = jax.random.split(key, 5)
    count, longest, channels = batch.frames.shape
    last = batch.lengths - 1.0
    span = last * jax.random.uniform(cut_key, (count,), minval=0.8)
    start = (last - span) * jax.random.uniform(start_key, (count,))
    rate = jnp.exp(jax.random.uniform(rate_key, (count,), minval=-0.2, maxval=0.2))
    lengths = jnp.clip(span / rate + 1, 5, longest).astype(int)

    # Frame t is heard at time `start + rate * t`, between two frames of the original.
    time = jnp.minimum(start[:, None] + rate[:, None] * jnp.arange(longest), last[:, None])
    before = time.astype(int)
    after = jnp.minimum(before + 1, batch.lengths[:, None] - 1)
    share = (time - before)[..., None]
    frames = (1 - share) * jnp.take_along_axis(batch.frames, before[..., None], axis=1)
    frames += share * jnp.take_along_axis(batch.frames, after[..., None], axis=1)

    # A microphone filters the sound, and a filter adds a constant to every frame of the cepstrum.
    frames += 0.2 * jax.random.normal(offset_key, (count, 1, channels))
    frames += 0.1 * jax.random.normal(noise_key, frames.shape)
    return Utterances(frames, lengths, batch.speakers)
