"""The layer as pure functions: parameters from a config, and the output from parameters and an input.

    separable_conv1d = activation(pointwise(depthwise(x)) + bias)

Arrays in, arrays out: nothing here knows Flax or optax. Everything is checked before anything is computed.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from flax_sepconv import _callables, _kernels, _ragged, _validation
from flax_sepconv._dtypes import output_dtype, wide
from flax_sepconv._types import DataFormat, Implementation, Padding, Size
from flax_sepconv._validation import as_real, check_input, check_key, check_params, check_width
from flax_sepconv._window import Window
from flax_sepconv.config import SeparableConv1DConfig, Weight, check_config

__all__ = ["depthwise_conv1d", "init_params", "separable_conv1d"]


def separable_conv1d(
    params: Mapping[str, Any],
    x: ArrayLike,
    config: SeparableConv1DConfig,
    *,
    lengths: ArrayLike | Sequence[int] | None = None,
    segment_ids: ArrayLike | Sequence[Any] | None = None,
) -> jax.Array:
    """Applies a depthwise separable 1-D convolution: `tf.keras.layers.SeparableConv1D` as a function.

    Args:
        params: `depthwise_kernel` `(kernel_size, in_features, depth_multiplier)`, `pointwise_kernel`
            `(1, in_features * depth_multiplier, filters)` and, with `use_bias`, `bias` `(filters,)`.
        x: `(*batch, length, in_features)`, or `(*batch, in_features, length)` for channels_first, with any
            number of batch axes, none included.
        config: the layer's arguments; static under `jax.jit`.
        lengths: integers `(*batch,)`: the number of samples in each sequence. Values of `x` beyond it reach no output
            and get no gradient, even if they are NaN. Lengths are clipped to between 0 and the length of `x`. With
            `None`, every sequence is as long as `x`.
        segment_ids: integers `(*batch, length)`: each run of one id in a row is a sequence by itself, and 0 is padding,
            which is neither read nor differentiated. For padding on the left, pass `mask.astype(int)`. Only at stride
            1, and not together with `lengths`.

    Returns:
        `(*batch, output_length, filters)`, or `(*batch, filters, output_length)`, in `config.dtype` or, if that is
        `None`, in the common dtype of `x` and `params`, unless `config.preferred_element_type` names another. With
        `lengths`, each sequence gives what it would give alone, cut to its length, and zeros from
        `config.output_length(lengths)` on. With `segment_ids`, each run gives, from its start on, what it would give
        alone, and outputs are zero where `config.output_segment_ids` is 0.

    Raises:
        ValueError: parameters are missing, unknown or of a wrong shape; the input has a rank below 2 or other channels
            than the parameters; the output would be empty; `lengths` or `segment_ids` have another shape, are both
            given, or come with an activation that works along time, such as softmax in channels_first; `segment_ids`
            come with strides; or `dtype` is float64 while JAX's 64-bit mode is off.
        TypeError: `params` is not a mapping of arrays of real numbers, `config` not a config, `x` not an array of
            real numbers, or `lengths` or `segment_ids` not integers.

    Example:
        >>> import jax
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(64, 3, padding="same", activation="relu")
        >>> params = fsc.init_params(jax.random.key(0), 12, config)
        >>> x = jax.random.normal(jax.random.key(1), (8, 100, 12))
        >>> jax.jit(fsc.separable_conv1d, static_argnums=2)(params, x, config).shape
        (8, 100, 64)
    """
    check_config(config)
    x = check_input(x, config)
    params = check_params(params, x.shape[config.channel_axis], config)
    check_width("dtype", config.dtype)
    lengths, segment_ids = _ragged.check(x, config, lengths, segment_ids)
    dtype = config.dtype or _common_dtype(x, *params.values())
    out_dtype = output_dtype(dtype, config.preferred_element_type)
    x, depthwise_kernel, pointwise_kernel = (
        jnp.asarray(a, dtype) for a in (x, params["depthwise_kernel"], params["pointwise_kernel"][0])
    )
    part = _ragged.sequences(x, config, lengths, segment_ids)
    bias = jnp.asarray(params["bias"], wide(dtype)) if config.use_bias else None
    y = _kernels.separable(_one_batch_axis(part.x), depthwise_kernel, pointwise_kernel, bias, **_step(part))
    y = y.reshape(*x.shape[:-2], *y.shape[-2:]).astype(out_dtype)
    # Masked before and after: an activation may have no derivative in the padding, and may map zero to another value.
    return part.masked(_callables.activated(config, part.masked(y)))


def init_params(key: ArrayLike, in_features: int, config: SeparableConv1DConfig) -> dict[str, jax.Array]:
    """Draws the parameters of a layer.

    Args:
        key: a `jax.random.key`.
        in_features: number of input channels.
        config: the layer's arguments.

    Returns:
        A dict with Keras's names and shapes, in `config.param_dtype`: `depthwise_kernel`
        `(kernel_size, in_features, depth_multiplier)`, `pointwise_kernel`
        `(1, in_features * depth_multiplier, filters)` and, with `use_bias`, `bias` `(filters,)`.

    Raises:
        ValueError: `in_features` is not positive, an initializer returned another shape, or `param_dtype` is
            float64 while JAX's 64-bit mode is off.
        TypeError: `in_features` is not an integer, or `config` not a config.

    Example:
        >>> import jax
        >>> import flax_sepconv as fsc
        >>> params = fsc.init_params(jax.random.key(0), 12, fsc.SeparableConv1DConfig(64, 3))
        >>> {name: value.shape for name, value in params.items()}
        {'depthwise_kernel': (3, 12, 1), 'pointwise_kernel': (1, 12, 64), 'bias': (64,)}
    """
    check_config(config)
    check_key("key", key)
    in_features = _validation.count("in_features", in_features)
    check_width("param_dtype", config.param_dtype)
    weights = config.weights(in_features)
    params = {}
    for weight, subkey in zip(weights, jax.random.split(key, len(weights)), strict=True):
        params[weight.name] = as_initial(_callables.drawn(weight, subkey, config), weight, config)
    return params


def depthwise_conv1d(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Size = 1,
    padding: Padding = "valid",
    dilation_rate: Size = 1,
    data_format: DataFormat = "channels_last",
    precision: lax.PrecisionLike = None,
    implementation: Implementation | None = None,
    lengths: ArrayLike | Sequence[int] | None = None,
    segment_ids: ArrayLike | Sequence[Any] | None = None,
) -> jax.Array:
    """Convolves each channel of `x` with its own `depth_multiplier` kernels.

    Args:
        x: `(*batch, length, channels)`, or `(*batch, channels, length)` for channels_first.
        kernel: `(kernel_size, channels, depth_multiplier)`.
        strides: step between windows, in samples.
        padding: `"valid"`, `"same"` or `"causal"`, in any case.
        dilation_rate: step between the samples of one window, in samples.
        data_format: `"channels_last"` or `"channels_first"`.
        precision: as in `SeparableConv1DConfig`.
        implementation: `"taps"`, `"fourier"` or `"lax"`, the definition; `None` lets the library choose.
        lengths: the number of samples in each sequence, as in `separable_conv1d`.
        segment_ids: the sequence of each sample in packed rows, as there.

    Returns:
        `(*batch, output_length, channels * depth_multiplier)`, or with the last two exchanged for
        channels_first, in the common dtype of `x` and `kernel`. Channel `c` under multiplier `m` is at
        `c * depth_multiplier + m`. float16 and bfloat16 accumulate in float32.

    Raises:
        ValueError: a value is refused, `x` and `kernel` have different channels, or the output would be empty.
        TypeError: an argument has a refused type.

    Example:
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> x = jnp.arange(5.0)[:, None]
        >>> fsc.depthwise_conv1d(x, jnp.ones((2, 1, 1)), padding="causal")[:, 0]
        Array([0., 1., 3., 5., 7.], dtype=float32)
    """
    kernel = as_real("kernel", kernel)
    if kernel.ndim != 3 or 0 in kernel.shape:
        raise ValueError(
            f"`kernel` must be (kernel_size, channels, depth_multiplier), none of them 0; got the shape {kernel.shape}."
        )
    # A config with as many filters as outputs, so that the layer's rules are stated once.
    size, channels, multiplier = kernel.shape
    config = SeparableConv1DConfig(
        channels * multiplier,
        size,
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        data_format=data_format,
        depth_multiplier=multiplier,
        precision=precision,
        implementation=implementation,
    )
    x = check_input(x, config)
    in_features = x.shape[config.channel_axis]
    if in_features != channels:
        raise ValueError(
            f"`kernel` must have as many channels as `x`, {in_features}; got the shape {kernel.shape}."
        )
    lengths, segment_ids = _ragged.check(x, config, lengths, segment_ids)
    dtype = _common_dtype(x, kernel)
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    part = _ragged.sequences(x, config, lengths, segment_ids)
    y = _kernels.depthwise(_one_batch_axis(part.x), kernel, **_step(part))
    return part.masked(y.reshape(*x.shape[:-2], *y.shape[-2:]))


def as_initial(value: Any, weight: Weight, config: SeparableConv1DConfig) -> jax.Array:
    """Returns an initializer's result in `param_dtype`; refuses a wrong one."""
    with contextlib.suppress(TypeError, ValueError):  # anything but an array is refused below
        value = jnp.asarray(value)
        value = value.astype(config.param_dtype) if value.dtype == bool else value
    _callables.check_result(weight.argument("initializer"), value, weight.shape)
    return value.astype(config.param_dtype)


def _common_dtype(*arrays):
    """Returns the dtype for `dtype=None` by Flax's rule: the arrays' common dtype, made floating."""
    dtype = jnp.result_type(*arrays)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else wide(dtype)


def _one_batch_axis(x) -> jax.Array:
    return x if x.ndim == 3 else x.reshape(-1, *x.shape[-2:])


def _step(part: _ragged.Sequences) -> dict[str, Any]:
    """Returns the arguments of the kernels other than arrays."""
    config = part.config
    return {
        "window": Window.over(part.x.shape[config.time_axis], **config.geometry),
        "channel_axis": config.channel_axis,
        "precision": config.precision,
        "implementation": config.implementation,
        "runs": part.runs,
    }
