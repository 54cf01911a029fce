"""Files of weights alone, folders, files of older writers, and parts of files that cannot be had."""

import importlib
import json
import os
import re
import shutil

import h5py
import jax
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv.interop import keras as files

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*"),
]

ALONE = [("keras", "m.weights.h5"), ("tf_keras", "m.weights.h5"), ("tf_keras", "m.h5")]


def model_of(keras, **names):
    """Nested layers, of which no two have one form; names are Keras's own where none are given."""
    layer, named = keras.layers.SeparableConv1D, lambda name: {"name": names.get(name)}
    inner = keras.Sequential(
        [keras.layers.Input((20, 3)), layer(3, 2, **named("a")), layer(3, 3, **named("b"))], **named("inner")
    )
    model = keras.Sequential(
        [keras.layers.Input((20, 3)), inner, keras.layers.Dropout(0.5), layer(4, 4, **named("c"))]
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


@pytest.fixture(scope="module", params=ALONE, ids=str)
def alone(request, tmp_path_factory):
    """A Keras, a model, and a file of its weights alone."""
    module, name = request.param
    keras = importlib.import_module(module)
    model = model_of(keras, a="a", b="b", c="c", inner="inner")
    path = tmp_path_factory.mktemp(module) / name
    model.save_weights(path)
    return keras, model, path


def equal(layers, others):
    assert [*layers] == [*others]
    for key, (config, params) in layers.items():
        assert config == others[key][0]
        jax.tree.map(np.testing.assert_array_equal, params, others[key][1])


def test_every_form_of_a_config_will_do(alone, tmp_path):
    _, model, path = alone
    text = model.to_json()
    (tmp_path / "model.json").write_text(text)
    expected = files.from_model(model).layers
    assert [*expected] == ["inner/a", "inner/b", "c"]
    for config in (
        text,
        text.encode(),
        json.loads(text),
        tmp_path / "model.json",
        str(tmp_path / "model.json"),
    ):
        equal(files.load(path, config=config), expected)
    equal(files.load(path, config={key: config for key, (config, _) in expected.items()}), expected)


def test_the_way_out_of_the_refusal_leads_to_the_layers(alone, tmp_path, monkeypatch):
    _, model, path = alone
    with pytest.raises(ValueError, match="it holds weights alone") as refusal:
        files.load(path)
    monkeypatch.chdir(tmp_path)
    written = re.search(
        r"`open\('model.json', 'w'\).write\((.*)\)`.* `config='model.json'`", str(refusal.value)
    )
    (tmp_path / "model.json").write_text(eval(written[1], {"model": model}))
    equal(files.load(path, config="model.json"), files.from_model(model).layers)
    with pytest.raises(
        ValueError, match=r"model.json: it is JSON without weights. .* pass the file of the weights"
    ):
        files.load("model.json")
    with pytest.raises(ValueError, match=r"`config` must be what the model's .*, which is no JSON"):
        files.load(path, config=path)


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_a_model_built_again_has_other_numbers_in_its_names(module, tmp_path):
    keras = importlib.import_module(module)
    model, again = model_of(keras), model_of(keras)
    assert model.layers[-1].name != again.layers[-1].name
    for name in ("m.weights.h5", "m.h5")[: 1 + (module == "tf_keras")]:
        model.save_weights(tmp_path / name)
        layers = files.load(tmp_path / name, config=again.to_json())
        for (_, params), (_, expected) in zip(
            layers.values(), files.from_model(model).layers.values(), strict=True
        ):
            jax.tree.map(np.testing.assert_array_equal, params, expected)
        live = files.from_model(again).variables
        variables = files.load_variables(tmp_path / name, config=again.to_json())
        assert jax.tree.structure(variables) == jax.tree.structure(live)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (3, TypeError, "`config` must be what the model's `to_json\\(\\)` gives, .*; got 3"),
        ({}, ValueError, "its model config is not one that Keras writes"),
        ({"a": {1}}, TypeError, "got a dict that is no JSON: .* Pass `model.to_json"),
        ({"a": fsc.SeparableConv1DConfig(1, 1), "b": 3}, TypeError, "must be .*; got 'b': 3"),
        ("{", ValueError, "its model config is not JSON"),
        ({"c": fsc.SeparableConv1DConfig(9, 9)}, ValueError, "layer 'c': the file has no weights that fit"),
    ],
    ids=str,
)
def test_configs_that_are_none_are_refused(alone, config, error, message):
    with pytest.raises(error, match=message):
        files.load(alone[2], config=config)


