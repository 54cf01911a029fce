"""The NNX module is the function and the Linen module, under NNX's own transforms too."""

import inspect
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests import reference

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 3)), jnp.float32)
CAPTURES = hasattr(nnx, "capture")


def arguments_of(config):
    return {name: getattr(config, name) for name in inspect.signature(fsc.SeparableConv1DConfig).parameters}


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def losses_of(model, x):
    """What a call of the model stores."""
    if CAPTURES:
        return nnx.to_pure_dict(nnx.capture(model, fsc.nnx.Loss)(x)[1])
    model(x)
    return nnx.to_pure_dict(nnx.pop(model, fsc.nnx.Loss))


def total(losses):
    return sum(jnp.sum(term) for term in jax.tree.leaves(losses))


@settings(max_examples=6)
@given(reference.layers(activation="relu", batch_axes=st.integers(0, 2)))
def test_the_module_is_the_function_and_the_linen_module(layer):
    config, params, x = layer
    arguments = arguments_of(config) | dict.fromkeys(
        ["depthwise_initializer", "pointwise_initializer", "bias_initializer"], "zeros"
    )
    config = fsc.SeparableConv1DConfig(**arguments)
    module = fsc.nnx.SeparableConv1D(x.shape[config.channel_axis], **arguments, rngs=nnx.Rngs(0))
    assert module.config == config
    assert jax.tree.map(jnp.shape, pure(module)) == jax.tree.map(np.shape, params)
    nnx.update(module, params)  # as Linen's `variables["params"]`
    expected = fsc.separable_conv1d(params, x, config)
    np.testing.assert_array_equal(module(x), expected)


def test_arguments_are_the_configs_in_keras_order():
    ours = list(inspect.signature(fsc.nnx.SeparableConv1D.__init__).parameters.values())
    theirs = list(inspect.signature(fsc.SeparableConv1DConfig).parameters.values())
    assert [p.name for p in ours[:2]] == ["self", "in_features"]
    assert ours[2:-2] == theirs
    assert [(p.name, p.kind) for p in ours[-2:]] == [
        (name, inspect.Parameter.KEYWORD_ONLY) for name in ("decode", "rngs")
    ]
    positional = fsc.nnx.SeparableConv1D(3, 8, 5, 2, "same", rngs=nnx.Rngs(0))
    assert positional.config == fsc.SeparableConv1DConfig(8, 5, strides=2, padding="same")
    assert fsc.nnx.SeparableConvolution1D is fsc.nnx.SeparableConv1D


def test_parameters_follow_from_the_rngs_and_differ_by_weight():
    def drawn(seed):
        return pure(fsc.nnx.SeparableConv1D(3, 3, 3, bias_initializer="uniform", rngs=nnx.Rngs(seed)))

    jax.tree.map(np.testing.assert_array_equal, drawn(0), drawn(0))
    assert all((drawn(0)[name] != drawn(1)[name]).any() for name in drawn(0))
    assert (drawn(0)["depthwise_kernel"][:, :, 0] != drawn(0)["pointwise_kernel"][0]).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda rngs: fsc.nnx.SeparableConv1D(3, 0, 3, rngs=rngs),
            ValueError,
            "`filters` must be at least 1",
        ),
        (
            lambda rngs: fsc.nnx.SeparableConv1D(0, 3, 3, rngs=rngs),
            ValueError,
            "`in_features` must be at least",
        ),
        (
            lambda rngs: fsc.nnx.SeparableConv1D(3, 3, 3, rngs=0),
            TypeError,
            "`rngs` must be an nnx.Rngs; got 0",
        ),
        (
            lambda rngs: fsc.nnx.SeparableConv1D(3, 3, 3, param_dtype="float64", rngs=rngs),
            ValueError,
            "`param_dtype` float64 needs",
        ),
        (
            lambda rngs: fsc.nnx.SeparableConv1D(
                3, 3, 3, bias_initializer=lambda key, shape, dtype: jnp.zeros(7), rngs=rngs
            ),
            ValueError,
            r"`bias_initializer` must return real numbers of the shape \(3\); got .* \(7,\)",
        ),
        (
            lambda rngs: fsc.nnx.SeparableConv1D(4, 3, 3, rngs=rngs)(X),
            ValueError,
            r"the shape \(3, 3, 1\) for 3 input channels",
        ),
        (lambda rngs: fsc.layer_configs(42), TypeError, "`model` must be a flax.linen or flax.nnx module"),
        (
            lambda rngs: fsc.layer_configs(nnx.List([fsc.nnx.SeparableConv1D(3, 3, 3, rngs=rngs)]), X),
            TypeError,
            "with more arguments calls the model; got a List, which is not callable",
        ),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make(nnx.Rngs(0))


