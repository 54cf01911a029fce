"""Finds the config of every `SeparableConv1D` in a Linen or NNX model.

A call of the model is traced, and no array is computed. Each layer notes in the program that it was called, with its
config and weights (`calls`). Following the model's parameters through the program shows which of them those weights are
(`origins`), and so the path of the config, or that no config would be right (`places`).
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
from flax import core

from flax_sepconv._layer_configs.origins import calls, of_arrays
from flax_sepconv._layer_configs.places import Stored, configs_of, in_order, stored_in
from flax_sepconv.config import SeparableConv1DConfig


def layer_configs(model: Any, *args: Any, **kwargs: Any) -> dict[str, SeparableConv1DConfig]:
    """Finds every `SeparableConv1D` in a Linen or NNX model, without running the model.

    Args:
        model: any Linen or NNX module, or a list or dict of NNX modules. Layers may be nested, shared, stacked, under
            any transform of `flax.linen` or `flax.nnx`, and across `flax.nnx.bridge`.
        *args: what the model is called with; arrays may be `jax.ShapeDtypeStruct`s. An NNX model is read without a
            call, unless a Linen module (`nnx.bridge.ToNNX`) has layers within, or layers are stacked in a way that
            their shapes do not tell.
        **kwargs: the same, by name; `method` names a method of a Linen module other than `__call__`.

    Returns:
        The config of each layer that has parameters, by the layer's path in `variables["params"]` or
        `nnx.state(model)`, with parts joined by `/`; `""` for a model that is itself such a layer. The config of layers
        stacked by `nn.scan`, `nn.vmap` or `nnx.vmap` also says along which axes (`stack_axes`).

    Raises:
        TypeError: `model` is neither a Linen nor an NNX model, or the arguments are not those of its call.
        ValueError: no config would be right. A wrapper (`nn.WeightNorm`, `nn.map_variables`) computes a weight from
            what is stored, and the layer has a regularizer or constraint for that weight or `trainable=False`; weights
            are stored under other names; layers that share weights do not agree; or only a call could tell.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import flax.linen as nn
        >>> import flax_sepconv as fsc
        >>> model = nn.Sequential([fsc.SeparableConv1D(8, 3), nn.relu, fsc.SeparableConv1D(4, 5)])
        >>> for path, config in fsc.layer_configs(model, jnp.ones((1, 20, 3))).items():
        ...     print(path, config)
        layers_0 SeparableConv1DConfig(filters=8, kernel_size=3, name='layers_0')
        layers_2 SeparableConv1DConfig(filters=4, kernel_size=5, name='layers_2')
    """
    if not isinstance(model, nn.Module):
        # flax.nnx is slow to import. Whoever has an NNX model has imported it already.
        from flax_sepconv._layer_configs.nnx import is_functional, layer_configs_of_nnx

        if not is_functional(model):
            return layer_configs_of_nnx(model, args, kwargs)
    _check_arguments(model, args, kwargs)
    # Linen modules fall back on "params"; NNX modules within them fall back on "default", which few transforms pass on.
    rngs = dict.fromkeys(("params", "dropout", "default"), jax.random.key(0))
    variables = jax.eval_shape(*of_arrays(functools.partial(model.init, rngs), args, kwargs))
    stored = stored_in(variables)
    # Models take mutable parameters to be missing still, and mutable losses would be computed for nothing.
    mutable = [name for name in variables if name not in ("params", "losses", "intermediates")]
    found = calls(functools.partial(model.apply, rngs=rngs, mutable=mutable), variables, args, kwargs)
    if isinstance(model, nn.Module) and (_holders(stored) - set(configs_of(found, stored, root=("params",)))):
        found += calls(functools.partial(_initialize, model, rngs), variables, args, kwargs)
    configs = configs_of(found, stored, root=("params",))
    return in_order(configs, stored, root=("params",))


def _holders(stored: list[Stored]) -> set[str]:
    """Returns the paths that hold a weight with a name that only this layer has."""
    return {
        "/".join(item.path[1:-1])
        for item in stored
        if item.path[0] == "params" and item.path[-1] == "pointwise_kernel"
    }


def _initialize(model: nn.Module, rngs, variables, *args, method=None, **kwargs):
    """Calls a model as `init` does, but with its variables: some layers are called by `init` only."""

    def call(scope):
        module = model.clone(parent=scope)
        if callable(method):
            return method(module, *args, **kwargs)
        return getattr(module, method or "__call__")(*args, **kwargs)

    return core.apply(call, mutable=core.DenyList("intermediates"), flags={"initializing": True})(
        variables, rngs=rngs
    )


def _check_arguments(model, args, kwargs) -> None:
    if "method" in kwargs:
        return
    try:
        inspect.signature(model.__call__).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"`layer_configs` takes after the model what {type(model).__name__} is called with: {error}."
        ) from None
