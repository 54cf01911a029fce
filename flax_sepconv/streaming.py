"""The layer chunk by chunk: a stream of any length in constant memory.

    state = fsc.init_stream(config, batch_shape, in_features)
    y, state = fsc.stream_step(params, x, state, config)      # for each chunk

A state is the last inputs, which the windows of the next chunk read too. A step is the layer without padding over the
state and the chunk, one after the other. How many samples a state has says where the windows are:

    causal   (kernel_size - 1) * dilation_rate    a window ends at its own sample
    same     the same number                      that window belongs to the sample `config.latency` steps earlier
    valid    a window without `strides` samples   the last window of a chunk ends with the chunk
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from flax_sepconv import _arguments, _callables, _ragged, _window, activations
from flax_sepconv._keras.objects import integer
from flax_sepconv._messages import shown
from flax_sepconv._validation import as_array, as_integers, check_axes
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.functional import separable_conv1d


def init_stream(
    config: SeparableConv1DConfig,
    batch_shape: Sequence[int],
    in_features: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Makes the state before the first chunk of a stream.

    Any other array of this shape and dtype is a state as well: the samples that stand in front of the first chunk.

    Args:
        config: the layer's arguments. `padding="same"` has to have strides of 1.
        batch_shape: the batch axes of the chunks, `()` for none.
        in_features: number of input channels.
        dtype: dtype of the chunks.

    Returns:
        Zeros `(*batch_shape, n, in_features)`, or with the last two exchanged for channels_first, where `n` is
        `(kernel_size - 1) * dilation_rate`; for `"valid"` it is `strides - 1` less, but not less than 0.

    Raises:
        ValueError: a layer that cannot be streamed: its padding is `"same"` with strides, or its activation works
            along time, such as softmax in channels_first. Sizes that are negative, or `in_features` that is 0.
        TypeError: an argument of a refused type.

    Example:
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(64, 3, padding="causal", dilation_rate=4)
        >>> fsc.init_stream(config, (8,), 12).shape
        (8, 8, 12)
    """
    if not isinstance(batch_shape, Sequence):
        raise TypeError(f"`batch_shape` must be a sequence of integers; got {shown(batch_shape)}.")
    batch = tuple(integer("batch_shape", size) for size in batch_shape)
    if any(size < 0 for size in batch):
        raise ValueError(f"`batch_shape` must have no negative sizes; got {batch}.")
    in_features = _arguments.count("in_features", in_features)
    check_streamable(config, len(batch) + 2)
    return jnp.zeros(_state_shape(config, batch, in_features), dtype)


