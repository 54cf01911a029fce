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


@functools.partial(jax.jit, static_argnames="config")
def step(params, x, state, config, position=None, lengths=None):
    return fsc.stream_step(params, x, state, config, position=position, lengths=lengths)


def streamable(**fixed):
    """Layers that stream, of every geometry, with parameters and an input."""
    layers = reference.layers(batch_axes=st.integers(0, 2), activation="tanh", **fixed)
    return layers.filter(lambda layer: layer[0].padding != "same" or layer[0].strides == 1)


def lead(config):
    """How many samples stand in front of a stream of `"valid"`."""
    span = (config.kernel_size - 1) * config.dilation_rate + 1
    return max(span - config.strides, 0) if config.padding == "valid" else 0


def padded(x, config, before=0, after=0, value=0.0):
    """`x` with more time steps."""
    amounts = [(0, 0)] * x.ndim
    amounts[config.time_axis] = (before, after)
    return np.pad(x, amounts, constant_values=value)


@settings(max_examples=12)
@given(streamable(), st.data())
def test_chunks_joined_are_the_whole(layer, data):
    """From a first state of zeros, or for `"valid"` of any samples, and `latency` steps late."""
    config, params, x = layer
    axis = config.time_axis
    x = np.repeat(x, config.strides, axis=axis)
    state = fsc.init_stream(config, x.shape[:-2], x.shape[config.channel_axis])
    shape, whole = state.shape, x
    if config.padding == "valid":
        state = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        whole = np.concatenate([state, x], axis)
    expected = np.tanh(reference.separable(params, whole, config))
    x = padded(x, config, after=config.latency)
    steps = x.shape[axis] // config.strides
    cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1), max_size=2))) if steps > 1 else []
    outputs = []
    for chunk in np.split(x, [cut * config.strides for cut in cuts], axis):
        y, state = step(params, chunk, state, config)
        assert (state.shape, state.dtype) == (shape, np.float32)
        outputs.append(y)
    late = np.take(np.concatenate(outputs, axis), np.arange(config.latency, steps), axis)
    np.testing.assert_allclose(late, expected, rtol=0, atol=1e-5)


@settings(max_examples=12)
@given(streamable(), st.data())
def test_streams_that_begin_and_end_at_different_times(layer, data):
    """Each gives what it gives alone, in zeros, whatever stands before its first sample and after its last."""
    config, params, x = layer
    axis, batch, strides = config.time_axis, x.shape[:-2], config.strides
    longest, size = x.shape[axis], int(np.prod(batch))
    lengths = np.reshape(data.draw(st.lists(st.integers(0, longest), min_size=size, max_size=size)), batch)
    starts = np.reshape(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), batch) * strides
    chunk = strides * data.draw(st.integers(1, 4))
    chunks = -(-(longest + config.latency + 3 * strides) // chunk)

    fed = np.full_like(padded(x, config, after=chunks * chunk - longest), np.nan)
    expected = np.zeros(config.output_shape(padded(fed, config, lead(config)).shape))
    for i in np.ndindex(batch):
        one = np.take(x[i], np.arange(lengths[i]), axis)
        np.moveaxis(fed[i], axis, 0)[starts[i] : starts[i] + lengths[i]] = np.moveaxis(one, axis, 0)
        one = padded(one, config, lead(config))
        out = int(config.output_length(np.array([one.shape[axis]]))[0])
        if out:
            first = starts[i] // strides + config.latency
            y = np.tanh(reference.separable(params, one, config))
            np.moveaxis(expected[i], axis, 0)[first : first + out] = np.moveaxis(y, axis, 0)

    state, outputs = fsc.init_stream(config, batch, x.shape[config.channel_axis]), []
    for number, part in enumerate(np.split(fed, chunks, axis)):
        y, state = step(params, part, state, config, number * chunk - starts, lengths)
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, axis), expected, rtol=0, atol=1e-5)


def scanned(params, x, config, chunk, **ends):
    """The layer over `(length, channels)` or `(channels, length)` in chunks, as a `lax.scan`."""
    axis, length = config.time_axis, x.shape[config.time_axis]
    x = jnp.moveaxis(x, axis, 0)
    x = jnp.pad(x, ((0, -(-(length + config.latency) // chunk) * chunk - length), (0, 0)))
    chunks = x.reshape(-1, chunk, x.shape[1])
    chunks = chunks if config.channel_axis == -1 else chunks.swapaxes(1, 2)

    def body(carry, x):
        state, position = carry
        where = {"position": position, **ends} if ends else {}
        y, state = fsc.stream_step(params, x, state, config, **where)
        return (state, position + chunk), y

    _, ys = jax.lax.scan(body, (fsc.init_stream(config, (), x.shape[1]), 0), chunks)
    y = jnp.moveaxis(ys, axis, 1).reshape(-1, config.filters)[config.latency :]
    return jnp.moveaxis(y[: config.output_length(length + lead(config))], 0, axis)


@pytest.mark.parametrize(
    "config",
    [
        fsc.SeparableConv1DConfig(3, 4, padding="causal", strides=2, depth_multiplier=2, activation="tanh"),
        fsc.SeparableConv1DConfig(3, 3, padding="same", dilation_rate=3, data_format="channels_first"),
        # No derivative at 0, which is what stands beyond the end before the activation.
        fsc.SeparableConv1DConfig(3, 3, padding="same", activation=lambda z: jnp.sqrt(abs(z))),
    ],
)
@pytest.mark.parametrize("lengths", [None, 17])
def test_gradients_flow_through_the_state(config, lengths):
    """Those of a scan over chunks that are shorter than the receptive field are those of the whole."""
    params = fsc.init_params(jax.random.key(0), 2, config)
    x = jax.random.normal(jax.random.key(1), (24, 2) if config.channel_axis == -1 else (2, 24))
    ends = {} if lengths is None else {"lengths": lengths}
    functions = (
        lambda params, x: scanned(params, x, config, 4, **ends),
        lambda params, x: fsc.separable_conv1d(params, x, config, **ends),
    )
    got, expected = (
        jax.jit(jax.value_and_grad(lambda params, x, f=f: jnp.sum(jnp.sin(f(params, x))), (0, 1)))(params, x)
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
