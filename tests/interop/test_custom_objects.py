"""What is not Keras's own in a file: functions, classes and initializers of the user's, and layers left out."""

import importlib
import json
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_sepconv as fsc
from flax_sepconv.interop import keras as files
from flax_sepconv.interop import safetensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorflow|tf_keras|keras).*"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*"),
]

FORMS = [
    *(("keras", name) for name in ("m.keras", "m.h5", "m.weights.h5", "folder")),
    *(("tf_keras", name) for name in ("m.keras", "m.h5", "m.weights.h5", "w.h5", "saved_model")),
]
X = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)


def scaled_tanh(x):
    """In TensorFlow."""
    import tensorflow as tf

    return 1.7 * tf.tanh(x)


def in_jax(x):
    return 1.7 * jnp.tanh(x)


class Cube:
    """A regularizer in JAX, as the file names it and with its arguments."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, w):
        return self.factor * jnp.sum(jnp.abs(w) ** 3)


def registered(keras):
    """A regularizer and a class made from the layer, in Keras."""
    register = keras.saving.register_keras_serializable("mine")

    @register
    class Cube(keras.regularizers.Regularizer):
        def __init__(self, factor=1.0):
            self.factor = factor

        def __call__(self, w):
            return 0.0

        def get_config(self):
            return {"factor": self.factor}

    @register
    class Own(keras.layers.SeparableConv1D):
        def __init__(self, *args, mine=3, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

        def get_config(self):
            return super().get_config() | {"mine": self.mine}

    return Cube, Own


def model_of(keras):
    cube, own = registered(keras)
    layer = keras.layers.SeparableConv1D
    model = keras.Sequential(
        [
            keras.layers.Input((12, 3)),
            layer(4, 3, name="plain"),
            layer(4, 3, activation=scaled_tanh, pointwise_regularizer=cube(0.5), name="custom"),
            own(4, 3, mine=7, activation="relu", name="own"),
            keras.layers.Dense(2, name="dense"),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


def written(model, name, folder):
    """The arguments of `load` for a model written in a form, but for `custom_objects`."""
    path = folder / name
    if name == "folder":
        model.save(path, zipped=False)
    elif name == "saved_model":
        model.save(path, save_format="tf")
    elif name in ("m.weights.h5", "w.h5"):
        model.save_weights(path)
        return {"path": path, "config": model.to_json()}
    else:
        model.save(path)
    return {"path": path}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    models, there = {}, {}

    def get(module, name):
        if module not in models:
            models[module] = model_of(importlib.import_module(module))
        if (module, name) not in there:
            there[module, name] = written(models[module], name, tmp_path_factory.mktemp(module))
        return models[module], there[module, name]

    return get


CUSTOM = {"scaled_tanh": in_jax, "mine>Cube": Cube, "Own": fsc.SeparableConv1DConfig}


@pytest.mark.parametrize(("module", "name"), FORMS)
def test_custom_objects_say_what_names_stand_for(made, module, name):
    model, arguments = made(module, name)
    layers = files.load(**arguments, custom_objects=CUSTOM)
    assert [*layers] == ["plain", "custom", "own"]
    x = X
    for (config, params), layer in zip(layers.values(), model.layers, strict=False):
        ours = fsc.separable_conv1d(params, x, config)
        x = np.asarray(layer(x))
        np.testing.assert_allclose(ours, x, rtol=1e-5, atol=1e-5)
    assert layers["custom"][0].pointwise_regularizer.factor == 0.5


@pytest.mark.parametrize(("module", "name"), FORMS)
def test_without_them_the_error_names_all_and_its_advice_works(made, module, name):
    _, arguments = made(module, name)
    with pytest.raises(
        ValueError,
        match=r"`custom_objects=\{'scaled_tanh': ..., 'mine>Cube': ...\}`, or leave their layers out, `strict=False`. "
        r"They are 'scaled_tanh', activation of layer 'custom'; 'mine>Cube', pointwise_regularizer of layer 'custom'",
    ):
        files.load(**arguments)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        assert [*files.load(**arguments, strict=False)] == ["plain"]
    assert "layer 'custom' is left out: `activation` is 'scaled_tanh', which is not Ker" in str(
        noted[0].message
    )


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_class_that_may_be_the_layer_is_named(made, name):
    _, arguments = made("keras", name)
    given = {"scaled_tanh": in_jax, "Cube": lambda w: jnp.sum(w)}
    with pytest.warns(UserWarning, match=r"If the class 'Own' is one, say so: `custom_objects=\{'Own': Sep"):
        assert [*files.load(**arguments, custom_objects=given)] == ["plain", "custom"]


@pytest.mark.parametrize(("module", "name"), [form for form in FORMS if form[1] != "saved_model"])
def test_weights_need_no_functions(made, module, name, tmp_path):
    model, arguments = made(module, name)
    own = {"Own": fsc.SeparableConv1DConfig}
    variables = files.load_variables(**arguments, custom_objects=own)
    jax.tree.map(
        np.testing.assert_array_equal, variables, files.from_model(model, custom_objects=CUSTOM).variables
    )
    if name != "folder":
        config = {key: value for key, value in arguments.items() if key == "config"}
        files.save(arguments["path"], {"plain": variables["params"]["plain"]}, tmp_path / "same", **config)
        assert (tmp_path / "same").read_bytes() == arguments["path"].read_bytes()


@pytest.mark.parametrize(
    ("custom_objects", "error", "message"),
    [
        ([], TypeError, "`custom_objects` must be a dict from names in the file to what they stand for"),
        (
            {"scaled_tanh": 3},
            ValueError,
            r"layer 'custom': `custom_objects\['scaled_tanh'\]` must be .*; got 3",
        ),
        (
            {"scaled_tanh": in_jax, "mine>Cube": type("No", (), {})},
            ValueError,
            r"`custom_objects\['mine>Cube'\]` of {'factor': 0.5}: No\(\) takes no arguments",
        ),
        ({"scaled_tanh": scaled_tanh}, ValueError, "layer 'custom': `activation` .*"),
    ],
)
def test_custom_objects_that_do_not_do_are_refused(made, custom_objects, error, message):
    _, arguments = made("keras", "m.keras")
    with pytest.raises(error, match=message):
        files.load(**arguments, custom_objects=custom_objects)


# ---- Initializers ----

INITIALIZERS = [
    {"class_name": "mine>Own", "config": {"a": [1, None]}, "registered_name": "mine>Own"},
    {"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": -1.0, "seed": None}},
    {"class_name": "RandomUniform", "config": {"minval": 1.0, "maxval": -1.0, "seed": None}},
    {"class_name": "__lambda__", "config": {"value": ["4wEA" * 200, None, None]}},
    "own",
]


@pytest.mark.parametrize("initializer", INITIALIZERS, ids=str)
def test_an_initializer_that_cannot_draw_stops_no_file(made, initializer, tmp_path):
    model, arguments = made("keras", "m.weights.h5")
    described = json.loads(model.to_json())
    described["config"]["layers"][1]["config"]["depthwise_initializer"] = initializer
    own = {"scaled_tanh": in_jax, "Cube": lambda w: jnp.sum(w), "Own": fsc.SeparableConv1DConfig}
    config, params = files.load(arguments["path"], config=described, custom_objects=own)["plain"]
    other, _ = files.load(arguments["path"], config=json.dumps(described), custom_objects=own)["plain"]
    assert config == other
    assert hash(config) == hash(other)
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != files.load(**arguments, custom_objects=own)["plain"][0]
    assert config.get_config()["depthwise_initializer"] == initializer
    np.testing.assert_allclose(
        fsc.separable_conv1d(params, X, config), model.layers[0](X), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"`depthwise_initializer` .* came with weights of Keras's and cannot"
    ):
        fsc.init_params(jax.random.key(0), 3, config)
    layer = fsc.nnx.SeparableConv1D.from_config(3, config, rngs=nnx.Rngs(0), depthwise_initializer="zeros")
    assert not layer.depthwise_kernel[...].any()
    with pytest.raises((ValueError, TypeError)):
        fsc.SeparableConv1DConfig.from_config(config.get_config())
    safetensors.save(tmp_path / "layers", {"plain": (config, params)})
    assert safetensors.load(tmp_path / "layers")["plain"][0] == config
