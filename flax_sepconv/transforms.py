"""Constraints and freezing as optax transforms: the last links of a chain.

    optimizer = optax.chain(optax.adamw(1e-3), fsc.constrain(configs), fsc.freeze(configs))

Keras projects a weight after the optimizer has changed it. optax adds updates to parameters, so the update is
replaced by the one that leads to the projection of where the optimizer would have gone.
"""

import jax
import jax.numpy as jnp
import optax

from flax_sepconv._tree import Configs, Place, weights_of


def constrain(configs: Configs) -> optax.GradientTransformationExtraArgs:
    """Keeps the weights within their `*_constraint`s, as Keras does after every update.

    Put it last in a chain, or last but for `freeze`: it has to see the updates as they will be added. After
    `optax.apply_updates` each constrained weight is the projection of the unconstrained step, exactly for
    `NonNeg` and to rounding otherwise. Weights of layers with `trainable=False` are left alone, as in Keras,
    and each layer of a stack is projected by itself.

    Args:
        configs: one config, when the parameters are that layer's own dict, or the mapping that
            `layer_configs` returns, when they are the model's tree.

    Returns:
        A transform without state, whose `update` needs `params`.

    Raises:
        ValueError: on `init` or `update`, if the parameters lack a layer of `configs`; on `update`, if it
            gets no parameters or a constraint returns another shape.

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

    def init(params):
        weights_of(params, configs, hole=optax.MaskedNode)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "`constrain` needs `params`: call optimizer.update(grads, state, params); got None."
            )
        leaves = [
            u if place is None else _constrained(u, p, place)
            for (p, place), u in zip(
                weights_of(params, configs, hole=optax.MaskedNode), jax.tree.leaves(updates), strict=True
            )
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def freeze(configs: Configs) -> optax.GradientTransformationExtraArgs:
    """Gives zero updates to the weights of every layer with `trainable=False`.

    Put it last in a chain: whatever stands before it (momentum, weight decay) no longer moves those weights.

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

    def frozen(tree):
        places = [place for _, place in weights_of(tree, configs, hole=optax.MaskedNode)]
        mask = [place is not None and not place.config.trainable for place in places]
        return jax.tree.unflatten(jax.tree.structure(tree), mask)

    return optax.with_extra_args_support(optax.masked(optax.set_to_zero(), frozen))


def _constrained(update, param, place: Place):
    constraint = place.weight.constraint
    if constraint is None or not place.config.trainable:
        return update
    # Where `optax.apply_updates` would go, rounded as it rounds.
    target = (param + update).astype(param.dtype)
    projected = place(constraint, target)
    if projected.shape != target.shape:
        raise ValueError(
            f"the constraint of `{place.weight.name}` must keep the shape {target.shape}; got {projected.shape}."
        )
    # An entry that is where it should be keeps its update, so that `param + update` is it to the last bit.
    wide = jnp.promote_types(param.dtype, update.dtype)
    step = projected.astype(wide) - param.astype(wide)
    return jnp.where(projected == target, update, step).astype(update.dtype)
