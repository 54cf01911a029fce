"""Chunk by chunk, a layer gives what it gives on the whole sequence, and so does a model of several."""

import dataclasses
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


SAME = fsc.SeparableConv1DConfig(3, 3, padding="same", dilation_rate=3, data_format="channels_first")


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (
            fsc.SeparableConv1DConfig(
                3, 4, padding="causal", strides=2, depth_multiplier=2, activation="tanh"
            ),
            None,
        ),
        (SAME, None),
        (SAME, 17),
        # No derivative at 0, which is what stands beyond the ends before the activation.
        (fsc.SeparableConv1DConfig(3, 3, padding="same", activation=lambda z: jnp.sqrt(abs(z))), 17),
    ],
)
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
    assert 0 < sizes[0] == sizes[1] < 2**20


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


# ---- Models of several layers -----------------------------------------------------------------------------


@st.composite
def stacks(draw):
    """Configs of layers one after another, and of those that keep shapes whether they are residual."""
    layers = []
    for _ in range(draw(st.integers(2, 3))):
        layer = reference.configs(data_format="channels_last", activation="gelu", filters=4)
        config = draw(layer.filter(lambda config: config.padding != "same" or config.strides == 1))
        layers.append((config, config.padding != "valid" and config.strides == 1 and draw(st.booleans())))
    return layers


def stack(layers, calls, delay, x, lengths, position):
    """The model: in a stream where there is a `position`. A stream of `"valid"` has zeros before it."""
    for index, (config, residual) in enumerate(layers):
        if position is None:
            whole = jnp.pad(x, ((0, 0), (lead(config), 0), (0, 0)))
            y = calls[index](whole, lengths + lead(config))
        else:
            y = calls[index](x, lengths, position=position)
            position = config.output_position(position)
            x = delay(index, x, config.latency) if residual else x
        lengths = config.output_length(lengths + lead(config))
        # What comes before the first sample and after the last is not zero for the next layer.
        x = y + 0.5 + (x if residual else 0)
    return x


def later(past, x):
    """`x`, as many time steps late as `past` is long, and the next `past`: for residual connections."""
    joined = jnp.concatenate([past, x], axis=-2)
    return joined[..., : x.shape[-2], :], joined[..., x.shape[-2] :, :]


class LinenStack(nn.Module):
    layers: tuple
    decode: bool = False

    def delay(self, index, x, steps):
        past = self.variable("cache", f"past{index}", jnp.zeros, (*x.shape[:-2], steps, x.shape[-1]))
        y, past.value = later(past.value, x)
        return y

    @nn.compact
    def __call__(self, x, lengths, position=None):
        calls = [
            fsc.SeparableConv1D.from_config(config, decode=self.decode, name=f"conv{i}")
            for i, (config, _) in enumerate(self.layers)
        ]
        return stack(self.layers, calls, self.delay, x, lengths, position)


class NnxStack(nnx.Module):
    def __init__(self, layers, in_features):
        self.layers = layers
        for i, (config, _) in enumerate(layers):
            conv = fsc.nnx.SeparableConv1D.from_config(4 if i else in_features, config, rngs=nnx.Rngs(i))
            setattr(self, f"conv{i}", conv)
            if i:
                setattr(self, f"past{i}", nnx.Cache(jnp.zeros((2, config.latency, 4))))

    def delay(self, index, x, steps):
        past = getattr(self, f"past{index}")
        y, past[...] = later(past[...], x)
        return y

    def __call__(self, x, lengths, position=None):
        calls = [getattr(self, f"conv{i}") for i in range(len(self.layers))]
        return stack(self.layers, calls, self.delay, x, lengths, position)


def linen_stream(layers, x, lengths):
    """The whole, and a function from a chunk and its position to its outputs."""
    model = LinenStack(layers)
    params = jax.jit(model.init)(jax.random.key(0), x, lengths)["params"]
    whole = jax.jit(model.apply)({"params": params}, x, lengths)
    decoder, cache = LinenStack(layers, decode=True), {}
    apply = jax.jit(functools.partial(decoder.apply, mutable=["cache"]))

    def feed(chunk, position):
        nonlocal cache
        y, cache = apply({"params": params, **cache}, chunk, lengths, position)
        return y

    return whole, feed


def nnx_stream(layers, x, lengths):
    model = NnxStack(layers, x.shape[-1])
    call = nnx.jit(lambda model, *args: model(*args))
    whole = call(model, x, lengths)
    model.set_attributes(fsc.nnx.SeparableConv1D, decode=True)
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, fsc.nnx.SeparableConv1D):
            layer.init_cache((2,))
    return whole, lambda chunk, position: call(model, chunk, lengths, position)


