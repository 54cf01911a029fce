"""Where the weights of our layers are in a tree of parameters, be it Linen's, NNX's or a plain dict.

Loss terms and optax transforms take `configs`: one config, or a mapping from a layer's path to its config.
Both come down to the same: for every leaf of the tree, whose weight it is, if any.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig, Weight

Configs: TypeAlias = SeparableConv1DConfig | Mapping[str, SeparableConv1DConfig]
"""One layer's config, or those of a model by the layers' paths, parts joined with `/`."""


@dataclasses.dataclass(frozen=True, repr=False)
class StackedConfig(SeparableConv1DConfig):
    """The config of a layer that a model holds several times in one array, as under `nn.scan`, `nn.vmap`, `nnx.vmap`.

    `layer_configs` makes these. `stack_axes` are the axes along which the layers' weights are stacked, in the
    order in which they were added: the innermost transform's first.
    """

    _: dataclasses.KW_ONLY
    stack_axes: tuple[int, ...] = ()


class Place(NamedTuple):
    """Whose weight a leaf is."""

    config: SeparableConv1DConfig
    weight: Weight

    def __call__(self, function: Callable, leaf, reduces: bool = False):
        """Applies `function` of one layer's weight to each layer of a stack by itself."""
        for axis in getattr(self.config, "stack_axes", ()):
            function = jax.vmap(function, in_axes=axis, out_axes=0 if reduces else axis)
        return function(leaf)


def weights_of(tree, configs: Configs, hole: type | tuple = ()) -> list[tuple[Any, Place | None]]:
    """Every leaf of `tree`, in JAX's order, with its place in a layer of `configs` if it has one.

    Args:
        tree: parameters, or anything of their structure.
        configs: which layers to look for.
        hole: a type that stands in `tree` where something was left out on purpose.

    Raises:
        ValueError: a weight of `configs` is not in the tree, nor left out, or has another rank.
        TypeError: `configs` is neither a config nor a mapping of them.
    """
    places = _places(configs)
    found, holes = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, hole)):
        names = _names(path)
        if isinstance(leaf, hole):
            holes.append(names)
            continue
        place = places.pop(names, None)
        if place is not None:
            _check_rank(names, leaf, place)
        found.append((leaf, place))
    for names, place in places.items():
        if not any(names[: len(start)] == start for start in holes):
            raise ValueError(
                f"`params` must hold {'/'.join(names)!r} for {place.config}; got none there. Pass one layer's own "
                "dict with its config, or a model's whole tree (Linen's `variables['params']`, or "
                "`nnx.state(model, nnx.Param)`) with the `layer_configs` of that model."
            )
    return found


def _places(configs: Configs) -> dict[tuple[str, ...], Place]:
    if isinstance(configs, SeparableConv1DConfig):
        configs = {"": configs}
    if not isinstance(configs, Mapping):
        raise TypeError(
            f"`configs` must be a SeparableConv1DConfig or a mapping of them; got {shown(configs)}."
        )
    places = {}
    for path, config in configs.items():
        if not isinstance(path, str) or not isinstance(config, SeparableConv1DConfig):
            raise TypeError(
                f"`configs` must map paths like 'block/conv' to SeparableConv1DConfigs; got {path!r}: {shown(config)}."
            )
        layer = tuple(path.split("/")) if path else ()
        # Names and ranks do not depend on the number of input channels.
        places |= {(*layer, weight.name): Place(config, weight) for weight in config.weights(in_features=1)}
    return places


def _names(path) -> tuple[str, ...]:
    """A leaf's path as strings, less the last step into a box that Flax keeps metadata in."""
    names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    boxed = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value"
    return tuple(names[:-1] if boxed else names)


def _check_rank(names, leaf, place: Place) -> None:
    stack_axes = getattr(place.config, "stack_axes", ())
    if jnp.ndim(leaf) != len(place.weight.shape) + len(stack_axes):
        raise ValueError(
            f"`params` must hold {'/'.join(names)!r} with {len(place.weight.shape)} axes, and one more for each of "
            f"stack_axes={stack_axes}; got the shape {jnp.shape(leaf)}. For layers stacked by nn.scan, nn.vmap or "
            "nnx.vmap take the configs from `layer_configs`; for an ensemble, `jax.vmap` the call."
        )
