"""Activations equal their definitions, keep the dtype, and have derivatives everywhere."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from flax_sepconv import activations
from flax_sepconv.activations import ELU, LeakyReLU, ReLU, Softmax

POINTS = np.array([-100, -7, -3, -2.5, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2.5, 3, 6, 7, 80], np.float32)

sigmoid = np.vectorize(lambda x: 1 / (1 + math.exp(-x)))
softplus = np.vectorize(lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sparsemax(x):
    """By bisection for the threshold at which what exceeds it sums to 1."""
    low, high = x.min(-1, keepdims=True) - 1, x.max(-1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = np.maximum(x - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(x - low, 0)


def glu(x):
    first, second = np.split(x, 2, -1)
    return first * sigmoid(second)


ELEMENTWISE = {
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "exponential": np.exp,
    "gelu": np.vectorize(lambda x: x * math.erfc(-x / math.sqrt(2)) / 2),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "linear": lambda x: x,
    "log_sigmoid": lambda x: -softplus(-x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sparse_plus": lambda x: np.where(x >= 1, x, np.where(x > -1, (x + 1) ** 2 / 4, 0)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "swish": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "tanh_shrink": lambda x: x - np.tanh(x),
}
OVER_AN_AXIS = {
    "glu": glu,
    "log_softmax": lambda x: np.log(softmax(x)),
    "softmax": softmax,
    "sparsemax": sparsemax,
}
DEFINITIONS = ELEMENTWISE | OVER_AN_AXIS


def test_every_name_is_defined_here():
    assert set(DEFINITIONS) == set(activations._FUNCTIONS)
    for name in DEFINITIONS:
        assert activations.get(name) is getattr(activations, name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (3, 4, 2)) for name in ELEMENTWISE),
        *((name, shape) for name in OVER_AN_AXIS for shape in [(3, 4, 2), (1, 8, 6), (6,)]),
    ],
)
def test_definitions(name, shape):
    x = 2 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = activations.get(name)(jnp.asarray(x))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, DEFINITIONS[name](x.astype(float)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_values_at_special_points(name):
    with np.errstate(over="ignore", under="ignore"):
        expected = ELEMENTWISE[name](POINTS.astype(float))
    np.testing.assert_allclose(activations.get(name)(jnp.asarray(POINTS)), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivatives_at_special_points(name):
    """Each lies between the slopes on the two sides, which differ in corners."""
    derivative = jax.jit(jax.vmap(jax.grad(activations.get(name))))(jnp.asarray(POINTS))
    step, x, f = 1e-6, POINTS.astype(float), ELEMENTWISE[name]
    with np.errstate(over="ignore", under="ignore"):
        left, right = (f(x) - f(x - step)) / step, (f(x + step) - f(x)) / step
    slack = 1e-4 * np.maximum(1, np.abs(left))
    assert np.all(derivative >= np.minimum(left, right) - slack)
    assert np.all(derivative <= np.maximum(left, right) + slack)


def test_derivatives_at_zero_are_tensorflows():
    """Where a padded sequence meets a bias of zeros, zero is what activations get."""
    expected = {"relu": 0.0, "leaky_relu": 0.2, "selu": 1.0507009873554805, "elu": 1.0, "relu6": 0.0}
    for name, slope in expected.items():
        np.testing.assert_allclose(jax.grad(activations.get(name))(0.0), slope, rtol=1e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_kept(name, dtype):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4), dtype)

    @jax.jit
    def value_and_gradient(x):
        y, vjp = jax.vjp(activations.get(name), x)
        return y, *vjp(jnp.ones_like(y))

    value, gradient = value_and_gradient(x)
    assert value.dtype == gradient.dtype == dtype
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", OVER_AN_AXIS)
def test_gradients_over_an_axis(name):
    x = jax.random.normal(jax.random.key(0), (3, 4))
    check_grads(activations.get(name), (x,), order=1, modes=("fwd", "rev"), rtol=1e-2)


def test_sparsemax_projects_onto_the_simplex():
    x = 2 * jax.random.normal(jax.random.key(0), (5, 7))
    projected = jax.vmap(optax.projections.projection_simplex)(x)
    np.testing.assert_allclose(activations.sparsemax(x), projected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(activations.sparsemax(x.T, axis=0).T, projected, rtol=1e-5, atol=1e-6)
    assert 0 < (projected == 0).mean() < 1


@pytest.mark.parametrize("negative_slope", [0.0, 0.25])
@pytest.mark.parametrize("max_value", [None, 2.0, 6.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_relu_with_arguments(negative_slope, max_value, threshold):
    x = jnp.linspace(-8, 8, 41)
    above = np.asarray(x) if max_value is None else np.minimum(x, max_value)
    expected = np.where(x > threshold, above, negative_slope * (x - threshold))
    y = activations.relu(x, negative_slope, max_value, threshold)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_array_equal(ReLU(max_value, negative_slope, threshold)(x), y)


def test_layers_are_their_functions():
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    np.testing.assert_array_equal(ReLU()(x), activations.relu(x))
    np.testing.assert_array_equal(LeakyReLU()(x), activations.leaky_relu(x, 0.3))
    np.testing.assert_array_equal(ELU(0.5)(x), jax.nn.elu(x, 0.5))
    np.testing.assert_array_equal(Softmax()(x), activations.softmax(x))
    np.testing.assert_allclose(Softmax([1, 2])(x).sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"class_name": "ReLU", "config": {"max_value": np.array(6.0), "name": "re_lu"}}, ReLU(6.0)),
        ({"class_name": "LeakyReLU", "config": {}}, LeakyReLU(0.3)),
        ({"class_name": "LeakyReLU", "config": {"alpha": 0.1, "dtype": "float32"}}, LeakyReLU(0.1)),
        ({"class_name": "ThresholdedReLU", "config": {"theta": 0.5}}, ReLU(threshold=0.5)),
        ({"class_name": "ELU", "config": {"alpha": 2.0, "trainable": True}}, ELU(2.0)),
        ({"class_name": "Softmax", "config": {"axis": [-1]}}, Softmax((-1,))),
        ({"class_name": "function", "config": "swish"}, activations.silu),
        (
            {
                "module": "keras.activations",
                "class_name": "function",
                "config": "relu",
                "registered_name": "relu",
            },
            activations.relu,
        ),
    ],
)
def test_configs(config, expected):
    assert activations.get(config) == expected
    written = activations.serialize(config)
    assert activations.get(written) == expected


@pytest.mark.parametrize("name", DEFINITIONS)
def test_names_come_back(name):
    written = activations.serialize(name)
    assert activations.get(written) is activations.get(name)
    assert written == {"swish": "silu", "hard_swish": "hard_silu"}.get(name, name)


def test_none_is_linear():
    assert activations.get(None) is activations.linear
    assert activations.serialize(None) == activations.serialize(activations.linear) == "linear"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.nn.relu, "relu"),
        (jax.nn.silu, "silu"),
        (jax.nn.swish, "silu"),
        (jax.nn.hard_swish, "hard_silu"),
        (jax.nn.soft_sign, "softsign"),
        (jax.nn.identity, "linear"),
        (jax.nn.softmax, "softmax"),
        (jnp.tanh, "tanh"),
        (jnp.exp, "exponential"),
    ],
)
def test_jaxs_own_have_names(function, name):
    assert activations.get(function) is function
    assert activations.serialize(function) == name
    x = jnp.asarray(POINTS)
    np.testing.assert_array_equal(function(x), activations.get(name)(x))


@pytest.mark.parametrize(
    "function", [jax.nn.gelu, jax.nn.leaky_relu, jax.nn.selu, activations.hard_sigmoid_keras2]
)
def test_what_only_shares_a_name_is_not_written_under_it(function):
    name = function.__name__.removesuffix("_keras2")
    with pytest.raises(
        ValueError, match=rf"`activation` is .*, which Keras 3 has no name for \(its '{name}' is"
    ):
        activations.serialize(function)


def test_hard_sigmoid_of_keras_2():
    x = jnp.asarray(POINTS)
    ours = activations.get("hard_sigmoid", keras2=True)
    assert ours is activations.hard_sigmoid_keras2
    assert activations.get({"class_name": "function", "config": "hard_sigmoid"}, keras2=True) is ours
    np.testing.assert_allclose(ours(x), np.clip(0.2 * POINTS + 0.5, 0, 1), atol=1e-6)
    for name in DEFINITIONS.keys() - {"hard_sigmoid"}:
        assert activations.get(name, keras2=True) is activations.get(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: activations.get("threshold"), "`activation` cannot be 'threshold': it needs two numbers"),
        (
            lambda: activations.get({"class_name": "PReLU", "config": {}}, argument="x"),
            "`x` cannot be 'PReLU': its slopes are weights of their own",
        ),
        (
            lambda: activations.get({"class_name": "Activation", "config": {"activation": "relu"}}),
            "`activation` cannot be 'Activation': that is a layer around an activation",
        ),
        (
            lambda: activations.get({"class_name": "LeakyReLU", "config": {"negative_slop": 1}}),
            "`activation`: 'LeakyReLU' has no argument 'negative_slop'. Did you mean 'negative_slope'?",
        ),
        (lambda: ReLU(max_value=-1), "`max_value` must be at least 0; got -1."),
        (lambda: LeakyReLU(-0.1), "`negative_slope` must be at least 0; got -0.1."),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_what_a_refusal_proposes_works():
    clipped = functools.partial(activations.threshold, threshold=0.5, default_value=-1.0)
    assert activations.get(clipped) is clipped
    np.testing.assert_array_equal(clipped(jnp.array([0.5, 0.75])), [-1.0, 0.75])
