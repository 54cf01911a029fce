"""A training run in Keras's `fit` and one in optax with this library end at the same weights.

Same data, initial weights, optimizer, regularizers, constraints and frozen layers; two separable layers, 100 steps.
The whole of a Keras training step is compared that way: gradients, loss terms and their scale, the optimizer's
formula, decay, and the order of update and projection. An error in any of these grows from step to step.

Rounding grows as well. The gradients of the two sides differ by about 1e-7 of their size from the start, and where
training is unstable, or a kink turns such a difference into one of the size of the gradient (relu near 0), 100 steps
make any distance out of it and a comparison says nothing. So activations are smooth here and learning rates such
that the loss falls steadily. The kinks left are those under test: L1 penalties and the edges of constraints.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tf_keras

import flax_sepconv as fsc

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorflow|tf_keras|keras).*"),
]

STEPS, BATCH, LENGTH, CHANNELS = 100, 8, 12, 3
TOLERANCE = 1e-4


def keras_adam(learning_rate, weight_decay=0.0, beta_2=0.999, epsilon=1e-7):
    """Keras's Adam and AdamW: their epsilon joins the root of the average before bias correction, optax's after."""
    eps = lambda step: epsilon / jnp.sqrt(1 - beta_2 ** (step + 1))  # noqa: E731
    return optax.inject_hyperparams(optax.adamw)(learning_rate, b2=beta_2, eps=eps, weight_decay=weight_decay)


# An optimizer of Keras, and what does the same in optax. The README has this table in words.
OPTIMIZERS = {
    "sgd": (lambda k: k.SGD(0.2), optax.sgd(0.2)),
    "momentum": (lambda k: k.SGD(0.05, momentum=0.9), optax.sgd(0.05, momentum=0.9)),
    "nesterov": (
        lambda k: k.SGD(0.05, momentum=0.9, nesterov=True),
        optax.sgd(0.05, momentum=0.9, nesterov=True),
    ),
    # Keras's momentum is of steps, optax's of gradients: the same until the learning rate changes.
    "scheduled momentum": (
        lambda k: k.SGD(k.schedules.CosineDecay(0.1, STEPS), momentum=0.9),
        optax.chain(
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.1, STEPS)), optax.trace(decay=0.9)
        ),
    ),
    "decayed momentum": (
        lambda k: k.SGD(0.05, momentum=0.9, weight_decay=0.1),
        optax.chain(
            optax.trace(decay=0.9), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.05)
        ),
    ),
    "adam": (lambda k: k.Adam(0.01), keras_adam(0.01)),
    "adam of large epsilon": (lambda k: k.Adam(0.01, epsilon=1e-3), keras_adam(0.01, epsilon=1e-3)),
    "adamw": (lambda k: k.AdamW(0.01, weight_decay=0.1), keras_adam(0.01, 0.1)),
    "scheduled adamw": (
        lambda k: k.AdamW(k.schedules.ExponentialDecay(0.02, STEPS, 0.1)),
        keras_adam(optax.exponential_decay(0.02, STEPS, 0.1), 0.004),
    ),
}


def named(name, **config):
    """A regularizer or constraint in the form that both Keras and this library read."""
    return {"class_name": name, "config": config}


L1, L2, L1L2 = named("L1", l1=0.01), named("L2", l2=0.02), named("L1L2", l1=0.005, l2=0.01)
L1L2_OF_MANY = named("L1L2", l1=0.0005, l2=0.001)  # an output has more entries than a weight
NON_NEG, UNIT_NORM = named("NonNeg"), named("UnitNorm", axis=0)
MAX_NORM, MAX_NORM_2 = named("MaxNorm", max_value=0.6, axis=0), named("MaxNorm", max_value=0.8, axis=[0, 1])
MIN_MAX = named("MinMaxNorm", min_value=0.4, max_value=0.7, rate=1.0, axis=0)
MIN_MAX_SLOW = named("MinMaxNorm", min_value=0.4, max_value=0.7, rate=0.25, axis=[0, 1])
FROZEN, CAUSAL = {"trainable": False}, {"padding": "causal"}


def parts(kind, depthwise=None, pointwise=None, bias=None):
    """`depthwise_constraint=..., pointwise_constraint=..., bias_constraint=...`, for one kind."""
    given = {"depthwise": depthwise, "pointwise": pointwise, "bias": bias}
    return {f"{part}_{kind}": value for part, value in given.items() if value is not None}


regularized, constrained = functools.partial(parts, "regularizer"), functools.partial(parts, "constraint")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: the name of an optimizer, and what its layers have beyond their sizes."""

    optimizer: str
    first: dict = dataclasses.field(default_factory=dict)
    second: dict = dataclasses.field(default_factory=dict)
    module: object = keras

    def layers(self):
        common = {"depth_multiplier": 2, "activation": "tanh", "padding": "same"}
        yield "first", {"filters": 6, "kernel_size": 3} | common | self.first
        yield "second", {"filters": 4, "kernel_size": 4, "strides": 2, "padding": "valid"} | self.second


