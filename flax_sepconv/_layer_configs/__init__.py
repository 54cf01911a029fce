"""The configs of every layer of ours in a Linen or NNX model.

A Linen model is initialized abstractly; each layer marks its parameters with its config.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from flax import struct
from flax.core import meta

from flax_sepconv._tree import StackedConfig
from flax_sepconv.config import SeparableConv1DConfig


def layer_configs(model, *args, **kwargs) -> dict[str, SeparableConv1DConfig]:
    """Finds every `SeparableConv1D` in a Linen or NNX model, without running the model.

    Args:
        model: any Linen module: layers may be nested, shared, made in `setup` or in a compact method, and under
            `nn.scan`, `nn.vmap`, `nn.remat` or `nn.jit`. Or any NNX module: layers may be nested, shared, in lists
            and dicts, and stacked by `nnx.vmap`.
        *args: what a Linen model's `init` takes after its key; arrays may be `jax.ShapeDtypeStruct`s. An NNX model
            has its parameters already and takes nothing here.
        **kwargs: likewise, by name.

    Returns:
        The config of each layer that has parameters, by the layer's path in `variables["params"]` or
        `nnx.state(model)`, parts joined with `/`; `""` for a model that is itself such a layer. The config of layers
        stacked by `nn.scan`, `nn.vmap` or `nnx.vmap` also says along which axes (`stack_axes`).

    Raises:
        TypeError: `model` is neither, or an NNX model with more arguments.
        ValueError: the weights of an NNX model are stacked in a way that their shapes do not tell.

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
        # Whoever has such a model has waited for flax.nnx already; everybody else shall not.
        from flax_sepconv._layer_configs.nnx import layer_configs_of_nnx

        configs = layer_configs_of_nnx(model)
        if args or kwargs:
            raise TypeError("`layer_configs` takes an NNX model alone; got more arguments. Leave them out.")
        return configs
    # Only arrays are abstract; a flag such as `train=False` has to stay one.
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")}

    def init(arrays):
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model.init(jax.random.key(0), *args, **kwargs)

    with _probing(True):
        variables = jax.eval_shape(init, arrays)
    marks = jax.tree_util.tree_leaves_with_path(
        variables.get("params", {}), is_leaf=lambda leaf: isinstance(leaf, _Mark)
    )
    configs = {}
    for path, mark in marks:
        if isinstance(mark, _Mark):
            configs["/".join(step.key for step in path[:-1])] = mark.stacked()
    return configs


# `layer_configs` initializes the model abstractly while this is set, and each layer marks its parameters with its
# config. The marks travel to the result by the same way as the parameters, so their place in the tree and the axes
# that transforms add are right by construction. A user context is part of jit's cache key: a model that was traced
# before under `nn.jit` is traced again.
_probing = jax.make_user_context(False)


class _Mark(struct.PyTreeNode, meta.AxisMetadata):
    """A parameter that says which layer it is of, and which axes were added around it."""

    value: Any
    config: SeparableConv1DConfig = struct.field(pytree_node=False)
    stack_axes: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index, params):
        return self.replace(stack_axes=(*self.stack_axes, index))

    def remove_axis(self, index, params):
        return self.replace(stack_axes=self.stack_axes[:-1])

    def stacked(self) -> SeparableConv1DConfig:
        if not self.stack_axes:
            return self.config
        arguments = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        return StackedConfig(**arguments, stack_axes=self.stack_axes)


def marked(drawn, config: SeparableConv1DConfig):
    """A parameter as a layer draws it, with the layer's config while `layer_configs` looks for it."""
    return _Mark(drawn, config) if _probing.value else drawn
