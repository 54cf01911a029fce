"""Constraints and freezing as optax transforms: the last links of a chain.

    optimizer = fsc.constrained(optax.adamw(1e-3), configs)

which is

    optimizer = optax.chain(optax.adamw(1e-3), fsc.constrain(configs), fsc.freeze(configs))

Keras projects a weight after the optimizer has changed it. optax adds updates to parameters, so an update is
replaced by one that leads to the projection of the weight that the optimizer would have reached.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flax_sepconv import constraints
from flax_sepconv._callables import projection, try_constraint
from flax_sepconv._messages import shown
from flax_sepconv._tree import Configs, Path, Place, leaves_of, places_of, updates_of, weights_of


def constrain(configs: Configs) -> optax.GradientTransformationExtraArgs:
    """Keeps the weights within their `*_constraint`s, as Keras does after every update.

    Put it last in a chain, or just before `freeze`: it has to see the updates as they will be added. After
    `optax.apply_updates`, each constrained weight is the projection of the unconstrained step, exactly for
    `NonNeg` and up to rounding otherwise. Weights of layers with `trainable=False` are left alone, as in Keras,
    and each layer of a stack is projected by itself.

    Args:
        configs: one config if the parameters are that layer's own dict, or the mapping that `layer_configs` returns
            if they are the model's tree.

    Returns:
        A transform without state, whose `update` needs `params`.

    Raises:
        ValueError: on `init` or `update`, if the parameters are not those of `configs` or a constraint returns another
            shape; on `update`, if there are no parameters, or the updates do not match them.
        TypeError: `configs` is neither a config nor a mapping of them.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(2, 1, pointwise_constraint="non_neg", use_bias=False)
        >>> params = {"depthwise_kernel": jnp.ones((1, 1, 1)), "pointwise_kernel": jnp.array([[[1.0, 3.0]]])}
        >>> optimizer = optax.chain(optax.sgd(2.0), fsc.constrain(config))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)["pointwise_kernel"]
        Array([[[0., 0.]]], dtype=float32)
    """

    places = places_of(configs)

    def init(params):
        for path, leaf in _check_params(params, places).items():
            constraint = places[path].weight.constraint if path in places else None
            if not (constraint is None or isinstance(constraint, constraints.Constraint)):
                try_constraint(functools.partial(_projected, places[path]), leaf)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _require(params)
        weights = weights_of(params, places, hole=optax.MaskedNode)
        leaves = [
            _constrained(leaf, weights[path], places[path]) if path in places else leaf
            for path, leaf in updates_of(updates, weights, hole=optax.MaskedNode).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def freeze(configs: Configs) -> optax.GradientTransformationExtraArgs:
    """Gives zero updates to the weights of every layer with `trainable=False`.

    Put it last in a chain: momentum, weight decay or anything else before it then no longer moves those weights.

    Args:
        configs: one config or the mapping that `layer_configs` returns, as for `constrain`.

    Returns:
        A transform without state of its own.

    Raises:
        ValueError: on `init` or `update`, if the parameters lack a layer of `configs`.

    Example:
        >>> import jax
        >>> import optax
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(2, 3, trainable=False)
        >>> params = fsc.init_params(jax.random.key(0), 4, config)
        >>> optimizer = optax.chain(optax.adamw(1.0), fsc.freeze(config))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optax.tree.norm(updates)
        Array(0., dtype=float32)
    """

    places = places_of(configs)

    def frozen(tree):
        paths, _ = leaves_of(tree, hole=optax.MaskedNode)
        mask = [path in places and not places[path].config.trainable for path in paths]
        return jax.tree.unflatten(jax.tree.structure(tree), mask)

    zeros = optax.masked(optax.set_to_zero(), frozen)

    def init(params):
        _check_params(params, places)
        return zeros.init(params)

    def update(updates, state, params=None, **extra_args):
        if params is None:
            weights_of(updates, places, "updates", hole=optax.MaskedNode)
        else:
            updates_of(updates, weights_of(params, places, hole=optax.MaskedNode), hole=optax.MaskedNode)
        return zeros.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def constrained(
    optimizer: optax.GradientTransformation, configs: Configs
) -> optax.GradientTransformationExtraArgs:
    """Adds the layers' constraints and freezing to an optimizer, in the right order.

    It is `optax.chain(optimizer, constrain(configs), freeze(configs))`: weights are projected after everything else has
    changed the updates, as in Keras, and nothing moves the weights of layers with `trainable=False`. Anything else that
    changes updates, such as weight decay or clipping, belongs in `optimizer`.

    Args:
        optimizer: any optax transform. Around an `optax.MultiSteps`, weights are projected at every batch, as in Keras;
            `optax.MultiSteps(constrained(...), k)` projects at full steps only.
        configs: one config if the parameters are that layer's own dict, or the mapping that `layer_configs` returns if
            they are the model's tree.

    Returns:
        A transform whose `update` needs `params`; the state of `optimizer` is the first entry of its state.

    Raises:
        ValueError: on `init` or `update`, for whatever `constrain` refuses.
        TypeError: `optimizer` is not an optax transform, or `configs` neither a config nor a mapping of them.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import flax_sepconv as fsc
        >>> config = fsc.SeparableConv1DConfig(2, 3, pointwise_constraint=fsc.constraints.UnitNorm(axis=1))
        >>> params = fsc.init_params(jax.random.key(0), 4, config)
        >>> optimizer = fsc.constrained(optax.adamw(1e-3), config)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> jnp.linalg.norm(optax.apply_updates(params, updates)["pointwise_kernel"], axis=1).round(3)
        Array([[1., 1.]], dtype=float32)
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "`optimizer` must be an optax transform such as `optax.adam(1e-3)`; `nnx.Optimizer` and `TrainState` take "
            f"what this returns. Got {shown(optimizer)}."
        )
    places = places_of(configs)
    chain = optax.chain(optimizer, constrain(configs), freeze(configs))

    def update(updates, state, params=None, **extra_args):
        # The optimizer's own error about wrong updates would not name them.
        _require(params)
        weights = weights_of(params, places, hole=optax.MaskedNode)
        updates_of(updates, weights, hole=optax.MaskedNode, batched=True)
        return chain.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chain.init, update)


def _require(params) -> None:
    if params is None:
        raise ValueError("`constrain` needs `params`: call optimizer.update(grads, state, params); got None.")


def _check_params(params, places: Mapping[Path, Place]) -> dict[Path, Any]:
    # `optax.tree_map_params` passes this to `init` in place of parameters, to find their likes in a state.
    if type(params).__name__ == "_ParamsPlaceholder":
        return {}
    return weights_of(params, places, hole=optax.MaskedNode)


def _projected(place: Place, w: Any) -> Any:
    argument, constraint = place.weight.argument("constraint"), place.weight.constraint
    return place(lambda w: w if constraint is None else projection(argument, constraint, w), w)


def _constrained(update, param, place: Place):
    if place.weight.constraint is None or not place.config.trainable:
        return update
    # What `optax.apply_updates` would give, with the same rounding.
    target = (param + update).astype(param.dtype)
    projected = _projected(place, target)
    # An entry that the projection does not change keeps its update, so that `param + update` is exact to the last bit.
    wide = jnp.promote_types(param.dtype, update.dtype)
    step = projected.astype(wide) - param.astype(wide)
    return jnp.where(projected == target, update, step).astype(update.dtype)
