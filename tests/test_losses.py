"""Loss terms are sums over weights and outputs that one can check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from flax_sepconv._tree import StackedConfig

from . import reference

CONFIG = fsc.SeparableConv1DConfig(
    2, 3, depthwise_regularizer=fsc.regularizers.L1(0.5), bias_regularizer="l2", activity_regularizer="l1"
)
PARAMS = {
    "depthwise_kernel": jnp.array([1.0, -2.0, 3.0]).reshape(3, 1, 1),
    "pointwise_kernel": jnp.full((1, 1, 2), 100.0),
    "bias": jnp.array([3.0, 4.0]),
}


def test_weight_terms_of_one_layer():
    np.testing.assert_allclose(fsc.regularization_loss(PARAMS, CONFIG), 0.5 * 6 + 0.01 * 25)


def test_weight_terms_of_a_model_leave_other_weights_alone():
    model = {"a": {"conv": PARAMS}, "b": PARAMS, "dense": {"bias": jnp.full(2, jnp.nan)}}
    configs = {"a/conv": CONFIG, "b": CONFIG}
    np.testing.assert_allclose(fsc.regularization_loss(model, configs), 2 * 3.25)


def test_a_frozen_layer_adds_nothing():
    frozen = fsc.SeparableConv1DConfig(2, 3, depthwise_regularizer="l1", trainable=False)
    assert fsc.regularization_loss(PARAMS, frozen) == 0


def test_no_regularizers_is_a_zero():
    plain = fsc.SeparableConv1DConfig(2, 3)
    assert fsc.regularization_loss(PARAMS, plain) == 0
    assert fsc.regularization_loss({}, {}) == 0
    assert fsc.activity_loss(jnp.ones((4, 3, 2)), plain) == 0


@pytest.mark.parametrize("batch", [(4,), (2, 2), ()])
def test_activity_is_a_mean_over_sequences(batch):
    y = jnp.full((*batch, 5, 2), -3.0)
    np.testing.assert_allclose(fsc.activity_loss(y, CONFIG), 0.01 * 30, rtol=1e-6)


def test_activity_of_an_empty_batch_is_zero():
    assert fsc.activity_loss(jnp.ones((0, 5, 2)), CONFIG) == 0


@pytest.mark.parametrize(
    ("y", "config", "error", "message"),
    [
        (CONFIG, jnp.ones((4, 5, 2)), TypeError, "`config` must be a SeparableConv1DConfig; got an array"),
        (
            jnp.ones((4, 5, 2)),
            {"conv": CONFIG},
            TypeError,
            "`config` must be a SeparableConv1DConfig; got {'conv'",
        ),
        ("abc", CONFIG, TypeError, "`y` must be an array"),
        (jnp.ones(2), CONFIG, ValueError, "`y` must have at least a length and filters"),
    ],
)
def test_activity_refuses_what_is_no_output_of_one_layer(y, config, error, message):
    with pytest.raises(error, match=message):
        fsc.activity_loss(y, config)


def test_half_precision_sums_in_float32():
    config = fsc.SeparableConv1DConfig(1, 1, depthwise_regularizer=fsc.regularizers.L1(1.0), use_bias=False)
    params = {
        "depthwise_kernel": jnp.ones((1, 70_000, 1), "float16"),
        "pointwise_kernel": jnp.ones((1, 70_000, 1)),
    }
    assert fsc.regularization_loss(params, config) == 70_000


def test_the_gradient_is_the_regularizers():
    grads = jax.grad(fsc.regularization_loss)(PARAMS, CONFIG)
    np.testing.assert_allclose(grads["depthwise_kernel"].ravel(), [0.5, -0.5, 0.5])
    np.testing.assert_allclose(grads["bias"], [0.06, 0.08], rtol=1e-6)
    assert (grads["pointwise_kernel"] == 0).all()


def test_refusals():
    with pytest.raises(ValueError, match=r"`params` must hold 'conv/depthwise_kernel' .* got none there"):
        fsc.regularization_loss(PARAMS, {"conv": CONFIG})
    with pytest.raises(ValueError, match=r"'depthwise_kernel' with 3 axes, .* got the shape \(5, 3, 1, 1\)"):
        fsc.regularization_loss(jax.tree.map(lambda a: jnp.stack([a] * 5), PARAMS), CONFIG)
    for other in (PARAMS["bias"] * 1j, jax.ShapeDtypeStruct((2,), "float32")):
        with pytest.raises(TypeError, match=r"`params\['bias'\]` must (be an array|hold real numbers); got"):
            fsc.regularization_loss(PARAMS | {"bias": other}, CONFIG)
    with pytest.raises(TypeError, match="`configs` must map paths like 'block/conv'"):
        fsc.regularization_loss(PARAMS, {("a", "conv"): CONFIG})


@settings(max_examples=60)
@given(reference.layers(depthwise_regularizer="l2"), st.data())
def test_parameters_of_another_layer_are_refused(layer, data):
    config, params, _ = layer
    fsc.regularization_loss(params, config)
    name = data.draw(st.sampled_from(sorted(params)))
    axis = data.draw(st.integers(0, params[name].ndim - 1))
    alone = config.filters == config.depth_multiplier == 1 and len(params) == 1
    other = params | {name: np.repeat(params[name], 2, axis)}
    if not alone:
        with pytest.raises(
            ValueError, match=r"`params` must hold '\w+' of the shape .* for SeparableConv1DConfig"
        ):
            fsc.regularization_loss(other, config)
        with pytest.raises(ValueError, match="`params` must hold"):
            fsc.constrain({"a/conv": config}).init({"a": {"conv": other}})
        with pytest.raises(ValueError, match="`params` must hold"):
            fsc.freeze(config).init(other)


@pytest.mark.parametrize("axes", [(0,), (-1,), (1, 0), (0, -2)])
def test_parameters_of_another_stack_are_refused(axes):
    stacked = dict(PARAMS)
    for size, axis in zip((2, 5), axes, strict=False):
        stacked = {name: jnp.stack([value] * size, axis) for name, value in stacked.items()}
    config = StackedConfig(2, 3, depthwise_regularizer=CONFIG.depthwise_regularizer, stack_axes=axes)
    layers = 2 if len(axes) == 1 else 10
    np.testing.assert_allclose(fsc.regularization_loss(stacked, config), layers * 3.0)
    for name, value in stacked.items():
        for axis in range(value.ndim):
            with pytest.raises(
                ValueError, match=r"`params` must hold '\w+' of the shape .* along stack_axes"
            ):
                fsc.regularization_loss(stacked | {name: jnp.repeat(value, 2, axis)}, config)
