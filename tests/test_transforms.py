"""After an update the weights are the projection of where the optimizer would have gone, in any chain."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc

CONFIG = fsc.SeparableConv1DConfig(
    4,
    3,
    depthwise_constraint="unit_norm",
    pointwise_constraint=fsc.constraints.MaxNorm(0.5),
    bias_constraint="non_neg",
)
PARAMS = fsc.init_params(jax.random.key(0), 3, CONFIG)
CONSTRAINTS = {w.name: w.constraint for w in CONFIG.weights(3)}


def gradients(seed=1, like=PARAMS):
    keys = dict(zip(like, jax.random.split(jax.random.key(seed), len(like)), strict=True))
    return {k: jax.random.normal(keys[k], v.shape, v.dtype) for k, v in like.items()}


def project(params):
    return {k: CONSTRAINTS[k](v) for k, v in params.items()}


def assert_trees_close(a, b, tolerance=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), a, b)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.sampled_from(["float32", "bfloat16"]))
def test_the_result_is_the_projection_of_the_step(seed, rate, dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    optimizer = optax.chain(optax.sgd(rate), fsc.constrain(CONFIG))
    grads = gradients(seed, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    got = optax.apply_updates(params, updates)
    step = optax.apply_updates(params, jax.tree.map(lambda g: -jnp.asarray(rate, g.dtype) * g, grads))
    expected = project(step)
    eps = (
        4
        * float(jnp.finfo(dtype).eps)
        * max(float(abs(leaf).max()) for leaf in jax.tree.leaves([step, params]))
    )
    assert_trees_close(
        jax.tree.map(lambda a: a.astype("float32"), got),
        jax.tree.map(lambda a: a.astype("float32"), expected),
        eps,
    )
    np.testing.assert_array_equal(got["bias"].astype("float32"), expected["bias"].astype("float32"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {dtype}


def run(optimizer, steps=4, params=PARAMS, grads=None):
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    for seed in range(steps):
        params, state = step(params, state, gradients(seed) if grads is None else grads)
    return params


EXPECTED = run(optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), fsc.constrain(CONFIG)))(rate=0.3),
        optax.apply_if_finite(optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG)), 3),
        optax.masked(optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG)), dict.fromkeys(PARAMS, True)),
        optax.partition(
            {"all": optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG))}, dict.fromkeys(PARAMS, "all")
        ),
        optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG), fsc.freeze(CONFIG)),
        optax.named_chain(("sgd", optax.sgd(0.3)), ("constrain", fsc.constrain(CONFIG))),
        optax.chain(optax.sgd(0.3), fsc.constrain({"": CONFIG})),
        fsc.constrained(optax.sgd(0.3), CONFIG),
        fsc.constrained(optax.chain(optax.clip(1e3), optax.sgd(0.3)), CONFIG),
        fsc.constrained(optax.inject_hyperparams(optax.sgd)(0.3), CONFIG),
        optax.inject_hyperparams(lambda rate: fsc.constrained(optax.sgd(rate), CONFIG))(rate=0.3),
        optax.partition({"all": fsc.constrained(optax.sgd(0.3), CONFIG)}, dict.fromkeys(PARAMS, "all")),
        optax.MultiSteps(fsc.constrained(optax.sgd(0.3), CONFIG), 1),
        fsc.constrained(optax.MultiSteps(optax.sgd(0.3), 1), CONFIG),
    ],
)
def test_inside_other_transforms(optimizer):
    assert_trees_close(run(optimizer), EXPECTED)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.MultiSteps(fsc.constrained(optax.sgd(0.3), CONFIG), 2),
        fsc.constrained(optax.MultiSteps(optax.sgd(0.3), 2), CONFIG),
    ],
)
def test_multi_steps_project_at_each_full_step(optimizer):
    grads = [jax.tree.map(lambda *g: sum(g) / 2, gradients(i), gradients(i + 1)) for i in (0, 2)]
    after = isinstance(
        optimizer, optax.GradientTransformation
    )  # then PARAMS are projected at the first batch
    expected = project(PARAMS) if after else PARAMS
    for g in grads:
        expected = project(jax.tree.map(lambda p, g: p - 0.3 * g, expected, g))
    assert_trees_close(run(optimizer), expected)


def test_masked_weights_are_left_alone():
    mask = {"depthwise_kernel": False, "pointwise_kernel": True, "bias": True}
    got = run(optax.chain(optax.sgd(0.3), optax.masked(fsc.constrain(CONFIG), mask)))
    free = run(optax.sgd(0.3))
    assert_trees_close(got, EXPECTED | {"depthwise_kernel": free["depthwise_kernel"]})


def test_partitions_may_hold_part_of_a_layer():
    chains = {"a": optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG)), "b": optax.sgd(0.3)}
    got = run(optax.partition(chains, {"depthwise_kernel": "b", "pointwise_kernel": "a", "bias": "a"}))
    free = run(optax.sgd(0.3))
    assert_trees_close(got, EXPECTED | {"depthwise_kernel": free["depthwise_kernel"]})


def test_apply_if_finite_keeps_the_weights_at_a_nan():
    optimizer = optax.apply_if_finite(optax.chain(optax.sgd(0.3), fsc.constrain(CONFIG)), 3)
    bad = jax.tree.map(lambda a: a * jnp.nan, PARAMS)
    updates, _ = optimizer.update(bad, optimizer.init(PARAMS), PARAMS)
    assert_trees_close(optax.apply_updates(PARAMS, updates), PARAMS)


def test_train_state():
    tx = fsc.constrained(optax.sgd(0.3), CONFIG)
    state = TrainState.create(apply_fn=fsc.separable_conv1d, params=PARAMS, tx=tx)
    for seed in range(4):
        state = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, gradients(seed))
    assert_trees_close(state.params, EXPECTED)


def test_updates_keep_their_dtype():
    params = jax.tree.map(lambda a: a.astype("bfloat16"), PARAMS)
    for dtype in ("float32", "bfloat16"):
        given_updates = {name: g.astype(dtype) for name, g in gradients().items()}
        updates, _ = fsc.constrain(CONFIG).update(given_updates, optax.EmptyState(), params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {dtype}


def test_freeze_stops_weight_decay_and_momentum():
    frozen = fsc.SeparableConv1DConfig(4, 3, trainable=False, bias_constraint="non_neg")
    model = {"frozen": {**PARAMS, "bias": -jnp.ones(4)}, "free": PARAMS}
    configs = {"frozen": frozen, "free": CONFIG}
    optimizer = fsc.constrained(optax.adamw(0.1, weight_decay=0.5), configs)
    state, params = optimizer.init(model), model
    for seed in range(3):
        grads = {name: gradients(seed) for name in model}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(params["frozen"], model["frozen"], 0)
    assert all((params["free"][k] != PARAMS[k]).any() for k in PARAMS)


def test_a_negative_zero_and_untouched_entries_keep_their_bits():
    config = fsc.SeparableConv1DConfig(4, 3, bias_constraint="non_neg")
    params = PARAMS | {"bias": jnp.array([1e8, 1e-8, 1.0, 0.0])}
    grads = jax.tree.map(jnp.zeros_like, params) | {"bias": jnp.array([3.3e-9, 1e-9, 2.0, -0.1])}
    step = jax.tree.map(lambda p, g: p - g, params, grads)
    updates, _ = fsc.constrain(config).update(jax.tree.map(jnp.negative, grads), optax.EmptyState(), params)
    got = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(got["bias"], jnp.maximum(step["bias"], 0))


NESTED = {"a": {"conv": PARAMS}, "b": PARAMS, "dense": {"bias": jnp.ones(2)}}
IN_NESTED = {"a/conv": CONFIG, "b": fsc.SeparableConv1DConfig(4, 3, trainable=False, bias_regularizer="l2")}
FORMS = {
    "nested": lambda tree: tree,
    "by layer": lambda tree: {"a/conv": tree["a"]["conv"], "b": tree["b"], "dense": tree["dense"]},
    "joined": lambda tree: traverse_util.flatten_dict(tree, sep="/"),
    "tuples": traverse_util.flatten_dict,
    "in part": lambda tree: tree | {"a": {f"conv/{k}": v for k, v in tree["a"]["conv"].items()}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_model_is_nested_or_flat(form):
    model, grads = form(NESTED), form(jax.tree.map(jnp.ones_like, NESTED))
    got = run(fsc.constrained(optax.sgd(0.3), IN_NESTED), params=model, grads=grads)
    want = run(fsc.constrained(optax.sgd(0.3), CONFIG), grads=jax.tree.map(jnp.ones_like, PARAMS))
    free = jax.tree.map(lambda leaf: leaf - 4 * 0.3, NESTED["dense"])
    assert_trees_close(got, form({"a": {"conv": want}, "b": PARAMS, "dense": free}))
    configs = {path: dataclasses.replace(config, trainable=True) for path, config in IN_NESTED.items()}
    np.testing.assert_array_equal(
        fsc.regularization_loss(model, configs), fsc.regularization_loss(NESTED, configs)
    )


def test_a_weight_stands_in_one_place():
    for transform in (fsc.constrain(IN_NESTED), fsc.freeze(IN_NESTED)):
        with pytest.raises(
            ValueError, match="`params` must hold 'a/conv/bias' once; got it nested and under"
        ):
            transform.init(NESTED | {"a/conv": {"bias": PARAMS["bias"]}})


def test_the_state_of_an_optimizer_can_be_mapped():
    optimizer = fsc.constrained(optax.adam(0.1), CONFIG)
    state = optimizer.init(PARAMS)
    shapes = optax.tree_map_params(optimizer, jnp.shape, state, transform_non_params=lambda _: None)
    assert shapes[0][0].mu == jax.tree.map(jnp.shape, PARAMS)


def test_gradients_of_many_examples_may_be_aggregated():
    each = jax.tree.map(lambda leaf: jnp.ones((5, *leaf.shape)), PARAMS)
    mean = optax.stateless(lambda updates, _: jax.tree.map(lambda leaf: leaf.mean(0), updates))
    optimizer = fsc.constrained(optax.chain(mean, optax.sgd(0.3)), CONFIG)
    updates, _ = optimizer.update(each, optimizer.init(PARAMS), PARAMS)
    got = optax.apply_updates(PARAMS, updates)
    assert_trees_close(got, project(got))


TRANSFORMS = {
    "constrain": fsc.constrain,
    "freeze": fsc.freeze,
    "constrained": functools.partial(fsc.constrained, optax.sgd(0.3)),
}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (None, "got None"),
        ("x", "got 'x'"),
        ([CONFIG], r"got \[SeparableConv1DConfig"),
        (3, "got 3"),
        (PARAMS, "map paths like 'block/conv' to .*; got 'depthwise_kernel': an array"),
        ({"conv": (CONFIG, PARAMS)}, r"map paths .*; got 'conv': \(SeparableConv1DConfig"),
        ({("a", "conv"): CONFIG}, r"map paths .*; got \('a', 'conv'\): "),
    ],
    ids=["None", "text", "list", "number", "parameters", "loaded", "tuples"],
)
def test_what_are_no_configs_is_refused_at_once(make, configs, message):
    for function in (make, functools.partial(fsc.regularization_loss, PARAMS)):
        with pytest.raises(TypeError, match=f"`configs` must .*{message}"):
            function(configs)


@pytest.mark.parametrize("optimizer", [None, 1e-3, "adam", optax.adam, CONFIG, {"": CONFIG}])
def test_what_is_no_optimizer_is_refused_at_once(optimizer):
    with pytest.raises(
        TypeError, match=r"`optimizer` must be an optax transform such as `optax.adam\(1e-3\)`"
    ):
        fsc.constrained(optimizer, CONFIG)


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", PARAMS)
def test_updates_that_are_not_those_of_the_parameters_are_refused(make, name):
    transform = make(CONFIG)
    state, grads = transform.init(PARAMS), gradients()
    for axis in range(grads[name].ndim):
        with pytest.raises(ValueError, match=f"`updates` must hold '{name}' of the shape"):
            transform.update(grads | {name: jnp.repeat(grads[name], 2, axis)}, state, PARAMS)
    for other in ({k: v for k, v in grads.items() if k != name}, grads | {name: None}):
        with pytest.raises(ValueError, match=f"`updates` must h.*'{name}'"):
            transform.update(other, state, PARAMS)
    with pytest.raises(
        ValueError, match=r"`updates` must have the structure .* got 'scale' in `updates` and none"
    ):
        transform.update(grads | {"scale": jnp.ones(1)}, state, PARAMS)


def test_freezing_needs_no_parameters_but_those_of_the_layers():
    transform = fsc.freeze(CONFIG)
    state, grads = transform.init(PARAMS), gradients()
    assert_trees_close(transform.update(grads, state)[0], grads, 0)
    with pytest.raises(ValueError, match=r"`updates` must hold 'bias' of the shape \(4,\)"):
        transform.update(grads | {"bias": jnp.ones(5)}, state)


def test_refusals():
    transform = fsc.constrain(CONFIG)
    with pytest.raises(ValueError, match=r"`constrain` needs `params`: .* got None"):
        transform.update(gradients(), transform.init(PARAMS))
    with pytest.raises(ValueError, match="`params` must hold 'conv/depthwise_kernel'"):
        fsc.constrain({"conv": CONFIG}).init(PARAMS)
    with pytest.raises(ValueError, match="`params` must hold 'conv/depthwise_kernel'"):
        fsc.freeze({"conv": CONFIG}).init(PARAMS)