def test_configs_by_path_say_nothing_of_other_layers(alone):
    _, model, path = alone
    configs = {key: config for key, (config, _) in files.from_model(model).layers.items()}
    for read in (files.load_variables, files.layers):
        with pytest.raises(ValueError, match=r"do not say what its other layers are. Pass what the model's"):
            read(path, config=configs)
    assert {"inner/a", "inner/b", "c"} <= files.layers(path, config=model.to_json()).keys()


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    keras = importlib.import_module("tf_keras")  # which writes no names into this form
    layer = keras.layers.SeparableConv1D
    model = keras.Sequential([keras.layers.Input((20, 3)), layer(3, 3, name="a"), layer(3, 3, name="b")])
    model.save_weights(tmp_path / "m.weights.h5")
    config = fsc.SeparableConv1DConfig(3, 3)
    with pytest.raises(
        ValueError, match=r"layer 'a': its weights may be those in 'layers/.*' or 'layers/.*'"
    ):
        files.load(tmp_path / "m.weights.h5", config={"a": config, "b": config})


def test_a_config_beside_a_config_is_refused(tmp_path):
    model = model_of(importlib.import_module("keras"))
    model.save(tmp_path / "m.keras")
    with pytest.raises(
        ValueError, match=r"it has its model's config, and `config` is for weights alone. Leave"
    ):
        files.load(tmp_path / "m.keras", config=model.to_json())


def test_weights_in_several_files_are_refused_by_name(tmp_path):
    keras = importlib.import_module("keras")
    model = model_of(keras)
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=1e-6)
    with pytest.raises(
        ValueError, match=r"it is the index of weights in several files.* `model.save_weights"
    ):
        files.load(tmp_path / "m.weights.json", config=model.to_json())


# ---- Folders ----


def test_a_folder_is_written_in_its_place_and_the_message_says_how(tmp_path):
    keras = importlib.import_module("keras")
    path, out = tmp_path / "model", tmp_path / "out"
    model_of(keras, a="a", b="b", c="c", inner="inner").save(path, zipped=False)
    _, params = files.load(path)["c"]
    new = jax.tree.map(lambda value: value + 1, params)
    with pytest.raises(ValueError, match=r"`shutil.copytree\(path, out\)`, and write `out` to `out`"):
        files.save(path, {"c": new}, out)
    shutil.copytree(path, out)
    files.save(out, {"c": new}, out)
    jax.tree.map(np.testing.assert_array_equal, files.load(out)["c"][1], new)
    again = keras.models.load_model(out)
    for value, leaf in zip(again.layers[-1].get_weights(), params, strict=True):
        np.testing.assert_array_equal(value, new[leaf])
    assert sorted(os.listdir(out)) == sorted(os.listdir(path))
    for name in ("config.json", "metadata.json"):
        assert (out / name).read_bytes() == (path / name).read_bytes()


def test_links_of_a_folder_stay_within_it(tmp_path):
    model_of(importlib.import_module("keras")).save(tmp_path / "model", zipped=False)
    weights = tmp_path / "model" / "model.weights.h5"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    for read in (files.load, lambda path: files.save(path, {}, path)):
        with pytest.raises(ValueError, match=r"its 'model\.weights\.h5' is a link to somewhere else"):
            read(tmp_path / "model")


# ---- Older writers ----


def old_file(path, version, entries, multiplier=2, bias=True):
    """A file as the standalone Keras or TF 1 wrote it, of one layer."""
    layer = {"name": "s", "filters": 4, "kernel_size": [3]} | entries
    rng = np.random.default_rng(0)
    arrays = {"depthwise_kernel": (3, 3, multiplier), "pointwise_kernel": (1, 3 * multiplier, 4)}
    arrays |= {"bias": (4,)} if bias else {}
    with h5py.File(path, "w") as file:
        described = {
            "class_name": "Sequential",
            "config": [{"class_name": "SeparableConv1D", "config": layer}],
        }
        file.attrs.update({"keras_version": version, "model_config": json.dumps(described).encode()})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"s"]
        group.create_group("s").attrs["weight_names"] = [f"s/{name}:0".encode() for name in arrays]
        for name, shape in arrays.items():
            group[f"s/s/{name}:0"] = rng.normal(size=shape).astype("f4")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_shapes_say_what_an_older_file_leaves_out(tmp_path, multiplier, bias):
    old_file(tmp_path / "old.h5", "2.0.2-tf", {"activation": "hard_sigmoid"}, multiplier, bias)
    ((config, params),) = files.load(tmp_path / "old.h5").values()
    assert config == fsc.SeparableConv1DConfig(
        4,
        3,
        depth_multiplier=multiplier,
        use_bias=bias,
        activation=fsc.activations.hard_sigmoid_keras2,
        name="s",
    )
    assert fsc.separable_conv1d(params, np.ones((1, 9, 3), "float32"), config).shape == (1, 7, 4)
    files.save(tmp_path / "old.h5", {"s": params}, tmp_path / "same.h5")
    assert (tmp_path / "same.h5").read_bytes() == (tmp_path / "old.h5").read_bytes()
    old_file(tmp_path / "said.h5", "2.2.4", {"depth_multiplier": 3})
    with pytest.raises(ValueError, match=r"layer 's': the file has no weights that fit .*depth_multiplier=3"):
        files.load(tmp_path / "said.h5")
