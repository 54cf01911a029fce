"""Reads and writes Keras's files without Keras or TensorFlow, and converts live layers.

    load(path)  ─► {"encoder/separable_conv1d": (config, params), ...}
    save(path, {"encoder/separable_conv1d": params}, out)       the same file with these weights in it

    load_variables(path) ─► {"params": ..., "batch_stats": ...}     every layer, as a Flax model has it
    save_variables(path, variables, out)
    layers(path) ─► {"encoder/dense": KerasLayer}                   every layer, as Keras has it

These functions read and write `.keras` archives and `.h5` files of Keras 2 and 3, of whole models and of weights alone
(with the model's `to_json()` as `config`), and the folders that Keras 3 writes with `zipped=False`. They read the
SavedModel folders of Keras 2. As in Keras, `custom_objects` says what names that are not Keras's own stand for.

Layers are found wherever the model's config has them: in models nested to any depth, in wrappers, and in classes of
your own that write their layers into their config. Their keys are the layers' names from the outermost model inwards.
A layer that the file says is shared is there once, at its first place.

Files are untrusted: nothing in them is unpickled, imported or run. A damaged or hostile file raises a `ValueError` that
names the file, in bounded time and memory. `save` changes the bytes of the weights and no others, in a copy that
replaces the original only when it is whole.

    from_layer(keras_layer) ─► config, params
    to_layer(config, params) ─► keras_layer
    from_model(keras_model) ─► layers, variables                    as from its file

These functions take or make Keras's objects; only `to_layer` imports Keras.
"""

import dataclasses
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_sepconv import activations
from flax_sepconv._keras import layer_config
from flax_sepconv._messages import shown
from flax_sepconv._validation import check_params
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._custom_objects import CustomObjects
from flax_sepconv.interop._files import description
from flax_sepconv.interop._flax_layers import KerasLayer, to_flax
from flax_sepconv.interop._live import keras_layer, own_callables, separable_class, walk
from flax_sepconv.interop._separable import load, save
from flax_sepconv.interop._variables import layers, load_variables, save_variables

__all__ = [
    "KerasLayer",
    "Model",
    "from_layer",
    "from_model",
    "layers",
    "load",
    "load_variables",
    "save",
    "save_variables",
    "to_layer",
]


def from_layer(
    layer: Any, *, custom_objects: Mapping[str, Any] | None = None
) -> tuple[SeparableConv1DConfig, dict[str, jax.Array]]:
    """Returns the config and the parameters of a live Keras layer.

    An activation, regularizer or constraint of your own is kept as it is, for JAX to call. An initializer of your own
    is kept in the config but refuses to draw, because Keras calls it differently than JAX.

    Args:
        layer: a built `SeparableConv1D` of Keras 3, tf_keras or TensorFlow. The arguments that a subclass adds are left
            out.
        custom_objects: replacements for functions and classes of your own, by their names, as for `load`.

    Raises:
        ValueError: the layer is not built yet, or it holds float64 while JAX's 64-bit mode is off.
        TypeError: `layer` is not such a layer, or has an activation of your own that JAX cannot trace.

    Example:
        >>> import keras, flax_sepconv.interop.keras as interop  # doctest: +SKIP
        >>> config, params = interop.from_layer(model.get_layer("separable_conv1d"))  # doctest: +SKIP
    """
    cls = separable_class(layer)
    if cls is None:
        raise TypeError(f"`layer` must be a SeparableConv1D of Keras's; got {layer!r}.")
    config = _config_of(layer, cls, CustomObjects(custom_objects))
    values = layer.get_weights()
    if not values:
        raise ValueError(f"`layer` must be built, by calling it or its `build`; got {layer!r}.")
    names = [weight.name for weight in config.weights(in_features=1)]
    return config, {name: on_device(value, name) for name, value in zip(names, values, strict=True)}


def _config_of(layer: Any, cls: type, custom_objects: CustomObjects) -> SeparableConv1DConfig:
    with warnings.catch_warnings():  # Keras warns that functions of one's own are hard to write to a file
        warnings.simplefilter("ignore")
        # A subclass may add entries to the config.
        written = cls.get_config(layer) if type(layer) is not cls else layer.get_config()
    own = {
        argument: value
        for argument, value in own_callables(layer).items()
        if not custom_objects.find(written.get(argument))
    }
    arguments, refused = layer_config.from_file(written | own, _is_keras2(cls), custom_objects.find)
    for _, reason in refused.values():
        raise ValueError(f"`layer` {layer.name!r}: {reason}")
    try:
        return SeparableConv1DConfig(**arguments)
    except TypeError as error:
        if "activation" not in own:
            raise
        name = getattr(own["activation"], "__name__", type(own["activation"]).__name__)
        raise TypeError(
            f"`layer` {layer.name!r}: {error} Pass such a one, `custom_objects={{{name!r}: ...}}`."
        ) from None


class Model(NamedTuple):
    """What `from_model` returns for a live model.

    Attributes:
        layers: its `SeparableConv1D` layers, as `load` returns them from a file.
        variables: all its weights, as `load_variables` returns them from a file.
    """

    layers: dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]
    variables: dict[str, Any]


