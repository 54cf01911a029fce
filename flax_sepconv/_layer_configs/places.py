"""Turns calls of layers into configs by the path of the model's stored parameters, or refuses layers by name."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from flax_sepconv._layer_configs.origins import Call, Origin
from flax_sepconv._tree import StackedConfig, leaves_of
from flax_sepconv.config import SeparableConv1DConfig, Weight


class Stored(NamedTuple):
    """An array of a model: its path, the collection's name first where there are collections, and its shape."""

    path: tuple[str, ...]
    shape: tuple[int, ...]


def stored_in(tree) -> list[Stored]:
    """Lists what a tree of arrays or their shapes stores, in JAX's order."""
    leaves, _ = leaves_of(tree, "model")
    return [Stored(path, jnp.shape(leaf)) for path, leaf in leaves.items()]


def configs_of(
    calls: Sequence[Call], stored: Sequence[Stored], root: tuple[str, ...]
) -> dict[str, SeparableConv1DConfig]:
    """Returns the config of each layer that is called, by its path.

    Args:
        calls: the calls, with origins among `stored`.
        stored: the model's arrays.
        root: the start of the paths of its parameters, `("params",)` in Linen.

    Raises:
        ValueError: the layer computes with other weights than those that are stored, so a loss term, a constraint or
            freezing would not act on the layer's own.
    """
    found: dict[tuple[str, ...], tuple[SeparableConv1DConfig, Call]] = {}
    for call in calls:
        if not any(origin.inputs for origin in call.origins):
            continue  # constants: the model has no parameters for this layer
        layer = _layer_of(call, stored, root)
        config = _config_of(call, layer, stored, root)
        first, other = found.setdefault(layer, (config, call))
        if _attached(first, call.shapes) != _attached(config, other.shapes):
            raise ValueError(
                f"the weights at {_shown(layer, root)!r} are shared by layers that must agree on regularizers, "
                f"constraints and `trainable`; got {first} and {config}. Give both the same."
            )
    return {_shown(layer, root): config for layer, (config, _) in found.items()}


def in_order(configs: dict[str, SeparableConv1DConfig], stored: Sequence[Stored], root: tuple[str, ...] = ()):
    """Sorts configs by path into the order in which the parameters are stored."""
    order = dict.fromkeys(_shown(item.path[:-1], root) for item in stored)
    return {path: configs[path] for path in order if path in configs}


