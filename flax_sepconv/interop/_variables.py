"""Reads and writes whole Keras models as Flax's variables, and reads every layer as Keras has it."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from flax_sepconv._messages import shown
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._files import model_file
from flax_sepconv.interop._files.given_config import GivenConfig
from flax_sepconv.interop._files.placing import Placed
from flax_sepconv.interop._files.rewrite import Write, rewrite
from flax_sepconv.interop._flax_layers import KerasLayer, Path, from_flax, to_flax


def load_variables(
    path: str | os.PathLike[str],
    *,
    config: GivenConfig | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads every weight of a Keras model's file, for a Flax model with the same names.

    `Dense`, `Conv1D`, `Conv1DTranspose`, `DepthwiseConv1D`, `SeparableConv1D`, `Embedding`, `BatchNormalization`,
    `LayerNormalization` and `GroupNormalization` have the names and shapes of Flax's `Dense`, `Conv`, `ConvTranspose`,
    `Conv`, `flax_sepconv.SeparableConv1D`, `Embed`, `BatchNorm`, `LayerNorm` and `GroupNorm`; others keep Keras's.
    The variables hold weights only; `layers` reads the settings. These settings are not Flax's defaults:

    | in Flax | for Keras's |
    | --- | --- |
    | `BatchNorm(epsilon=1e-3, momentum=0.99)`, `LayerNorm(epsilon=1e-3)`, `GroupNorm(epsilon=1e-3)` | defaults |
    | `use_fast_variance=False` in all three | their rounding |
    | `Conv(padding="VALID")` | default; `"SAME"`, `"CAUSAL"` |
    | `ConvTranspose(padding="VALID", transpose_kernel=True)` | default |
    | `Conv(C * M, K, feature_group_count=C)` | `DepthwiseConv1D(K, depth_multiplier=M)` on `C` channels |
    | `LayerNorm(reduction_axes=axes, feature_axes=axes)` | `axis` other than -1 |
    | `nn.gelu(x, approximate=False)` | `"gelu"`: Keras's is exact |
    | `nn.leaky_relu(x, 0.2)` | `"leaky_relu"`: its slope is 0.2 in Keras 3 |

    Args:
        path: a `.keras` or `.h5` file, also of weights alone, or the folder that Keras 3 writes with `zipped=False`.
        config: for a file of weights alone, what the model's `to_json()` gives: text, a dict or a path.
        custom_objects: `{"MyLayer": flax_sepconv.SeparableConv1DConfig}` says that a subclass of Keras's
            `SeparableConv1D` is that layer. Functions of your own have no weights, and need not be named.

    Returns:
        `{"params": {...}}`, with `"batch_stats"` if there are any, nested by the layers' names as the model is, for
        `model.apply(variables, x)` in Linen. NNX takes each with `nnx.update(model, variables["params"])`. The arrays
        have the file's dtypes and are on JAX's default device.

    Raises:
        ValueError: as for `load`, or the file is a SavedModel.
        OSError: there is no such file, or it may not be read.

    Example:
        >>> import flax.linen as nn
        >>> from flax_sepconv.interop import keras
        >>> variables = keras.load_variables("model.keras")  # doctest: +SKIP
        >>> y = nn.Sequential([nn.Dense(3, name="dense")]).apply(variables, x)  # doctest: +SKIP
    """
    name = os.fsdecode(path)
    opened = model_file.opened(path, config=config, custom_objects=custom_objects)
    with opened as file, model_file.naming(name):
        variables = to_flax({at: layer.read() for at, layer in file.every().items()})
    return jax.tree.map_with_path(
        lambda at, value: on_device(value, f"{name}: {jax.tree_util.keystr(at)}"), variables
    )


def save_variables(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    config: GivenConfig | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> None:
    """Writes a copy of a Keras model's file with the weights of Flax's variables in all its layers.

    The copy has the bytes of the original except for the weights (and, in an archive, a checksum): the optimizer,
    configs and metadata stay as they are. It is made beside `out` and renamed at the end, so `out` may be `path`, and a
    failure leaves the existing file as it was. For a folder of Keras 3, `out` must be the same folder, and the one file
    with the weights is replaced.

    Args:
        path: a `.keras` or `.h5` file, also of weights alone, or the folder that Keras 3 writes with `zipped=False`.
        variables: every weight of the file, as `load_variables` gives them.
        out: where the copy goes.
        config: for a file of weights alone, as for `load_variables`.
        custom_objects: as for `load_variables`.

    Raises:
        ValueError: weights are missing, unknown, or differ in shape or dtype from the file's; or the file is one that
            `load_variables` refuses, or an archive that something other than Keras has compressed.
        TypeError: `variables`, `config` or `custom_objects` has another form.
        OSError: there is no such file, or `out` cannot be written.

    Example:
        >>> from flax_sepconv.interop import keras
        >>> variables = keras.load_variables("model.keras")  # doctest: +SKIP
        >>> keras.save_variables("model.keras", train(variables), "trained.keras")  # doctest: +SKIP
    """
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"`variables` must be a dict, as `load_variables` gives it; got {type(variables).__name__}."
        )
    rewrite(
        path,
        out,
        lambda file: _writes(file.every(), variables),
        config=config,
        custom_objects=custom_objects,
    )


def layers(path: str | os.PathLike[str], *, config: GivenConfig | None = None) -> dict[str, KerasLayer]:
    """Reads every layer of a Keras model's file as Keras has it, also those without a counterpart in Flax.

    Args:
        path: a `.keras` or `.h5` file, also of weights alone, or the folder that Keras 3 writes with `zipped=False`.
        config: for a file of weights alone, what the model's `to_json()` gives: text, a dict or a path.

    Returns:
        The class name, the config and the weights of each layer by the layers' names joined by `/`, in the order of the
        model. A layer that holds others, such as a model, is there if it has its own weights. The weights are NumPy
        arrays by Keras's names, in the order of `get_weights()`. A `.keras` file does not name weights, so for classes
        without a counterpart in Flax the names are numbers.

    Raises:
        ValueError: as for `load`, or the file is a SavedModel.
        OSError: there is no such file, or it may not be read.

    Example:
        >>> from flax_sepconv.interop import keras
        >>> for name, layer in keras.layers("model.keras").items():  # doctest: +SKIP
        ...     print(name, layer.class_name, layer.config, [*layer.weights])
    """
    with model_file.opened(path, config=config) as file, model_file.naming(path):
        return {_joined(at): layer.read() for at, layer in file.every().items()}


def _writes(placed: Mapping[Path, Placed], variables: Mapping[str, Any]) -> list[Write]:
    """Lists what is to be written of the variables, for each place where the file has it."""
    described = {
        path: KerasLayer(layer.class_name, layer.config, layer.weights) for path, layer in placed.items()
    }
    return [
        Write(there, weights[name], f"{_joined(path)}/{name}", f"the {name} of layer {shown(_joined(path))}")
        for path, weights in from_flax(described, variables).items()
        for place in placed[path].places
        for name, there in place.items()
    ]


def _joined(path: Path) -> str:
    return "/".join(path)
