"""Reads the `SeparableConv1D` layers of Keras models' files, and writes them back."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax

from flax_sepconv._messages import shown
from flax_sepconv._tree import leaves_of
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop._arrays import on_device
from flax_sepconv.interop._files import separable_layers
from flax_sepconv.interop._files.given_config import GivenConfig
from flax_sepconv.interop._files.model_file import Found, ModelFile
from flax_sepconv.interop._files.rewrite import Write, rewrite


def load(
    path: str | os.PathLike[str],
    *,
    config: GivenConfig | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> dict[str, tuple[SeparableConv1DConfig, dict[str, jax.Array]]]:
    """Reads every `SeparableConv1D` layer in a Keras model's file.

    Args:
        path: a `.keras` or `.h5` file, also of weights alone, the folder that Keras 3 writes with `zipped=False`, or a
            SavedModel folder of Keras 2. Its content tells which, not its name.
        config: for a file of weights alone, the model's `to_json()` as text, as a dict or as the path of a file that
            holds it; or `{path: SeparableConv1DConfig}`, with names and shapes to tell which weights belong to which.
        custom_objects: as in Keras, what the names in the file that are not Keras's own stand for: a callable for JAX
            by each name, with its package (`"mine>Cube"`) or without. A class is called with the entries in the file.
            `SeparableConv1DConfig` for a class's name says that this class is the layer. Nothing is imported by name.
        strict: whether a layer that cannot be read is an error. If not, it is left out.

    Returns:
        The config and the parameters of each layer by the layers' names joined by `/`, in the order of the model;
        empty for a model that has none. The parameters have the file's dtypes and are on JAX's default device. An
        initializer that this library does not have is kept in the config and refuses to draw.

    Raises:
        ValueError: the file is damaged, hostile or not a model's; a layer in it is one that Keras would refuse, or has
            a name that `custom_objects` must explain; or the file holds float64 while JAX's 64-bit mode is off.
        TypeError: `config` or `custom_objects` has another form.
        OSError: there is no such file, or it may not be read.

    Warns:
        UserWarning: a layer is left out (the warning says why); a class of somebody's own has what looks like the
            weights of such layers; or the file has `SeparableConv2D` layers only.

    Example:
        >>> import flax_sepconv as fsc
        >>> from flax_sepconv.interop import keras
        >>> for name, (config, params) in keras.load("model.keras").items():  # doctest: +SKIP
        ...     y = fsc.separable_conv1d(params, x, config)
        >>> keras.load("model.weights.h5", config="model.json", custom_objects={"my_tanh": f})  # doctest: +SKIP
    """
    layers, notes = separable_layers.read(path, config=config, custom_objects=custom_objects, strict=strict)
    loaded = {}
    for name, (settings, params) in layers.items():
        try:
            loaded[name] = (
                settings,
                {
                    leaf: on_device(value, f"{os.fsdecode(path)}: {name}/{leaf}")
                    for leaf, value in params.items()
                },
            )
        except ValueError as error:
            if strict:
                raise
            notes.append(f"{error} Layer {shown(name)} is left out.")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return loaded


def save(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    config: GivenConfig | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> None:
    """Writes a copy of a Keras model's file with other weights in its `SeparableConv1D` layers.

    The copy has the bytes of the original except for these weights (and, in an archive, a checksum): other layers, the
    optimizer, configs and metadata stay as they are. It is made beside `out`, read again, and renamed at the end, so
    `out` may be `path`, and a failure leaves the existing file as it was. The copy has the permissions of the file that
    it replaces, or else those of `path` under the process's mask. For a folder of Keras 3, `out` must be the same
    folder, and the one file with the weights is replaced.

    Args:
        path: a `.keras` or `.h5` file, also of weights alone, or the folder that Keras 3 writes with `zipped=False`.
        params: parameters of layers by the keys that `load` gives, or nested by their parts, with or without
            `"params"` above. Layers that are not in it keep their weights.
        out: where the copy goes. Links are followed.
        config: for a file of weights alone, as for `load`.
        custom_objects: as for `load`; only classes that are the layer matter here.

    Raises:
        ValueError: no such layer is in the file; parameters are missing, unknown, or differ in shape or dtype from the
            file's; or the file is one that `load` refuses, a SavedModel folder, an archive that something other than
            Keras has compressed, or one in which these weights are also something else.
        TypeError: `params`, `config` or `custom_objects` has another form.
        OSError: there is no such file, or `out` cannot be written, or is a folder or a device.

    Example:
        >>> from flax_sepconv.interop import keras
        >>> layers = keras.load("model.keras")  # doctest: +SKIP
        >>> params = train({name: params for name, (_, params) in layers.items()})  # doctest: +SKIP
        >>> keras.save("model.keras", params, "trained.keras")  # doctest: +SKIP
    """
    rewrite(path, out, lambda file: _writes(file, params), config=config, custom_objects=custom_objects)


def _writes(file: ModelFile, params: Mapping[str, Any]) -> list[Write]:
    """Lists what is to be written of the layers' parameters, for each place where the file has them."""
    return [
        Write(place[leaf], value, f"params[{key!r}][{leaf!r}]", f"the {leaf} of layer {shown(key)}")
        for key, given in _by_layer(params, file.layers).items()
        for place in file.layers[key].places
        for leaf, value in _checked(key, given, place).items()
    ]


def _by_layer(params: Any, layers: Mapping[str, Found]) -> dict[str, Any]:
    """Returns the parameters of each layer by its key, from a tree nested or flat."""
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a dict of layers' parameters; got {type(params).__name__}.")
    if "params" in params and not any(key.partition("/")[0] == "params" for key in layers):
        others = {key: value for key, value in params.items() if key != "params"}
        params = {**others, **params["params"]} if isinstance(params["params"], Mapping) else params
    pairs = [key for key, given in params.items() if isinstance(given, tuple)]
    if pairs:
        raise TypeError(
            f"`params[{pairs[0]!r}]` must be a layer's parameters; got a tuple. Of what `load` gives, pass "
            "`{name: params for name, (_, params) in layers.items()}`."
        )
    found: dict[str, Any] = {key: {} for key in layers if _is_there(params, key)}
    others = []
    for path, value in leaves_of(params, "params")[0].items():
        key = "/".join(path[:-1])
        if key in found:
            found[key][path[-1]] = value
        elif "/".join(path) in layers:
            found["/".join(path)] = value
        else:
            others.append(key or path[-1])
    if others:
        known = shown(list(layers))[1:-1] or "none"
        got = ", ".join(dict.fromkeys(map(shown, others[:8])))
        raise ValueError(
            f"`params` must have only layers of the file, which has {known}; got {got}. `save_variables` writes layers "
            "of other classes."
        )
    return found


def _is_there(params: Any, key: str) -> bool:
    """Returns whether a tree, nested or flat, has anything for a layer."""
    if not isinstance(params, Mapping):
        return False
    if key in params:
        return True
    parts = key.split("/")
    return any(
        _is_there(params.get("/".join(parts[:at])), "/".join(parts[at:])) for at in range(1, len(parts))
    )


def _checked(key: str, given: Any, place: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters of a layer after checking that they are those that the file has."""
    if not isinstance(given, Mapping) or set(given) != set(place):
        got = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
        wanted = ", ".join(map(repr, place))
        raise ValueError(f"`params[{key!r}]` must have {wanted}; got {got or 'an empty dict'}.")
    return {leaf: given[leaf] for leaf in place}
