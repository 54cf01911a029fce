"""The Linen module is the function, stores Keras's losses, and its configs are found in any model."""

import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests import reference

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 3)), jnp.float32)


def arguments_of(config):
    signature = inspect.signature(fsc.SeparableConv1D).parameters
    return {name: getattr(config, name) for name in signature if name not in ("parent", "name", "decode")}


@settings(max_examples=8)
@given(reference.layers(activation="relu", batch_axes=st.integers(0, 2)))
def test_the_module_is_the_function(layer):
    config, params, x = layer
    module = fsc.SeparableConv1D(**arguments_of(config))
    assert module.config == config
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(np.shape, params)
    np.testing.assert_array_equal(
        module.apply({"params": params}, x), fsc.separable_conv1d(params, x, config)
    )


def test_arguments_are_the_configs_in_keras_order():
    ours = list(inspect.signature(fsc.SeparableConv1D).parameters.values())
    theirs = list(inspect.signature(fsc.SeparableConv1DConfig).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours if p.name not in ("parent", "name", "decode")] == [
        (p.name, p.kind, p.default) for p in theirs if p.name != "name"
    ]
    assert inspect.signature(fsc.SeparableConv1D).parameters["decode"].kind is inspect.Parameter.KEYWORD_ONLY
    assert fsc.SeparableConvolution1D is fsc.SeparableConv1D


def test_init_gives_the_parameters_and_nothing_else():
    module = fsc.SeparableConv1D(4, 3, depthwise_regularizer="l2", activity_regularizer="l2")
    variables = module.init(jax.random.key(0), X)
    assert list(variables) == ["params"]
    assert sorted(variables["params"]) == ["bias", "depthwise_kernel", "pointwise_kernel"]


def test_construction_refuses_what_a_config_refuses():
    with pytest.raises(ValueError, match="`filters` must be at least 1; got 0"):
        fsc.SeparableConv1D(0, 3)
    with pytest.raises(ValueError, match=r"`x` must be \(\*batch, length, channels\); got the shape \(3,\)"):
        fsc.SeparableConv1D(4, 3).init(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="`param_dtype` float64 needs"):
        fsc.SeparableConv1D(4, 3, param_dtype="float64").init(jax.random.key(0), X)


def test_keras_config_dicts_are_arguments():
    module = fsc.SeparableConv1D(4, 3, depthwise_regularizer={"class_name": "L2", "config": {"l2": 0.5}})
    assert module.config.depthwise_regularizer == fsc.regularizers.L2(0.5)


class Twice(nn.Module):
    """One layer called twice."""

    trainable: bool = True

    @nn.compact
    def __call__(self, x):
        layer = fsc.SeparableConv1D(
            3, 3, padding="same", depthwise_regularizer="l1", bias_regularizer="l2", activity_regularizer="l2",
            bias_initializer="ones", trainable=self.trainable, name="conv",
        )  # fmt: skip
        return layer(layer(x))


