"""Converts Keras layers' weights to the names and shapes of Flax layers, and back.

    to_flax({path: KerasLayer}) ─► {"params": {...}, "batch_stats": {...}}
    from_flax({path: KerasLayer}, variables) ─► {path: weights under Keras's names}

| Keras | Flax | weights that differ by more than their name |
| --- | --- | --- |
| Dense, Conv1D | `Dense`, `Conv` | |
| Conv1DTranspose | `ConvTranspose(transpose_kernel=True)` | |
| DepthwiseConv1D | `Conv(feature_group_count=channels)` | `(K, C, M)` becomes `(K, 1, C * M)` |
| SeparableConv1D | `flax_sepconv.SeparableConv1D` | |
| Embedding | `Embed` | |
| BatchNormalization | `BatchNorm` | for several axes, without the axes of size 1 between them |
| LayerNormalization, GroupNormalization | `LayerNorm`, `GroupNorm` | |

So a weight is renamed and reshaped, never transposed, and the way back only needs the shape that Keras gave it.
Layers of other classes, or with other weights than these classes have, keep Keras's names and shapes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_sepconv._messages import shown

Shape = tuple[int, ...]

Path = tuple[str, ...]
"""The names of the layers from below the model down to a layer."""


class KerasLayer(NamedTuple):
    """A layer as Keras has it.

    Attributes:
        class_name: its class; if it is not Keras's own, the name it is registered under, `"package>Class"`.
        config: what its `get_config()` returns, as plain JSON.
        weights: its arrays by Keras's names, in the order of its `get_weights()`.
    """

    class_name: str
    config: dict[str, Any]
    weights: dict[str, Any]


class _Leaf(NamedTuple):
    """The place of a weight in Flax: its collection, name and shape.

    Attributes:
        collection: `"params"` or `"batch_stats"`.
        name: its name there.
        rank: the rank of Keras's array, if the class fixes it.
        shape: computes the shape in Flax from Keras's shape and the layer's config.
    """

    collection: str
    name: str
    rank: int | None = None
    shape: Callable[[Shape, Mapping[str, Any]], Shape] = lambda shape, config: shape


def _depthwise(shape: Shape, config: Mapping[str, Any]) -> Shape:
    return (shape[0], 1, shape[1] * shape[2])


def _features(shape: Shape, config: Mapping[str, Any]) -> Shape:
    """Returns the sizes of the normalized axes; Keras keeps an axis of size 1 for every other axis."""
    axes = config.get("axis")
    if len(shape) == 1 or not isinstance(axes, list) or not set(axes) <= set(range(-len(shape), len(shape))):
        return shape
    return tuple(shape[axis] for axis in axes)


_BIAS = {"bias": _Leaf("params", "bias", 1)}
_CONV = {"kernel": _Leaf("params", "kernel", 3)} | _BIAS
_SCALED = {"gamma": _Leaf("params", "scale"), "beta": _Leaf("params", "bias")}

_LAYERS: dict[str, dict[str, _Leaf]] = {
    "Dense": {"kernel": _Leaf("params", "kernel", 2)} | _BIAS,
    "Conv1D": _CONV,
    "Conv1DTranspose": _CONV,
    "DepthwiseConv1D": {"kernel": _Leaf("params", "kernel", 3, _depthwise)} | _BIAS,
    "SeparableConv1D": {name: _Leaf("params", name, 3) for name in ("depthwise_kernel", "pointwise_kernel")}
    | _BIAS,
    "Embedding": {"embeddings": _Leaf("params", "embedding", 2)},
    "BatchNormalization": {
        "gamma": _Leaf("params", "scale", None, _features),
        "beta": _Leaf("params", "bias", None, _features),
        "moving_mean": _Leaf("batch_stats", "mean", None, _features),
        "moving_variance": _Leaf("batch_stats", "var", None, _features),
    },
    "LayerNormalization": _SCALED,
    "GroupNormalization": _SCALED,
}
"""The weights of each class in the order of `get_weights()`: the name in Keras, and the place in Flax."""

_SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
"""The entry of a config that says whether a weight exists; it does if the entry is missing."""

_RENAMED = {("DepthwiseConv1D", "depthwise_kernel"): "kernel"}
"""Names in Keras 2 that Keras 3 changed."""


def is_known(class_name: str) -> bool:
    """Returns whether Flax has a layer for this Keras class."""
    return class_name in _LAYERS


def weight_names(class_name: str, config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Returns Keras's names for a layer's weights, in the order of `get_weights()`.

    Args:
        class_name: its class.
        config: its config.
        count: how many weights it has.

    Returns:
        The names, or `"0"`, `"1"`, ... if the class is not known to have that many.
    """
    names = tuple(
        name
        for name in _LAYERS.get(class_name, ())
        if name not in _SWITCHES or config.get(_SWITCHES[name], True)
    )
    return names if len(names) == count else tuple(map(str, range(count)))


