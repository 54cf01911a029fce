"""What people pass by habit: taken where `jnp.asarray` takes it, refused by the argument's name where not."""

import array
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_array_equal

import flax_sepconv as fsc

CONFIG = fsc.SeparableConv1DConfig(4, 3, padding="same")
PARAMS = fsc.init_params(jax.random.key(0), 2, CONFIG)
X = np.arange(20, dtype=np.float32).reshape(2, 5, 2) / 20
LENGTHS = np.array([5, 3])


def tensorflow():
    return pytest.importorskip("tensorflow")


def torch():
    return pytest.importorskip("torch")


class Series:
    """As pandas has them: no array, but with a way to one."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


FOREIGN = {
    "lists": np.ndarray.tolist,
    "tuples": lambda a: tuple(map(tuple, a.tolist())) if a.ndim > 1 else tuple(a.tolist()),
    "tf": lambda a: tensorflow().constant(a),
    "tf.Variable": lambda a: tensorflow().Variable(a),
    "torch": lambda a: torch().tensor(a),
    "memoryview": memoryview,
    "__array__": Series,
    "nnx.Param": lambda a: nnx.Param(jnp.asarray(a)),
    "list of arrays": lambda a: [jnp.asarray(each) for each in a],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_arrays_of_other_libraries_are_taken(kind):
    foreign = FOREIGN[kind]
    whole = fsc.separable_conv1d(PARAMS, X, CONFIG, lengths=LENGTHS)
    params = {name: foreign(np.asarray(value)) for name, value in PARAMS.items()}
    assert_array_equal(fsc.separable_conv1d(params, foreign(X), CONFIG, lengths=foreign(LENGTHS)), whole)
    layer = fsc.SeparableConv1D(4, 3, padding="same")
    assert_array_equal(layer.apply({"params": PARAMS}, foreign(X), foreign(LENGTHS)), whole)
    causal = fsc.SeparableConv1DConfig(4, 3, padding="causal")
    state = np.zeros((2, 2, 2), np.float32)
    y, _ = fsc.stream_step(PARAMS, foreign(X), foreign(state), causal)
    assert_array_equal(y, fsc.stream_step(PARAMS, X, state, causal)[0])
    kernel = foreign(np.asarray(PARAMS["depthwise_kernel"]))
    assert fsc.depthwise_conv1d(foreign(X), kernel).shape == (2, 3, 2)
    assert fsc.activity_loss(foreign(X), CONFIG) == 0


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_one_sequence():
    assert_array_equal(
        fsc.separable_conv1d(PARAMS, np.asmatrix(X[0]), CONFIG), fsc.separable_conv1d(PARAMS, X[0], CONFIG)
    )


@pytest.mark.parametrize(
    "lengths", [3, np.int8(3), np.array(3), jnp.array(3), jnp.uint8(3), 2**40, np.array(2**40), -(2**40)]
)
def test_one_sequence_without_a_batch_axis_has_one_length(lengths):
    padded = fsc.separable_conv1d(PARAMS, X[0], CONFIG, lengths=lengths)
    (batched,) = fsc.separable_conv1d(PARAMS, X[:1], CONFIG, lengths=np.reshape(np.asarray(lengths), 1))
    assert_array_equal(padded, batched)
    jitted = jax.jit(lambda n: fsc.separable_conv1d(PARAMS, X[0], CONFIG, lengths=n))
    assert_array_equal(jitted(np.clip(lengths, 0, 5)), batched)
    gradient = jax.grad(lambda x: fsc.separable_conv1d(PARAMS, x, CONFIG, lengths=lengths).sum())(X[0])
    assert gradient.shape == X[0].shape


SHAPE = jax.ShapeDtypeStruct(X.shape, X.dtype)
NO_ARRAYS = {
    "None": None,
    "text": "12",
    "bytes": b"12",
    "dict": {"a": 1.0},
    "ragged": [[1.0, 2.0], [3.0]],
    "object": object(),
    "objects": np.array([[1.0, None]]),
    "structured": np.zeros((2, 5, 2), [("a", "f4")]),
    "dates": np.zeros((2, 5, 2), "datetime64[s]"),
    "masked": np.ma.masked_array(X, X > 0.5),
    "shape": SHAPE,
    "boxed": nn.Partitioned(jnp.asarray(X), ("batch", None, None)),
    "bool": X > 0,
    "complex": X + 1j,
    "float8": jnp.asarray(X, jnp.float8_e4m3fn),
    "keys": jax.random.split(jax.random.key(0), 4).reshape(2, 2),
    "module": types,
    "array.array of text": array.array("u", "ab"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_no_arrays_are_refused_by_argument(kind):
    value = NO_ARRAYS[kind]
    causal = fsc.SeparableConv1DConfig(4, 3, padding="causal")
    calls = {
        "`x`": [
            lambda: fsc.separable_conv1d(PARAMS, value, CONFIG),
            lambda: fsc.depthwise_conv1d(value, PARAMS["depthwise_kernel"]),
            lambda: fsc.stream_step(PARAMS, value, np.zeros((2, 2, 2), np.float32), causal),
            lambda: fsc.SeparableConv1D(4, 3).apply({"params": PARAMS}, value),
            lambda: fsc.nnx.SeparableConv1D(2, 4, 3, rngs=nnx.Rngs(0))(value),
        ],
        "`kernel`": [lambda: fsc.depthwise_conv1d(X, value)],
        "`y`": [lambda: fsc.activity_loss(value, CONFIG)],
        "`params['bias']`": [lambda: fsc.separable_conv1d(PARAMS | {"bias": value}, X, CONFIG)],
        "`lengths`": [lambda: fsc.separable_conv1d(PARAMS, X, CONFIG, lengths=value)] * (value is not None),
    }
    for argument, refused in calls.items():
        for call in refused:
            with pytest.raises(TypeError) as error:
                call()
            assert str(error.value).startswith(argument)
            assert "got " in str(error.value)


def test_abstract_arrays_work_where_shapes_are_computed():
    shape = jax.eval_shape(lambda x: fsc.separable_conv1d(PARAMS, x, CONFIG), SHAPE)
    assert shape.shape == (2, 5, 4)
    with pytest.raises(TypeError, match=r"no values\. .*`jax\.eval_shape`"):
        fsc.separable_conv1d(PARAMS, SHAPE, CONFIG)


@pytest.mark.parametrize(
    "key",
    [0, None, "0", np.uint32(0), nnx.Rngs(0), nnx.Rngs(0).params, jnp.zeros(2), jnp.zeros(3, jnp.uint32)],
)
def test_no_keys_are_refused(key):
    with pytest.raises(
        TypeError, match=r"`key` must be a random key of JAX's, such as `jax.random.key\(0\)`"
    ):
        fsc.init_params(key, 2, CONFIG)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_both_kinds(make):
    key = make(1)
    params = fsc.init_params(key, 2, CONFIG)
    assert params["bias"].shape == (4,)
    with pytest.raises(
        ValueError, match=r"`key` must be one random key; got a batch of the shape \(3,\)\. .*vmap"
    ):
        fsc.init_params(jax.random.split(key, 3), 2, CONFIG)
    many = jax.vmap(lambda key: fsc.init_params(key, 2, CONFIG))(jax.random.split(key, 3))
    assert many["bias"].shape == (3, 4)


CONFIG_CALLS = {
    "separable_conv1d": (fsc.separable_conv1d, PARAMS, X),
    "init_params": (fsc.init_params, jax.random.key(0), 2),
    "init_stream": (lambda batch, config: fsc.init_stream(config, (2,), 2), X),
    "stream_step": (fsc.stream_step, PARAMS, X, X[:, :2]),
    "activity_loss": (fsc.activity_loss, X),
    "regularization_loss": (fsc.regularization_loss, PARAMS),
    "constrain": (lambda x, configs: fsc.constrain(configs), X),
}


@pytest.mark.parametrize("name", CONFIG_CALLS)
def test_a_traced_config_says_that_configs_are_static(name):
    function, *arguments = CONFIG_CALLS[name]
    with pytest.raises(TypeError, match=r"`configs?` is static, .*static_argnames='configs?'.*close over it"):
        jax.jit(function)(*arguments, CONFIG)


def test_a_traced_mapping_of_configs_is_to_be_closed_over():
    params, configs = {"conv": PARAMS}, {"conv": CONFIG}
    with pytest.raises(TypeError, match=r"`configs` is static, .*Close over it"):
        jax.jit(fsc.regularization_loss)(params, configs)
    assert jax.jit(lambda params: fsc.regularization_loss(params, configs))(params) == 0


def test_what_the_message_on_static_configs_says_works():
    expected = fsc.separable_conv1d(PARAMS, X, CONFIG)
    static = jax.jit(fsc.separable_conv1d, static_argnames="config")
    closed = jax.jit(lambda params, x: fsc.separable_conv1d(params, x, CONFIG))
    np.testing.assert_allclose(static(PARAMS, X, CONFIG), expected, atol=1e-6)
    np.testing.assert_allclose(static(PARAMS, X, config=CONFIG), expected, atol=1e-6)
    np.testing.assert_allclose(closed(PARAMS, X), expected, atol=1e-6)
