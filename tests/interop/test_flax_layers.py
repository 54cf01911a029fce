"""Keras's layers and Flax's with the weights of the first: the same output, and the same weights on the way back."""

import importlib

import flax.linen as nn
import jax
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv.interop._flax_layers import (
    KerasLayer,
    from_flax,
    to_flax,
    weight_names,
)
from flax_sepconv.interop._flax_layers import (
    named as named_arrays,
)
from flax_sepconv.interop._live import keras_layer

BATCH, LENGTH, CHANNELS = 2, 11, 6
NORM = {"use_running_average": True, "epsilon": 1e-3}


@pytest.fixture(params=["keras", "tf_keras"])
def keras(request):
    return importlib.import_module(request.param)


def conv(cls, size=3, features=4, **keras):
    """Cases of a convolution: Keras's arguments, and Flax's layer for them."""
    renamed = {"strides": "strides", "dilation_rate": "kernel_dilation", "groups": "feature_group_count"}
    given = {renamed[name]: value for name, value in keras.items() if name in renamed}
    given["padding"] = keras.get("padding", "valid").upper()
    given["use_bias"] = keras.get("use_bias", True)
    if cls == "DepthwiseConv1D":
        features, given["feature_group_count"] = CHANNELS * keras.get("depth_multiplier", 1), CHANNELS
        return cls, {"kernel_size": size} | keras, nn.Conv(features, (size,), **given)
    if cls == "Conv1DTranspose":
        layer = nn.ConvTranspose(features, (size,), transpose_kernel=True, **given)
    else:
        layer = nn.Conv(features, (size,), **given)
    return cls, {"filters": features, "kernel_size": size} | keras, layer


CASES = [
    ("Dense", {"units": 4}, nn.Dense(4)),
    ("Dense", {"units": 4, "use_bias": False}, nn.Dense(4, use_bias=False)),
    conv("Conv1D"),
    conv("Conv1D", use_bias=False, strides=2, padding="same"),
    conv("Conv1D", groups=3, features=9, dilation_rate=2, padding="causal"),
    *(
        conv("Conv1DTranspose", size, strides=strides, padding=padding)
        for size, strides in [(3, 1), (4, 2), (3, 2), (2, 3), (5, 3)]
        for padding in ("valid", "same")
    ),
    conv("Conv1DTranspose", use_bias=False),
    conv("DepthwiseConv1D"),
    conv("DepthwiseConv1D", depth_multiplier=3, strides=2, padding="same"),
    conv("DepthwiseConv1D", depth_multiplier=2, use_bias=False, dilation_rate=2),
    ("SeparableConv1D", {"filters": 4, "kernel_size": 3}, fsc.SeparableConv1D(4, 3)),
    (
        "SeparableConv1D",
        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2, "use_bias": False},
        fsc.SeparableConv1D(4, 3, depth_multiplier=2, use_bias=False),
    ),
    ("Embedding", {"input_dim": 5, "output_dim": 3}, nn.Embed(5, 3)),
    ("BatchNormalization", {}, nn.BatchNorm(**NORM)),
    ("BatchNormalization", {"trainable": False, "axis": 1}, nn.BatchNorm(axis=1, **NORM)),
    ("BatchNormalization", {"scale": False}, nn.BatchNorm(use_scale=False, **NORM)),
    ("BatchNormalization", {"center": False}, nn.BatchNorm(use_bias=False, **NORM)),
    (
        "BatchNormalization",
        {"center": False, "scale": False},
        nn.BatchNorm(use_bias=False, use_scale=False, **NORM),
    ),
    ("LayerNormalization", {}, nn.LayerNorm(epsilon=1e-3)),
    ("LayerNormalization", {"scale": False}, nn.LayerNorm(epsilon=1e-3, use_scale=False)),
    ("LayerNormalization", {"center": False}, nn.LayerNorm(epsilon=1e-3, use_bias=False)),
    (
        "LayerNormalization",
        {"axis": [1, 2]},
        nn.LayerNorm(epsilon=1e-3, reduction_axes=(1, 2), feature_axes=(1, 2)),
    ),
    ("LayerNormalization", {"axis": 1}, nn.LayerNorm(epsilon=1e-3, reduction_axes=1, feature_axes=1)),
    ("GroupNormalization", {"groups": 3}, nn.GroupNorm(3, epsilon=1e-3)),
    ("GroupNormalization", {"groups": 2, "scale": False}, nn.GroupNorm(2, epsilon=1e-3, use_scale=False)),
    ("GroupNormalization", {"groups": 2, "center": False}, nn.GroupNorm(2, epsilon=1e-3, use_bias=False)),
]


