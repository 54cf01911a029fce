"""A layer's functions may be anybody's: what they return is checked, and errors name the argument."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_sepconv as fsc

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
    (lambda w: (w, w), TypeError, "got a tuple"),
    (lambda w: w * 1j, TypeError, "dtype complex64"),
]
OTHER_SHAPES = [
    (jnp.sum, ValueError, r"got an array of the shape \(\) and"),
    (lambda w: w[0], ValueError, "got an array of the shape"),
    (lambda w: w[None], ValueError, "got an array of the shape"),
    (lambda w: jnp.concatenate([w, w]), ValueError, "got an array of the shape"),
]


def refused(error, message, make, **arguments):
    with pytest.raises(error, match=message):
        make(8, 3, **arguments)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(("function", "error", "came"), NO_NUMBERS + OTHER_SHAPES)
@pytest.mark.parametrize("make", [Config, fsc.SeparableConv1D])
def test_initializers_and_constraints_keep_the_shape(part, function, error, came, make):
    message = f"^`{part}_%s` must return real numbers of the shape .*; .*{came}"
    refused(error, message % "constraint", make, **{f"{part}_constraint": function})
    refused(error, message % "initializer", make, **{f"{part}_initializer": initializer(function)})


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(("function", "error", "came"), [*NO_NUMBERS, (jnp.abs, ValueError, "got an array")])
def test_regularizers_return_a_number(part, function, error, came):
    refused(
        error,
        f"^`{part}_regularizer` must return a real number; .*{came}",
        Config,
        **{f"{part}_regularizer": function},
    )


@pytest.mark.parametrize(("function", "error", "came"), [*NO_NUMBERS, (jnp.abs, ValueError, "got an array")])
def test_activity_regularizers_return_a_number(function, error, came):
    with pytest.raises(error, match=f"^`activity_regularizer` must return a real number; .*{came}"):
        fsc.activity_loss(X, Config(4, 3, activity_regularizer=function))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("function", "error", "came"),
    [
        *NO_NUMBERS,
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
        Config,
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


@pytest.mark.parametrize("function", [np.tanh, np.asarray, on_values, lambda w: w * float(w[0, 0, 0])])
def test_functions_that_jax_cannot_trace_are_refused(function):
    for argument in ("activation", "depthwise_constraint", "pointwise_regularizer"):
        refused(
            TypeError, f"^`{argument}` must be a function that JAX can trace", Config, **{argument: function}
        )


def test_initializers_need_not_be_traceable():
    def seeded(key, shape, dtype):
        return np.random.default_rng(int(jax.random.bits(key))).normal(size=shape)

    config = Config(8, 3, depthwise_initializer=seeded)
    assert fsc.init_params(jax.random.key(0), 4, config)["depthwise_kernel"].shape == (3, 4, 1)


def test_initializers_may_give_what_they_have():
    """Values for one number of channels, boxes, lists, truth values."""
    values = np.arange(12.0).reshape(3, 4, 1)
    given = [returns(values), returns(jnp.asarray(values)), returns(values.tolist())]
    for function in given:
        config = Config(8, 3, depthwise_initializer=initializer(function))
        np.testing.assert_array_equal(
            fsc.init_params(jax.random.key(0), 4, config)["depthwise_kernel"], values
        )
        with pytest.raises(
            ValueError, match=r"^`depthwise_initializer` must return .* \(3, 5, 1\); got an array"
        ):
            fsc.init_params(jax.random.key(0), 5, config)
    boxed = nn.with_partitioning(nn.initializers.ones, (None, "channels", None))
    layer = fsc.SeparableConv1D(8, 3, depthwise_initializer=boxed)
    assert layer.init(jax.random.key(0), X)["params"]["depthwise_kernel"].names == (None, "channels", None)
    mask = fsc.nnx.SeparableConv1D(
        4, 8, 3, depthwise_initializer=initializer(lambda w: w > 0), rngs=nnx.Rngs(0)
    )
    np.testing.assert_array_equal(mask.depthwise_kernel[...], jnp.ones((3, 4, 1)))


@pytest.mark.parametrize("factory", [nn.initializers.lecun_normal, nn.initializers.he_uniform])
@pytest.mark.parametrize("part", ["depthwise", "pointwise"])
def test_a_factory_that_was_not_called_is_refused(factory, part):
    message = f"^`{part}_initializer` must return .* Pass what that factory makes, such as"
    refused(TypeError, message, Config, **{f"{part}_initializer": factory})
    Config(8, 3, **{f"{part}_initializer": factory()})  # what the message says


def test_what_cannot_make_a_bias_is_refused():
    message = (
        r"^`bias_initializer` cannot be used with the shape \(8,\): Can't compute input and output sizes"
    )
    refused(ValueError, message, Config, bias_initializer=nn.initializers.lecun_normal())


def if_wide(wrong):
    """Right on the arrays that a config knows, wrong on those of eight channels."""
    return lambda w: wrong(w) if 8 in w.shape[-2:-1] else w


def raises(w):
    raise ValueError("not this one")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(lambda w: w[:1, :1], "must return"), (raises, r"cannot be .*\(.*\): not this one")],
)
def test_what_goes_wrong_with_the_real_sizes_names_the_argument(wrong, message):
    wide = jnp.ones((2, 9, 8))
    config = Config(5, 3, depthwise_initializer=initializer(if_wide(wrong)))
    for init in (
        lambda: fsc.init_params(jax.random.key(0), 8, config),
        lambda: fsc.SeparableConv1D(5, 3, depthwise_initializer=initializer(if_wide(wrong))).init(
            jax.random.key(0), wide
        ),
        lambda: fsc.nnx.SeparableConv1D(
            8, 5, 3, depthwise_initializer=initializer(if_wide(wrong)), rngs=nnx.Rngs(0)
        ),
    ):
        with pytest.raises(ValueError, match=f"^`depthwise_initializer` {message}"):
            init()
    config = Config(5, 3, activation=lambda y: wrong(y) if y.shape[-2] == 6 else y)
    params = fsc.init_params(jax.random.key(0), 8, config)
    assert fsc.separable_conv1d(params, wide, config).shape == (2, 7, 5)
    with pytest.raises(ValueError, match=f"^`activation` {message}"):
        fsc.separable_conv1d(params, wide[:, :8], config)


def test_constraints_and_regularizers_are_checked_on_the_real_weights():
    config = Config(8, 3, pointwise_constraint=lambda w: w[:, :3])
    transform = fsc.constrain(config)
    with pytest.raises(
        ValueError, match=r"^`pointwise_constraint` must return real numbers of the shape \(1, 4, 8\)"
    ):
        transform.update(PARAMS, transform.init(PARAMS), PARAMS)
    config = Config(8, 3, pointwise_regularizer=lambda w: jnp.sum(w) if w.shape[1] < 3 else w)
    with pytest.raises(ValueError, match=r"^`pointwise_regularizer` must return a real number; got an array"):
        fsc.regularization_loss(PARAMS, config)
    layer = fsc.SeparableConv1D(8, 3, pointwise_regularizer=config.pointwise_regularizer)
    with pytest.raises(ValueError, match=r"^`pointwise_regularizer` must return a real number; got an array"):
        layer.apply({"params": PARAMS}, X, mutable=["losses"])


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
    refused(TypeError, message, make, activation=module())
    refused(
        TypeError, "^`bias_constraint` cannot be a module .* Pass a function", make, bias_constraint=module()
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
    assert shapes == [(2, 3, 8)]
    assert math.isfinite(fsc.separable_conv1d(PARAMS, X, Config(8, 3, activation=function)).sum())
