"""Layers and whole models in safetensors files, a format that every framework reads.

    save(path, {"encoder/first": (config, params)})      load(path) ─► the same
    save_variables(path, variables)                      load_variables(path) ─► the same

Parameters are tensors such as `encoder/first/bias`. The configs are in the file's metadata under `flax_sepconv`, as
JSON of Keras's `get_config` for each layer by its name, in the layers' order. Variables are tensors such as
`params/dense/kernel`, without metadata. Files are as untrusted as Keras's.

Needs the `safetensors` package: `pip install "flax-sepconv[safetensors]"`.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from flax_sepconv import activations
from flax_sepconv._keras import layer_config
from flax_sepconv._messages import shown
from flax_sepconv._tree import leaves_of
from flax_sepconv._validation import check_params
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.interop import _tensors
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._files import untrusted_json
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.description import CONFIG_STEPS

__all__ = ["load", "load_variables", "save", "save_variables"]

Layers: TypeAlias = Mapping[str, tuple[SeparableConv1DConfig, Mapping[str, Any]]]

_METADATA, _LAYER_LIMIT = "flax_sepconv", 5000
_DEPTH_LIMIT, _TENSOR_STEPS = 200, 100
_HARD_SIGMOID = activations.hard_sigmoid_keras2.__name__


def save(path: str | os.PathLike[str], layers: Layers) -> None:
    """Writes layers to a safetensors file, either whole or not at all.

    Args:
        path: the file.
        layers: the config and the parameters of each layer by its name, as `flax_sepconv.interop.keras.load` gives
            them.

    Raises:
        ValueError: parameters do not fit their config, or a config has a callable that Keras has no name for.
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
    _tensors.write(path, tensors, {_METADATA: json.dumps(configs)})


def load(path: str | os.PathLike[str]) -> dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]:
    """Reads the layers in a file that `save`, or the command `flax-sepconv convert`, wrote.

    Args:
        path: the file.

    Returns:
        The config and the parameters of each layer by its name, in the order in which they were saved. The file does
        not hold a config's `precision`, `preferred_element_type` and `implementation`.

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


def save_variables(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes a Flax model's variables to a safetensors file, either whole or not at all.

    Args:
        path: the file.
        variables: arrays by collection and names, such as `{"params": {"dense": {"kernel": ...}}}`; nested, or flat
            with joined keys, such as `{"params/dense/kernel": ...}`.

    Raises:
        ValueError: there is no collection `params`, or an array is there both nested and under a joined key.
        TypeError: `variables` is not a mapping, or holds anything but floating-point numbers.
        OSError: the file cannot be written.
        ImportError: the `safetensors` package is not installed.

    Example:
        >>> import os, tempfile, jax, flax_sepconv as fsc
        >>> from flax_sepconv.interop import safetensors
        >>> variables = fsc.SeparableConv1D(8, 3).init(jax.random.key(0), jax.numpy.ones((5, 4)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     safetensors.save_variables(path, variables)
        ...     jax.tree.map(jax.numpy.shape, safetensors.load_variables(path))
        {'params': {'bias': (8,), 'depthwise_kernel': (3, 4, 1), 'pointwise_kernel': (1, 4, 8)}}
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"`variables` must be a dict of arrays by their names; got {shown(variables)}.")
    leaves, _ = leaves_of(variables, "variables")
    tensors = {
        "/".join(at): _tensors.floating(value, f"`variables` {shown('/'.join(at))}")
        for at, value in leaves.items()
    }
    if not _has_params(tensors):
        raise ValueError(
            "`variables` must hold arrays under 'params', as `model.init` gives them and `{'params': params}` is; got "
            f"{shown([*tensors])}."
        )
    _tensors.write(path, tensors)


def load_variables(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the variables in a file that `save_variables`, or `flax-sepconv convert --all`, wrote.

    Args:
        path: the file, or any other file whose tensors have names like `params/dense/kernel`.

    Returns:
        The arrays, nested by their names, as `flax_sepconv.interop.keras.load_variables` gives them.

    Raises:
        ValueError: it is not such a file, or holds float64 while JAX's 64-bit mode is off.
        OSError: there is no such file, or it may not be read.
        ImportError: the `safetensors` package is not installed.
    """
    variables: dict[str, Any] = {}
    for name, value in read_variables(path).items():
        *above, leaf = name.split("/")
        tree = variables
        for step in above:
            tree = tree.setdefault(step, {})
            if not isinstance(tree, dict):
                break
        if not isinstance(tree, dict) or leaf in tree:
            raise ValueError(f"{os.fspath(path)}: its tensor {shown(name)} is below or above another one.")
        tree[leaf] = on_device(value, f"{os.fspath(path)}: {name}")
    return variables