REGULARIZED = {
    "padding": "same",
    "depthwise_regularizer": "l1",
    "bias_regularizer": "l2",
    "activity_regularizer": "l2",
    "bias_initializer": "ones",
    "pointwise_constraint": "max_norm",
}


class Twice(nnx.Module):
    """One layer called twice, beside another kind."""

    def __init__(self, rngs, **arguments):
        self.conv = fsc.nnx.SeparableConv1D(3, 3, 3, **(REGULARIZED | arguments), rngs=rngs)
        self.out = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.conv(self.conv(x)))


def test_weight_terms_count_once_and_activity_terms_once_a_call():
    model = Twice(nnx.Rngs(0))
    terms = losses_of(model, X)["conv"]
    config = fsc.layer_configs(model)["conv"]
    params = pure(model)["conv"]
    first = fsc.separable_conv1d(params, X, config)
    outputs = first, fsc.separable_conv1d(params, first, config)
    assert sorted(terms) == ["activity_loss", "bias_loss", "depthwise_kernel_loss"]
    activity = list(jax.tree.leaves(terms["activity_loss"]))
    np.testing.assert_allclose(activity, [fsc.activity_loss(y, config) for y in outputs], rtol=1e-6)
    np.testing.assert_allclose(terms["bias_loss"], 0.03, rtol=1e-6)
    np.testing.assert_allclose(
        total(terms), fsc.regularization_loss(params, config) + sum(activity), rtol=1e-6
    )
    assert nnx.state(model, fsc.nnx.Loss) == nnx.State({})


def test_a_frozen_layer_stores_its_activity_term_only():
    assert list(losses_of(Twice(nnx.Rngs(0), trainable=False), X)["conv"]) == ["activity_loss"]


@pytest.mark.skipif(not CAPTURES, reason="this Flax has no nnx.capture: every call stores")
def test_nothing_is_computed_for_losses_that_nobody_asked_for():
    calls = []
    model = fsc.nnx.SeparableConv1D(
        3, 3, 3, activity_regularizer=lambda y: calls.append(1) or y.sum(), rngs=nnx.Rngs(0)
    )
    model(X)
    nnx.capture(model, nnx.Intermediate)(X)
    assert not calls
    assert nnx.state(model, fsc.nnx.Loss) == nnx.State({})
    nnx.capture(model, fsc.nnx.Loss)(X)
    assert calls == [1]


class LinenTwice(nn.Module):
    """`Twice` in Linen."""

    @nn.compact
    def __call__(self, x):
        conv = fsc.SeparableConv1D(3, 3, **REGULARIZED, name="conv")
        return nn.Dense(1, name="out")(conv(conv(x)))


