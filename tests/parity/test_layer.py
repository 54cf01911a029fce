"""The layer equals the reference's own: `tf_keras` (Keras 2) on TensorFlow, and Keras 3 for configs.

Outputs, gradients, loss terms, output shapes and configs, over random layers.
"""

import json

import hypothesis
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorflow|tf_keras|keras).*"),
]

ACTIVATIONS = [
    None,
    "relu",
    "tanh",
    "sigmoid",
    "elu",
    "selu",
    "softplus",
    "softsign",
    "swish",
    "gelu",
    "softmax",
]
INITIALIZERS = ["glorot_uniform", "he_normal", "orthogonal", "random_normal", "lecun_uniform", "ones"]
# Factors that float32 holds exactly: Keras rounds some of them in its configs.
REGULARIZERS = [
    None,
    {"class_name": "L1", "config": {"l1": 0.125}},
    {"class_name": "L2", "config": {"l2": 0.0625}},
    {"class_name": "L1L2", "config": {"l1": 0.5, "l2": 0.25}},
]
CONSTRAINTS = [None, "max_norm", "non_neg", "unit_norm", "min_max_norm"]


@st.composite
def keras_layers(draw):
    """Layers with everything that Keras attaches to them, and one input for each."""
    pick = {
        "activation": ACTIVATIONS,
        "depthwise_initializer": INITIALIZERS,
        "pointwise_initializer": INITIALIZERS,
        "depthwise_regularizer": REGULARIZERS,
        "pointwise_regularizer": REGULARIZERS,
        "bias_regularizer": REGULARIZERS,
        "activity_regularizer": REGULARIZERS,
        "depthwise_constraint": CONSTRAINTS,
        "pointwise_constraint": CONSTRAINTS,
        "bias_constraint": CONSTRAINTS,
    }
    fixed = {argument: draw(st.sampled_from(values)) for argument, values in pick.items()}
    config, params, x = draw(reference.layers(batch_axes=st.just(1), data_format="channels_last", **fixed))
    return config, params, x


def for_keras_2(written):
    """A config of today's Keras 3 in Keras 2's words: initializers without axes, the dtype by name."""
    written = dict(written)
    for part in ("depthwise", "pointwise", "bias"):
        initializer = dict(written[f"{part}_initializer"])
        initializer["config"] = {k: v for k, v in initializer["config"].items() if not k.endswith("_axes")}
        written[f"{part}_initializer"] = initializer
    return written | {"dtype": written["dtype"]["config"]["name"]}


def relatively_close(ours, theirs):
    # Relative to the largest entry, or to 0.1 where all are smaller: inputs and cotangents are of size 1, and an
    # entry that is 0 by cancellation (the gradient of a softmax over one filter) has their rounding.
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max(initial=0) <= 1e-5 * max(np.abs(theirs).max(initial=0), 0.1)


@settings(max_examples=50, suppress_health_check=list(hypothesis.HealthCheck))
@given(keras_layers(), st.integers(0, 2**31))
def test_outputs_gradients_losses_and_shapes(layer, seed):
    config, params, x = layer
    theirs = tf_keras.layers.SeparableConv1D.from_config(for_keras_2(config.get_config()))
    theirs.build(x.shape)
    theirs.set_weights(list(params.values()))
    cotangent = np.random.default_rng(seed).normal(size=config.output_shape(x.shape)).astype(np.float32)

    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        expected = theirs(inputs)
        terms = tf.add_n(theirs.losses) if theirs.losses else tf.constant(0.0)
        target = tf.reduce_sum(expected * cotangent) + terms
    weights = [getattr(theirs, name) for name in params]
    expected_dx, *expected_dparams = tape.gradient(target, [inputs, *weights])

    @jax.jit
    def ours(params, x):
        def loss(params, x):
            y = fsc.separable_conv1d(params, x, config)
            terms = fsc.regularization_loss(params, config) + fsc.activity_loss(y, config)
            return jnp.sum(y * cotangent) + terms, (y, terms)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    (dparams, dx), (y, losses) = ours(params, x)
    relatively_close(y, expected)
    relatively_close(losses, terms)
    relatively_close(dx, expected_dx)
    for name, gradient in zip(params, expected_dparams, strict=True):
        relatively_close(dparams[name], gradient)
    assert tuple(theirs.compute_output_shape(x.shape)) == config.output_shape(x.shape)


@settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
@given(keras_layers())
def test_configs_go_there_and_back(layer):
    config, _, _ = layer
    written = config.get_config()
    json.dumps(written)
    keras2 = tf_keras.layers.SeparableConv1D.from_config(for_keras_2(written))
    assert fsc.SeparableConv1DConfig.from_config(keras2.get_config() | {"name": None}) == config
    if config.padding == "causal":
        return  # Keras 3 refuses it in this layer
    keras3 = keras.layers.SeparableConv1D.from_config(written)
    assert keras3.get_config() == written | {"name": keras3.name}
    assert fsc.SeparableConv1DConfig.from_config(keras3.get_config() | {"name": None}) == config


@pytest.mark.parametrize(
    "policy", ["float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"]
)
@pytest.mark.parametrize("module", [keras, tf_keras])
def test_dtype_policies_are_keras(policy, module):
    theirs = module.layers.SeparableConv1D(4, 3, dtype=policy)
    ours = fsc.SeparableConv1DConfig.from_config(theirs.get_config())
    assert (ours.dtype or ours.param_dtype).name == theirs.compute_dtype
    assert ours.param_dtype.name == (theirs.variable_dtype if module is keras else theirs.dtype)
    assert keras.layers.SeparableConv1D.from_config(ours.get_config()).dtype_policy.name == policy


def test_the_argument_lists_are_keras():
    import inspect

    ours = list(inspect.signature(fsc.SeparableConv1DConfig).parameters.values())
    theirs = list(inspect.signature(keras.layers.SeparableConv1D).parameters.values())
    inherited = {"trainable", "name", "kwargs"}
    positional = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p for p in positional if p[0] not in inherited] == [
        (p.name, p.default) for p in theirs if p.name not in inherited
    ]


def test_a_live_keras_object_is_an_identifier():
    config = fsc.SeparableConv1DConfig(
        4,
        3,
        activation=keras.activations.relu,
        depthwise_initializer=keras.initializers.HeNormal(seed=3),
        pointwise_regularizer=tf_keras.regularizers.L2(0.5),
        bias_constraint=keras.constraints.MaxNorm(3),
    )
    assert config == fsc.SeparableConv1DConfig(
        4,
        3,
        activation="relu",
        depthwise_initializer=fsc.initializers.HeNormal(seed=3),
        pointwise_regularizer=fsc.regularizers.L2(0.5),
        bias_constraint=fsc.constraints.MaxNorm(3),
    )


@pytest.mark.parametrize("constraint", ["max_norm", "non_neg", "unit_norm", "min_max_norm"])
def test_a_frozen_layer_is_frozen_as_in_keras_3(constraint):
    theirs = keras.layers.SeparableConv1D(4, 3, depthwise_regularizer="l2", depthwise_constraint=constraint)
    theirs.trainable = False
    theirs(np.ones((1, 9, 2), np.float32))
    config = fsc.SeparableConv1DConfig.from_config(theirs.get_config())
    assert not config.trainable
    params = {w.name: jnp.ones(w.shape) for w in config.weights(2)}
    assert fsc.regularization_loss(params, config) == 0 == sum(theirs.losses)
