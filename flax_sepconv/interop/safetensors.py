"""Layers in a safetensors file: parameters and configs, in a format that every framework reads.

    save(path, {"encoder/first": (config, params)})      load(path) ─► the same

A parameter is the tensor `encoder/first/bias`. The configs are in the file's metadata, as JSON in the form of
Keras's `get_config`, under the layers' names. The format is that of the `safetensors` package, which is not
needed: a length, a header in JSON, and the tensors' bytes. Files are as untrusted as Keras's.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import activations
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop import _model_config
from flax_sepconv.interop._archive import Source
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._atomic import replacing

__all__ = ["load", "save"]

_DTYPES = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def save(
    path: str | os.PathLike, layers: Mapping[str, tuple[SeparableConv1DConfig, Mapping[str, Any]]]
) -> None:
    """Writes layers to a safetensors file, which is then there whole or not at all.

    Args:
        path: the file.
        layers: config and parameters of each layer by its name, as `flax_sepconv.interop.keras.load` gives
            them.

    Raises:
        ValueError: a config has a callable that Keras has no name for.
        TypeError: a parameter does not hold floating-point numbers.
        OSError: the file cannot be written.

    Example:
        >>> import os, tempfile, jax, flax_sepconv as fsc
        >>> from flax_sepconv.interop import safetensors
        >>> config = fsc.SeparableConv1DConfig(8, 3)
        >>> params = fsc.init_params(jax.random.key(0), 12, config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "layers.safetensors")
        ...     safetensors.save(path, {"first": (config, params)})
        ...     list(safetensors.load(path))
        ['first']
    """
    header: dict[str, Any] = {
        "__metadata__": {name: json.dumps(_entries(config)) for name, (config, _) in layers.items()}
    }
    names, end, data = {dtype: name for name, dtype in _DTYPES.items()}, 0, []
    for layer, (_, params) in layers.items():
        for leaf, value in params.items():
            array = np.asarray(value)
            if array.dtype not in names:
                raise TypeError(f"`{layer}/{leaf}` must hold floating-point numbers; got {array.dtype}.")
            begin, end = end, end + array.nbytes
            entry = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": [begin, end]}
            header[f"{layer}/{leaf}"] = entry
            data.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(data)


def load(path: str | os.PathLike) -> dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]:
    """The layers in a file that `save`, or `python -m flax_sepconv convert`, wrote.

    Args:
        path: the file.

    Returns:
        The config and the parameters of each layer by its name.

    Raises:
        ValueError: it is not such a file, or holds float64 while JAX's 64-bit mode is off.
        OSError: there is no such file, or it may not be read.
    """
    with open(path, "rb") as file:
        try:
            return _read(Source(file))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)}: it does not hold layers of flax_sepconv: {error}") from None


def _read(source: Source) -> dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]:
    length = int.from_bytes(source.read(0, 8), "little")
    if length > _model_config.SIZE_LIMIT:
        raise ValueError(f"its header has {length} bytes, more than any.")
    header = _model_config.parse(source.read(8, length))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("it is no safetensors file.")
    layers, total = {}, 0
    for layer, text in metadata.items():
        config = SeparableConv1DConfig.from_config(_model_config.parse(str(text)))
        params = {}
        for weight in config.weights(in_features=1):
            name = f"{layer}/{weight.name}"
            array = _tensor(source, 8 + length, header.get(name), name)
            total += array.nbytes
            if total > source.size:
                raise ValueError("its tensors overlap.")
            params[weight.name] = on_device(array, name)
        layers[layer] = config, params
    return layers


def _tensor(source: Source, start: int, entry: Any, name: str) -> np.ndarray:
    """A tensor, by its entry in the header; `start` is where the tensors begin."""
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            kind in _DTYPES
            and all(isinstance(size, int) and size >= 0 for size in shape)
            and end - begin == math.prod(shape) * _DTYPES[kind].itemsize
            and begin >= 0
        ):
            data = source.read(start + begin, end - begin)
            return np.frombuffer(data, _DTYPES[kind]).reshape(shape)
    raise ValueError(f"it has no tensor {name!r}, or a damaged one.")


def _entries(config: SeparableConv1DConfig) -> dict[str, Any]:
    """The config in Keras 3's form, or in Keras 2's where only that can say it."""
    if config.activation is not activations.hard_sigmoid_keras2:
        return config.get_config()
    return dataclasses.replace(config, activation=None).get_config() | {
        "activation": "hard_sigmoid",
        "groups": 1,
    }
