"""Layers in a safetensors file: parameters and configs, in a format that every framework reads.

    save(path, {"encoder/first": (config, params)})      load(path) ─► the same

A parameter is the tensor `encoder/first/bias`. The configs are in the file's metadata under `flax_sepconv`: JSON of
Keras's `get_config` of each layer by its name, in the layers' order. Files are as untrusted as Keras's.

Needs the `safetensors` package: `pip install "flax-sepconv[safetensors]"`.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from flax_sepconv import activations
from flax_sepconv._arguments import FLOATS
from flax_sepconv._keras import layer_config
from flax_sepconv._messages import shown
from flax_sepconv._validation import check_params
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._files import byte_source, untrusted_json
from flax_sepconv.interop._files.atomic import replacing
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.description import CONFIG_STEPS

__all__ = ["load", "save"]

Layers: TypeAlias = Mapping[str, tuple[SeparableConv1DConfig, Mapping[str, Any]]]

_METADATA, _LAYER_LIMIT = "flax_sepconv", 5000
_DTYPES = dict(zip(("F16", "BF16", "F32", "F64"), FLOATS, strict=True))
_HARD_SIGMOID = activations.hard_sigmoid_keras2.__name__


def save(path: str | os.PathLike[str], layers: Layers) -> None:
    """Writes layers to a safetensors file, which is then there whole or not at all.

    Args:
        path: the file.
        layers: config and parameters of each layer by its name, as `flax_sepconv.interop.keras.load` gives
            them.

    Raises:
        ValueError: parameters are not those of their config, or a config has a callable that Keras has no name for.
        TypeError: `layers` has another form, or a parameter does not hold floating-point numbers.
        OSError: the file cannot be written.
        ImportError: the `safetensors` package is not installed.

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
    package = _package()
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"`layers` must be a dict of a config and parameters for each layer's name; got {shown(layers)}."
        )
    if len(layers) > _LAYER_LIMIT:
        raise ValueError(
            f"`layers` must have at most {_LAYER_LIMIT} layers, which is what `load` reads; got {len(layers)}."
        )
    configs, tensors = {}, {}
    for name, layer in layers.items():
        configs[name], arrays = _layer(name, layer)
        tensors |= {f"{name}/{leaf}": array for leaf, array in arrays.items()}
    content = package.numpy.save(tensors, {_METADATA: json.dumps(configs)})
    with replacing(path) as file:
        file.write(content)


def load(path: str | os.PathLike[str]) -> dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]:
    """Reads the layers in a file that `save`, or the command `flax-sepconv convert`, wrote.

    Args:
        path: the file.

    Returns:
        The config and the parameters of each layer by its name, in the order in which they were saved. A config's
        `precision`, `preferred_element_type` and `implementation`, which say how to compute and not what, are not in
        the file.

    Raises:
        ValueError: it is not such a file, or holds float64 while JAX's 64-bit mode is off.
        OSError: there is no such file, or it may not be read.
        ImportError: the `safetensors` package is not installed.
    """
    return {
        name: (
            config,
            {leaf: on_device(value, f"{os.fspath(path)}: {name}/{leaf}") for leaf, value in params.items()},
        )
        for name, (config, params) in read(path).items()
    }


def read(path: str | os.PathLike[str]) -> dict[str, tuple[SeparableConv1DConfig, dict[str, np.ndarray]]]:
    """The layers in a file as `load` reads them, in NumPy's arrays."""
    package = _package()
    with contextlib.ExitStack() as stack:
        try:
            source = byte_source.opened(path, stack)
            # The package takes a header of up to 100 MB, which makes gigabytes of objects.
            if int.from_bytes(source.read(0, 8), "little") > untrusted_json.SIZE_LIMIT:
                raise ValueError(f"its header has more than {untrusted_json.SIZE_LIMIT} bytes.")
            file = stack.enter_context(package.safe_open(os.fspath(path), "np"))
            return dict(_read(file))
        except (ValueError, TypeError, OverflowError, RecursionError, package.SafetensorError) as error:
            raise ValueError(f"{os.fspath(path)}: it does not hold layers of flax_sepconv: {error}") from None


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of this format does: with a length and JSON."""
    if not os.path.isfile(path):
        return False
    with contextlib.ExitStack() as stack:
        source = byte_source.opened(path, stack)
        return source.size > 8 and source.read(8, 1) == b"{"


def entries(config: SeparableConv1DConfig) -> dict[str, Any]:
    """The config as JSON: Keras 3's `get_config`, but for the dtypes and for what Keras 3 has no name for."""
    own: dict[str, Any] = {
        "dtype": config.dtype and config.dtype.name,
        "param_dtype": config.param_dtype.name,
    }
    if config.activation is activations.hard_sigmoid_keras2:
        own["activation"] = _HARD_SIGMOID
    plain = {"dtype": None, "param_dtype": "float32", "activation": None}
    return dataclasses.replace(config, **{entry: plain[entry] for entry in own}).get_config() | own


