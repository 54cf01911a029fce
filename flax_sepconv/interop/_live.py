"""Live Keras layers, of Keras 3, tf_keras or TensorFlow, described without importing any of them."""

import json
from typing import Any

import numpy as np

from flax_sepconv.interop._flax_layers import KerasLayer, weight_names

MODULES = ("keras", "tf_keras", "tensorflow")


def keras_layer(layer: Any) -> KerasLayer:
    """A live layer as it would be in a file.

    Args:
        layer: any built layer.
    """
    config = json.loads(json.dumps(layer.get_config(), default=repr))
    values = [np.asarray(value) for value in layer.get_weights()]
    name = class_name(type(layer))
    names = weight_names(name, config, len(values))
    if names[:1] == ("0",):
        own = [_own_name(layer, weight) for weight in layer.weights]
        names = own if len(set(own)) == len(own) else names
    return KerasLayer(name, config, dict(zip(names, values, strict=True)))


def class_name(cls: type) -> str:
    """The name of Keras's own class, or of another one with its package before it."""
    package = cls.__module__.partition(".")[0]
    return cls.__name__ if package in MODULES else f"{package}>{cls.__name__}"


def _own_name(layer: Any, weight: Any) -> str:
    """A weight's name without the names of what holds it: `kernel`, or `query/kernel` of a layer inside."""
    path = getattr(weight, "path", weight.name).partition(":")[0]
    _, found, own = f"/{path}".partition(f"/{layer.name}/")
    return own if found else path.rpartition("/")[2]
