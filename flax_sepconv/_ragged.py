"""Sequences of different lengths in one array: whatever lies beyond a length has no effect.

    x[n, t] = 0  for t >= lengths[n]                         before the convolution
    y[n, o] = 0  for o >= config.output_length(lengths)[n]   after the activation

The zeros beyond a sequence are those that its padding would put there, so each sequence gives what it would give alone.
Only where padding on the left depends on the length, as for `same` with strides, has it to be put in its place too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv import _window, activations
from flax_sepconv._validation import as_integers
from flax_sepconv.config import SeparableConv1DConfig


def check_lengths(lengths: Any, x, config: SeparableConv1DConfig) -> jax.Array:
    """Refuses lengths that do not fit `x`, and returns them within 0 and the length of `x`."""
    lengths = as_integers("lengths", lengths)
    if lengths.shape != x.shape[:-2]:
        raise ValueError(
            f"`lengths` must have the shape of the batch axes of `x`, {x.shape[:-2]}; got {lengths.shape}."
        )
    if activations.mixes(config.activation, config.time_axis, len(x.shape)):
        raise ValueError(
            f"`lengths` cannot be used with an `activation` that works along time, as {config.activation!r} does with "
            f"data_format={config.data_format!r}: all outputs would depend on the padding. Use another data format, or "
            "activation=None and an activation of your own that knows the lengths."
        )
    length = x.shape[config.time_axis]
    if isinstance(length, int):  # not symbolic
        # Before the type changes: none of JAX may hold what is beyond.
        lengths = lengths.clip(0, min(length, int(jnp.iinfo(lengths.dtype).max)))
    return jnp.clip(_window.signed(jnp.asarray(lengths)), 0, length)


def without_padding(x, lengths, config: SeparableConv1DConfig) -> jax.Array:
    """Returns `x` with zeros, and no gradient, at and beyond its lengths."""
    steps = lax.broadcasted_iota(lengths.dtype, (*lengths.shape, x.shape[config.time_axis]), lengths.ndim)
    real = steps < lengths[..., None]
    return jnp.where(jnp.expand_dims(real, config.channel_axis), x, 0)


def in_place(x, lengths, config: SeparableConv1DConfig) -> tuple[jax.Array, SeparableConv1DConfig]:
    """Puts each sequence where its own windows are, and returns the config of what is left to do.

    With strides, `same` pads a sequence on the left by an amount that depends on its length.
    """
    if config.padding != "same" or config.strides == 1:
        return x, config
    axis = config.time_axis
    length = x.shape[axis]
    # Strides come without dilation.
    read = (_window.output_length(length, **config.geometry) - 1) * config.strides + config.kernel_size
    low, _ = _window.padding_amounts(lengths, **config.geometry)
    most = (config.kernel_size - 1) // 2
    padding = [(0, 0)] * x.ndim
    padding[axis] = (most, max(read - length, 0))

    def place(sequence, low):
        return lax.dynamic_slice_in_dim(sequence, most - low, read, axis)

    for _ in lengths.shape:
        place = jax.vmap(place)
    return place(jnp.pad(x, padding), low), dataclasses.replace(config, padding="valid")