def _layer_of(call: Call, stored: Sequence[Stored], root: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the path under which a layer's weights are stored."""
    weights = call.config.weights(in_features=1)
    sources = [[stored[i].path for i in sorted(origin.inputs)] for origin in call.origins]
    candidates = {
        path[:-1]
        for weight, paths in zip(weights, sources, strict=True)
        for path in paths
        if path[: len(root)] == root and path[-1] == weight.name
    }
    paths = {item.path for item in stored}
    layers = [layer for layer in candidates if all((*layer, weight.name) in paths for weight in weights)]
    exact = {stored[i].path[:-1] for origin in call.origins if origin.axes is not None for i in origin.inputs}
    if len(layers) != 1 or not exact <= set(layers):
        raise ValueError(
            f"the weights of {call.config} must be stored as parameters of one layer, under their names; they come "
            f"from {sorted({'/'.join(path) for paths in sources for path in paths})}. Where a wrapper such as "
            "nn.map_variables stores them otherwise, remove it from this layer, or call `fsc.separable_conv1d`, which "
            "is not a layer, with the weights."
        )
    (layer,) = layers
    for weight, origin in zip(weights, call.origins, strict=True):
        if not _is_stored(origin, (*layer, weight.name), stored):
            refuse_computed(weight, call.config, _shown(layer, root), "nn.WeightNorm or nn.map_variables")
    return layer


def _is_stored(origin: Origin, path: tuple[str, ...], stored: Sequence[Stored]) -> bool:
    if origin.axes is None:
        return False
    own = [axis for axis in origin.axes if axis is not None]
    (i,) = origin.inputs
    return stored[i].path == path and len(own) == len(origin.axes) and own == sorted(own)


def refuse_computed(weight: Weight, config: SeparableConv1DConfig, path: str, wrapper: str) -> None:
    """Refuses a weight that is computed from the stored one, if anything would act on the stored one."""
    part = weight.name.removesuffix("_kernel")
    attached = {
        f"{part}_regularizer": config.trainable and weight.regularizer,
        f"{part}_constraint": config.trainable and weight.constraint,
        "trainable=False": not config.trainable,
    }
    names = " and ".join(f"`{name}`" for name, value in attached.items() if value)
    if names:
        raise ValueError(
            f"the layer at {path!r} has {names}, but does not compute with the `{weight.name}` that is stored: a "
            f"wrapper such as {wrapper} computes another one from it. Applied to the stored weight, {names} would mean "
            "something else. Remove it from this layer, or remove the wrapper."
        )


def _shown(layer: tuple[str, ...], root: tuple[str, ...]) -> str:
    return "/".join(layer[len(root) :])


def _attached(config: SeparableConv1DConfig, shapes) -> tuple:
    """Returns the settings that loss terms and optax transforms read from a config."""
    weights = [(w.name, w.regularizer, w.constraint) for w in config.weights(in_features=1)]
    return weights, config.trainable, getattr(config, "stack_axes", ()), shapes


def _config_of(call: Call, layer: tuple[str, ...], stored, root) -> SeparableConv1DConfig:
    """Returns the config of the layer, with the axes along which the call takes its weights out of a stack."""
    shapes = {item.path: item.shape for item in stored}
    arrays = [shapes[*layer, weight.name] for weight in call.config.weights(in_features=1)]
    single, many = list(call.shapes), list(arrays)
    own = [origin.axes for origin in call.origins if origin.axes is not None]
    if len(own) == len(call.origins):
        # Axes of weights are told apart by their place, not by their size alone.
        single = [tuple(enumerate(shape)) for shape in single]
        many = [
            tuple((axes.index(i) if i in axes else None, size) for i, size in enumerate(shape))
            for axes, shape in zip(own, many, strict=True)
        ]
    return stacked(call.config, ways_to_stack(single, many), arrays, _shown(layer, root))


def stacked(
    config: SeparableConv1DConfig, ways: list[tuple[int, ...]], shapes, path
) -> SeparableConv1DConfig:
    """Returns the config of a layer whose weights are stacked in one of `ways`.

    Raises:
        ValueError: there is none, or more than one.
    """
    if len(ways) != 1:
        raise ValueError(
            f"the weights at {path!r} must have the shapes of {config} or, where layers are stacked, one more axis for "
            f"each transform; got {shapes}, which {'no' if not ways else 'more than one'} choice of axes explains. "
            "Stack layers along axis 0, as nnx.vmap does by itself, or pass what the model is called with."
        )
    (axes,) = ways
    return StackedConfig(**vars(config), stack_axes=axes) if axes else config


def ways_to_stack(single: list[tuple], stacked: list[tuple]) -> list[tuple[int, ...]]:
    """Finds the axes, the innermost transform's first, that lead from one layer's shapes to the stacked ones.

    Ways that remove the same axes are one way. An axis of size 1 holds one layer wherever it is.
    """
    rank = max(map(len, stacked))
    ways = {}
    for axes in itertools.product([*range(rank), *range(-rank, 0)], repeat=len(stacked[0]) - len(single[0])):
        taken = [_taken(axes, one, many) for one, many in zip(single, stacked, strict=True)]
        sizes = {tuple(size for _, size in each) if each is not None else None for each in taken}
        if len(sizes) == 1 and None not in sizes:
            which = tuple(frozenset(place for place, size in each if size != 1) for each in taken if each)
            ways.setdefault(which, axes)
    return list(ways.values())


def _taken(axes: tuple[int, ...], single: tuple, stacked: tuple) -> list[tuple[int, int]] | None:
    """Returns the place and size of each axis that `axes` removes, or `None` if the result is not `single`."""
    left, taken = list(enumerate(stacked)), []
    for axis in reversed(axes):
        if not -len(left) <= axis < len(left):
            return None
        taken.append(left.pop(axis))
    return taken if tuple(size for _, size in left) == single else None
