"""Finds the weights of this library's layers in a tree of parameters, be it Linen's, NNX's or a plain dict.

Loss terms and optax transforms take `configs`: one config, or a mapping from a layer's path to its config.
Both say for every leaf of the tree which layer's weight it is, if any.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.core import Tracer

from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig, Weight, check_config

Configs: TypeAlias = SeparableConv1DConfig | Mapping[str, SeparableConv1DConfig]
"""One layer's config, or a model's configs by the layers' paths, with parts joined by `/`."""


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class StackedConfig(SeparableConv1DConfig):
    """The config of layers whose weights are stacked in one array, as `nn.scan`, `nn.vmap` and `nnx.vmap` do.

    `layer_configs` makes these. `stack_axes` are the axes along which the layers' weights are stacked, in an order in
    which `jax.vmap` may add them: the innermost first.
    """

    _: dataclasses.KW_ONLY
    stack_axes: tuple[int, ...]

    def __init__(self, *args: Any, stack_axes: tuple[int, ...] = (), **kwargs: Any):
        object.__setattr__(self, "stack_axes", tuple(stack_axes))
        super().__init__(*args, **kwargs)


Path: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]


class Place(NamedTuple):
    """The layer and the weight that a leaf is."""

    config: SeparableConv1DConfig
    weight: Weight
    layer: Path

    @property
    def path(self) -> str:
        """The weight's path, for messages."""
        return "/".join((*self.layer, self.weight.name))

    @property
    def stack_axes(self) -> tuple[int, ...]:
        """The axes that transforms added, as `StackedConfig` has them."""
        return getattr(self.config, "stack_axes", ())

    def __call__(self, function: Callable, leaf, reduces: bool = False):
        """Applies a function of one layer's weight to each layer of a stack by itself."""
        for axis in self.stack_axes:
            function = jax.vmap(function, in_axes=axis, out_axes=0 if reduces else axis)
        return function(leaf)


def places_of(configs: Configs) -> dict[Path, Place]:
    """Lists every weight of the layers in `configs` by its path.

    Raises:
        TypeError: `configs` is neither a config nor a mapping of them.
    """
    if isinstance(configs, SeparableConv1DConfig | Tracer):
        check_config(configs, "configs")
        configs = {"": configs}
    if not isinstance(configs, Mapping):
        raise TypeError(
            f"`configs` must be a SeparableConv1DConfig or a mapping of them, as `layer_configs` returns; got "
            f"{shown(configs)}."
        )
    found = {}
    for path, config in configs.items():
        if isinstance(config, Tracer):
            raise TypeError(
                "`configs` is static, and a jitted function got it as arrays. Close over it, as `jax.jit(lambda "
                "params: fsc.regularization_loss(params, configs))` does: a mapping cannot be in static_argnames."
            )
        if not isinstance(path, str) or not isinstance(config, SeparableConv1DConfig):
            raise TypeError(
                f"`configs` must map paths like 'block/conv' to SeparableConv1DConfigs; got {path!r}: {shown(config)}."
            )
        layer = _steps(path)
        # Names and ranks do not depend on the number of input channels.
        found |= {
            (*layer, weight.name): Place(config, weight, layer) for weight in config.weights(in_features=1)
        }
    return found


def leaves_of(tree, argument: str = "params", hole: type | tuple = ()) -> tuple[dict[Path, Any], list[Path]]:
    """Lists every leaf of `tree` by its path, in JAX's order, and the paths of what was left out on purpose.

    A key may join several steps by `/` or be a tuple of them: nested and flat trees have the same paths.

    Args:
        tree: parameters, or anything of their structure.
        argument: what messages call it.
        hole: a type that stands in `tree` where something was left out.

    Raises:
        ValueError: two leaves have the same path.
    """
    leaves, holes = {}, []
    for steps, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, hole)):
        path = _path(steps)
        if isinstance(leaf, hole):
            holes.append(path)
        elif path in leaves:
            raise ValueError(
                f"`{argument}` must hold {'/'.join(path)!r} once; got it nested and under a joined key. Use one form."
            )
        else:
            leaves[path] = leaf
    return leaves, holes


