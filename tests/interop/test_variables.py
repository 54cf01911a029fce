"""Whole Keras models in Flax: their predictions, and what a file has of every layer."""

import importlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import flax_sepconv as fsc
from flax_sepconv.interop import keras as files
from tests.interop import fuzz

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*"),
]

DATA = sorted(path for path in fuzz.DATA.rglob("*") if path.suffix in (".keras", ".h5"))
IDS = np.random.default_rng(0).integers(0, 10, (2, 12))


def every_class(keras):
    """A model with every class that Flax has too: nested, wrapped, shared, frozen."""
    layers = keras.layers
    inner = keras.Sequential(
        [
            layers.Input((12, 6)),
            layers.SeparableConv1D(6, 3, padding="same", depth_multiplier=2, activation="relu", name="sep"),
            layers.BatchNormalization(name="norm"),
            layers.LayerNormalization(name="ln", trainable=False),
        ],
        name="inner",
    )
    twice = layers.Dense(6, name="twice")
    x = layers.Input((12,), dtype="int32")
    y = layers.Embedding(10, 6, name="emb")(x)
    y = twice(inner(twice(y)))
    y = layers.Conv1D(8, 3, groups=2, padding="same", use_bias=False, name="conv")(y)
    y = layers.BatchNormalization(name="norm", trainable=False, scale=False)(y)
    y = layers.DepthwiseConv1D(3, depth_multiplier=2, padding="same", name="depthwise")(y)
    y = layers.GroupNormalization(4, name="group")(y)
    y = layers.Conv1DTranspose(6, 4, strides=2, padding="same", name="transpose")(y)
    y = layers.Dropout(0.5)(y)
    y = layers.TimeDistributed(layers.Dense(3, activation="tanh", name="dense"), name="each")(y)
    return randomized(keras.Model(x, y, name="outer"))


