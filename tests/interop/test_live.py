"""Live layers and models with functions and classes of the user's own."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv.interop import keras as files
from tests.interop.test_custom_objects import X, in_jax, scaled_tanh


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def keras(request):
    return importlib.import_module(request.param)


def test_live_classes_of_ones_own(keras):
    class Own(keras.layers.SeparableConv1D):
        def __init__(self, *args, mine=3, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

        def get_config(self):
            return super().get_config() | {"mine": self.mine}

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = Own(4, 3, name="hidden"), keras.layers.Dense(2, name="out")

        def call(self, x):
            return self.out(self.hidden(x))

        def get_config(self):
            raise NotImplementedError

    model = Subclassed()
    model(np.zeros((1, 8, 3), "float32"))
    layers, variables = files.from_model(model)
    assert layers["hidden"][0].kernel_size == 3
    assert jax.tree.map(np.shape, variables["params"]["out"]) == {"kernel": (4, 2), "bias": (2,)}
    assert [*variables["params"]] == ["hidden", "out"]
    with pytest.raises(TypeError, match="`model` must be a model of Keras's; got 3"):
        files.from_model(3)


@pytest.mark.filterwarnings("ignore:The `keras.*serialize:UserWarning")
def test_live_layers_keep_what_is_the_users(keras):
    def positive(w):
        return jnp.maximum(w, 0)

    def nothing(shape, dtype=None):
        return np.zeros(shape)

    layer = keras.layers.SeparableConv1D(
        4,
        3,
        activation=in_jax,
        depthwise_constraint=positive,
        pointwise_initializer=nothing,
    )
    layer.build((None, None, 3))
    config, params = files.from_layer(layer)
    assert config.activation is in_jax
    assert config.depthwise_constraint is positive
    with pytest.raises(ValueError, match="cannot draw others"):
        fsc.init_params(jax.random.key(0), 3, config)
    assert fsc.separable_conv1d(params, X, config).shape == (2, 10, 4)
    again = fsc.SeparableConv1D.from_config(
        layer.get_config(),
        activation=in_jax,
        depthwise_constraint=positive,
        pointwise_initializer="zeros",
    )
    assert again.config.activation is in_jax


def test_what_jax_cannot_trace_is_given_by_its_name(keras):
    layer = keras.layers.SeparableConv1D(4, 3, activation=scaled_tanh, name="custom")
    layer.build((None, None, 3))
    with pytest.raises(TypeError, match=r"layer` 'custom': .* `custom_objects=\{'scaled_tanh': ...\}`"):
        files.from_layer(layer)
    config, params = files.from_layer(layer, custom_objects={"scaled_tanh": in_jax})
    np.testing.assert_allclose(fsc.separable_conv1d(params, X, config), layer(X), rtol=1e-5, atol=1e-5)


def test_counts_and_vocabularies_are_no_weights(keras):
    layers = keras.layers
    norm, words = layers.Normalization(name="norm"), layers.TextVectorization(output_sequence_length=12)
    norm.adapt(np.arange(6, dtype="float32").reshape(2, 3))
    words.adapt(["a b", "c"])
    x, text = layers.Input((8, 3)), layers.Input((1,), dtype="string")
    embedded = layers.Embedding(20, 4, name="embedding")(words(text))
    model = keras.Model([x, text], [layers.SeparableConv1D(2, 3, name="sep")(norm(x)), embedded])
    params = files.from_model(model).variables["params"]
    assert {name: sorted(weights) for name, weights in params.items()} == {
        "norm": ["mean", "variance"],
        "sep": ["bias", "depthwise_kernel", "pointwise_kernel"],
        "embedding": ["embedding"],
    }


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_no_weight_of_a_class_of_ones_own_is_lost(suffix, tmp_path):
    keras = importlib.import_module("keras")  # the only one that saves such a model as .h5

    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.blocks = [keras.layers.SeparableConv1D(4, 3), keras.layers.Dense(3)]
            self.out = keras.layers.Dense(2)

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    model = Own()
    model(np.zeros((1, 12, 3), "float32"))
    path, copy = tmp_path / f"model{suffix}", tmp_path / "copy"
    model.save(path)
    variables = files.load_variables(path)
    assert sum(each.size for each in jax.tree.leaves(variables)) == model.count_params()
    files.save_variables(path, variables, copy)
    assert copy.read_bytes() == path.read_bytes()