def _layer(name: Any, layer: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A layer's entries and arrays, or an error that names it."""
    if not isinstance(name, str):
        raise TypeError(f"`layers` must have strings as names; got {shown(name)}.")
    argument = f"`layers[{name!r}]`"
    if not (isinstance(layer, tuple | list) and len(layer) == 2):
        raise TypeError(
            f"{argument} must be a pair (config, params), as `interop.keras.load` gives it; got {shown(layer)}."
        )
    config, params = layer
    try:
        name.encode()
        check_config(config)
        values = check_params(params, None, config)
        written = entries(config)
    except (ValueError, TypeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{argument}: {error}") from None
    arrays = {leaf: np.asarray(value, order="C") for leaf, value in values.items()}
    for leaf, array in arrays.items():
        if array.dtype not in FLOATS:
            raise TypeError(
                f"{argument}: `params[{leaf!r}]` must hold floating-point numbers; got {array.dtype}."
            )
    return written, arrays


def _read(file) -> Iterator[tuple[str, tuple[SeparableConv1DConfig, dict[str, np.ndarray]]]]:
    metadata, names = file.metadata() or {}, set(file.keys())
    budget = Budget()
    configs = (
        untrusted_json.parse(metadata[_METADATA], budget)
        if _METADATA in metadata
        else _older(metadata, budget)
    )
    if not isinstance(configs, dict) or len(configs) > _LAYER_LIMIT:
        raise ValueError("its metadata describes no layers, or more than any model has.")
    for layer, written in configs.items():
        budget.step(CONFIG_STEPS)
        config = _config(written)
        kernel = f"{layer}/depthwise_kernel"
        shape = file.get_slice(kernel).get_shape() if kernel in names else ()
        params = {}
        for weight in config.weights(shape[1] if len(shape) == 3 else 1):
            name = f"{layer}/{weight.name}"
            if name not in names:
                raise ValueError(f"it has no tensor {name!r}.")
            there = file.get_slice(name)
            if there.get_dtype() not in _DTYPES or tuple(there.get_shape()) != weight.shape:
                raise ValueError(
                    f"its tensor {name!r} must hold floats of the shape {weight.shape}, as its config says; it "
                    f"is {there.get_dtype()} of the shape {tuple(there.get_shape())}."
                )
            params[weight.name] = file.get_tensor(name)
        yield layer, (config, params)


def _older(metadata: Mapping[str, str], budget: Budget) -> dict[str, Any]:
    """The configs in a file by version 0.1 of this library, which gave each layer an entry of its own."""
    if not metadata:
        raise ValueError("it has no configs.")
    return {layer: untrusted_json.parse(text, budget) for layer, text in metadata.items()}


def _config(written: Any) -> SeparableConv1DConfig:
    """The config of a layer's entries."""
    if not (isinstance(written, dict) and "param_dtype" in written):
        return SeparableConv1DConfig.from_config(written)
    own = {"dtype": written.pop("dtype", None), "param_dtype": written.pop("param_dtype")}
    if written.get("activation") == _HARD_SIGMOID:
        own["activation"] = activations.hard_sigmoid_keras2
        del written["activation"]
    return SeparableConv1DConfig(**layer_config.from_keras(written, keras2=False) | own)


def _package() -> Any:
    """The package of this name, on first use."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'safetensors files need the package `safetensors`: pip install "flax-sepconv[safetensors]".'
        ) from None
    return safetensors
