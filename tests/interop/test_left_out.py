"""Layers of a file that cannot be had, and entries of `params` that are no layers of it."""

import importlib
import json

import jax
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv.interop import keras as files
from tests.interop.test_forms import equal, model_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*"),
]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filters": 0}, "`filters` must be at least 1; got 0"),
        ({"kernel_size": 9}, "the file has no weights that fit"),
        (
            {"activation": {"class_name": "PReLU", "config": {}}},
            "`activation` cannot be 'PReLU': its slopes",
        ),
        (
            {"depthwise_regularizer": {"class_name": "L2", "config": {"l2": -1}}},
            "`depthwise_regularizer`: .*-1",
        ),
        ({"dtype": "int8"}, "`dtype` must be 'float32'"),
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_had_names_itself_and_may_be_left_out(tmp_path, change, reason):
    keras = importlib.import_module("keras")
    model = model_of(keras, a="a", b="b", c="c", inner="inner")
    model.save_weights(tmp_path / "m.weights.h5")
    described = json.loads(model.to_json())
    described["config"]["layers"][1]["config"]["layers"][1]["config"].update(change)
    with pytest.raises(ValueError, match=f"layer 'inner/a': .*{reason}"):
        files.load(tmp_path / "m.weights.h5", config=described)
    with pytest.warns(UserWarning, match=f"layer 'inner/a' is left out: .*{reason}"):
        layers = files.load(tmp_path / "m.weights.h5", config=described, strict=False)
    assert [*layers] == ["inner/b", "c"]
    expected = files.from_model(model).layers
    equal(layers, {key: expected[key] for key in layers})


def test_float64_is_left_out_where_it_would_be_narrowed(tmp_path):
    keras = importlib.import_module("keras")
    layer = keras.layers.SeparableConv1D
    model = keras.Sequential(
        [keras.layers.Input((20, 3)), layer(3, 3, name="a"), layer(3, 3, name="b", dtype="float64")]
    )
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"b/depthwise_kernel is float64, .* Layer 'b' is left out"):
        assert [*files.load(tmp_path / "m.keras", strict=False)] == ["a"]


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_model_of_two_dimensional_layers_is_told_what_reads_them(tmp_path, name):
    keras = importlib.import_module("keras")
    model = keras.Sequential(
        [keras.layers.Input((1, 20, 3)), keras.layers.SeparableConv2D(4, (1, 3), name="two")]
    )
    model.save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"has no SeparableConv1D, but SeparableConv2D layers, \['two'\]"):
        assert files.load(tmp_path / name) == {}
    assert {*files.load_variables(tmp_path / name)["params"]} == {"two"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: {"params": tree | {"dense": tree["c"]}},
            "which has 'inner/a', 'inner/b', 'c'; got 'dense'",
        ),
        (
            lambda tree: {"params": tree, "batch_stats": {"n": {"mean": 1}}},
            "; got 'batch_stats/n'. `save_var",
        ),
        (lambda tree: {"inner": {"a": {}}}, r"`params\['inner/a'\]` must have .*; got an empty dict"),
        (lambda tree: {"inner": {"a": 3}}, r"`params\['inner/a'\]` must have .*; got int"),
        (lambda tree: {"inner": {"d": tree["c"]}}, "; got 'inner/d'"),
        (lambda tree: tree | {"inner/a": tree["inner"]["a"]}, "once; got it nested and under a joined key"),
    ],
)
def test_entries_that_are_no_layers_are_named(tmp_path, change, message):
    model = model_of(importlib.import_module("keras"), a="a", b="b", c="c", inner="inner")
    model.save(tmp_path / "m.keras")
    layers = files.load(tmp_path / "m.keras")
    tree = {"inner": {name: layers[f"inner/{name}"][1] for name in "ab"}, "c": layers["c"][1]}
    with pytest.raises(ValueError, match=message):
        files.save(tmp_path / "m.keras", change(tree), tmp_path / "out")
    for good in (tree, {"params": tree}, {key: params for key, (_, params) in layers.items()}):
        files.save(tmp_path / "m.keras", good, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == (tmp_path / "m.keras").read_bytes()


def test_the_keys_of_load_are_those_of_losses_and_constraints(tmp_path):
    keras = importlib.import_module("keras")
    inner = keras.Sequential(
        [keras.layers.SeparableConv1D(4, 3, depthwise_regularizer="l2", name="a")], name="inner"
    )
    model = keras.Sequential(
        [
            keras.Input((20, 3)),
            inner,
            keras.layers.SeparableConv1D(4, 3, depthwise_constraint="non_neg", name="b"),
        ]
    )
    model.save(tmp_path / "m.keras")
    layers = files.load(tmp_path / "m.keras")
    configs = {key: config for key, (config, _) in layers.items()}
    params = {key: params for key, (_, params) in layers.items()}
    np.testing.assert_allclose(
        fsc.regularization_loss(params, configs), sum(map(float, model.losses)), rtol=1e-6
    )
    zero = jax.tree.map(np.zeros_like, params)
    optimizer = fsc.constrain(configs)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert (params["b"]["depthwise_kernel"] + updates["b"]["depthwise_kernel"] >= 0).all()