def built(keras, cls, arguments, x):
    """A layer with random weights, variances above 0."""
    layer = getattr(keras.layers, cls)(**arguments)
    layer(x)
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(0.5, 2, value.shape).astype(value.dtype) for value in layer.get_weights()])
    return layer


def input_for(cls):
    rng = np.random.default_rng(1)
    if cls == "Embedding":
        return rng.integers(0, 5, (BATCH, LENGTH))
    return rng.normal(size=(BATCH, LENGTH, CHANNELS)).astype(np.float32)


def variables(layer):
    """What Flax's layer takes."""
    return to_flax({(): layer})


def back_again(layer):
    """Whether the weights come back as they were, also from deep inside a model."""
    for path in ((), ("encoder", "first")):
        again = from_flax({path: layer}, to_flax({path: layer}))
        assert [*again[path]] == [*layer.weights]
        jax.tree.map(np.testing.assert_array_equal, again[path], layer.weights)


@pytest.mark.parametrize(
    ("cls", "arguments", "flax"), CASES, ids=[f"{cls} {arguments}" for cls, arguments, _ in CASES]
)
def test_flax_gives_what_keras_gives(keras, cls, arguments, flax):
    x = input_for(cls)
    theirs = built(keras, cls, arguments, x)
    described = keras_layer(theirs)
    np.testing.assert_allclose(flax.apply(variables(described), x), theirs(x), rtol=1e-5, atol=1e-5)
    back_again(described)
    # A file may have the order only; the names follow from the config.
    named = dict(
        zip(
            weight_names(cls, described.config, len(described.weights)),
            described.weights.values(),
            strict=True,
        )
    )
    jax.tree.map(
        np.testing.assert_array_equal, variables(described._replace(weights=named)), variables(described)
    )
    assert weight_names(cls, described.config, 17) == tuple(map(str, range(17)))
    numbered = dict(zip(map(str, range(len(named))), named.values(), strict=True))
    assert [*named_arrays(cls, described.config, numbered)] == [*named]


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        ("Conv1D", {"filters": 4, "kernel_size": 3, "groups": 2}),
        ("Conv1DTranspose", {"filters": 4, "kernel_size": 3}),
        ("DepthwiseConv1D", {"kernel_size": 3, "depth_multiplier": 2}),
        ("SeparableConv1D", {"filters": 4, "kernel_size": 3, "depth_multiplier": 2}),
    ],
)
def test_channels_first_changes_no_weight(keras, cls, arguments):
    # TensorFlow computes neither on CPUs, so that the shapes must do.
    last = built(keras, cls, arguments, input_for(cls))
    first = getattr(keras.layers, cls)(data_format="channels_first", **arguments)
    first.build((BATCH, CHANNELS, LENGTH))
    first.set_weights(last.get_weights())
    jax.tree.map(np.testing.assert_array_equal, variables(keras_layer(first)), variables(keras_layer(last)))


@pytest.mark.parametrize(
    ("cls", "axis", "flax"),
    [
        ("BatchNormalization", [1, 2], nn.BatchNorm(axis=(1, 2), **NORM)),
        ("BatchNormalization", [2], nn.BatchNorm(**NORM)),
    ],
)
def test_several_axes_of_keras_2(cls, axis, flax):
    tf_keras = importlib.import_module("tf_keras")
    x = input_for(cls)
    theirs = built(tf_keras, cls, {"axis": axis}, x)
    described = keras_layer(theirs)
    np.testing.assert_allclose(flax.apply(variables(described), x), theirs(x), rtol=1e-5, atol=1e-5)
    back_again(described)