def from_model(model: Any, *, custom_objects: Mapping[str, Any] | None = None) -> Model:
    """Reads a live Keras model as `load` and `load_variables` read its file.

    Args:
        model: a built model of Keras 3, tf_keras or TensorFlow.
        custom_objects: replacements for functions and classes of your own, as for `from_layer`.

    Returns:
        `(layers, variables)`. A model without `get_config`, which no file can hold, has its layers by their own names.
        Weights of layers that Flax does not have keep the names of their variables, which `.keras` files do not hold.

    Raises:
        ValueError: `from_layer` refuses a layer, or an array is float64 while JAX's 64-bit mode is off.
        TypeError: `model` is not a model.

    Example:
        >>> from flax_sepconv.interop import keras as interop
        >>> layers, variables = interop.from_model(model)  # doctest: +SKIP
        >>> y = flax_model.apply(variables, x)  # doctest: +SKIP
    """
    if not callable(getattr(model, "_flatten_layers", None)):
        raise TypeError(f"`model` must be a model of Keras's; got {shown(model)}.")
    separable, described = {}, {}
    for path, layer, children in walk(model):
        if separable_class(layer):
            separable["/".join(path) or layer.name] = from_layer(layer, custom_objects=custom_objects)
        described[path] = keras_layer(layer, children)
    variables = jax.tree.map_with_path(
        lambda at, value: on_device(value, f"`model`: {jax.tree_util.keystr(at)}"), to_flax(described)
    )
    return Model(separable, variables)


def _is_keras2(cls: type) -> bool:
    """Returns whether a Keras class is from a version before 3, whose package may be `keras` or another."""
    package = sys.modules[cls.__module__.partition(".")[0]]
    return package.__name__ != "keras" or bool(description.is_keras2(package.__version__))


def to_layer(config: SeparableConv1DConfig, params: Mapping[str, Any], keras: Any = None) -> Any:
    """Makes a live Keras layer from a config and parameters.

    Args:
        config: the layer's config.
        params: its parameters, in any floating dtype; Keras stores them in `config.param_dtype`.
        keras: the module to make the layer from: `keras`, `tf_keras` or `tf.keras`; `None` imports `keras`.

    Returns:
        A built `keras.layers.SeparableConv1D`.

    Raises:
        ValueError: Keras has no such layer: `padding="causal"` in Keras 3 (`keras=tf_keras` has it), callables that it
            has no name for, or dtypes that fit none of its policies; or the parameters do not fit the config.
        ImportError: Keras is not installed.

    Example:
        >>> import flax_sepconv.interop.keras as interop
        >>> layer = interop.to_layer(config, params)  # doctest: +SKIP
        >>> model = keras.Sequential([keras.Input((None, 12)), layer])  # doctest: +SKIP
    """
    check_config(config)
    if keras is None:
        try:
            import keras  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "`to_layer` needs Keras: `pip install keras` and one of its backends."
            ) from error
    cls = keras.layers.SeparableConv1D
    is_keras_2 = not hasattr(keras, "ops")
    if config.padding == "causal" and not is_keras_2:
        raise ValueError(
            "`padding='causal'` is no padding of Keras 3's SeparableConv1D. Keras 2 has it (`keras=tf_keras`); in "
            "Keras 3, pad with `ZeroPadding1D((dilation_rate * (kernel_size - 1), 0))` and use 'valid'."
        )
    arrays = {name: np.asarray(value) for name, value in check_params(params, None, config).items()}
    _, channels, _ = arrays["depthwise_kernel"].shape
    layer = cls.from_config(_entries(config, is_keras_2))
    layer.build((None, None, channels) if config.channel_axis == -1 else (None, channels, None))
    layer.set_weights([arrays[weight.name] for weight in config.weights(channels)])
    return layer


def _entries(config: SeparableConv1DConfig, is_keras_2: bool) -> dict[str, Any]:
    """Returns the config in a form that every version of Keras understands."""
    activation = config.activation
    if is_keras_2 and activation is activations.hard_sigmoid:
        raise ValueError(
            "`activation` is Keras 3's hard_sigmoid, which Keras 2 does not have; its own of that name is "
            "flax_sepconv.activations.hard_sigmoid_keras2."
        )
    hard_sigmoid = is_keras_2 and activation is activations.hard_sigmoid_keras2
    if hard_sigmoid:
        config = dataclasses.replace(config, activation=None)
    entries = config.get_config()
    entries["dtype"] = entries["dtype"]["config"]["name"]  # before Keras 3, a policy had another class
    if hard_sigmoid:
        entries["activation"] = "hard_sigmoid"
    for entry in ("depthwise_initializer", "pointwise_initializer", "bias_initializer"):
        # Keras before 3.15 does not know these entries, and later versions ignore them if they are None.
        arguments = entries[entry]["config"]
        unset = [each for each in ("input_axes", "output_axes") if arguments.get(each, 0) is None]
        entries[entry] = entries[entry] | {"config": {k: v for k, v in arguments.items() if k not in unset}}
    if entries["name"] is None:
        del entries["name"]
    return entries