RUNS = {
    # SGD.
    "momentum, L2 and L1": Run("momentum", regularized(L2, L2, L2), regularized(L1, L1, L1)),
    "momentum, L1L2 and activity": Run(
        "momentum", regularized(L1L2) | {"activity_regularizer": L2}, regularized(pointwise=L1L2)
    ),
    "momentum, max norm": Run("momentum", constrained(MAX_NORM, MAX_NORM, MAX_NORM), constrained(MAX_NORM_2)),
    "momentum, frozen": Run(
        "momentum", regularized(L2) | constrained(UNIT_NORM) | FROZEN, constrained(MAX_NORM)
    ),
    "sgd, unit norm": Run("sgd", constrained(UNIT_NORM), constrained(bias=UNIT_NORM)),
    "nesterov, non-negative": Run(
        "nesterov", constrained(NON_NEG), constrained(pointwise=NON_NEG, bias=NON_NEG)
    ),
    "nesterov, norms between": Run("nesterov", constrained(MIN_MAX, MIN_MAX_SLOW), constrained(MIN_MAX)),
    "scheduled momentum, all at once": Run(
        "scheduled momentum",
        regularized(L2, L1L2) | constrained(MAX_NORM, NON_NEG) | {"activity_regularizer": L2},
        constrained(MIN_MAX_SLOW, MAX_NORM_2) | {"activation": "softplus"},
    ),
    "decayed momentum, max norm": Run("decayed momentum", constrained(MAX_NORM), regularized(L2) | FROZEN),
    # Adam.
    "adam, L1L2 and non-negative": Run("adam", regularized(L1L2, L1L2), constrained(pointwise=NON_NEG)),
    "adam, max norm": Run(
        "adam", constrained(MAX_NORM, MAX_NORM_2), constrained(MAX_NORM, MAX_NORM_2, MAX_NORM)
    ),
    "adam, unit norm": Run("adam", constrained(UNIT_NORM, UNIT_NORM), {"activation": "gelu"}),
    "adam, activity of a frozen layer": Run(
        "adam", {"activity_regularizer": L1L2_OF_MANY}, FROZEN | {"activity_regularizer": L2}
    ),
    "adam of large epsilon, L2": Run("adam of large epsilon", regularized(L2, L2), regularized(L2, L2, L2)),
    # AdamW: decay moves weights that a constraint then projects, and none that are frozen.
    "adamw, max norm": Run("adamw", constrained(MAX_NORM, MAX_NORM), constrained(MAX_NORM_2, MAX_NORM_2)),
    "adamw, non-negative": Run("adamw", constrained(pointwise=NON_NEG, bias=NON_NEG), constrained(NON_NEG)),
    "adamw, norms between": Run("adamw", constrained(MIN_MAX, MIN_MAX_SLOW), constrained(bias=MIN_MAX)),
    "adamw, first frozen": Run("adamw", constrained(MAX_NORM) | FROZEN, constrained(MAX_NORM)),
    "adamw, second frozen": Run("adamw", regularized(L2), regularized(L1) | constrained(NON_NEG) | FROZEN),
    "scheduled adamw, all at once": Run(
        "scheduled adamw",
        regularized(L2, L1L2, L2) | constrained(UNIT_NORM, MAX_NORM_2) | {"activity_regularizer": L2},
        constrained(MIN_MAX, NON_NEG) | {"activation": "sigmoid"},
    ),
    # Keras 2, which has causal padding.
    "momentum, Keras 2, causal": Run(
        "momentum", constrained(NON_NEG) | CAUSAL, {"activity_regularizer": L1L2} | CAUSAL, tf_keras
    ),
    "adam, Keras 2, causal": Run("adam", constrained(MAX_NORM) | CAUSAL, regularized(L2) | CAUSAL, tf_keras),
    "adamw, Keras 2, dilated": Run(
        "adamw",
        constrained(UNIT_NORM, NON_NEG) | CAUSAL | {"dilation_rate": 2, "activity_regularizer": L2},
        regularized(L1L2) | FROZEN,
        tf_keras,
    ),
}