def test_training_is_linens_to_the_step():
    """The same parameters, losses, constraints and frozen layers, step by step."""
    linen = LinenTwice()
    params = linen.init(jax.random.key(0), X)["params"]
    configs = fsc.layer_configs(linen, X)
    tx = optax.chain(optax.adam(0.1), fsc.constrain(configs), fsc.freeze(configs))

    model = Twice(nnx.Rngs(1))
    nnx.update(model, params)
    assert fsc.layer_configs(model)["conv"] == fsc.SeparableConv1DConfig(3, 3, **REGULARIZED)
    ours = fsc.layer_configs(model)
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.adam(0.1), fsc.constrain(ours), fsc.freeze(ours)), wrt=nnx.Param
    )

    def loss(params):
        y, state = linen.apply({"params": params}, X, mutable=["losses"])
        return jnp.mean(y**2) + total(state["losses"])

    def captured_loss(model):
        y, losses = nnx.capture(model, fsc.nnx.Loss)(X)
        return jnp.mean(y**2) + total(losses)

    def popped_loss(model):
        y = model(X)
        return jnp.mean(y**2) + total(nnx.pop(model, fsc.nnx.Loss))

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(captured_loss if CAPTURES else popped_loss)(model)
        optimizer.update(model, grads)
        return value

    @jax.jit
    def linen_step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return value, optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        value, params, state = linen_step(params, state)
        np.testing.assert_allclose(step(model, optimizer), value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), pure(model), params)
    weight_terms = fsc.regularization_loss(params, configs)
    for tree in (nnx.state(model, nnx.Param), pure(model), model):
        np.testing.assert_allclose(fsc.regularization_loss(tree, ours), weight_terms, rtol=1e-4)


def test_frozen_layers_stay_under_nnx_optimizer():
    model = Twice(nnx.Rngs(0), trainable=False)
    before = pure(model)
    configs = fsc.layer_configs(model)
    optimizer = nnx.Optimizer(model, optax.chain(optax.adamw(0.1), fsc.freeze(configs)), wrt=nnx.Param)
    nnx.jit(lambda m, optimizer: optimizer.update(m, nnx.grad(lambda m: m(X).sum())(m)))(model, optimizer)
    jax.tree.map(np.testing.assert_array_equal, pure(model)["conv"], before["conv"])
    assert (pure(model)["out"]["kernel"] != before["out"]["kernel"]).all()


def test_split_merge_and_abstract_models():
    model = Twice(nnx.Rngs(0))
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), model(X))
    abstract = nnx.eval_shape(lambda: Twice(nnx.Rngs(0)))
    assert fsc.layer_configs(abstract) == fsc.layer_configs(model)


class Model(nnx.Module):
    """Layers in lists and dicts, one of them twice."""

    def __init__(self, rngs):
        def layer():
            return fsc.nnx.SeparableConv1D(3, 3, 3, padding="same", depthwise_regularizer="l1", rngs=rngs)

        shared = layer()
        self.blocks = nnx.List([layer(), shared, nnx.Sequential(layer(), nnx.relu)])
        self.named = nnx.Dict(b=shared, a=layer())


def test_layer_configs_finds_every_layer_once():
    model = Model(nnx.Rngs(0))
    configs = fsc.layer_configs(model)
    assert sorted(configs) == ["blocks/0", "blocks/1", "blocks/2/layers/0", "named/a"]
    state = nnx.state(model, nnx.Param)
    weights = jax.tree.leaves(state)
    assert len(weights) == 12
    expected = 0.01 * sum(abs(leaf).sum() for leaf in weights if leaf.shape == (3, 3, 1))
    np.testing.assert_allclose(fsc.regularization_loss(state, configs), expected, rtol=1e-6)
    fsc.constrain(configs).init(state)
    assert fsc.layer_configs(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) == {}