def weights_of(
    tree, places: Mapping[Path, Place], argument: str = "params", hole: type | tuple = ()
) -> dict[Path, Any]:
    """Lists every leaf of `tree` by its path, in JAX's order, after checking that it holds the weights of `places`.

    Args:
        tree: parameters, or anything of their structure.
        places: which weights to look for.
        argument: what messages call the tree.
        hole: a type that stands in `tree` where something was left out on purpose.

    Raises:
        ValueError: a weight is neither in the tree nor left out, or has another shape.
    """
    leaves, holes = leaves_of(tree, argument, hole)
    layers: dict[Path, list[tuple[Place, Shape]]] = {}
    for path, place in places.items():
        if path in leaves:
            layers.setdefault(place.layer, []).append((place, _shape(leaves[path])))
        elif not _within(holes, path):
            raise ValueError(
                f"`{argument}` must hold {place.path!r} for {place.config}; got none there. Pass one layer's own "
                "dict with its config, or a model's whole tree (Linen's `variables['params']`, or "
                "`nnx.state(model, nnx.Param)`) with the `layer_configs` of that model."
            )
    for weights in layers.values():
        _check_layer(argument, weights)
    return leaves


def updates_of(
    updates, params: Mapping[Path, Any], hole: type | tuple = (), batched: bool = False
) -> dict[Path, Any]:
    """Lists every leaf of `updates` by its path, in JAX's order, after checking that they match `params`.

    Args:
        updates: what is to be added to parameters, or their gradients.
        params: the parameters by their paths.
        hole: as in `leaves_of`.
        batched: whether gradients of many examples will do, which have more axes in front.

    Raises:
        ValueError: the paths or the shapes differ.
    """
    leaves, holes = leaves_of(updates, "updates", hole)
    advice = "Pass the gradients with respect to these parameters."
    for path in [*leaves, *params]:
        if path not in params or not (path in leaves or _within(holes, path)):
            lacking, having = ("updates", "params") if path in params else ("params", "updates")
            raise ValueError(
                f"`updates` must have the structure of `params`; got {'/'.join(path)!r} in `{having}` and none in "
                f"`{lacking}`. {advice}"
            )
    for path, leaf in leaves.items():
        wanted, got = _shape(params[path]), _shape(leaf)
        if (got[max(len(got) - len(wanted), 0) :] if batched else got) != wanted:
            raise ValueError(
                f"`updates` must hold {'/'.join(path)!r} of the shape {wanted}, as `params` do; got {got}. {advice}"
            )
    return leaves


def _steps(key: str) -> Path:
    return tuple(key.split("/")) if key else ()


def _path(steps) -> Path:
    """Returns a leaf's path as strings, without the last step into a box in which Flax keeps metadata."""
    keys = [getattr(step, "key", getattr(step, "name", getattr(step, "idx", step))) for step in steps]
    if steps and isinstance(steps[-1], jax.tree_util.GetAttrKey) and keys[-1] == "value":
        keys.pop()
    parts = itertools.chain.from_iterable(key if isinstance(key, tuple) else (key,) for key in keys)
    return tuple(itertools.chain.from_iterable(_steps(str(part)) for part in parts))


def _within(holes: list[Path], path: Path) -> bool:
    return any(path[: len(hole)] == hole for hole in holes)


def _shape(leaf) -> Shape:
    return tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)


def _check_layer(argument: str, weights: list[tuple[Place, Shape]]) -> None:
    """Refuses the weights of one layer if they do not fit its config or one another."""
    for place, shape in weights:
        if len(shape) != len(place.weight.shape) + len(place.stack_axes):
            raise ValueError(
                f"`{argument}` must hold {place.path!r} with {len(place.weight.shape)} axes, and one more for each of "
                f"stack_axes={place.stack_axes}; got the shape {shape}. For layers stacked by nn.scan, nn.vmap or "
                "nnx.vmap take the configs from `layer_configs`; for an ensemble, `jax.vmap` the call."
            )
    config = weights[0][0].config
    single = {place.weight.name: _unstacked(shape, place.stack_axes) for place, shape in weights}
    channels = {name: shape[1] for name, (shape, _) in single.items() if len(shape) == 3}
    in_features = (
        channels.get("depthwise_kernel") or channels.get("pointwise_kernel", 1) // config.depth_multiplier
    )
    wanted = {weight.name: weight.shape for weight in config.weights(in_features or 1)}
    (_, stack), *_ = single.values()
    for place, shape in weights:
        name = place.weight.name
        if single[name] != (wanted[name], stack):
            many = f", {stack} times along stack_axes={place.stack_axes}" if stack else ""
            raise ValueError(
                f"`{argument}` must hold {place.path!r} of the shape {wanted[name]}{many}, for {config}; got {shape}. "
                "Pass the parameters of that layer."
            )


def _unstacked(shape: Shape, axes: tuple[int, ...]) -> tuple[Shape, tuple[int, ...]]:
    """Splits the shape of stacked weights into one layer's shape and the number of layers along each axis."""
    left = list(shape)
    sizes = [left.pop(axis) for axis in reversed(axes)]
    return tuple(left), tuple(sizes)