def data(configs):
    """Initial weights, inputs, and targets that a layer of the same kind with other weights gives, with noise."""
    rng = np.random.default_rng(5)
    params, teacher, features = {}, {}, CHANNELS
    for name, config in configs.items():
        for weights in (params, teacher):
            weights[name] = {w.name: rng.normal(size=w.shape) for w in config.weights(features)}
            weights[name] = {k: (v * 0.5).astype(np.float32) for k, v in weights[name].items()}
        features = config.filters
    x = rng.normal(size=(STEPS * BATCH, LENGTH, CHANNELS)).astype(np.float32)
    targets = np.asarray(forward(teacher, x, configs)[0])
    return params, x, targets + 0.1 * rng.normal(size=targets.shape).astype(np.float32)


def forward(params, x, configs):
    """The output, and the terms that its layers add to the loss."""
    terms = fsc.regularization_loss(params, configs)
    for name, config in configs.items():
        x = fsc.separable_conv1d(params[name], x, config)
        terms += fsc.activity_loss(x, config)
    return x, terms


def train(loss, optimizer, params, x, targets):
    """One pass over the data in optax, in order."""

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    batches = [a.reshape(STEPS, BATCH, *a.shape[1:]) for a in (x, targets)]
    start = (params, optimizer.init(params))
    # Compiling takes longer than running, hence with less effort.
    run = jax.jit(jax.lax.scan, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    (params, _), _ = run(step, start, batches)
    return jax.device_get(params)


def ours(configs, optimizer, params, x, targets):
    def loss(params, x, targets):
        y, terms = forward(params, x, configs)
        return jnp.mean((y - targets) ** 2) + terms

    return train(loss, optimizer, params, x, targets)


def theirs(model, optimizer, params, x, targets):
    """One pass over the data in Keras, in order."""
    for layer in model.layers:
        layer.set_weights(list(params[layer.name].values()))
    model.compile(optimizer, "mse", jit_compile=False)  # compiling takes longer than running
    model.fit(x, targets, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    return {
        layer.name: dict(zip(params[layer.name], layer.get_weights(), strict=True)) for layer in model.layers
    }


def keras_model(run):
    model = run.module.Sequential(
        [run.module.layers.SeparableConv1D(name=name, **arguments) for name, arguments in run.layers()]
    )
    model.build((None, LENGTH, CHANNELS))
    return model


def configs_of(model):
    return {layer.name: fsc.SeparableConv1DConfig.from_config(layer.get_config()) for layer in model.layers}


def distance(a, b):
    """The largest difference between two trees of weights."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.parametrize("name", RUNS)
def test_ends_at_the_same_weights(name):
    run = RUNS[name]
    model = keras_model(run)
    configs = configs_of(model)
    in_keras, in_optax = OPTIMIZERS[run.optimizer]
    start = data(configs)
    links = (fsc.constrain(configs), fsc.freeze(configs))

    expected = theirs(model, in_keras(run.module.optimizers), *start)
    got = ours(configs, optax.chain(in_optax, *links), *start)

    print(f"{name}: largest difference {distance(got, expected):.1e}")
    assert distance(got, expected) <= TOLERANCE
    # The comparison means something: the run went somewhere, and no constraint was idle.
    assert distance(got, start[0]) > 1000 * TOLERANCE
    for layer, config in configs.items():
        for weight in config.weights(in_features=1):
            if weight.constraint is not None:
                value = start[0][layer][weight.name]
                assert distance(weight.constraint(value), value) > 100 * TOLERANCE


def test_optaxs_own_adam_comes_close():
    model = keras_model(Run("adam"))
    configs = configs_of(model)
    start = data(configs)
    off = distance(
        ours(configs, optax.adam(0.01, eps=1e-7), *start), theirs(model, keras.optimizers.Adam(0.01), *start)
    )
    print(f"optax.adam: largest difference {off:.1e}")
    assert off <= 10 * TOLERANCE


def test_clipping_by_global_norm_does_not_count_frozen_weights():
    run = Run("adamw", FROZEN, constrained(MAX_NORM))
    model = keras_model(run)
    configs = configs_of(model)
    start = data(configs)
    expected = theirs(model, keras.optimizers.SGD(0.2, momentum=0.9, global_clipnorm=0.1), *start)
    optimizer = optax.chain(
        fsc.freeze(configs), optax.clip_by_global_norm(0.1), optax.sgd(0.2, 0.9), fsc.constrain(configs)
    )
    off = distance(ours(configs, optimizer, *start), expected)
    print(f"clipping: largest difference {off:.1e}")
    assert off <= TOLERANCE
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.1), optax.sgd(0.2, 0.9), fsc.constrain(configs), fsc.freeze(configs)
    )
    assert distance(ours(configs, optimizer, *start), expected) > 10 * TOLERANCE


def test_accumulated_gradients():
    run = Run("momentum", constrained(MAX_NORM, MIN_MAX_SLOW) | regularized(L2), {"activity_regularizer": L2})
    model = keras_model(run)
    configs = configs_of(model)
    start = data(configs)
    sgd = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4)
    # Keras projects after every batch, not only after those that change the weights.
    accumulated = optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 4).gradient_transformation()
    optimizer = optax.chain(accumulated, fsc.constrain(configs))
    off = distance(ours(configs, optimizer, *start), theirs(model, sgd, *start))
    print(f"accumulated gradients: largest difference {off:.1e}")
    assert off <= TOLERANCE


def test_a_linen_model_with_the_losses_that_it_collects():
    run = RUNS["scheduled adamw, all at once"]
    in_keras, in_optax = OPTIMIZERS[run.optimizer]
    theirs_model = keras_model(run)
    params, x, targets = data(configs_of(theirs_model))
    model = nn.Sequential([fsc.SeparableConv1D(**arguments) for _, arguments in run.layers()])
    configs = fsc.layer_configs(model, x[:BATCH])

    def loss(params, x, targets):
        y, state = model.apply({"params": params}, x, mutable=["losses"])
        return jnp.mean((y - targets) ** 2) + sum(jax.tree.leaves(state["losses"]))

    optimizer = optax.chain(in_optax, fsc.constrain(configs), fsc.freeze(configs))
    got = train(loss, optimizer, dict(zip(configs, params.values(), strict=True)), x, targets)
    expected = theirs(theirs_model, in_keras(keras.optimizers), params, x, targets)
    assert distance(list(got.values()), list(expected.values())) <= TOLERANCE