def stack(count, axis=0, wrap=lambda make: make, **arguments):
    """As many layers in one, as `nnx.vmap` makes them."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}),), out_axes=axis)
    def make(rngs):
        return fsc.nnx.SeparableConv1D(3, 3, 3, padding="same", **arguments, rngs=rngs)

    return nnx.jit(wrap(make))(nnx.Rngs(0))


@pytest.mark.parametrize(("axis", "count"), [(0, 1), (0, 3), (1, 1), (1, 2), (1, 3), (-1, 3)])
def test_stacked_layers_are_treated_one_by_one(axis, count):
    """Three layers have as many layers as taps and channels, so that shapes do not tell axis 1."""
    model = stack(count, axis, pointwise_constraint="max_norm", depthwise_regularizer="l1")
    if axis == 1 and count == 3:
        with pytest.raises(
            ValueError, match=r"more than one choice of axes explains\. Stack layers along axis 0"
        ):
            fsc.layer_configs(model)
        return
    configs = fsc.layer_configs(model)
    params = jax.tree.map(lambda a: 3 * a, pure(model))
    tx = fsc.constrain(configs)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    got = optax.apply_updates(params, updates)["pointwise_kernel"]
    for i in range(count):
        one = fsc.constraints.MaxNorm()(jnp.take(params["pointwise_kernel"], i, axis))
        np.testing.assert_allclose(jnp.take(got, i, axis), one, rtol=1e-6)
    np.testing.assert_allclose(
        fsc.regularization_loss(params, configs), 0.01 * abs(params["depthwise_kernel"]).sum(), rtol=1e-6
    )


def test_stacks_of_stacks():
    def twice(make):
        return nnx.split_rngs(splits=2)(nnx.vmap(in_axes=(nnx.StateAxes({...: 0}),))(make))

    config = fsc.layer_configs(stack(3, wrap=twice))[""]
    assert config.stack_axes == (0, 0)
    model = stack(3)
    model.bias = nnx.Param(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="no choice of axes explains"):
        fsc.layer_configs(model)


@pytest.mark.parametrize("axis", [0, 1])
def test_scan_over_stacked_layers(axis):
    """A scan is the loop over its layers; its losses are the sum of theirs."""
    model = stack(2, axis, depthwise_regularizer="l1", activity_regularizer="l2")

    @nnx.scan(in_axes=(nnx.Carry, nnx.StateAxes({nnx.Param: axis, ...: 0})), out_axes=nnx.Carry)
    def scanned(x, layer):
        return layer(x)

    config = fsc.SeparableConv1DConfig(
        3, 3, padding="same", depthwise_regularizer="l1", activity_regularizer="l2"
    )
    x, activity = X, 0
    for i in range(2):
        x = fsc.separable_conv1d({k: jnp.take(v, i, axis) for k, v in pure(model).items()}, x, config)
        activity += fsc.activity_loss(x, config)
    expected = fsc.regularization_loss(pure(model), fsc.layer_configs(model)) + activity
    if CAPTURES:
        y, losses = nnx.capture(lambda model, x: scanned(x, model), fsc.nnx.Loss)(model, X)
    else:
        y, losses = scanned(X, model), nnx.pop(model, fsc.nnx.Loss)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total(losses), expected, rtol=1e-6)

    def loss(model):
        value = scanned(X, model).sum()
        nnx.pop(model, fsc.nnx.Loss)
        return value

    grads = nnx.grad(loss)(model)
    assert jax.tree.map(jnp.shape, pure(model)) == jax.tree.map(jnp.shape, nnx.to_pure_dict(grads))


def test_an_ensemble_under_vmap():
    model = stack(2)
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(model, X)
    config = fsc.SeparableConv1DConfig(3, 3, padding="same")
    for i in range(2):
        one = fsc.separable_conv1d(jax.tree.map(lambda a: a[i], pure(model)), X, config)  # noqa: B023
        np.testing.assert_allclose(y[i], one, rtol=1e-5, atol=1e-6)


def test_partitioned_parameters():
    partitioned = nnx.with_partitioning(nnx.initializers.ones, (None, "in", None))
    with jax.set_mesh(jax.make_mesh((1,), ("in",), axis_types=(jax.sharding.AxisType.Auto,))):
        layer = fsc.nnx.SeparableConv1D(3, 4, 3, depthwise_initializer=partitioned, rngs=nnx.Rngs(0))
    metadata = layer.depthwise_kernel.get_metadata()
    assert (metadata.get("out_sharding") or metadata.get("sharding_names")) == (None, "in", None)
    assert layer(X).shape == (2, 10, 4)


def test_flax_nnx_is_imported_when_it_is_asked_for():
    code = "import sys, flax_sepconv as fsc; assert 'flax.nnx' not in sys.modules; fsc.nnx.SeparableConv1D"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nxn'"):
        fsc.nxn  # noqa: B018
