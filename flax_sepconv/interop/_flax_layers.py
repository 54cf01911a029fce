"""Keras layers' weights as the Flax layers have them, and back.

    to_flax({path: KerasLayer}) ─► {"params": {...}, "batch_stats": {...}}
    from_flax({path: KerasLayer}, variables) ─► {path: weights under Keras's names}

| Keras | Flax | weights that differ in more than their name |
| --- | --- | --- |
| Dense, Conv1D | `Dense`, `Conv` | |
| Conv1DTranspose | `ConvTranspose(transpose_kernel=True)` | |
| DepthwiseConv1D | `Conv(feature_group_count=channels)` | `(K, C, M)` becomes `(K, 1, C * M)` |
| SeparableConv1D | `flax_sepconv.SeparableConv1D` | |
| Embedding | `Embed` | |
| BatchNormalization | `BatchNorm` | of several axes, without the axes of 1 between them |
| LayerNormalization, GroupNormalization | `LayerNorm`, `GroupNorm` | |

So a weight is renamed and reshaped, never transposed, and the shape that Keras gave it is all that the way back needs.
Layers of other classes, or with other weights than these have, keep Keras's names and shapes.
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
        class_name: its class; of one that is not Keras's own, the name it is registered under, `"package>Class"`.
        config: what its `get_config()` gives, as plain JSON.
        weights: its arrays by Keras's names, in the order of its `get_weights()`.
    """

    class_name: str
    config: dict[str, Any]
    weights: dict[str, Any]


class _Leaf(NamedTuple):
    """Where Flax has a weight: in which collection, under which name, and in which shape.

    Attributes:
        collection: `"params"` or `"batch_stats"`.
        name: its name there.
        rank: that of Keras's array, where the class fixes it.
        shape: the shape in Flax for Keras's shape and the layer's config.
    """

    collection: str
    name: str
    rank: int | None = None
    shape: Callable[[Shape, Mapping[str, Any]], Shape] = lambda shape, config: shape


def _depthwise(shape: Shape, config: Mapping[str, Any]) -> Shape:
    return (shape[0], 1, shape[1] * shape[2])


def _features(shape: Shape, config: Mapping[str, Any]) -> Shape:
    """The sizes of the axes that are normalized, where Keras keeps an axis of 1 for every other one."""
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
"""By class, each weight in the order of `get_weights()`: its name in Keras, and where Flax has it."""

_SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
"""The entry of a config that says whether a weight is there; it is where the entry is missing."""

_RENAMED = {("DepthwiseConv1D", "depthwise_kernel"): "kernel"}
"""Names of Keras 2 that Keras 3 has changed."""


def is_known(class_name: str) -> bool:
    """Whether Flax has a layer for this class of Keras's."""
    return class_name in _LAYERS


def weight_names(class_name: str, config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Keras's names of a layer's weights, in the order of `get_weights()`.

    Args:
        class_name: its class.
        config: its config.
        count: how many weights it has.

    Returns:
        The names, or `"0"`, `"1"`, ... where the class is not known to have so many.
    """
    names = tuple(
        name
        for name in _LAYERS.get(class_name, ())
        if name not in _SWITCHES or config.get(_SWITCHES[name], True)
    )
    return names if len(names) == count else tuple(map(str, range(count)))


def named(class_name: str, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's arrays under the names that Keras 3 gives them, where they have a number or a name of Keras 2."""
    numbers = [*map(str, range(len(arrays)))]
    names = weight_names(class_name, config, len(arrays)) if [*arrays] == numbers else arrays
    return {
        _RENAMED.get((class_name, name), name): array
        for name, array in zip(names, arrays.values(), strict=True)
    }


def to_flax(layers: Mapping[Path, KerasLayer]) -> dict[str, dict[str, Any]]:
    """The weights of layers by Flax's collections, nested as the layers are, in Flax's names and shapes.

    Args:
        layers: the layers; their weights are arrays of NumPy's or JAX's.

    Returns:
        `{"params": {...}}`, with `"batch_stats"` where there are any. A weight of a layer inside a layer, such as
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
    """The weights of layers under Keras's names and in Keras's shapes: `to_flax` the other way.

    Args:
        layers: the layers, whose weights say which names and shapes there are.
        variables: what `to_flax` gives, with other values; nested, or flat with joined keys.

    Returns:
        The arrays of each layer in the order of its `get_weights()`.

    Raises:
        ValueError: a weight is missing, or has another shape or dtype; or there is one that no layer has.
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
    """Each weight by Keras's name: where Flax has it, and in which shape."""
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
