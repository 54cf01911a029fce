"""Chunk by chunk, a causal layer gives what it gives on the whole sequence."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests import reference


@functools.partial(jax.jit, static_argnums=3)
def step(params, x, state, config):
    return fsc.stream_step(params, x, state, config)


@settings(max_examples=12)
@given(reference.layers(padding="causal", batch_axes=st.integers(0, 2), activation="tanh"), st.data())
def test_chunks_joined_are_the_whole(layer, data):
    config, params, x = layer
    axis = config.time_axis
    x = np.repeat(x, config.strides, axis=axis)
    steps = x.shape[axis] // config.strides
    cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1), max_size=3))) if steps > 1 else []
    state = fsc.init_stream(config, x.shape[:-2], x.shape[config.channel_axis])
    shape, outputs = state.shape, []
    for chunk in np.split(x, [cut * config.strides for cut in cuts], axis):
        y, state = step(params, chunk, state, config)
        assert (state.shape, state.dtype) == (shape, np.float32)
        outputs.append(y)
    expected = np.tanh(reference.separable(params, x, config))
    np.testing.assert_allclose(np.concatenate(outputs, axis), expected, rtol=0, atol=1e-5)


def scanned(params, x, config, chunk):
    """The layer over `(length, channels)` or `(channels, length)` in chunks, as a `lax.scan`."""
    axis = config.time_axis
    chunks = jnp.moveaxis(x, axis, 0).reshape(-1, chunk, x.shape[config.channel_axis])
    chunks = chunks if config.channel_axis == -1 else chunks.swapaxes(1, 2)

    def body(state, x):
        y, state = fsc.stream_step(params, x, state, config)
        return state, y

    _, ys = jax.lax.scan(body, fsc.init_stream(config, (), x.shape[config.channel_axis]), chunks)
    y = jnp.moveaxis(ys, axis, 1)
    return jnp.moveaxis(y.reshape(-1, config.filters), 0, axis)


@pytest.mark.parametrize(
    "config",
    [
        fsc.SeparableConv1DConfig(3, 4, padding="causal", strides=2, depth_multiplier=2, activation="tanh"),
        fsc.SeparableConv1DConfig(3, 3, padding="causal", dilation_rate=3, data_format="channels_first"),
    ],
)
def test_gradients_flow_through_the_state(config):
    """Those of a scan over chunks that are shorter than the receptive field are those of the whole."""
    params = fsc.init_params(jax.random.key(0), 2, config)
    x = jax.random.normal(jax.random.key(1), (24, 2) if config.channel_axis == -1 else (2, 24))
    functions = (
        lambda params, x: scanned(params, x, config, 4),
        lambda params, x: fsc.separable_conv1d(params, x, config),
    )
    got, expected = (
        jax.jit(jax.grad(lambda params, x, f=f: jnp.sum(jnp.sin(f(params, x))), (0, 1)))(params, x)
        for f in functions
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_memory_does_not_grow_with_the_sequence():
    config = fsc.SeparableConv1DConfig(8, 5, padding="causal", activation="relu")
    params = fsc.init_params(jax.random.key(0), 4, config)
    function = jax.jit(lambda params, x: scanned(params, x, config, 1024))
    x = jax.random.normal(jax.random.key(1), (65536, 4))
    whole = fsc.separable_conv1d(params, x, config)
    np.testing.assert_allclose(function(params, x), whole, rtol=0, atol=1e-5)
    sizes = [
        function.lower(params, jax.ShapeDtypeStruct((length, 4), np.float32))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for length in (65536, 2**20)
    ]
    assert sizes[0] == sizes[1] < 2**20


CONFIG = fsc.SeparableConv1DConfig(4, 3, padding="causal", strides=2)
X = np.linspace(-1, 1, 72, dtype=np.float32).reshape(2, 12, 3)
PARAMS = fsc.init_params(jax.random.key(0), 3, CONFIG)
WHOLE = fsc.separable_conv1d(PARAMS, X, CONFIG)


def test_vmap_is_a_batch_of_streams():
    state = fsc.init_stream(CONFIG, (2,), 3)
    mapped = jax.jit(jax.vmap(lambda x, state: fsc.stream_step(PARAMS, x, state, CONFIG)))
    for i in range(0, 12, 4):
        y, state = mapped(X[:, i : i + 4], state)
        np.testing.assert_allclose(y, WHOLE[:, i // 2 : i // 2 + 2], rtol=1e-5, atol=1e-6)


def test_the_state_is_the_last_inputs_in_their_dtype():
    x = jnp.asarray(X, jnp.bfloat16)
    y, state = fsc.stream_step(PARAMS, x, fsc.init_stream(CONFIG, (2,), 3, jnp.bfloat16), CONFIG)
    np.testing.assert_array_equal(state, x[:, -2:])
    np.testing.assert_array_equal(y, fsc.separable_conv1d(PARAMS, x, CONFIG))


ARGUMENTS = {"padding": "causal", "strides": 2}


def test_linen_layers_stream_in_a_cache():
    layer = fsc.SeparableConv1D(4, 3, **ARGUMENTS, decode=True)
    variables = layer.init(jax.random.key(0), X[:, :2])
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(np.shape, PARAMS)
    np.testing.assert_array_equal(variables["cache"]["inputs"], np.zeros((2, 2, 3)))
    assert fsc.layer_configs(layer, X) == {"": CONFIG}
    for cache in ({"cache": variables["cache"]}, {}):
        for i in range(0, 12, 4):
            y, cache = layer.apply({"params": PARAMS, **cache}, X[:, i : i + 4], mutable=["cache"])
            np.testing.assert_allclose(y, WHOLE[:, i // 2 : i // 2 + 2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the collection 'cache' must be mutable"):
        layer.apply({"params": PARAMS, **cache}, X[:, :4])


def test_linen_layers_stream_under_scan():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, chunks):
            def body(layer, _, x):
                return None, layer(x)

            layer = fsc.SeparableConv1D(4, 3, **ARGUMENTS, decode=True, name="conv")
            scan = nn.scan(
                body, variable_broadcast="params", variable_carry="cache", split_rngs={"params": False}
            )
            return scan(layer, None, chunks)[1]

    chunks = X.reshape(2, 3, 4, 3).swapaxes(0, 1)
    cache = {"conv": {"inputs": fsc.init_stream(CONFIG, (2,), 3)}}
    ys, state = Model().apply({"params": {"conv": PARAMS}, "cache": cache}, chunks, mutable=["cache"])
    np.testing.assert_allclose(ys.swapaxes(0, 1).reshape(2, 6, 4), WHOLE, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state["cache"]["conv"]["inputs"], X[:, -2:])


def test_nnx_layers_stream_in_a_cache():
    trained = fsc.nnx.SeparableConv1D(3, 4, 3, **ARGUMENTS, rngs=nnx.Rngs(0))
    trained.set_attributes(fsc.nnx.SeparableConv1D, decode=True)
    made = fsc.nnx.SeparableConv1D(3, 4, 3, **ARGUMENTS, decode=True, rngs=nnx.Rngs(0))
    call = nnx.jit(lambda layer, x: layer(x))
    for layer in (trained, made):
        nnx.update(layer, PARAMS)
        assert fsc.layer_configs(layer) == {"": CONFIG}
        for _ in range(2):
            layer.init_cache((2,))
            for i in range(0, 12, 4):
                y = call(layer, X[:, i : i + 4])
                np.testing.assert_allclose(y, WHOLE[:, i // 2 : i // 2 + 2], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(nnx.state(layer, nnx.Cache)["cache"][...], X[:, -2:])


FIRST = fsc.SeparableConv1DConfig(4, 3, padding="causal", data_format="channels_first", activation="softmax")
STATE = fsc.init_stream(CONFIG, (2,), 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fsc.init_stream(fsc.SeparableConv1DConfig(4, 3, padding="same"), (2,), 3),
            ValueError,
            "a stream needs `padding='causal'`; got 'same'",
        ),
        (lambda: fsc.init_stream({}, (2,), 3), TypeError, "`config` must be a SeparableConv1DConfig"),
        (lambda: fsc.init_stream(CONFIG, (-2,), 3), ValueError, "`batch_shape` must have no negative sizes"),
        (lambda: fsc.init_stream(CONFIG, (2.0,), 3), TypeError, "`batch_shape` must be an integer; got 2.0"),
        (
            lambda: fsc.init_stream(CONFIG, 2, 3),
            TypeError,
            "`batch_shape` must be a sequence of integers; got 2",
        ),
        (lambda: fsc.init_stream(CONFIG, (2,), 0), ValueError, "`in_features` must be at least 1"),
        (lambda: fsc.init_stream(FIRST, (2,), 3), ValueError, "works along time"),
        (
            lambda: fsc.stream_step(PARAMS, X[:, :3], STATE, CONFIG),
            ValueError,
            "the length of a chunk must be a multiple of strides=2; got 3",
        ),
        (lambda: fsc.stream_step(PARAMS, X[:, :0], STATE, CONFIG), ValueError, "the output would be empty"),
        (
            lambda: fsc.stream_step(PARAMS, X[:1], STATE, CONFIG),
            ValueError,
            "`state` must have the shape (1, 2, 3) and the dtype float32",
        ),
        (
            lambda: fsc.stream_step(PARAMS, X.astype("float16"), STATE, CONFIG),
            ValueError,
            "got (2, 2, 3) and float32. Start with `init_stream(config, (2,), 3, jnp.float16)`",
        ),
        (lambda: fsc.stream_step(PARAMS, X, None, CONFIG), TypeError, "`state` must be an array; got None"),
        (lambda: fsc.SeparableConv1D(4, 3, decode=True), ValueError, "got 'valid', which reads later input"),
        (lambda: fsc.SeparableConv1D(4, 3, decode=1), TypeError, "`decode` must be True or False; got 1"),
        (
            lambda: fsc.nnx.SeparableConv1D(3, 4, 3, decode=True, rngs=nnx.Rngs(0)),
            ValueError,
            "got 'valid', which reads later input",
        ),
        (
            lambda: fsc.nnx.SeparableConv1D(3, 4, 3, **ARGUMENTS, decode=True, rngs=nnx.Rngs(0))(X),
            ValueError,
            "call `init_cache(batch_shape)` of each layer",
        ),
        (
            lambda: fsc.SeparableConv1D(4, 3, **ARGUMENTS, decode=True).init(
                jax.random.key(0), X, np.array([3, 4])
            ),
            ValueError,
            "`lengths` cannot be used with decode=True",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
