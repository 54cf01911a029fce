"""With lengths, each sequence gives what it would give alone, whatever stands in its padding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests import reference


def cut(x, length, config):
    """The first `length` samples."""
    return x[..., :length, :] if config.channel_axis == -1 else x[..., :length]


def spoilt(x, lengths, config):
    """The same sequences with no numbers for padding."""
    beyond = np.arange(x.shape[config.time_axis]) >= lengths[..., None]
    return np.where(np.expand_dims(beyond, config.channel_axis), np.float32(np.nan), x)


def function(config):
    return jax.jit(functools.partial(fsc.separable_conv1d, config=config))


def alone(params, x, lengths, config):
    """The sigmoid of the float64 definition of each sequence by itself, in zeros."""
    y = np.zeros(config.output_shape(x.shape))
    time = config.time_axis
    for i in np.ndindex(lengths.shape):
        length = np.clip(lengths[i], 0, x.shape[time])
        out = config.output_length(np.array([length]))[0]
        if out > 0:
            z = reference.separable(params, cut(x[i], length, config), config)
            cut(y[i], out, config)[...] = 1 / (1 + np.exp(-z))
    return y


@settings(max_examples=15)
@given(reference.layers(batch_axes=st.integers(0, 2), activation="sigmoid"), st.data())
def test_each_sequence_is_alone(layer, data):
    config, params, x = layer
    longest = x.shape[config.time_axis]
    count = int(np.prod(x.shape[:-2]))
    drawn = data.draw(st.lists(st.integers(-1, longest + 1), min_size=count, max_size=count))
    lengths = np.array(drawn).reshape(x.shape[:-2])
    y = function(config)(params, spoilt(x, lengths, config), lengths=lengths)
    np.testing.assert_allclose(y, alone(params, x, lengths, config), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 7])
def test_same_padding_of_every_length(strides, kernel_size):
    """Where the padding on the left depends on the length: all lengths at once."""
    config = fsc.SeparableConv1DConfig(2, kernel_size, strides, "same", activation="sigmoid")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(14, 13, 2)).astype(np.float32)
    params = {w.name: rng.normal(size=w.shape).astype(np.float32) for w in config.weights(2)}
    lengths = np.arange(14)
    y = function(config)(params, spoilt(x, lengths, config), lengths=lengths)
    np.testing.assert_allclose(y, alone(params, x, lengths, config), rtol=0, atol=1e-5)


CONFIGS = [
    fsc.SeparableConv1DConfig(3, 3, padding="same", strides=2, activation="tanh"),
    fsc.SeparableConv1DConfig(3, 4, padding="causal", dilation_rate=2, data_format="channels_first"),
    fsc.SeparableConv1DConfig(3, 3, implementation="fourier"),
    # No derivative at 0, which is what stands in the padding before the activation.
    fsc.SeparableConv1DConfig(3, 3, padding="same", activation=lambda z: jnp.sqrt(abs(z))),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_gradients_are_those_of_the_sequences_alone(config):
    params = fsc.init_params(jax.random.key(0), 2, config)
    lengths = np.array([9, 4])
    x = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)
    x = x.swapaxes(1, 2) if config.channel_axis == -2 else x

    def loss(params, x, **lengths):
        return jnp.sum(jnp.sin(fsc.separable_conv1d(params, x, config, **lengths)))

    got, got_x = jax.jit(jax.grad(loss, (0, 1)))(params, spoilt(x, lengths, config), lengths=lengths)
    expected = jax.tree.map(np.zeros_like, params)
    expected_x = np.zeros_like(x)
    for i, length in enumerate(lengths):
        one, one_x = jax.jit(jax.grad(loss, (0, 1)))(params, cut(x[i], length, config))
        expected = jax.tree.map(np.add, expected, one)
        cut(expected_x[i], length, config)[...] = one_x
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
    np.testing.assert_allclose(got_x, expected_x, rtol=1e-4, atol=1e-5)


CONFIG = fsc.SeparableConv1DConfig(4, 3, padding="same", strides=2, activation="sigmoid")
X = np.linspace(-1, 1, 54, dtype=np.float32).reshape(2, 9, 3)
PARAMS = fsc.init_params(jax.random.key(0), 3, CONFIG)
LENGTHS = np.array([9, 4])
EXPECTED = fsc.separable_conv1d(PARAMS, X, CONFIG, lengths=LENGTHS)


def test_vmap_is_a_loop():
    mapped = jax.jit(jax.vmap(lambda x, length: fsc.separable_conv1d(PARAMS, x, CONFIG, lengths=length)))
    np.testing.assert_allclose(mapped(X, LENGTHS), EXPECTED, rtol=1e-6)
    one = function(CONFIG)(PARAMS, X[1], lengths=4)
    np.testing.assert_allclose(one, EXPECTED[1], rtol=1e-6)


def test_lengths_of_a_narrow_type_and_an_empty_batch():
    long = np.ones((1, 300, 3), np.float32)
    y = fsc.separable_conv1d(PARAMS, long, CONFIG, lengths=np.uint8([201]))
    assert (np.asarray(y)[0].any(axis=-1) == (np.arange(150) < 101)).all()
    assert fsc.separable_conv1d(PARAMS, X[:0], CONFIG, lengths=LENGTHS[:0]).shape == (0, 5, 4)


def test_modules_take_lengths():
    arguments = {"padding": "same", "strides": 2, "activation": "sigmoid"}
    linen = fsc.SeparableConv1D(4, 3, **arguments)
    np.testing.assert_array_equal(linen.apply({"params": PARAMS}, X, LENGTHS), EXPECTED)
    assert (
        fsc.layer_configs(linen, X, LENGTHS) == fsc.layer_configs(linen, X, lengths=LENGTHS) == {"": CONFIG}
    )
    layer = fsc.nnx.SeparableConv1D(3, 4, 3, **arguments, rngs=nnx.Rngs(0))
    nnx.update(layer, PARAMS)
    np.testing.assert_array_equal(layer(X, LENGTHS), EXPECTED)


FIRST = fsc.SeparableConv1DConfig(4, 3, data_format="channels_first", activation="softmax")


@pytest.mark.parametrize(
    ("lengths", "config", "error", "message"),
    [
        ("9", CONFIG, TypeError, "`lengths` must be an array; got '9'"),
        (True, CONFIG, TypeError, "`lengths` must hold integers; got an array of dtype bool"),
        (LENGTHS * 1.0, CONFIG, TypeError, "`lengths` must hold integers; got an array of dtype float64"),
        (LENGTHS[:1], CONFIG, ValueError, "the batch axes of `x`, (2,); got (1,)"),
        (9, CONFIG, ValueError, "the batch axes of `x`, (2,); got ()"),
        (LENGTHS, FIRST, ValueError, "works along time"),
        (
            LENGTHS,
            fsc.SeparableConv1DConfig(4, 3, activation=fsc.activations.Softmax(axis=1)),
            ValueError,
            "works along time",
        ),
    ],
)
def test_refusals(lengths, config, error, message):
    x = X if config.channel_axis == -1 else X.swapaxes(1, 2)
    with pytest.raises(error, match=re.escape(message)):
        fsc.separable_conv1d(PARAMS, x, config, lengths=lengths)


def test_softmax_over_channels_is_no_matter():
    config = fsc.SeparableConv1DConfig(4, 3, activation="softmax")
    y = fsc.separable_conv1d(PARAMS, X, config, lengths=LENGTHS)
    np.testing.assert_allclose(y.sum(axis=-1), np.arange(7) < np.array([[7], [2]]), rtol=1e-6)


def test_lengths_of_any_integer_type():
    config = fsc.SeparableConv1DConfig(2, 3, strides=2, padding="same")
    params = fsc.init_params(jax.random.key(0), 3, config)
    x = np.ones((2, 300, 3), np.float32)
    with jax.enable_x64(True):
        expected = fsc.separable_conv1d(params, x, config, lengths=np.array([255, 3]))
        for dtype in ("uint8", "uint64", "int64"):
            y = fsc.separable_conv1d(params, x, config, lengths=np.array([255, 3], dtype))
            np.testing.assert_array_equal(y, expected)


def test_lengths_beyond_any_array_count_as_its_own():
    config = fsc.SeparableConv1DConfig(2, 3)
    params = fsc.init_params(jax.random.key(0), 3, config)
    x = np.ones((1, 9, 3), np.float32)
    whole = fsc.separable_conv1d(params, x, config)
    for lengths in (np.array([2**32 - 1], np.uint32), np.array([2**40]), np.array([200], np.uint8)):
        np.testing.assert_array_equal(fsc.separable_conv1d(params, x, config, lengths=lengths), whole)