def named(class_name: str, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Renames a layer's arrays as Keras 3 does, if they have numbers or names of Keras 2."""
    numbers = [*map(str, range(len(arrays)))]
    names = weight_names(class_name, config, len(arrays)) if [*arrays] == numbers else arrays
    return {
        _RENAMED.get((class_name, name), name): array
        for name, array in zip(names, arrays.values(), strict=True)
    }


def to_flax(layers: Mapping[Path, KerasLayer]) -> dict[str, dict[str, Any]]:
    """Returns the weights of layers by Flax's collections, nested like the layers, with Flax's names and shapes.

    Args:
        layers: the layers; their weights are NumPy or JAX arrays.

    Returns:
        `{"params": {...}}`, with `"batch_stats"` if there are any. A weight of a layer inside a layer, such as
        `query/kernel`, is nested too.

    Raises:
        ValueError: the names cannot be nested.
    """
    variables: dict[str, dict[str, Any]] = {"params": {}}
    for path, layer in layers.items():
        for name, (collection, *names), shape in _leaves(layer):
            _put(variables, (collection, *path, *names), layer.weights[name].reshape(shape))
    return variables


def from_flax(layers: Mapping[Path, KerasLayer], variables: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Returns the weights of layers with Keras's names and shapes: the inverse of `to_flax`.

    Args:
        layers: the layers, whose weights tell the names and shapes.
        variables: what `to_flax` returns, with other values; nested, or flat with joined keys.

    Returns:
        The arrays of each layer in the order of its `get_weights()`.

    Raises:
        ValueError: a weight is missing, has another shape or dtype, or belongs to no layer.
    """
    left: dict[str, Any] = {}
    for at, value in _flat(variables):
        if "/".join(at) in left:
            raise ValueError(
                f"`variables` must hold {shown('/'.join(at))} once; got it nested and under a joined key."
            )
        left["/".join(at)] = value
    found = {}
    for path, layer in layers.items():
        found[path] = {}
        for name, (collection, *names), shape in _leaves(layer):
            key = (collection, *path, *names)
            if "/".join(key) not in left:
                raise ValueError(
                    f"`variables` must have {_shown(key)}, the {name!r} of a {layer.class_name} of the file; got "
                    "no such array."
                )
            value = left.pop("/".join(key))
            array, there = np.asarray(value), layer.weights[name]
            dtype = there.dtype.newbyteorder("=")
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(
                    f"`variables{_shown(key)}` must have the shape {shape} and dtype {dtype}, as in the file; got "
                    f"{array.shape} and {array.dtype}."
                )
            found[path][name] = array.reshape(there.shape)
    if left:
        extra = ", ".join(_shown(tuple(key.split("/"))) for key in [*left][:8])
        raise ValueError(f"`variables` must have only weights of the file's layers; got {extra} too.")
    return found


def _leaves(layer: KerasLayer) -> Iterator[tuple[str, tuple[str, ...], Shape]]:
    """Yields each weight's name in Keras, its place in Flax, and its shape there."""
    leaves = _LAYERS.get(layer.class_name, {})
    is_flax = all(
        name in leaves and leaves[name].rank in (None, len(value.shape))
        for name, value in layer.weights.items()
    )
    for name, value in layer.weights.items():
        if is_flax:
            leaf = leaves[name]
            yield name, (leaf.collection, leaf.name), leaf.shape(value.shape, layer.config)
        else:
            yield name, ("params", *name.split("/")), value.shape


def _put(tree: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ValueError(f"two weights cannot be nested: {shown('/'.join(path))} is below another one.")
    if path[-1] in tree:
        raise ValueError(f"two weights have one name, or one is below the other: {shown('/'.join(path))}.")
    tree[path[-1]] = value


def _flat(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, str(name)))
        else:
            yield (*path, str(name)), value


def _shown(path: Path) -> str:
    return "".join(f"[{name!r}]" for name in path)