def test_other_layers_keep_keras_names_and_shapes(keras):
    x = input_for("Dense")
    lstm = built(keras, "LSTM", {"units": 3}, x)
    described = keras_layer(lstm)
    assert [*described.weights] == ["lstm_cell/kernel", "lstm_cell/recurrent_kernel", "lstm_cell/bias"]
    assert [*variables(described)["params"]["lstm_cell"]] == ["kernel", "recurrent_kernel", "bias"]
    back_again(described)
    attention = keras.layers.MultiHeadAttention(2, 3)
    attention(x, x)
    described = keras_layer(attention)
    assert variables(described)["params"]["query"]["kernel"].shape == (CHANNELS, 2, 3)
    back_again(described)

    class Dense(keras.layers.Dense):  # of somebody else's, whatever it computes
        pass

    own = Dense(3)
    own(x)
    described = keras_layer(own)
    assert described.class_name == f"{__name__.partition('.')[0]}>Dense"
    back_again(described)


KERNEL, BIAS = np.ones((3, 6, 2), np.float32), np.ones(12, np.float32)
DEPTHWISE = KerasLayer("DepthwiseConv1D", {}, {"kernel": KERNEL, "bias": BIAS})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            r"`variables` must have \['params'\]\['a'\]\['kernel'\], the 'kernel' of a DepthwiseConv1D of the file",
        ),
        (
            {"params": {"a": {"kernel": KERNEL, "bias": BIAS}}},
            r"must have the shape \(3, 1, 12\) and dtype float32, .*; got \(3, 6, 2\)",
        ),
        (
            {"params": {"a": {"kernel": KERNEL.reshape(3, 1, 12).astype(np.float16)}}},
            r"must have the shape \(3, 1, 12\) and dtype float32, as in the file; got \(3, 1, 12\) and float16",
        ),
        ({"params": {"a": {"kernel": KERNEL.reshape(3, 1, 12)}}}, r"must have \['params'\]\['a'\]\['bias'\]"),
        (
            {
                "params": {"a": {"kernel": KERNEL.reshape(3, 1, 12), "bias": BIAS}},
                "batch_stats": {"a": {"mean": BIAS}},
            },
            r"must have only weights of the file's layers; got \['batch_stats'\]\['a'\]\['mean'\] too",
        ),
    ],
)
def test_what_is_no_weight_of_the_layer_does_not_go_back(given, message):
    with pytest.raises(ValueError, match=message):
        from_flax({("a",): DEPTHWISE}, given)


@pytest.mark.parametrize(
    "layer",
    [
        KerasLayer("DepthwiseConv1D", {}, {"kernel": np.ones(3)}),
        KerasLayer("BatchNormalization", {"axis": 1}, {"gamma": np.ones((1, 2))}),
        KerasLayer("BatchNormalization", {"axis": [1, 7]}, {"gamma": np.ones((1, 2))}),
        KerasLayer("BatchNormalization", {"axis": ["a"]}, {"gamma": np.ones((1, 2))}),
        KerasLayer("BatchNormalization", {}, {"gamma": np.ones(2), "renorm_mean": np.ones(2)}),
        KerasLayer("Dense", {}, {}),
    ],
)
def test_what_no_layer_of_the_class_has_is_taken_as_it_is(layer):
    back_again(layer)
    assert {len(value.shape) for value in jax.tree.leaves(variables(layer))} == {
        len(value.shape) for value in layer.weights.values()
    }


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_names_that_cannot_be_nested_are_refused(names):
    with pytest.raises(ValueError, match="two weights"):
        variables(KerasLayer("Own", {}, {name: np.ones(2) for name in names}))


@pytest.mark.parametrize("path", [("a",), ("a", "b"), ("a/b",)])
def test_joined_keys_are_the_nested_ones(path):
    flat = {"/".join(("params", *path, name)): value for name, value in DEPTHWISE.weights.items()}
    flat["/".join(("params", *path, "kernel"))] = KERNEL.reshape(3, 1, 12)
    jax.tree.map(np.testing.assert_array_equal, from_flax({path: DEPTHWISE}, flat)[path], DEPTHWISE.weights)
    with pytest.raises(
        ValueError, match=r"must hold 'params/a.*/bias' once; got it nested and under a joined key"
    ):
        from_flax({path: DEPTHWISE}, flat | {"params": {"/".join(path): {"bias": BIAS}}})
