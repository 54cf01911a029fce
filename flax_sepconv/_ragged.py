"""Several sequences in one array: no output depends on padding, or on another sequence.

For sequences of different lengths:

    x[n, t] = 0  for t >= lengths[n]                         before the convolution
    y[n, o] = 0  for o >= config.output_length(lengths)[n]   after the activation

The zeros beyond a sequence are those of its padding, so each sequence gives what it would give alone. Where the padding
on the left depends on the length, as for `same` with strides, the sequence is also moved to its place.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv import _packed, _window, activations
from flax_sepconv._validation import as_integers
from flax_sepconv.config import SeparableConv1DConfig


class Sequences(NamedTuple):
    """An input of several sequences, ready for the convolution, and the outputs to keep.

    Attributes:
        x: the input. Samples outside of all sequences are zero or are not read.
        config: the layer's arguments for `x`.
        runs: for packed rows whose windows cross from one run to the next, the number of each time step's run.
        kept: which outputs belong to a sequence; `None` if all do.
    """

    x: jax.Array
    config: SeparableConv1DConfig
    runs: jax.Array | None = None
    kept: Any = None

    def masked(self, y: jax.Array) -> jax.Array:
        """Sets outputs that belong to no sequence to zero, without a gradient."""
        return y if self.kept is None else where(self.kept, y, self.config)


def check(x, config: SeparableConv1DConfig, lengths: Any, segment_ids: Any) -> tuple[Any, Any]:
    """Refuses lengths and segment ids that do not fit `x`, and returns them."""
    if lengths is not None and segment_ids is not None:
        raise ValueError(
            "`lengths` and `segment_ids` cannot both be given: what is beyond a length is a segment of id 0. Pass "
            "`segment_ids` alone."
        )
    if lengths is not None:
        lengths = _check_lengths(lengths, x, config)
        _refuse_mixing("lengths", x, config)
    if segment_ids is not None:
        shape = (*x.shape[:-2], x.shape[config.time_axis])
        segment_ids = _packed.check_segment_ids(segment_ids, shape, config.strides)
        _refuse_mixing("segment_ids", x, config)
    return lengths, segment_ids


def sequences(x: jax.Array, config: SeparableConv1DConfig, lengths: Any, segment_ids: Any) -> Sequences:
    """Makes the sequences of `x` from checked lengths and segment ids."""
    if lengths is not None:
        real = steps(lengths, x.shape[config.time_axis])
        kept = outputs_kept(config, config.output_length(x.shape[config.time_axis]), lengths, None)
        return Sequences(*_in_place(where(real, x, config), lengths, config), kept=kept)
    if segment_ids is None:
        return Sequences(x, config)
    runs = _packed.run_numbers(segment_ids)
    form = config.geometry
    kept = _packed.of_outputs(runs, runs, form["kernel_size"], form["padding"], form["dilation_rate"]) != 0
    if config.padding == "valid":  # an output that is kept reads one run as it is
        return Sequences(where(runs > 0, x, config), config, kept=kept)
    return Sequences(x, config, runs.reshape(-1, runs.shape[-1]), kept)


def outputs_kept(config: SeparableConv1DConfig, count, lengths: Any, segment_ids: Any, position=None) -> Any:
    """Returns which of `count` outputs, numbered from `position` on, belong to a sequence; `None` if all do."""
    if lengths is not None:
        return steps(config.output_length(lengths), count, position)
    return None if segment_ids is None else config.output_segment_ids(segment_ids) != 0


def _check_lengths(lengths: Any, x, config: SeparableConv1DConfig) -> jax.Array:
    """Returns lengths clipped to between 0 and the length of `x`."""
    lengths = as_integers("lengths", lengths)
    if lengths.shape != x.shape[:-2]:
        raise ValueError(
            f"`lengths` must have the shape of the batch axes of `x`, {x.shape[:-2]}; got {lengths.shape}."
        )
    length = x.shape[config.time_axis]
    if isinstance(length, int):  # not symbolic
        # Clipped before the type changes, since a larger number may not fit into any of JAX's types.
        lengths = lengths.clip(0, min(length, int(jnp.iinfo(lengths.dtype).max)))
    return jnp.clip(_window.signed(jnp.asarray(lengths)), 0, length)


def _refuse_mixing(argument: str, x, config: SeparableConv1DConfig) -> None:
    if activations.mixes(config.activation, config.time_axis, len(x.shape)):
        raise ValueError(
            f"`{argument}` cannot be used with an `activation` that works along time, as {config.activation!r} does "
            f"with data_format={config.data_format!r}: all outputs would depend on the padding. Use another data "
            "format, or activation=None and an activation of your own that knows the sequences."
        )


def steps(lengths, length, position=None) -> jax.Array:
    """Returns which of `length` time steps each sequence has.

    With `position`, time steps are numbered from there on, and those with negative numbers belong to no sequence.
    """
    numbers = lax.broadcasted_iota(lengths.dtype, (*lengths.shape, length), lengths.ndim)
    if position is None:
        return numbers < lengths[..., None]
    numbers = numbers + position[..., None]
    return (numbers >= 0) & (numbers < lengths[..., None])


def where(real, x, config: SeparableConv1DConfig) -> jax.Array:
    """Sets time steps that are not `real` to zero, without a gradient."""
    return jnp.where(jnp.expand_dims(real, config.channel_axis), x, 0)


def _in_place(x, lengths, config: SeparableConv1DConfig) -> tuple[jax.Array, SeparableConv1DConfig]:
    """Moves each sequence to where its own windows are, and returns the config for what remains to be done.

    With strides, `same` pads a sequence on the left by an amount that depends on its length.
    """
    if config.padding != "same" or config.strides == 1:
        return x, config
    axis = config.time_axis
    length = x.shape[axis]
    # Strides exclude dilation.
    read = (_window.output_length(length, **config.geometry) - 1) * config.strides + config.kernel_size
    low, _ = _window.padding_amounts(lengths, **config.geometry)
    most = (config.kernel_size - 1) // 2
    padding = [(0, 0)] * x.ndim
    padding[axis] = (most, max(read - length, 0))
    x = slices(jnp.pad(x, padding), most - low, read, axis)
    return x, dataclasses.replace(config, padding="valid")


def slices(x, starts, count, axis: int) -> jax.Array:
    """Returns `count` time steps of each sequence, from `starts` on."""

    def one(sequence, start):
        return lax.dynamic_slice_in_dim(sequence, start, count, axis)

    for _ in starts.shape:
        one = jax.vmap(one)
    return one(x, starts)