def randomized(model):
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(-0.7, 0.7, each.shape) for each in model.get_weights()])
    for layer in [*model.layers, *model.get_layer("inner").layers]:
        if type(layer).__name__ == "BatchNormalization":
            *rest, variance = layer.get_weights()
            layer.set_weights([*rest, 1 + variance])
    return model


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = fsc.SeparableConv1D(6, 3, padding="same", depth_multiplier=2, activation="relu", name="sep")(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm")(x)
        return nn.LayerNorm(epsilon=1e-3, use_fast_variance=False, name="ln")(x)


class Each(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(3, name="dense")(x))


class EveryClass(nn.Module):
    @nn.compact
    def __call__(self, ids):
        twice = nn.Dense(6, name="twice")
        x = nn.Embed(10, 6, name="emb")(ids)
        x = twice(Inner(name="inner")(twice(x)))
        x = nn.Conv(8, (3,), feature_group_count=2, use_bias=False, name="conv")(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, use_scale=False, name="norm")(x)
        x = nn.Conv(16, (3,), feature_group_count=8, name="depthwise")(x)
        x = nn.GroupNorm(4, epsilon=1e-3, use_fast_variance=False, name="group")(x)
        x = nn.ConvTranspose(6, (4,), (2,), transpose_kernel=True, name="transpose")(x)
        return Each(name="each")(x)


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def made(request, tmp_path_factory):
    """A Keras, its model, the folder with the model's files, and its predictions."""
    keras = importlib.import_module(request.param)
    model, folder = every_class(keras), tmp_path_factory.mktemp(request.param)
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    for name in ("model.weights.h5", *(["weights.h5"] if request.param == "tf_keras" else [])):
        model.save_weights(folder / name)
    if request.param == "keras":
        model.save(folder / "folder", zipped=False)
    (folder / "model.json").write_text(model.to_json())
    return keras, model, folder, np.asarray(model(IDS))


WEIGHTS_ALONE = ("model.weights.h5", "weights.h5")
FORMS = ["model.keras", "model.h5", *WEIGHTS_ALONE, "folder"]


@pytest.fixture
def form(made, request):
    """A file of the model and what opens it, besides."""
    _, _, folder, _ = made
    path = folder / request.param
    if not path.exists():
        pytest.skip("no form of this Keras's")
    return path, {"config": folder / "model.json"} if path.name in WEIGHTS_ALONE else {}


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_flax_predicts_what_keras_predicts(made, form):
    *_, expected = made
    path, options = form
    variables = files.load_variables(path, **options)
    np.testing.assert_allclose(jax.jit(EveryClass().apply)(variables, IDS), expected, rtol=1e-5, atol=1e-5)
    wanted = jax.eval_shape(EveryClass().init, jax.random.key(0), IDS)
    assert jax.tree.map(lambda value: value.shape, variables) == jax.tree.map(
        lambda value: value.shape, wanted
    )


def test_both_formats_have_the_same_layers(made):
    _, model, folder, _ = made
    archive, hdf5 = files.layers(folder / "model.keras"), files.layers(folder / "model.h5")
    for name, layer in archive.items():
        assert layer.class_name == hdf5[name].class_name
        jax.tree.map(np.testing.assert_array_equal, layer.weights, hdf5[name].weights)
    live = model.get_layer("inner").get_layer("norm")
    found = archive["inner/norm"]
    assert (found.class_name, found.config["epsilon"]) == ("BatchNormalization", 1e-3)
    assert [*found.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    jax.tree.map(np.testing.assert_array_equal, [*found.weights.values()], live.get_weights())


def loaded_again(keras, path, folder, model):
    """The model of a file, for weights alone another one that gets these."""
    if path.name in WEIGHTS_ALONE:
        again = keras.models.model_from_json((folder / "model.json").read_text())
        again.load_weights(path)
        return again
    return keras.models.load_model(path)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_keras_predicts_with_the_weights_that_flax_changed(made, form, tmp_path):
    keras, model, folder, expected = made
    path, options = form
    out = tmp_path / path.name
    if path.is_dir():  # written in its place
        shutil.copytree(path, out)
        path = out
    variables = jax.tree.map(lambda value: value * 1.25, files.load_variables(path, **options))
    files.save_variables(path, variables, out, **options)
    jax.tree.map(np.testing.assert_array_equal, files.load_variables(out, **options), variables)
    again = np.asarray(loaded_again(keras, out, folder, model)(IDS))
    assert np.abs(again - expected).max() > 1e-2
    np.testing.assert_allclose(EveryClass().apply(variables, IDS), again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_separable_layers_of_every_form_are_the_same(made, form, tmp_path):
    _, _, folder, _ = made
    path, options = form
    expected, layers = files.load(folder / "model.keras"), files.load(path, **options)
    assert {key: config for key, (config, _) in layers.items()} == {
        key: config for key, (config, _) in expected.items()
    }
    out = tmp_path / path.name
    if path.is_dir():
        shutil.copytree(path, out)
        path = out
    ((key, (_, params)),) = layers.items()
    changed = jax.tree.map(lambda value: value + 1, params)
    nested = {"params": {"inner": {"sep": changed}}}
    assert key == "inner/sep"
    files.save(path, nested, out, **options)
    _, again = files.load(out, **options)[key]
    jax.tree.map(np.testing.assert_array_equal, again, changed)
    jax.tree.map(np.testing.assert_array_equal, params, expected[key][1])


@pytest.mark.parametrize("path", DATA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_weights_of_a_file_written_back_are_the_file(path, tmp_path):
    files.save_variables(path, files.load_variables(path), tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda variables: None,
            TypeError,
            "`variables` must be a dict, as `load_variables` gives it; got NoneType",
        ),
        (
            lambda variables: {"params": variables["params"]},
            ValueError,
            r"must have \['batch_stats'\]\['inner'\]\['norm'\]\['mean'\], the 'moving_mean' of a BatchNormalization",
        ),
        (
            lambda variables: variables | {"losses": {"it": np.ones(1)}},
            ValueError,
            r"must have only weights of the file's layers; got \['losses'\]\['it'\] too",
        ),
        (
            lambda variables: jax.tree.map(lambda value: value.astype("float16"), variables),
            ValueError,
            r"`variables\['params'\].* and dtype float32, as in the file; got .* and float16",
        ),
    ],
)
def test_variables_that_do_not_fit_are_not_written(made, change, error, message, tmp_path):
    _, _, folder, _ = made
    variables = files.load_variables(folder / "model.keras")
    with pytest.raises(error, match=message):
        files.save_variables(folder / "model.keras", change(variables), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_nnx_takes_them_by_update(made):
    _, _, folder, _ = made
    variables = files.load_variables(folder / "model.keras")

    class Model(nnx.Module):
        def __init__(self):
            self.twice = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(8, use_scale=False, epsilon=1e-3, rngs=nnx.Rngs(0))

    model = Model()
    nnx.update(model, {name: variables["params"][name] for name in ("twice", "norm")})
    nnx.update(model, {"norm": variables["batch_stats"]["norm"]})
    np.testing.assert_array_equal(model.twice.kernel[...], variables["params"]["twice"]["kernel"])
    np.testing.assert_array_equal(model.norm.bias[...], variables["params"]["norm"]["bias"])
    np.testing.assert_array_equal(model.norm.mean[...], variables["batch_stats"]["norm"]["mean"])


@pytest.mark.parametrize("path", DATA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_separable_layers_are_where_load_has_them(path):
    params = files.load_variables(path)["params"]
    for name, (_, expected) in files.load(path).items():
        found = params
        for each in name.split("/"):
            found = found[each]
        assert found.keys() == expected.keys()
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_saved_model_is_refused_and_the_way_out_named():
    for read in (files.load_variables, files.layers):
        with pytest.raises(
            ValueError, match=r"causal.tf: of a SavedModel only .* save it as .keras, and use that"
        ):
            read(fuzz.DATA / "tf-2.15" / "causal.tf")


def test_a_live_model_is_what_its_file_is(made):
    _, model, folder, _ = made
    layers, variables = files.from_model(model)
    expected = files.load_variables(folder / "model.keras")
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    loaded = files.load(folder / "model.keras")
    assert {name: config for name, (config, _) in layers.items()} == {
        n: config for n, (config, _) in loaded.items()
    }
