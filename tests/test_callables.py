"""A layer's functions may be anybody's: what they return is checked, and errors name the argument."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flax_sepconv as fsc
from flax_sepconv._tree import StackedConfig

Config = fsc.SeparableConv1DConfig
X = jnp.ones((2, 9, 4))
PARAMS = fsc.init_params(jax.random.key(0), 4, Config(8, 3))
WEIGHTS = ("depthwise", "pointwise", "bias")
FORMATS = ("channels_last", "channels_first")


def initializer(function):
    return lambda key, shape, dtype: function(jnp.ones(shape, dtype))


def returns(value):
    return lambda w: value


NO_NUMBERS = [
    (returns(None), TypeError, "got None"),
    (returns(jnp.abs), TypeError, "got "),
    (returns("text"), TypeError, "got 'text'"),
    (lambda w: w * 1j, TypeError, "dtype complex64"),
]
A_PAIR = (lambda w: (w, w), TypeError, "got a tuple")
OTHER_SHAPES = [
    (jnp.sum, ValueError, r"got an array of the shape \(\) and"),
    (lambda w: w[0], ValueError, "got an array of the shape"),
    (lambda w: w[None], ValueError, "got an array of the shape"),
    (lambda w: jnp.concatenate([w, w]), ValueError, "got an array of the shape"),
]


def refused(error, message, make, *arguments, **keywords):
    with pytest.raises(error, match=message):
        make(*arguments, **keywords)


WAYS_TO_DRAW = {
    "function": lambda **arguments: fsc.init_params(jax.random.key(0), 4, Config(8, 3, **arguments)),
    "linen": lambda **arguments: fsc.SeparableConv1D(8, 3, **arguments).init(jax.random.key(0), X)["params"],
    "nnx": lambda **arguments: fsc.nnx.SeparableConv1D(4, 8, 3, rngs=nnx.Rngs(0), **arguments),
}


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("function", "error", "came"),
    [*NO_NUMBERS, *OTHER_SHAPES, (lambda w: (w, w), ValueError, "got an array of the shape")],
)
@pytest.mark.parametrize("draw", WAYS_TO_DRAW.values(), ids=WAYS_TO_DRAW)
def test_initializers_return_the_shape(part, function, error, came, draw):
    message = f"^`{part}_initializer` must return real numbers of the shape .*; .*{came}"
    refused(error, message, draw, **{f"{part}_initializer": initializer(function)})


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(("function", "error", "came"), [*NO_NUMBERS, A_PAIR, *OTHER_SHAPES])
def test_constraints_keep_the_shape(part, function, error, came):
    message = f"^`{part}_constraint` must return real numbers of the shape .*; .*{came}"
    transform = fsc.constrain(Config(8, 3, **{f"{part}_constraint": function}))
    refused(error, message, transform.init, PARAMS)
    refused(error, message, transform.update, PARAMS, optax.EmptyState(), PARAMS)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("function", "error", "came"), [*NO_NUMBERS, A_PAIR, (jnp.abs, ValueError, "got an array")]
)
def test_regularizers_return_a_number(part, function, error, came):
    message = f"^`{part}_regularizer` must return a real number; .*{came}"
    refused(
        error, message, fsc.regularization_loss, PARAMS, Config(8, 3, **{f"{part}_regularizer": function})
    )
    layer = fsc.SeparableConv1D(8, 3, **{f"{part}_regularizer": function})
    refused(error, message, layer.apply, {"params": PARAMS}, X, mutable=["losses"])


def test_functions_see_the_layers_of_a_stack_one_by_one():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, leaf], -1), PARAMS)
    config = StackedConfig(
        8, 3, stack_axes=(-1,), pointwise_constraint=lambda w: w[0], depthwise_regularizer=lambda w: w[0, 0]
    )
    message = r"^`pointwise_constraint` must return real numbers of the shape \(1, 4, 8\); got .* \(4, 8\)"
    refused(ValueError, message, fsc.constrain(config).init, stacked)
    message = r"^`depthwise_regularizer` must return a real number; got an array of the shape \(1,\)"
    refused(ValueError, message, fsc.regularization_loss, stacked, config)


@pytest.mark.parametrize(
    ("function", "error", "came"), [*NO_NUMBERS, A_PAIR, (jnp.abs, ValueError, "got an array")]
)
def test_activity_regularizers_return_a_number(function, error, came):
    with pytest.raises(error, match=f"^`activity_regularizer` must return a real number; .*{came}"):
        fsc.activity_loss(X, Config(4, 3, activity_regularizer=function))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("function", "error", "came"),
    [
        *NO_NUMBERS,
        A_PAIR,
        *OTHER_SHAPES,
        (lambda y: y > 0, TypeError, "dtype bool"),
        (lambda y: y.swapaxes(-1, -2), ValueError, "got an array of the shape"),
        (lambda y: y.mean(-1), ValueError, "got an array of the shape"),
    ],
)
def test_activations_change_no_more_than_channels(data_format, function, error, came):
    refused(
        error,
        f"^`activation` must return real numbers of the shape .*any size.*; .*{came}",
        functools.partial(Config, 8, 3),
        activation=function,
        data_format=data_format,
    )


@pytest.mark.parametrize("data_format", FORMATS)
def test_activations_leave_time_alone(data_format):
    for axis in (-1, -2):
        pooled = functools.partial(jax.nn.glu, axis=axis)
        make = functools.partial(Config, 8, 3, data_format=data_format, activation=pooled)
        if (axis == -1) is (data_format == "channels_last"):
            assert make().output_shape((2, 9, 9)) == ((2, 7, 4) if axis == -1 else (2, 4, 7))
        else:
            with pytest.raises(ValueError, match=r"^`activation` "):
                make().output_shape((2, 9, 9))


def on_values(w):
    return w if jnp.max(w) > 0 else -w


UNTRACEABLE = [np.tanh, np.asarray, on_values, lambda w: w * float(w.ravel()[0])]


@pytest.mark.parametrize("function", UNTRACEABLE)
def test_activations_that_jax_cannot_trace_are_refused(function):
    refused(
        TypeError, "^`activation` must be a function that JAX can trace", Config, 8, 3, activation=function
    )


@pytest.mark.parametrize("function", UNTRACEABLE)
def test_constraints_that_jax_cannot_trace_work_without_jit(function):
    transform = fsc.constrain(Config(8, 3, depthwise_constraint=function))
    state = transform.init(PARAMS)
    updates, _ = transform.update(PARAMS, state, PARAMS)
    want = function(2 * PARAMS["depthwise_kernel"])
    np.testing.assert_allclose(optax.apply_updates(PARAMS, updates)["depthwise_kernel"], want, rtol=1e-6)
    refused(
        TypeError,
        "^`depthwise_constraint` cannot be used with",
        jax.jit(transform.update),
        PARAMS,
        state,
        PARAMS,
    )


def test_initializers_need_not_be_traceable():
    def seeded(key, shape, dtype):
        return np.random.default_rng(int(jax.random.bits(key))).normal(size=shape)

    config = Config(8, 3, depthwise_initializer=seeded)
    assert fsc.init_params(jax.random.key(0), 4, config)["depthwise_kernel"].shape == (3, 4, 1)


@pytest.mark.parametrize("draw", WAYS_TO_DRAW.values(), ids=WAYS_TO_DRAW)
def test_initializers_may_give_what_they_have(draw):
    """Arrays of NumPy, and truth values."""
    for values in (np.arange(12.0).reshape(3, 4, 1), jnp.ones((3, 4, 1), bool)):
        drawn = draw(depthwise_initializer=initializer(returns(values)))
        drawn = drawn.depthwise_kernel[...] if isinstance(drawn, nnx.Module) else drawn["depthwise_kernel"]
        np.testing.assert_array_equal(drawn, values)
        assert drawn.dtype == jnp.float32


@pytest.mark.parametrize("factory", [nn.initializers.lecun_normal, nn.initializers.he_uniform])
@pytest.mark.parametrize("part", ["depthwise", "pointwise"])
@pytest.mark.parametrize("draw", WAYS_TO_DRAW.values(), ids=WAYS_TO_DRAW)
def test_a_factory_that_was_not_called_is_refused(factory, part, draw):
    message = f"^`{part}_initializer` must return .* Pass what that factory makes, such as"
    refused(TypeError, message, draw, **{f"{part}_initializer": factory})
    draw(**{f"{part}_initializer": factory()})  # what the message says


@pytest.mark.parametrize("draw", WAYS_TO_DRAW.values(), ids=WAYS_TO_DRAW)
def test_what_cannot_make_a_weight_is_refused(draw):
    message = (
        r"^`bias_initializer` cannot be used with the shape \(8,\): Can't compute input and output sizes"
    )
    refused(ValueError, message, draw, bias_initializer=nn.initializers.lecun_normal())
    constant = fsc.initializers.Constant([1.0, 2.0, 3.0])
    refused(ValueError, "^`pointwise_initializer` cannot be used ", draw, pointwise_initializer=constant)


@pytest.mark.parametrize("wrong", [lambda y: y[:1, :1], lambda y: jnp.dot(y, jnp.ones(7))])
def test_an_activation_that_fails_on_real_sizes_is_named(wrong):
    config = Config(8, 3, activation=lambda y: wrong(y) if y.shape[-2] == 6 else y)
    assert fsc.separable_conv1d(PARAMS, X, config).shape == (2, 7, 8)
    refused(
        (ValueError, TypeError),
        "^`activation` (must return|cannot be)",
        fsc.separable_conv1d,
        PARAMS,
        X[:, :8],
        config,
    )


MODULES = {
    "nnx": nnx.PReLU,
    "nnx with rngs": lambda: nnx.Linear(8, 8, rngs=nnx.Rngs(0)),
    "linen": nn.PReLU,
    "linen with arguments": lambda: nn.Dense(3),
    "bound": lambda: nnx.PReLU().__call__,
    "partial": lambda: functools.partial(nnx.PReLU()),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize(
    "make", [Config, fsc.SeparableConv1D, functools.partial(fsc.nnx.SeparableConv1D, 4, rngs=nnx.Rngs(0))]
)
def test_modules_with_parameters_are_refused(module, make):
    message = "^`activation` cannot be a module of flax.* with parameters .* Use it as a layer after this one"
    refused(TypeError, message, make, 8, 3, activation=module())
    refused(
        TypeError,
        "^`bias_constraint` cannot be a module .* Pass a function",
        make,
        8,
        3,
        bias_constraint=module(),
    )


def test_modules_without_parameters_are_functions():
    config = Config(8, 3, activation=nnx.Sequential(nnx.relu, nnx.tanh))
    want = jnp.tanh(jax.nn.relu(fsc.separable_conv1d(PARAMS, X, Config(8, 3))))
    np.testing.assert_allclose(fsc.separable_conv1d(PARAMS, X, config), want, rtol=1e-6)


def test_a_function_is_tried_once():
    shapes = []

    def function(y):
        shapes.append(y.shape)
        return y

    for _ in range(3):
        Config(8, 3, activation=function)
    assert shapes == [(2, 4, 8)]
    assert math.isfinite(fsc.separable_conv1d(PARAMS, X, Config(8, 3, activation=function)).sum())
