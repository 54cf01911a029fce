"""The loss terms of a model, which its regularizers add to the data loss, as functions of arrays.

Keras collects these terms in `layer.losses`; here they are added explicitly:

    loss = data_loss + fsc.regularization_loss(params, configs) + fsc.activity_loss(y, config)
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flax_sepconv._callables import penalty
from flax_sepconv._tree import Configs, places_of, weights_of
from flax_sepconv._validation import as_real
from flax_sepconv.config import SeparableConv1DConfig, check_config


def regularization_loss(params: Any, configs: Configs) -> jax.Array:
    """Sums the weight terms of one layer or of a whole model.

    Args:
        params: the layer's own dict or, with a mapping, the model's tree of parameters: Linen's
            `variables["params"]`, or `nnx.state(model, nnx.Param)`.
        configs: one config, or the mapping that `layer_configs` returns.

    Returns:
        A scalar, in float32 or wider: the sum of every `*_regularizer` applied to its weight, and to each layer of a
        stack by itself. Layers with `trainable=False` add nothing.

    Raises:
        ValueError: `params` lacks a layer of `configs`, or a weight does not have its layer's shape.
        TypeError: a weight is not an array of real numbers, or `configs` neither a config nor a mapping of them.

    Example:
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(2, 3, depthwise_regularizer="l1", use_bias=False)
        >>> params = {"depthwise_kernel": jnp.ones((3, 1, 1)), "pointwise_kernel": jnp.ones((1, 1, 2))}
        >>> fsc.regularization_loss(params, config)
        Array(0.03, dtype=float32)
    """
    total = jnp.zeros((), jnp.float32)
    places = places_of(configs)
    leaves = weights_of(params, places)
    for path, place in places.items():
        if place.config.trainable and place.weight.regularizer is not None:
            term = functools.partial(penalty, place.weight.argument("regularizer"), place.weight.regularizer)
            total += jnp.sum(place(term, as_real(f"params[{place.path!r}]", leaves[path]), reduces=True))
    return total


def activity_loss(y: ArrayLike, config: SeparableConv1DConfig) -> jax.Array:
    """Computes the output's loss term: `activity_regularizer(y)`, divided by the number of sequences in the batch.

    Args:
        y: the layer's output, `(*batch, length, filters)` or `(*batch, filters, length)`. If it was computed with
            `lengths`, the regularizer sees the zeros beyond them too.
        config: the layer's arguments.

    Returns:
        A scalar, in float32 or wider; 0 without `activity_regularizer`.

    Raises:
        ValueError: `y` has fewer than two axes.
        TypeError: `y` is not an array of real numbers, or `config` not one layer's config.

    Example:
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(2, 3, activity_regularizer=fsc.regularizers.L2(0.5))
        >>> fsc.activity_loss(jnp.ones((8, 10, 2)), config)
        Array(10., dtype=float32)
    """
    check_config(config)
    y = jnp.asarray(as_real("y", y))
    if len(y.shape) < 2:
        raise ValueError(
            f"`y` must have at least a length and filters, as an output has; got the shape {y.shape}."
        )
    if config.activity_regularizer is None:
        return jnp.zeros((), jnp.float32)
    return penalty("activity_regularizer", config.activity_regularizer, y) / max(math.prod(y.shape[:-2]), 1)


def store_losses(
    sow: Callable[..., Any], params: Mapping[str, Any], y: ArrayLike, config: SeparableConv1DConfig
) -> None:
    """Stores the terms that Keras's `layer.losses` would hold after a call.

    Args:
        sow: Flax's `Module.sow` without its first argument: `sow(name, term, reduce_fn, init_fn)`. A weight's term is
            stored under the weight's name and replaces an earlier one; the output's term is added to `"activity"`.
        params: the layer's parameters.
        y: the layer's output.
        config: the layer's arguments.
    """
    for weight in config.weights(in_features=1):  # names do not depend on the number of channels
        if config.trainable and weight.regularizer is not None:
            term = penalty(weight.argument("regularizer"), weight.regularizer, params[weight.name])
            sow(weight.name, term, lambda _, new: new, lambda: None)
    if config.activity_regularizer is not None:
        sow("activity", activity_loss(y, config))
