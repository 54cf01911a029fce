"""Live Keras layers, of Keras 3, tf_keras or TensorFlow, described as a file has them; none of these is imported."""

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
    """A live layer and all below it: the names on the way to each, it, and the layers that it holds.

    A layer that is at several places is given at the first. What a layer holds is what its config describes, as in a
    file; of a class that has no config, all that Keras knows of.
    """
    seen = set() if seen is None else seen
    if id(layer) not in seen:
        seen.add(id(layer))
        children = _children(layer)
        yield path, layer, children
        for child in children:
            yield from walk(child, (*path, child.name), seen)


def keras_layer(layer: Any, children: Sequence[Any] = ()) -> KerasLayer:
    """A live layer as it would be in a file.

    Args:
        layer: any built layer.
        children: layers that it holds, whose weights are left out, as are counts and vocabularies, here and in files.
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
    """The name of Keras's own class, or of another one with its package before it."""
    package = cls.__module__.partition(".")[0]
    return cls.__name__ if package in MODULES else f"{package}>{cls.__name__}"


def separable_class(layer: Any) -> type | None:
    """Keras's `SeparableConv1D` if the layer is one, of its class or of a class made from it."""
    return next((cls for cls in type(layer).__mro__ if class_name(cls) == "SeparableConv1D"), None)


def own_callables(layer: Any) -> dict[str, Any]:
    """Functions and objects of the user's own in a live layer, by its arguments; without initializers.

    These are called with a key in JAX, and not in Keras.
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
    """A layer's config in what JSON has; `None` of a class without one."""
    try:
        config = layer.get_config()
    except NotImplementedError:
        return None
    return json.loads(json.dumps(config, default=repr))


def _own_name(layer: Any, weight: Any) -> str:
    """A weight's name without the names of what holds it: `kernel`, or `query/kernel` of a layer inside."""
    path = getattr(weight, "path", weight.name).partition(":")[0]
    _, found, own = f"/{path}".partition(f"/{layer.name}/")
    return own if found else path.rpartition("/")[2]
