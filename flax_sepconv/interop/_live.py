"""Describes live layers of Keras 3, tf_keras or TensorFlow as a file does, without importing any of the three."""

import json
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import jax.numpy as jnp
import numpy as np

from flax_sepconv import initializers
from flax_sepconv._arguments import IDENTIFIERS
from flax_sepconv.interop._files import description
from flax_sepconv.interop._flax_layers import KerasLayer, Path, weight_names

MODULES = ("keras", "tf_keras", "tensorflow")


def walk(layer: Any, path: Path = (), seen: set[int] | None = None) -> Iterator[tuple[Path, Any, list[Any]]]:
    """Yields a live layer and all layers below it: for each its path of names, itself, and the layers that it holds.

    A layer at several places is yielded at the first one. A layer holds what its config describes, as in a file; if
    its class has no config, it holds all that Keras knows of.
    """
    seen = set() if seen is None else seen
    if id(layer) not in seen:
        seen.add(id(layer))
        children = _children(layer)
        yield path, layer, children
        for child in children:
            yield from walk(child, (*path, child.name), seen)


def keras_layer(layer: Any, children: Sequence[Any] = ()) -> KerasLayer:
    """Describes a live layer as a file would.

    Args:
        layer: any built layer.
        children: layers that it holds. Their weights are left out; so are counts and vocabularies, as in files.
    """
    below = {id(weight) for child in children for weight in child.weights}
    config = _plain(layer) or {}
    pairs = [
        (weight, np.asarray(value))
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True)
        if id(weight) not in below and jnp.issubdtype(np.asarray(value).dtype, jnp.floating)
    ]
    name = class_name(type(layer))
    names = weight_names(name, config, len(pairs))
    if names[:1] == ("0",):
        own = tuple(_own_name(layer, weight) for weight, _ in pairs)
        names = own if len(set(own)) == len(own) else names
    return KerasLayer(name, config, dict(zip(names, (value for _, value in pairs), strict=True)))


def class_name(cls: type) -> str:
    """Returns the name of a class, with its package before it unless the class is Keras's own."""
    package = cls.__module__.partition(".")[0]
    return cls.__name__ if package in MODULES else f"{package}>{cls.__name__}"


def separable_class(layer: Any) -> type | None:
    """Returns Keras's `SeparableConv1D` if the layer is an instance of it or of a subclass, else `None`."""
    return next((cls for cls in type(layer).__mro__ if class_name(cls) == "SeparableConv1D"), None)


def own_callables(layer: Any) -> dict[str, Any]:
    """Finds the user's own functions and objects in a live layer, by argument, except for initializers.

    Initializers are called with a key in JAX, but not in Keras.
    """
    found = {}
    for argument, module in IDENTIFIERS.items():
        value = getattr(layer, argument, None) if module is not initializers else None
        owner = value if isinstance(value, FunctionType | type) else type(value)
        if callable(value) and str(owner.__module__).partition(".")[0] not in MODULES:
            found[argument] = value
    return found


def _children(layer: Any) -> list[Any]:
    below = list(layer._flatten_layers(include_self=False, recursive=False))
    config = _plain(layer)
    if config is None:
        return below
    described = {entry["config"].get("name") for entry in description.entries_in(config)}
    return [child for child in below if child.name in described]


def _plain(layer: Any) -> dict[str, Any] | None:
    """Returns a layer's config as plain JSON, or `None` if its class has none."""
    try:
        config = layer.get_config()
    except NotImplementedError:
        return None
    return json.loads(json.dumps(config, default=repr))


def _own_name(layer: Any, weight: Any) -> str:
    """Returns a weight's name without its holders' names: `kernel`, or `query/kernel` for a layer inside."""
    path = getattr(weight, "path", weight.name).partition(":")[0]
    _, found, own = f"/{path}".partition(f"/{layer.name}/")
    return own if found else path.rpartition("/")[2]
