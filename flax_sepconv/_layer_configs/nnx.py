"""The configs of an NNX model's layers, read from its graph."""

import itertools

from flax import nnx

from flax_sepconv._messages import shown
from flax_sepconv._tree import StackedConfig
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.nnx import SeparableConv1D


def layer_configs_of_nnx(model) -> dict[str, SeparableConv1DConfig]:
    """What `layer_configs` returns for an NNX model."""
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be a flax.linen or flax.nnx module; got {shown(model)}.")
    return {
        "/".join(map(str, path)): _stacked(layer, "/".join(map(str, path)))
        for path, layer in nnx.iter_graph(model)
        if isinstance(layer, SeparableConv1D)
    }


def _stacked(layer: SeparableConv1D, path: str) -> SeparableConv1DConfig:
    config = layer.config
    weights = config.weights(layer.in_features)
    shapes = {weight.name: tuple(getattr(layer, weight.name).shape) for weight in weights}
    ways = _ways_to_stack([weight.shape for weight in weights], list(shapes.values()))
    if len(ways) != 1:
        raise ValueError(
            f"the weights at {path!r} must have the shapes of {config} or, where layers are stacked, one more axis for "
            f"each transform; got {shapes}, which {'no' if not ways else 'more than one'} choice of axes explains. "
            "Stack layers along axis 0, as nnx.vmap does by itself."
        )
    (axes,) = ways
    return StackedConfig(**vars(config), stack_axes=axes) if axes else config


def _ways_to_stack(single: list[tuple], stacked: list[tuple]) -> list[tuple[int, ...]]:
    """Which axes, the innermost transform's first, give stacked weights' shapes from those of one layer's.

    Ways that take the same axes away are one way. An axis of size 1 holds one layer wherever it is.
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
    """Place and size of each axis of `stacked` that `axes` takes away, or `None` if that does not give `single`."""
    left, taken = list(enumerate(stacked)), []
    for axis in reversed(axes):
        if not -len(left) <= axis < len(left):
            return None
        taken.append(left.pop(axis))
    return taken if tuple(size for _, size in left) == single else None
