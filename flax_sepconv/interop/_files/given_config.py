"""Reads the config that a caller gives for a file of weights alone.

'{"class_name": ...}', b"...", its dict, a path to it           what `model.to_json()` returns: all layers
{"encoder/first": SeparableConv1DConfig(...)}                   the `SeparableConv1D` layers by their paths
"""

import contextlib
import json
import os
import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias

from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._files import byte_source, untrusted_json
from flax_sepconv.interop._files.description import Layer, Settings
from flax_sepconv.interop._files.reading import Reading

GivenConfig: TypeAlias = str | bytes | os.PathLike[str] | Mapping[str, Any]
"""Any of these forms."""

WANTED = (
    "what the model's `to_json()` gives, as text, as a dict or as the path of a file of it, or a SeparableConv1DConfig "
    "by each layer's path, such as {'encoder/first': ...}"
)


def by_path(config: Any) -> bool:
    """Returns whether these are configs of layers by their paths."""
    return isinstance(config, Mapping) and any(
        isinstance(each, SeparableConv1DConfig) for each in config.values()
    )


def entry(config: Any, stack: contextlib.ExitStack, reading: Reading) -> Any:
    """Reads a model's config from JSON.

    Raises:
        TypeError: it is not a config.
        ValueError: it is not JSON.
        OSError: there is no such file.
    """
    if isinstance(config, Mapping):
        try:
            text: str | bytes = json.dumps(config)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`config` must be {WANTED}; got a dict that is no JSON: {error}. Pass `model.to_json()`."
            ) from None
    elif isinstance(config, str | bytes) and config.lstrip()[:1] in ("{", b"{"):
        text = config
    elif isinstance(config, str | os.PathLike):
        source = byte_source.opened(config, stack)
        if not untrusted_json.is_json(source):
            raise ValueError(
                f"`config` must be {WANTED}; got {shown(os.fsdecode(config))}, which is no JSON."
            )
        text = source.read(0, min(source.size, untrusted_json.SIZE_LIMIT + 1))
    else:
        raise TypeError(f"`config` must be {WANTED}; got {shown(config)}.")
    return untrusted_json.parse(text, reading.budget)


def tree(configs: Mapping[str, SeparableConv1DConfig]) -> Layer:
    """Builds a tree of the layers at these paths and of the layers that hold them.

    Raises:
        TypeError: a path is not a string, or a config is not a `SeparableConv1DConfig`.
    """
    root = Layer("", "", "", {}, "", True, None, "", False, holds=True)
    holders: dict[str, Layer] = {}
    for path, config in configs.items():
        if not isinstance(path, str) or not isinstance(config, SeparableConv1DConfig):
            raise TypeError(f"`config` must be {WANTED}; got {shown(path)}: {shown(config)}.")
        parent = root
        *above, name = path.split("/")
        for at, each in enumerate(above, 1):
            key = "/".join(above[:at])
            parent = holders[key] if key in holders else holders.setdefault(key, _child(parent, each))
        layer = _child(parent, name)
        layer.settings, layer.trainable = Settings(config, {}, frozenset()), config.trainable
    return root


def _child(parent: Layer, name: str) -> Layer:
    """Adds a new layer below another."""
    path = f"{parent.path}/{name}" if parent.path else name
    layer = Layer(name, "", "", {"name": name}, path, True, weakref.ref(parent), "layers", True, holds=True)
    parent.children.append(layer)
    return layer
