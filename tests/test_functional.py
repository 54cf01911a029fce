"""The pure functions equal the float64 definition, compose with JAX's transforms, and refuse what is wrong."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import flax_sepconv as fsc
from tests import reference

CONFIG = fsc.SeparableConv1DConfig(4, 3)
X = np.linspace(-1, 1, 30, dtype=np.float32).reshape(1, 10, 3)
PARAMS = fsc.init_params(jax.random.key(0), 3, CONFIG)


def assert_close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1.0))


@settings(max_examples=40)
@given(reference.layers())
def test_output_is_the_definition(layer):
    config, params, x = layer
    y = fsc.separable_conv1d(params, x, config)
    assert_close(y, reference.separable(params, x, config))
    assert y.dtype == jnp.float32
    assert y.shape == config.output_shape(x.shape)


@settings(max_examples=15)
@given(reference.layers(batch_axes=st.just(1), data_format="channels_last"))
def test_depthwise_is_the_definition(layer):
    config, params, x = layer
    geometry = {k: v for k, v in config.geometry.items() if k != "kernel_size"}
    kernel = params["depthwise_kernel"]
    expected = reference.depthwise(x, kernel, **geometry)
    assert_close(fsc.depthwise_conv1d(x, kernel, **geometry), expected)
    first = fsc.depthwise_conv1d(x.swapaxes(1, 2), kernel, data_format="channels_first", **geometry)
    assert_close(first, expected.swapaxes(1, 2))


@settings(max_examples=4)
@given(reference.layers(batch_axes=st.just(1), activation="tanh"))
def test_gradients_of_both_modes_and_orders(layer):
    config, params, x = layer
    check_grads(
        lambda p, x: fsc.separable_conv1d(p, x, config),
        (params, x),
        order=2,
        modes=("fwd", "rev"),
        rtol=0.05,
        atol=0.05,
    )


@settings(max_examples=8)
@given(reference.layers(batch_axes=st.just(2)))
def test_vmap_over_anything_is_a_loop(layer):
    config, params, x = layer
    function = jax.jit(functools.partial(fsc.separable_conv1d, config=config))
    assert_close(jax.jit(jax.vmap(function, (None, 0)))(params, x), function(params, x))
    many = {k: np.stack([v, -2 * v]) for k, v in params.items()}
    both = jnp.stack([x, x + 1])
    expected = jnp.stack([function({k: v[i] for k, v in many.items()}, both[i]) for i in range(2)])
    assert_close(jax.jit(jax.vmap(function))(many, both), expected)


@settings(max_examples=12)
@given(reference.layers(padding="causal", batch_axes=st.just(1)), st.data())
def test_causal_outputs_see_no_later_input(layer, data):
    config, params, x = layer
    axis = config.time_axis
    now = data.draw(st.integers(0, x.shape[axis] - 1))
    changed = np.moveaxis(x.copy(), axis, 0)
    changed[now + 1 :] += 1e3
    changed = np.moveaxis(changed, 0, axis)
    seen = np.moveaxis(np.asarray(fsc.separable_conv1d(params, x, config)), axis, 0)
    same = np.moveaxis(np.asarray(fsc.separable_conv1d(params, changed, config)), axis, 0)
    outputs = now // config.strides + 1
    np.testing.assert_array_equal(seen[:outputs], same[:outputs])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_accumulates_in_float32(dtype):
    # 512 equal terms: a sum kept in the half type would stop growing at 256 (bfloat16) or lose its last digits.
    config = fsc.SeparableConv1DConfig(1, 512, use_bias=False, dtype=dtype)
    params = {
        "depthwise_kernel": np.ones((512, 1, 1), np.float32),
        "pointwise_kernel": np.ones((1, 1, 1), np.float32),
    }
    y = fsc.separable_conv1d(params, np.ones((512, 1), np.float32), config)
    assert y.dtype == dtype
    assert y.item() == 512


@pytest.mark.parametrize(
    ("x", "param", "dtype", "expected"),
    [
        ("float32", "float32", None, "float32"),
        ("bfloat16", "float32", None, "float32"),
        ("bfloat16", "bfloat16", None, "bfloat16"),
        ("int32", "float32", None, "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
        ("int8", "float16", None, "float16"),
    ],
)
def test_dtype_of_the_output(x, param, dtype, expected):
    config = fsc.SeparableConv1DConfig(4, 3, dtype=dtype, param_dtype=param)
    params = fsc.init_params(jax.random.key(0), 3, config)
    assert {v.dtype.name for v in params.values()} == {param}
    assert fsc.separable_conv1d(params, jnp.ones((2, 9, 3), x), config).dtype == expected


def test_parameters_have_their_dtype_whatever_draws_them():
    config = fsc.SeparableConv1DConfig(
        4, 3, bias_initializer=lambda key, shape, dtype: jnp.ones(shape), param_dtype="bfloat16"
    )
    assert fsc.init_params(jax.random.key(0), 3, config)["bias"].dtype == "bfloat16"
    layer = fsc.SeparableConv1D(4, 3, bias_initializer=config.bias_initializer, param_dtype="bfloat16")
    assert layer.init(jax.random.key(0), X)["params"]["bias"].dtype == "bfloat16"
    arguments = {"bias_initializer": config.bias_initializer, "param_dtype": "bfloat16"}
    assert fsc.nnx.SeparableConv1D(3, 4, 3, **arguments, rngs=nnx.Rngs(0)).bias[...].dtype == "bfloat16"


def test_float64_when_enabled():
    config = fsc.SeparableConv1DConfig(4, 3, param_dtype="float64")
    with jax.enable_x64(True):
        params = fsc.init_params(jax.random.key(0), 3, config)
        y = fsc.separable_conv1d(params, jnp.asarray(X, "float64"), config)
        assert y.dtype == "float64"
        assert_close(y, reference.separable(params, X, config), 1e-14)
    with pytest.raises(ValueError, match=r"`param_dtype` float64 needs .*jax_enable_x64"):
        fsc.init_params(jax.random.key(0), 3, config)


@pytest.mark.parametrize("implementation", [None, "lax"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_nothing_is_promoted_behind_the_users_back(implementation, dtype):
    config = fsc.SeparableConv1DConfig(
        4, 3, strides=2, padding="same", dtype=dtype, implementation=implementation
    )

    def loss(params, x):
        return fsc.separable_conv1d(params, x, config, lengths=jnp.array([10])).sum()

    params = jax.tree.map(jnp.asarray, PARAMS)
    ensemble = jax.tree.map(lambda a: a[None], params)
    x = jnp.asarray(X, "float32")
    # Types are promoted where a function is traced, or a platform's form of it is lowered.
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for platform in ("cpu", "cuda", "tpu"):
            jax.jit(jax.grad(loss)).trace(params, x).lower(lowering_platforms=(platform,))
        jax.jit(jax.vmap(jax.grad(loss), (0, None))).trace(ensemble, x).lower()


def test_without_jit_it_is_the_same():
    expected = jax.grad(lambda params: fsc.separable_conv1d(params, X, CONFIG).sum())(PARAMS)
    with jax.disable_jit():
        gradient = jax.grad(lambda params: fsc.separable_conv1d(params, X, CONFIG).sum())(PARAMS)
        kernel = fsc.depthwise_conv1d(X, PARAMS["depthwise_kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradient, expected)
    np.testing.assert_allclose(kernel, fsc.depthwise_conv1d(X, PARAMS["depthwise_kernel"]), rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.grad])
def test_debugging_finds_what_is_not_a_number(wrap):
    x = np.where(np.arange(10)[:, None] == 5, np.inf, np.zeros((1, 10, 3))).astype("float32")
    params = jax.tree.map(jnp.asarray, PARAMS)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="invalid value"):
        wrap(lambda params: fsc.separable_conv1d(params, x, CONFIG).sum())(params)


def test_a_mapped_axis_may_be_empty():
    def apply(params, x):
        return fsc.separable_conv1d(params, x, CONFIG)

    none = jax.tree.map(lambda a: jnp.zeros((0, *a.shape)), PARAMS)
    assert jax.vmap(apply, (0, None))(none, X).shape == (0, *apply(PARAMS, X).shape)
    jacobian = jax.jacrev(apply)(PARAMS, X[:0])
    assert jacobian["bias"].shape == (*apply(PARAMS, X[:0]).shape, 4)
    per_example = jax.vmap(jax.grad(lambda params, x: apply(params, x).sum()), (None, 0))(PARAMS, X[:0])
    assert per_example["pointwise_kernel"].shape == (0, 1, 3, 4)
    kernels = jnp.zeros((0, 3, 3, 2))
    assert jax.vmap(fsc.depthwise_conv1d, (None, 0))(X, kernels).shape == (0, 1, 8, 6)


def test_equal_configs_share_one_compilation():
    traces = []

    @functools.partial(jax.jit, static_argnums=2)
    def function(params, x, config):
        traces.append(config)
        return fsc.separable_conv1d(params, x, config)

    for same in (
        CONFIG,
        fsc.SeparableConv1DConfig(4, [3], strides=(1,), padding="VALID", activation="linear"),
    ):
        function(PARAMS, X, same)
    assert len(traces) == 1


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize(
    ("implementation", "products"), [("lax", 2), (None, 1)]
)  # "taps" has none of its own
def test_precision_reaches_the_products(implementation, products, platform):
    def program(precision):
        config = fsc.SeparableConv1DConfig(4, 3, precision=precision, implementation=implementation)
        function = jax.jit(lambda p, x: fsc.separable_conv1d(p, x, config))
        return function.trace(PARAMS, X).lower(lowering_platforms=(platform,)).as_text()

    assert program("highest").count("HIGHEST") >= 2 * products  # for both operands of each
    assert "HIGHEST" not in program(None)


def test_empty_batch_gives_an_empty_batch():
    assert fsc.separable_conv1d(PARAMS, X[:0], CONFIG).shape == (0, 8, 4)


def test_initial_parameters_depend_on_the_key_and_differ_by_weight():
    again = fsc.init_params(jax.random.key(0), 3, CONFIG)
    other = fsc.init_params(jax.random.key(1), 3, CONFIG)
    np.testing.assert_array_equal(PARAMS["depthwise_kernel"], again["depthwise_kernel"])
    assert (PARAMS["depthwise_kernel"] != other["depthwise_kernel"]).any()
    assert list(PARAMS) == ["depthwise_kernel", "pointwise_kernel", "bias"]
    assert (PARAMS["bias"] == 0).all()


def without(name):
    return {k: v for k, v in PARAMS.items() if k != name}


@pytest.mark.parametrize(
    ("params", "x", "config", "error", "message"),
    [
        (PARAMS, X[0, 0], CONFIG, ValueError, "`x` must be (*batch, length, channels); got the shape (3,)"),
        (PARAMS, X[..., :2], CONFIG, ValueError, "the shape (3, 2, 1) for 2 input channels"),
        (PARAMS, X[..., :0], CONFIG, ValueError, "with at least one channel; got the shape (1, 10, 0)"),
        (PARAMS, X[:, :2], CONFIG, ValueError, "length=2 with kernel_size=3, strides=1, dilation_rate=1"),
        (PARAMS, "12", CONFIG, TypeError, "`x` must be an array; got '12'"),
        (
            PARAMS,
            X.astype(complex),
            CONFIG,
            TypeError,
            "`x` must hold real numbers; got an array of dtype complex128",
        ),
        (PARAMS, X > 0, CONFIG, TypeError, "`x` must hold real numbers; got an array of dtype bool"),
        (
            without("bias"),
            X,
            CONFIG,
            ValueError,
            "got no 'bias', only 'depthwise_kernel', 'pointwise_kernel'",
        ),
        (
            PARAMS | {"kernel": 1},
            X,
            CONFIG,
            ValueError,
            "got 'depthwise_kernel', 'pointwise_kernel', 'bias', 'kernel'",
        ),
        (without("bias") | {"bais": 1}, X, CONFIG, ValueError, "'bais'. Did you mean 'bias'?"),
        ({"params": PARAMS}, X, CONFIG, ValueError, "got 'params'. Pass one layer's own dict"),
        (PARAMS | {"bias": "zeros"}, X, CONFIG, TypeError, "`params['bias']` must be an array; got 'zeros'"),
        (
            PARAMS | {"bias": np.zeros(4, complex)},
            X,
            CONFIG,
            TypeError,
            "`params['bias']` must hold real numbers; got an array of dtype complex128",
        ),
        (PARAMS, X, fsc.SeparableConv1DConfig(4, 3, dtype="float64"), ValueError, "`dtype` float64 needs"),
        (PARAMS, X, X, TypeError, "a SeparableConv1DConfig; got an array of the shape (1, 10, 3) and dtype"),
        (PARAMS | {"bias": X}, X, CONFIG, ValueError, "`params['bias']` must have the shape (4,)"),
        (
            PARAMS,
            X,
            fsc.SeparableConv1DConfig(4, 3, use_bias=False),
            ValueError,
            "the config says use_bias=False",
        ),
        (list(PARAMS), X, CONFIG, TypeError, "`params` must be a dict of arrays; got list"),
        (
            PARAMS,
            X,
            {"filters": 4},
            TypeError,
            "`config` must be a SeparableConv1DConfig; got {'filters': 4}",
        ),
    ],
)
def test_refusals(params, x, config, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fsc.separable_conv1d(params, x, config)


@pytest.mark.parametrize(
    ("x", "kernel", "arguments", "error", "message"),
    [
        (X, np.ones((3, 3)), {}, ValueError, "`kernel` must be (kernel_size, channels, depth_multiplier)"),
        (
            X,
            np.ones((3, 2, 1)),
            {},
            ValueError,
            "`kernel` must have as many channels as `x`, 3; got the shape (3, 2, 1)",
        ),
        (X, np.ones((3, 3, 1)), {"strides": 0}, ValueError, "`strides` must be at least 1; got 0"),
        (
            X,
            np.ones((3, 3, 1)),
            {"padding": "full"},
            ValueError,
            "`padding` must be one of 'valid', 'same', 'causal'",
        ),
        (
            X,
            np.ones((3, 3, 1)),
            {"implementation": "fast"},
            ValueError,
            "`implementation` must be one of 'taps', 'fourier', 'lax'",
        ),
        (X, np.ones((3, 3, 1)), {"strides": 2, "dilation_rate": 2}, ValueError, "cannot both differ from 1"),
    ],
)
def test_refusals_of_the_depthwise_function(x, kernel, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fsc.depthwise_conv1d(x, kernel, **arguments)


def test_refusals_of_init_params():
    with pytest.raises(ValueError, match="`in_features` must be at least 1; got 0"):
        fsc.init_params(jax.random.key(0), 0, CONFIG)
    with pytest.raises(TypeError, match=r"`in_features` must be an integer; got 3\.0"):
        fsc.init_params(jax.random.key(0), 3.0, CONFIG)
