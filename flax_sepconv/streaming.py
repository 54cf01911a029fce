"""The layer chunk by chunk: a stream of any length in constant memory.

    state = fsc.init_stream(config, batch_shape, in_features)
    y, state = fsc.stream_step(params, x, state, config)      # for each chunk

A state holds the last inputs, which the windows of the next chunk read too. A step applies the layer, without padding,
to the state and the chunk joined. The number of samples in a state decides where the windows are:

    causal   (kernel_size - 1) * dilation_rate    a window ends at its own sample
    same     the same number                      that window belongs to the sample `config.latency` steps earlier
    valid    a window less `strides` samples      the last window of a chunk ends with the chunk
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

from flax_sepconv import _callables, _ragged, _validation, _window, activations
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

    Any other array of this shape and dtype is a state as well: the samples before the first chunk.

    Args:
        config: the layer's arguments. `padding="same"` needs `strides=1`.
        batch_shape: the batch axes of the chunks, `()` for none.
        in_features: number of input channels.
        dtype: dtype of the chunks.

    Returns:
        Zeros `(*batch_shape, n, in_features)`, or with the last two exchanged for channels_first, where `n` is
        `(kernel_size - 1) * dilation_rate`; for `"valid"` it is `strides - 1` less, but at least 0.

    Raises:
        ValueError: the layer cannot be streamed, because its padding is `"same"` with strides or its activation works
            along time, as softmax does in channels_first; or a size is negative, or `in_features` is 0.
        TypeError: an argument has a refused type.

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
    in_features = _validation.count("in_features", in_features)
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
    * for `"same"`, `config.latency` steps late: that many extra outputs come first, and as many zeros, fed after the
      last chunk, give the last outputs;
    * for `"valid"`, with the samples of the first state in front of the sequence.

    Gradients flow through the state; apply `jax.lax.stop_gradient` to it to stop them.

    With `position`, outputs before the sequence's first are zeros, and samples of `x` before its first are read as
    zeros. That makes streams of several layers exact, because outputs that a layer gives too early or too late do not
    reach the next one. Give each layer the position of its own chunk: `config.output_position(position)` of the layer
    before it.

    Args:
        params: as for `separable_conv1d`.
        x: the chunk, `(*batch, length, in_features)`, or `(*batch, in_features, length)` for channels_first. Its
            length is a multiple of `strides` and may differ from chunk to chunk.
        state: what `init_stream` or the step before returned.
        config: the layer's arguments; static under `jax.jit`.
        position: an integer, or integers `(*batch,)`: the number of the chunk's first sample in its sequence, 0 for the
            first chunk, negative before the sequence begins. A multiple of `strides`. With `None`, all of `x` belongs
            to the sequence.
        lengths: integers `(*batch,)`: the number of samples in each sequence, for streams that end at different times.
            Values of `x` beyond it reach no output and get no gradient, and outputs beyond those of the whole sequence
            are zeros. For a stream that goes on, any number beyond this chunk will do. Lengths count from the start of
            the sequence or, without `position`, from the start of the chunk.

    Returns:
        The outputs `(*batch, length / strides, filters)`, or with the last two exchanged for channels_first, and the
        state for the next chunk, of the same shape and dtype as `state`.

    Raises:
        ValueError: the layer cannot be streamed; the chunk's length or `position` is not a multiple of `strides`;
            `state`, `position` or `lengths` has another shape, or `state` another dtype; `lengths` comes without
            `position` for `"same"`; or `separable_conv1d` refuses an argument.
        TypeError: `separable_conv1d` refuses an argument, `state` is not an array, or `position` or `lengths` are not
            integers.

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
    # Masked twice, as for `lengths` in `separable_conv1d`.
    return _ragged.where(real, _callables.activated(config, _ragged.where(real, y, config)), config), state


def stream_latency(configs: SeparableConv1DConfig | Iterable[Any] | Mapping[str, Any]) -> int:
    """Adds up the latencies of several layers, in samples of the first one's input.

    Each layer's `latency` counts times the strides before it. That many zeros, fed after the last sample, give the
    last output.

    Args:
        configs: one config, or the configs of consecutive layers in their order; a mapping's values are taken.

    Returns:
        The number of samples. Outputs are late by that number divided by the product of all strides.

    Raises:
        ValueError: a layer cannot be streamed, or a config is that of layers stacked by a transform, whose number it
            does not hold.
        TypeError: `configs` are not configs.

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
    """Refuses a layer whose outputs depend on arbitrarily late input."""
    check_config(config)
    _ = config.latency  # refuses "same" with strides
    if activations.mixes(config.activation, config.time_axis, ndim):
        raise ValueError(
            f"a stream cannot have an `activation` that works along time, as {config.activation!r} does with "
            f"data_format={config.data_format!r}. Use another data format, or activation=None."
        )


def check_places(decode: bool, position: object, segment_ids: object) -> None:
    """Refuses `position` in a module that does not stream, and `segment_ids` in one that does."""
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
    """Returns both as JAX integers that do not wrap when a chunk is added; refuses any that do not fit `x`."""
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
    # Positions stay below `most`, so that an endless stream never reaches its end.
    return _within(position, most - chunk, dtype), lengths


def _within(counts: jax.Array | np.ndarray, most: int, dtype: np.dtype) -> jax.Array:
    """Clips integers to between `-most` and `most` before their type changes, so that none of them wraps."""
    info = jnp.iinfo(counts.dtype)
    return jnp.asarray(counts.clip(max(-most, int(info.min)), min(most, int(info.max)))).astype(dtype)