def read(path: str | os.PathLike[str]) -> dict[str, tuple[SeparableConv1DConfig, dict[str, np.ndarray]]]:
    """Reads the layers in a file as `load` does, in NumPy's arrays."""
    with _tensors.opened(path, "layers of flax_sepconv") as file:
        return dict(_read(file))


def read_variables(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the variables in a file by their joined names, in NumPy's arrays."""
    with _tensors.opened(path, "the variables of a model") as file:
        if not _has_variables(file):
            raise ValueError(
                "it holds layers with their configs. `load` reads these; `convert` does without --all"
                if _METADATA in (file.metadata() or {})
                else "it has no tensor whose name begins with 'params/'."
            )
        budget, variables = Budget(), {}
        for name in file.keys():  # noqa: SIM118, it is no mapping
            budget.step(_TENSOR_STEPS)
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _tensors.DTYPES:
                raise ValueError(f"its tensor {shown(name)} must hold floats; it is {dtype}.")
            if name.count("/") > _DEPTH_LIMIT:
                raise ValueError(f"its tensor {shown(name)} is nested deeper than any model's.")
            variables[name] = file.get_tensor(name)
        return variables


def has_variables(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file of this format holds a model's variables, not layers with their configs."""
    with _tensors.opened(path, "layers of flax_sepconv") as file:
        return _has_variables(file)


def _has_variables(file: Any) -> bool:
    return _has_params(file.keys()) and _METADATA not in (file.metadata() or {})


def _has_params(names: Iterable[str]) -> bool:
    return any(name.startswith("params/") for name in names)


def entries(config: SeparableConv1DConfig) -> dict[str, Any]:
    """Returns the config for JSON: Keras 3's `get_config`, except for dtypes and what Keras 3 has no name for."""
    own: dict[str, Any] = {
        "dtype": config.dtype and config.dtype.name,
        "param_dtype": config.param_dtype.name,
    }
    if config.activation is activations.hard_sigmoid_keras2:
        own["activation"] = _HARD_SIGMOID
    plain = {"dtype": None, "param_dtype": "float32", "activation": None}
    return dataclasses.replace(config, **{entry: plain[entry] for entry in own}).get_config() | own


def _layer(name: Any, layer: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a layer's entries and arrays; an error names the layer."""
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
    return written, {
        leaf: _tensors.floating(value, f"{argument}: `params[{leaf!r}]`") for leaf, value in values.items()
    }


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
            if there.get_dtype() not in _tensors.DTYPES or tuple(there.get_shape()) != weight.shape:
                raise ValueError(
                    f"its tensor {name!r} must hold floats of the shape {weight.shape}, as its config says; it "
                    f"is {there.get_dtype()} of the shape {tuple(there.get_shape())}."
                )
            params[weight.name] = file.get_tensor(name)
        yield layer, (config, params)


def _older(metadata: Mapping[str, str], budget: Budget) -> dict[str, Any]:
    """Reads the configs in a file of version 0.1 of this library, which gave each layer an entry of its own."""
    if not metadata:
        raise ValueError(
            "it has no configs. `load_variables` reads a model's variables; `convert` does with --all"
        )
    return {layer: untrusted_json.parse(text, budget) for layer, text in metadata.items()}


def _config(written: Any) -> SeparableConv1DConfig:
    """Makes the config from a layer's entries."""
    if not (isinstance(written, dict) and "param_dtype" in written):
        return SeparableConv1DConfig.from_config(written)
    own = {"dtype": written.pop("dtype", None), "param_dtype": written.pop("param_dtype")}
    if written.get("activation") == _HARD_SIGMOID:
        own["activation"] = activations.hard_sigmoid_keras2
        del written["activation"]
    arguments, refused = layer_config.from_file(written, keras2=False)
    for _, reason in refused.values():
        raise ValueError(reason)
    return SeparableConv1DConfig(**arguments | own)