def test_weight_terms_count_once_and_activity_terms_once_a_call():
    variables = Twice().init(jax.random.key(0), X)
    _, state = Twice().apply(variables, X, mutable=["losses"])
    params = variables["params"]["conv"]
    config = fsc.layer_configs(Twice(), X)["conv"]
    first = fsc.separable_conv1d(params, X, config)
    second = fsc.separable_conv1d(params, first, config)
    terms = state["losses"]["conv"]
    np.testing.assert_allclose(
        terms["depthwise_kernel"], 0.01 * abs(params["depthwise_kernel"]).sum(), rtol=1e-6
    )
    np.testing.assert_allclose(terms["bias"], 0.03, rtol=1e-6)
    np.testing.assert_allclose(
        terms["activity"], [fsc.activity_loss(y, config) for y in (first, second)], rtol=1e-6
    )
    total = sum(jax.tree.leaves(state["losses"]))
    expected = fsc.regularization_loss(params, config) + sum(
        fsc.activity_loss(y, config) for y in (first, second)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_a_frozen_layer_stores_its_activity_term_only():
    variables = Twice(trainable=False).init(jax.random.key(0), X)
    _, state = Twice(trainable=False).apply(variables, X, mutable=["losses"])
    assert list(state["losses"]["conv"]) == ["activity"]


def test_nothing_is_computed_for_losses_that_nobody_asked_for():
    calls = []
    module = fsc.SeparableConv1D(3, 3, activity_regularizer=lambda y: calls.append(1) or y.sum())
    variables = module.init(jax.random.key(0), X)
    module.apply(variables, X)
    assert not calls
    module.apply(variables, X, mutable=["losses"])
    assert calls == [1]


class Block(nn.Module):
    """A layer as the step of a scan, in a submodule."""

    features: int = 3
    wrap: Callable = lambda layer: layer

    @nn.compact
    def __call__(self, x, _=None):
        layer = self.wrap(fsc.SeparableConv1D)
        return layer(self.features, 3, padding="same", pointwise_constraint="max_norm", name="conv")(x), None


class Model(nn.Module):
    """Layers nested, shared, made in `setup`, and beside others."""

    def setup(self):
        self.first = fsc.SeparableConv1D(3, 5, padding="same")
        self.blocks = [Block(), Block(wrap=nn.remat), Block(wrap=nn.jit)]
        self.dense = nn.Dense(2)
        self.drop = nn.Dropout(0.5)

    def __call__(self, x, *, train):
        x = self.first(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.drop(self.dense(self.first(x)), deterministic=not train)


@pytest.mark.parametrize("train", [False, True])
def test_layer_configs_finds_every_layer(train):
    Model().init(jax.random.key(0), X, train=train)  # so that nn.jit has a trace to reuse
    configs = fsc.layer_configs(Model(), X, train=train)
    assert sorted(configs) == ["blocks_0/conv", "blocks_1/conv", "blocks_2/conv", "first"]
    assert configs["first"] == fsc.SeparableConv1DConfig(3, 5, padding="same", name="first")
    assert configs["blocks_2/conv"].pointwise_constraint == fsc.constraints.MaxNorm()
    params = Model().init(jax.random.key(0), X, train=train)["params"]
    assert isinstance(params["first"]["bias"], jax.Array)
    assert fsc.regularization_loss(params, configs) == 0


def test_layer_configs_of_a_layer_and_of_none():
    assert fsc.layer_configs(fsc.SeparableConv1D(3, 3), X) == {"": fsc.SeparableConv1DConfig(3, 3)}
    assert fsc.layer_configs(nn.Dense(3), X) == {}
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert list(fsc.layer_configs(nn.Sequential([fsc.SeparableConv1D(3, 3)]), shape)) == ["layers_0"]


def scanned(axis, inner=Block, length=4):
    return nn.scan(
        inner, variable_axes={"params": axis, "losses": 0}, split_rngs={"params": True}, length=length
    )


def mapped(axis, inner):
    return nn.vmap(
        inner, variable_axes={"params": axis}, split_rngs={"params": True}, in_axes=(None,), axis_size=2
    )


# As many layers as taps and channels, so that no axis can be told from its size.
STACKS = {
    "scan": (scanned(0, length=3)),
    "scan, last axis": (scanned(-1, length=3)),
    "scan, axis 1": (scanned(1, length=3)),
    "vmap of scan": mapped(0, scanned(0, length=3)),
    "jit of scan": nn.jit(scanned(0, length=3)),
    "remat scan": (scanned(0, nn.remat(Block), length=3)),
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
def test_stacked_layers_are_treated_one_by_one(stack):
    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            return stack(name="blocks")(x)[0]

    configs = fsc.layer_configs(Stacked(), X)
    assert list(configs) == ["blocks/conv"]
    config = configs["blocks/conv"]
    params = Stacked().init(jax.random.key(0), X)["params"]
    params = jax.tree.map(lambda a: 3 * a, params)

    optimizer = optax.chain(optax.sgd(0.0), fsc.constrain(configs))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    got = optax.apply_updates(params, updates)["blocks"]["conv"]["pointwise_kernel"]
    stacked = params["blocks"]["conv"]["pointwise_kernel"]

    single = fsc.constraints.MaxNorm()
    for axis in config.stack_axes:
        single = jax.vmap(single, in_axes=axis, out_axes=axis)
    np.testing.assert_allclose(got, single(stacked), rtol=1e-6)
    # Each layer by itself is what taking it out, projecting it and putting it back gives.
    if len(config.stack_axes) == 1:
        (axis,) = config.stack_axes
        for i in range(3):
            one = fsc.constraints.MaxNorm()(jnp.take(stacked, i, axis))
            np.testing.assert_allclose(jnp.take(got, i, axis), one, rtol=1e-6)


def test_losses_under_scan_equal_the_function():
    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(
                Regularized, variable_axes={"params": 0, "losses": 0}, split_rngs={"params": True}, length=4
            )
            return layers(name="blocks")(x)[0]

    class Regularized(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return fsc.SeparableConv1D(3, 3, padding="same", depthwise_regularizer="l1", name="conv")(x), None

    configs = fsc.layer_configs(Stacked(), X)
    variables = Stacked().init(jax.random.key(0), X)
    _, state = Stacked().apply(variables, X, mutable=["losses"])
    expected = fsc.regularization_loss(variables["params"], configs)
    np.testing.assert_allclose(
        sum(leaf.sum() for leaf in jax.tree.leaves(state["losses"])), expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        expected, 0.01 * abs(variables["params"]["blocks"]["conv"]["depthwise_kernel"]).sum(), rtol=1e-6
    )


def test_partitioned_parameters():
    partitioned = nn.with_partitioning(nn.initializers.ones, (None, "in", None))
    module = fsc.SeparableConv1D(4, 3, depthwise_initializer=partitioned, depthwise_regularizer="l1")
    variables = module.init(jax.random.key(0), X)
    assert variables["params"]["depthwise_kernel"].names == (None, "in", None)
    assert module.apply(variables, X).shape == (2, 10, 4)
    configs = fsc.layer_configs(module, X)
    np.testing.assert_allclose(fsc.regularization_loss(variables["params"], configs), 0.09, rtol=1e-6)
    optimizer = optax.chain(optax.sgd(0.1), fsc.constrain(configs), fsc.freeze(configs))
    optimizer.update(variables["params"], optimizer.init(variables["params"]), variables["params"])