@pytest.mark.parametrize("stream", [linen_stream, nnx_stream])
@settings(max_examples=5)
@given(layers=stacks(), length=st.integers(1, 12), ended=st.integers(0, 6), parts=st.integers(1, 3))
def test_streams_of_several_layers(stream, layers, length, ended, parts):
    """The whole model, late by what `stream_latency` says, rounded up to a multiple of all strides."""
    layers = ((layers[0][0], False), *layers[1:])  # the first one has other channels
    configs = [config for config, _ in layers]
    lengths = np.array([length, max(length - ended, 0)])
    x = np.random.default_rng(length).normal(size=(2, length, 3)).astype(np.float32)
    whole, feed = stream(layers, x, lengths)

    strides = int(np.prod([config.strides for config in configs]))
    latency = fsc.stream_latency(configs)
    before = -latency % strides
    chunk = parts * strides
    chunks = -(-(before + length + latency + strides) // chunk)
    fed = np.full((2, chunks * chunk, 3), np.nan, np.float32)
    fed[:, before : before + length] = x
    outputs = [feed(fed[:, i : i + chunk], i - before) for i in range(0, chunks * chunk, chunk)]
    late = (before + latency) // strides
    got = np.concatenate(outputs, axis=1)[:, late : late + whole.shape[1]]
    for y, expected, n in zip(got, whole, lengths, strict=True):
        for config in configs:
            n = int(config.output_length(np.array([n + lead(config)]))[0])
        np.testing.assert_allclose(y[:n], expected[:n], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "far", [2**31 - 1, 2**40, np.array([2**40, 2**31]), jnp.array([2**31 - 1, 2**31 - 9])]
)
def test_streams_go_on_for_ever(far):
    """Positions and lengths beyond what JAX's integers hold are those of a stream that has not come to its end."""
    state = jax.random.normal(jax.random.key(2), STATE.shape)
    expected, _ = fsc.stream_step(PARAMS, X, state, CONFIG)
    position = far - far % 2
    for lengths in (None, np.array([2**62, 2**31])):
        y, _ = fsc.stream_step(PARAMS, X, state, CONFIG, position=position, lengths=lengths)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_lengths_without_a_position_are_those_of_the_chunk():
    state = jax.random.normal(jax.random.key(2), STATE.shape)
    y, _ = fsc.stream_step(PARAMS, X, state, CONFIG, lengths=[3, -1])
    expected, _ = fsc.stream_step(PARAMS, X, state, CONFIG)
    np.testing.assert_allclose(y[0, :2], expected[0, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[0, 2:], 0)
    np.testing.assert_array_equal(y[1], 0)


def test_latencies_add_up():
    layers = [
        fsc.SeparableConv1DConfig(4, 4, padding="same"),  # 2
        fsc.SeparableConv1DConfig(4, 5, padding="causal", strides=3),
        fsc.SeparableConv1DConfig(4, 3, strides=2),
        fsc.SeparableConv1DConfig(4, 3, padding="same", dilation_rate=2),  # 2 of 6 samples
    ]
    assert [config.latency for config in layers] == [2, 0, 0, 2]
    assert fsc.stream_latency(layers) == fsc.stream_latency(dict(enumerate(layers))) == 14
    assert fsc.stream_latency(layers[0]) == 2
    assert [config.output_position(12) for config in layers] == [10, 4, 6, 10]
    np.testing.assert_array_equal(layers[1].output_position(np.array([3, -3], np.int8)), [1, -1])
    assert layers[0].output_position(None) is None


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
STRIDED = fsc.SeparableConv1DConfig(4, 3, padding="same", strides=2)
STATE = fsc.init_stream(CONFIG, (2,), 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fsc.init_stream(STRIDED, (2,), 3),
            ValueError,
            "a stream of padding='same' must have strides=1",
        ),
        (lambda: STRIDED.latency, ValueError, "got strides=2. Use padding='causal' or 'valid'"),
        (lambda: STRIDED.output_position(4), ValueError, "a stream of padding='same' must have strides=1"),
        (lambda: CONFIG.output_position(1.5), TypeError, "`position` must be an integer; got 1.5"),
        (lambda: fsc.stream_latency([CONFIG, STRIDED]), ValueError, "a stream of padding='same'"),
        (lambda: fsc.stream_latency([3]), TypeError, "`configs` must be a SeparableConv1DConfig; got 3"),
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
            "the length of a chunk must be a multiple of strides=2, and not 0; got 3",
        ),
        (lambda: fsc.stream_step(PARAMS, X[:, :0], STATE, CONFIG), ValueError, "strides=2, and not 0; got 0"),
        (
            lambda: fsc.stream_step(PARAMS, X, STATE, CONFIG, position=[0, 1]),
            ValueError,
            "`position` must be a multiple of strides=2, for windows to be where they are in the whole; got [0 1]",
        ),
        (
            lambda: fsc.stream_step(PARAMS, X, STATE, CONFIG, position=[0, 2, 4]),
            ValueError,
            "`position` must be one integer or have the shape of the batch axes of `x`, (2,); got the shape (3,)",
        ),
        (
            lambda: fsc.stream_step(PARAMS, X, STATE, CONFIG, position=0.0),
            TypeError,
            "`position` must hold integers",
        ),
        (
            lambda: fsc.stream_step(PARAMS, X, STATE, CONFIG, lengths=3),
            ValueError,
            "`lengths` must have the shape of the batch axes of `x`, (2,); got ()",
        ),
        (
            lambda: fsc.stream_step(
                PARAMS, X, STATE, dataclasses.replace(STRIDED, strides=1), lengths=[3, 4]
            ),
            ValueError,
            "`lengths` need `position` in a stream of padding='same'",
        ),
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
        (lambda: fsc.SeparableConv1D(4, 3, 2, "same", decode=True), ValueError, "must have strides=1"),
        (lambda: fsc.SeparableConv1D(4, 3, decode=1), TypeError, "`decode` must be True or False; got 1"),
        (
            lambda: fsc.nnx.SeparableConv1D(3, 4, 3, 2, "same", decode=True, rngs=nnx.Rngs(0)),
            ValueError,
            "must have strides=1",
        ),
        (
            lambda: fsc.nnx.SeparableConv1D(3, 4, 3, **ARGUMENTS, decode=True, rngs=nnx.Rngs(0))(X),
            ValueError,
            "call `init_cache(batch_shape)` of each layer",
        ),
        (
            lambda: fsc.SeparableConv1D(4, 3).init(jax.random.key(0), X, position=0),
            ValueError,
            "`position` is for decode=True",
        ),
        (
            lambda: fsc.nnx.SeparableConv1D(3, 4, 3, rngs=nnx.Rngs(0))(X, position=0),
            ValueError,
            "`position` is for decode=True",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