def stream_step(
    params: Mapping[str, Any],
    x: ArrayLike,
    state: ArrayLike,
    config: SeparableConv1DConfig,
    *,
    position: ArrayLike | Sequence[int] | None = None,
    lengths: ArrayLike | Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the layer to the next chunk of a stream.

    The outputs of all chunks, joined, are those of the whole sequence:

    * for `"causal"`, as they are;
    * for `"same"`, `config.latency` steps late: that many more come before the first, and as many zeros, fed after the
      last chunk, give the last;
    * for `"valid"`, those of the sequence behind the samples that the first state holds.

    Gradients flow through the state; put `jax.lax.stop_gradient` around it where they shall not.

    With `position`, outputs before the first of the whole are zeros, and what stands in `x` before the first sample is
    read as zeros. That makes streams of several layers exact, where the outputs that a layer gives too early or too
    late must not reach the next one: give each layer the position of its own chunk, `config.output_position(position)`
    of the layer before.

    Args:
        params: as for `separable_conv1d`.
        x: the chunk, `(*batch, length, in_features)`, or `(*batch, in_features, length)` for channels_first. Its
            length is a multiple of `strides` and may differ from chunk to chunk.
        state: what `init_stream` or the step before returned.
        config: the layer's arguments; static under `jax.jit`.
        position: an integer, or integers `(*batch,)`: which sample of its sequence the first one of the chunk is, 0
            for the first chunk; negative while nothing has begun yet. A multiple of `strides`. With `None`, all of `x`
            belongs to the sequence.
        lengths: integers `(*batch,)`: how many samples each sequence has, for streams that end at different times. What
            stands in `x` beyond reaches no output and gets no gradient, and outputs beyond those of the whole are
            zeros. For a stream that goes on, any number beyond this chunk will do. They count from the sample that
            `position` counts from, or, without `position`, from the first one of the chunk.

    Returns:
        The outputs `(*batch, length / strides, filters)`, or with the last two exchanged for channels_first, and the
        state for the next chunk, of the same shape and dtype as `state`.

    Raises:
        ValueError: a layer that cannot be streamed, a chunk whose length is no multiple of `strides`, a state of
            another shape or dtype, a `position` or `lengths` of another shape, a `position` that is no multiple of
            `strides`, `lengths` without `position` for `"same"`, and what `separable_conv1d` refuses.
        TypeError: what `separable_conv1d` refuses, `state` is not an array, or `position` or `lengths` not integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(64, 3, padding="causal")
        >>> params = fsc.init_params(jax.random.key(0), 12, config)
        >>> x = jax.random.normal(jax.random.key(1), (8, 100, 12))
        >>> state = fsc.init_stream(config, (8,), 12)
        >>> first, state = fsc.stream_step(params, x[:, :60], state, config)
        >>> second, state = fsc.stream_step(params, x[:, 60:], state, config)
        >>> whole = fsc.separable_conv1d(params, x, config)
        >>> bool(jnp.allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5))
        True
    """
    check_config(config)
    x = jnp.asarray(check_axes(x, config))
    check_streamable(config, len(x.shape))
    time = config.time_axis
    in_features, length = x.shape[config.channel_axis], x.shape[time]
    if length == 0 or length % config.strides:
        raise ValueError(
            f"the length of a chunk must be a multiple of strides={config.strides}, and not 0; got {length}. Keep the "
            "rest for the next chunk."
        )
    shape = _state_shape(config, x.shape[:-2], in_features)
    state = as_array("state", state)
    if state.shape != shape or state.dtype != x.dtype:
        raise ValueError(
            f"`state` must have the shape {shape} and the dtype {x.dtype} for chunks of the shape {x.shape}; got "
            f"{state.shape} and {state.dtype}. Start with `init_stream(config, {x.shape[:-2]}, {in_features}, "
            f"jnp.{x.dtype})`."
        )
    bounds = None if position is None and lengths is None else _counted(position, lengths, x, config)
    if bounds:
        first, last = bounds
        x = _ragged.where(_ragged.steps(last, length, first), x, config)
    joined = jnp.concatenate([state, x], axis=time)
    state = lax.slice_in_dim(joined, length, None, axis=time)
    step = dataclasses.replace(config, padding="valid")
    if bounds is None:
        return separable_conv1d(params, joined, step), state
    first, last = bounds
    y = separable_conv1d(params, joined, dataclasses.replace(step, activation=None))
    ends = _window.output_length(last + _state_length(config), **step.geometry)
    real = _ragged.steps(ends, length // config.strides, config.output_position(first))
    # Twice, as for `lengths` of `separable_conv1d`.
    return _ragged.where(real, _callables.activated(config, _ragged.where(real, y, config)), config), state


def stream_latency(configs: SeparableConv1DConfig | Iterable[Any] | Mapping[str, Any]) -> int:
    """Adds up how late the outputs of several layers come, in samples of the first one's input.

    Each layer's `latency` counts as often as there are strides before it. So many zeros, fed after the last sample,
    give the last output.

    Args:
        configs: one config, or those of layers one after another, in their order; of a mapping the values.

    Returns:
        The number of samples. Outputs come that many, divided by all strides, late.

    Raises:
        ValueError: a layer that cannot be streamed, or a config of layers that a transform stacks, which does not say
            how many they are.
        TypeError: not configs.

    Example:
        >>> import flax_sepconv as fsc
        >>> first = fsc.SeparableConv1DConfig(64, 4, strides=4)
        >>> second = fsc.SeparableConv1DConfig(64, 3, padding="same")
        >>> fsc.stream_latency([first, second, second])
        8
    """
    if isinstance(configs, SeparableConv1DConfig):
        configs = [configs]
    samples, total = 1, 0
    for config in configs.values() if isinstance(configs, Mapping) else configs:
        check_config(config, "configs")
        if getattr(config, "stack_axes", ()):
            raise ValueError(
                f"`configs` must be of layers one by one; got {config}, of several layers. Add up their `latency`, "
                f"each {config.latency}."
            )
        total += config.latency * samples
        samples *= config.strides
    return total


def check_streamable(config: SeparableConv1DConfig, ndim: int = 3) -> None:
    """Refuses a layer whose outputs depend on input of any time later."""
    check_config(config)
    _ = config.latency  # refuses "same" with strides
    if activations.mixes(config.activation, config.time_axis, ndim):
        raise ValueError(
            f"a stream cannot have an `activation` that works along time, as {config.activation!r} does with "
            f"data_format={config.data_format!r}. Use another data format, or activation=None."
        )


def check_places(decode: bool, position: object, segment_ids: object) -> None:
    """Refuses what a module takes only if it streams, or only if it does not."""
    if decode and segment_ids is not None:
        raise ValueError(
            "`segment_ids` cannot be used with decode=True: a stream is one sequence. Start a new stream for each."
        )
    if position is not None and not decode:
        raise ValueError(
            "`position` is for decode=True, where `x` is one chunk of several; got "
            f"{shown(position)} with decode=False. Leave it out."
        )


def _state_length(config: SeparableConv1DConfig) -> int:
    reach = _window.span(config.kernel_size, config.dilation_rate) - 1
    return max(reach + 1 - config.strides, 0) if config.padding == "valid" else reach


def _state_shape(config: SeparableConv1DConfig, batch: tuple[int, ...], in_features: int) -> tuple[int, ...]:
    length = _state_length(config)
    return (*batch, length, in_features) if config.channel_axis == -1 else (*batch, in_features, length)


def _counted(position: Any, lengths: Any, x, config: SeparableConv1DConfig) -> tuple[jax.Array, jax.Array]:
    """Both as integers of JAX to which a chunk may be added; refused if they do not fit `x`."""
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    batch, chunk = x.shape[:-2], x.shape[config.time_axis]
    most = int(jnp.iinfo(dtype).max) - _state_length(config) - config.strides
    if lengths is None:
        lengths = jnp.asarray(most, dtype)
    else:
        if position is None and config.padding == "same":
            raise ValueError(
                "`lengths` need `position` in a stream of padding='same', whose outputs go on after the last sample; "
                "got no position. Pass the number of samples before this chunk, and the lengths of whole sequences."
            )
        lengths = as_integers("lengths", lengths)
        if lengths.shape != batch:
            raise ValueError(
                f"`lengths` must have the shape of the batch axes of `x`, {batch}; got {lengths.shape}."
            )
        lengths = _within(lengths, most, dtype)
    position = as_integers("position", 0 if position is None else position)
    if position.shape not in (batch, ()):
        raise ValueError(
            f"`position` must be one integer or have the shape of the batch axes of `x`, {batch}; got the shape "
            f"{position.shape}."
        )
    if (
        config.strides != 1
        and not isinstance(position, Tracer)
        and np.any(np.asarray(position) % config.strides)
    ):
        raise ValueError(
            f"`position` must be a multiple of strides={config.strides}, for windows to be where they are in the "
            f"whole; got {position}. Feed zeros before the first sample, at negative positions, to make it one."
        )
    # Below `most`: what goes on for ever never comes to its end.
    return _within(position, most - chunk, dtype), lengths


def _within(counts: jax.Array | np.ndarray, most: int, dtype: np.dtype) -> jax.Array:
    """Integers between `-most` and `most`, cut before their type changes so that none of them wraps."""
    info = jnp.iinfo(counts.dtype)
    return jnp.asarray(counts.clip(max(-most, int(info.min)), min(most, int(info.max)))).astype(dtype)
