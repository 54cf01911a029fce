"""The causal layer chunk by chunk: a stream of any length in constant memory.

    state = fsc.init_stream(config, batch_shape, in_features)
    y, state = fsc.stream_step(params, x, state, config)      # for each chunk

A causal output reads the `(kernel_size - 1) * dilation_rate` samples before it and none after it. So these are all that
a state has to keep, and a step is the layer without padding over the state and the chunk, one after the other. At the
start they are the zeros of causal padding.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from flax_sepconv import _arguments, _window, activations
from flax_sepconv._keras_object import integer
from flax_sepconv._messages import shown
from flax_sepconv._validation import as_array, check_input
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.functional import separable_conv1d


def init_stream(
    config: SeparableConv1DConfig,
    batch_shape: Sequence[int],
    in_features: int,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """The state before the first chunk of a stream.

    Args:
        config: the layer's arguments, with `padding="causal"`.
        batch_shape: the batch axes of the chunks, `()` for none.
        in_features: number of input channels.
        dtype: dtype of the chunks.

    Returns:
        Zeros `(*batch_shape, (kernel_size - 1) * dilation_rate, in_features)`, or with the last two exchanged for
        channels_first: the samples before the first.

    Raises:
        ValueError: a layer that cannot be streamed: its padding is not causal, or its activation works along time,
            such as softmax in channels_first. Sizes that are negative, or `in_features` that is 0.
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
    params: Mapping[str, Any], x: ArrayLike, state: ArrayLike, config: SeparableConv1DConfig
) -> tuple[jax.Array, jax.Array]:
    """Applies the layer to the next chunk of a stream.

    The outputs of all chunks, joined, are those of the whole sequence. Gradients flow through the state; put
    `jax.lax.stop_gradient` around it where they shall not.

    Args:
        params: as for `separable_conv1d`.
        x: the chunk, `(*batch, length, in_features)`, or `(*batch, in_features, length)` for channels_first. Its
            length is a multiple of `strides` and may differ from chunk to chunk.
        state: what `init_stream` or the step before returned.
        config: the layer's arguments, with `padding="causal"`; static under `jax.jit`.

    Returns:
        The outputs `(*batch, length / strides, filters)`, or with the last two exchanged for channels_first, and the
        state for the next chunk, of the same shape and dtype as `state`.

    Raises:
        ValueError: a layer that cannot be streamed, a chunk whose length is no multiple of `strides`, a state of
            another shape or dtype, and what `separable_conv1d` refuses.
        TypeError: what `separable_conv1d` refuses, or `state` is not an array.

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
    x = jnp.asarray(check_input(x, config))
    check_streamable(config, len(x.shape))
    in_features = x.shape[config.channel_axis]
    time = config.time_axis
    length = x.shape[time]
    if length % config.strides:
        raise ValueError(
            f"the length of a chunk must be a multiple of strides={config.strides}; got {length}. Keep the rest for "
            "the next chunk."
        )
    shape = _state_shape(config, x.shape[:-2], in_features)
    state = as_array("state", state)
    if state.shape != shape or state.dtype != x.dtype:
        raise ValueError(
            f"`state` must have the shape {shape} and the dtype {x.dtype} for chunks of the shape {x.shape}; got "
            f"{state.shape} and {state.dtype}. Start with `init_stream(config, {x.shape[:-2]}, {in_features}, "
            f"jnp.{x.dtype})`."
        )
    joined = jnp.concatenate([state, x], axis=time)
    y = separable_conv1d(params, joined, dataclasses.replace(config, padding="valid"))
    return y, lax.slice_in_dim(joined, length, None, axis=time)


def check_streamable(config: SeparableConv1DConfig, ndim: int = 3) -> None:
    """Refuses a layer whose outputs depend on later input."""
    check_config(config)
    if config.padding != "causal":
        raise ValueError(
            f"a stream needs `padding='causal'`; got {config.padding!r}, which reads later input."
        )
    if activations.mixes(config.activation, config.time_axis, ndim):
        raise ValueError(
            f"a stream cannot have an `activation` that works along time, as {config.activation!r} does with "
            f"data_format={config.data_format!r}. Use another data format, or activation=None."
        )


def refuse_lengths(lengths: object, segment_ids: object = None) -> None:
    """Refuses what a module that streams cannot take."""
    if segment_ids is not None:
        raise ValueError(
            "`segment_ids` cannot be used with decode=True: a stream is one sequence. Start a new stream for each."
        )
    if lengths is not None:
        raise ValueError(
            "`lengths` cannot be used with decode=True, where sequences have no end yet; got some. Leave out what is "
            "beyond a sequence from its outputs."
        )


def _state_shape(config: SeparableConv1DConfig, batch: tuple[int, ...], in_features: int) -> tuple[int, ...]:
    reach = _window.span(config.kernel_size, config.dilation_rate) - 1
    return (*batch, reach, in_features) if config.channel_axis == -1 else (*batch, in_features, reach)
