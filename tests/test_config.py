"""A config is validated, hashable, short to read, and Keras's own config there and back."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from flax_sepconv import constraints, initializers
from tests import reference

Config = fsc.SeparableConv1DConfig


def test_sizes_take_what_keras_takes():
    expected = Config(8, 3, 2)
    for three, two in [((3,), [2]), ([3], (2,)), (np.int64(3), np.int32(2))]:
        assert Config(8, three, two) == expected
        assert hash(Config(8, three, two)) == hash(expected)
    assert Config(8, 3, padding="Same", data_format="CHANNELS_FIRST") == Config(
        8, 3, padding="same", data_format="channels_first"
    )


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(Config(8, 3)) == "SeparableConv1DConfig(filters=8, kernel_size=3)"
    assert repr(Config(1, 1)) == "SeparableConv1DConfig(filters=1, kernel_size=1)"
    shown = repr(
        Config(8, 3, activation="relu", dtype=jnp.bfloat16, precision="high", depthwise_regularizer="l2")
    )
    assert shown == (
        "SeparableConv1DConfig(filters=8, kernel_size=3, activation='relu', "
        "depthwise_regularizer=L2(), dtype='bfloat16', precision='high')"
    )


def test_an_initializer_of_none_is_keras_default():
    config = Config(8, 3, depthwise_initializer=None, bias_initializer=None)
    assert {type(weight.initializer) for weight in config.weights(3)} == {fsc.initializers.GlorotUniform}
    assert config.get_config()["bias_initializer"] is None


def test_a_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(8, 3).filters = 9
    assert dataclasses.replace(Config(8, 3), filters=9) == Config(9, 3)


@settings(max_examples=100)
@given(reference.configs(), st.integers(0, 40))
def test_output_length_counts_the_outputs(config, length):
    x = jax.ShapeDtypeStruct((length, 1), jnp.float32)
    kernel = np.zeros((config.kernel_size, 1, 1), np.float32)
    geometry = {k: v for k, v in config.geometry.items() if k != "kernel_size"}
    array = config.output_length(np.array([length, length]))
    try:
        expected = jax.eval_shape(lambda x: fsc.depthwise_conv1d(x, kernel, **geometry), x).shape[0]
    except ValueError as error:
        assert "the output would be empty" in str(error)  # noqa: PT017
        assert array.tolist() == [0, 0]
        with pytest.raises(ValueError, match="the output would be empty"):
            config.output_length(length)
    else:
        assert config.output_length(length) == expected
        assert array.tolist() == [expected, expected]


def test_output_length_of_a_traced_scalar_and_of_narrow_integers():
    config = Config(8, 3, strides=2)
    assert jax.jit(config.output_length)(9) == 4
    np.testing.assert_array_equal(jax.vmap(config.output_length)(jnp.array([9, 2])), [4, 0])
    np.testing.assert_array_equal(config.output_length(np.array([255, 1], np.uint8)), [127, 0])


def test_a_dtype_of_a_keras_policy_gets_a_hint():
    for policy in ("mixed_bfloat16", {"class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}):
        with pytest.raises(TypeError, match=r"`dtype` must be one of float16, .* Keras's policies"):
            Config(8, 3, dtype=policy)


def test_output_shape_keeps_what_is_unknown():
    assert Config(8, 3).output_shape((None, None, 3)) == (None, None, 8)
    assert Config(8, 3, data_format="channels_first").output_shape([2, 3, 10]) == (2, 8, 8)
    with pytest.raises(ValueError, match="`input_shape` must have at least a length and channels"):
        Config(8, 3).output_shape((3,))


def both_signs(y, axis):
    return jax.nn.relu(jnp.concatenate([y, -y], axis))


@settings(max_examples=60)
@given(reference.layers(), st.sampled_from(["gelu", "softmax", lambda y: y**2, both_signs]))
def test_output_shape_is_the_shape_of_the_output(layer, activation):
    config, params, x = layer
    if activation is both_signs:
        activation = functools.partial(both_signs, axis=config.channel_axis)
    config = dataclasses.replace(config, activation=activation)
    expected = jax.eval_shape(lambda x: fsc.separable_conv1d(params, x, config), x).shape
    assert config.output_shape(x.shape) == expected
    unknown = config.output_shape((None,) * x.ndim)
    assert unknown[config.channel_axis] == expected[config.channel_axis]
    assert all(size is None for i, size in enumerate(unknown) if i != config.channel_axis % x.ndim)


@pytest.mark.parametrize("length", [10, 11, None])
def test_output_shape_of_glu_is_half_the_last_axis(length):
    assert Config(8, 3, activation="glu").output_shape((2, length, 3))[-1] == 4
    first = Config(7, 3, activation="glu", data_format="channels_first", padding="same")
    if length == 11:
        with pytest.raises(
            ValueError, match=r"`activation` 'glu' halves the last axis, .* got the shape \(2, 7, 11\)"
        ):
            first.output_shape((2, 3, length))
        with pytest.raises(ValueError, match="`activation` 'glu' halves the last axis"):
            fsc.separable_conv1d(fsc.init_params(jax.random.key(0), 3, first), jnp.ones((2, 3, 11)), first)
    else:
        assert first.output_shape((2, 3, length)) == (2, 7, length and 5)
    with pytest.raises(ValueError, match="`activation` 'glu' halves the last axis, which must be even"):
        Config(7, 3, activation="glu")


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (None, TypeError, "`input_shape` must be a sequence of sizes, such as (None, 100, 12); got None"),
        ("abc", TypeError, "`input_shape` must be a sequence of sizes, such as (None, 100, 12); got 'abc'"),
        (10, TypeError, "`input_shape` must be a sequence of sizes, such as (None, 100, 12); got 10"),
        ({"length": 10}, TypeError, "`input_shape` must be a sequence of sizes"),
        (
            np.ones((2, 10, 3)),
            TypeError,
            "got an array of the shape (2, 10, 3) and dtype float64. Pass its `.shape`",
        ),
        (jax.ShapeDtypeStruct((2, 10, 3), "float32"), TypeError, "Pass its `.shape`"),
        ((2, 10.0, 3), TypeError, "`input_shape` must have integers for sizes, or None; got (2, 10.0, 3)"),
        ((2, True, 3), TypeError, "`input_shape` must have integers for sizes, or None; got (2, True, 3)"),
        ((-1, 10, 3), ValueError, "`input_shape` must have no negative sizes; got (-1, 10, 3)"),
        ((2, 10, 0), ValueError, "`input_shape` must have at least one channel; got (2, 10, 0)"),
        ((2, 2, 3), ValueError, "the output would be empty: length=2"),
    ],
)
def test_output_shape_refuses_what_is_no_shape(shape, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Config(8, 3).output_shape(shape)


@pytest.mark.parametrize("in_features", ["a", 0, -1, None, 1.5, True])
def test_weights_refuse_what_is_no_number_of_channels(in_features):
    with pytest.raises((TypeError, ValueError), match="`in_features` must be a"):
        Config(8, 3).weights(in_features)


@settings(max_examples=100)
@given(
    reference.configs(),
    st.sampled_from(["relu", "gelu", "hard_sigmoid", None, "swish"]),
    st.sampled_from(["he_normal", "orthogonal", "variance_scaling", "truncated_normal"]),
    st.sampled_from(["l1", "l2", "l1_l2", None]),
    st.sampled_from(["max_norm", "non_neg", "unit_norm", "min_max_norm", None]),
    st.sampled_from(
        [(None, "float32"), ("bfloat16", "float32"), ("float64", "float64"), ("float16", "float16")]
    ),
)
def test_a_config_survives_the_round_trip(config, activation, initializer, regularizer, constraint, dtypes):
    config = dataclasses.replace(
        config,
        activation=activation,
        depthwise_initializer=initializer,
        pointwise_regularizer=regularizer,
        activity_regularizer=regularizer,
        pointwise_constraint=constraint,
        dtype=dtypes[0],
        param_dtype=dtypes[1],
        trainable=False,
        name="here",
    )
    assert Config.from_config(config.get_config()) == config
    assert Config.from_config(json.loads(json.dumps(config.get_config()))) == config


KERAS_2 = {
    "name": "separable_conv1d", "trainable": True, "dtype": "float32", "batch_input_shape": (None, None, 3),
    "filters": 8, "kernel_size": [3], "strides": 2, "padding": "causal", "data_format": "channels_last",
    "dilation_rate": (1,), "groups": 1, "activation": "hard_sigmoid", "use_bias": True,
    "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}}, "kernel_regularizer": None,
    "kernel_constraint": None, "depth_multiplier": 2,
    "depthwise_regularizer": {"class_name": "L1L2", "config": {"l1": 0.0, "l2": 0.5}},
}  # fmt: skip


def test_keras_2_configs_keep_keras_2_meaning():
    config = Config.from_config(KERAS_2)
    assert config.activation is fsc.activations.hard_sigmoid_keras2
    assert config.depthwise_regularizer == fsc.regularizers.L1L2(0.0, 0.5)
    assert (config.strides, config.padding, config.depth_multiplier) == (2, "causal", 2)


@pytest.mark.parametrize(
    ("policy", "dtype", "param_dtype"),
    [
        (None, None, "float32"),
        ("float32", None, "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        (
            {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float64"}},
            "float64",
            "float64",
        ),
        ({"class_name": "Policy", "config": {"name": "mixed_float16"}}, "float16", "float32"),
    ],
)
def test_dtype_policies(policy, dtype, param_dtype):
    config = Config.from_config({"filters": 8, "kernel_size": 3, "dtype": policy})
    assert config == Config(8, 3, dtype=dtype, param_dtype=param_dtype)


def test_what_keras_cannot_say_is_refused_by_name():
    for argument, function in {
        "activation": lambda x: x,
        "depthwise_initializer": lambda key, shape, dtype: jnp.zeros(shape, dtype),
        "bias_regularizer": lambda w: 0.0,
        "pointwise_constraint": lambda w: w,
    }.items():
        with pytest.raises(ValueError, match=f"`{argument}` is <function .* which Keras 3 has no name for"):
            Config(8, 3, **{argument: function}).get_config()
    with pytest.raises(ValueError, match="`dtype` and `param_dtype` must be equal"):
        Config(8, 3, dtype="float16", param_dtype="bfloat16").get_config()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"filter": 3},
            ValueError,
            "an entry 'filter' that SeparableConv1D does not know. Did you mean 'filters'?",
        ),
        ({"groups": 2}, ValueError, "`groups` must be 1 in a separable convolution; got 2"),
        ({"dtype": "int8"}, ValueError, "`dtype` must be 'float32'"),
        (
            {"dtype": {"class_name": "QuantizedDTypePolicy", "config": {}}},
            ValueError,
            "got {'class_name': 'Quant",
        ),
        (
            {"dtype": {"class_name": "DTypePolicy", "config": {}}},
            ValueError,
            "or the config of such a policy",
        ),
        ({"activation": "rleu"}, ValueError, "`activation`"),
    ],
)
def test_from_config_refuses(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Config.from_config({"filters": 8, "kernel_size": 3} | change)


def test_from_config_refuses_what_is_no_config():
    with pytest.raises(TypeError, match="`config` must be a mapping"):
        Config.from_config([8, 3])
    with pytest.raises(ValueError, match="must have an entry 'kernel_size'; got only"):
        Config.from_config({"filters": 8})


SIZES = ("filters", "kernel_size", "strides", "dilation_rate", "depth_multiplier")


@pytest.mark.parametrize("argument", SIZES)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "must be at least 1; got 0"),
        (-2, ValueError, "must be at least 1; got -2"),
        (1.5, TypeError, "must be an integer; got 1.5"),
        (2.0, TypeError, "must be an integer; got 2.0"),
        (True, TypeError, "must be an integer; got True"),
        ("3", TypeError, "must be an integer; got '3'"),
        (None, TypeError, "must be an integer; got None"),
    ],
)
def test_sizes_refused(argument, value, error, message):
    with pytest.raises(error, match=re.escape(f"`{argument}` {message}")):
        Config(**{"filters": 8, "kernel_size": 3} | {argument: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": (3, 3)}, ValueError, "`kernel_size` must be an integer or a sequence of one; got (3, 3)"),
        ({"strides": []}, ValueError, "`strides` must be an integer or a sequence of one; got []"),
        ({"padding": "full"}, ValueError, "`padding` must be one of 'valid', 'same', 'causal'; got 'full'"),
        ({"padding": 1}, TypeError, "`padding` must be one of 'valid', 'same', 'causal'; got 1"),
        ({"data_format": "NWC"}, ValueError, "`data_format` must be one of 'channels_last', 'channels_first'"),
        ({"strides": 2, "dilation_rate": 2}, ValueError, "`strides` and `dilation_rate` cannot both differ from 1"),
        ({"use_bias": 1}, TypeError, "`use_bias` must be True or False; got 1"),
        ({"trainable": "no"}, TypeError, "`trainable` must be True or False; got 'no'"),
        ({"name": 3}, TypeError, "`name` must be a string or None; got 3"),
        ({"dtype": "float8_e4m3fn"}, TypeError, "`dtype` must be one of float16, bfloat16, float32, float64; got"),
        ({"dtype": "int32"}, TypeError, "`dtype` must be one of float16, bfloat16, float32, float64; got 'int32'"),
        ({"dtype": "flaot32"}, TypeError, "`dtype` must be one of float16, bfloat16, float32, float64; got 'flaot32'"),
        ({"param_dtype": None}, TypeError, "`param_dtype` must be one of float16, bfloat16, float32, float64; got N"),
        ({"precision": "best"}, ValueError, "`precision` must be None, 'default', 'high', 'highest'"),
        ({"preferred_element_type": "int32"}, TypeError, "`preferred_element_type` must be one of float16, bfloat16"),
        (
            {"preferred_element_type": "float16", "dtype": "bfloat16"},
            ValueError,
            "`preferred_element_type` must be one of None, bfloat16, float32, as a layer of dtype bfloat16 sums",
        ),
        ({"implementation": "cudnn"}, ValueError, "`implementation` must be one of"),
        ({"activation": "rleu"}, ValueError, "`activation`"),
        ({"depthwise_initializer": "glorot"}, ValueError, "`depthwise_initializer`"),
        ({"pointwise_regularizer": "l3"}, ValueError, "`pointwise_regularizer`"),
        ({"bias_constraint": "nonpos"}, ValueError, "`bias_constraint`"),
        ({"depthwise_initializer": "identity"}, ValueError, "`depthwise_initializer` cannot be used in this layer"),
        ({"bias_initializer": "orthogonal"}, ValueError, "`bias_initializer` cannot be used in this layer"),
        ({"depthwise_regularizer": "orthogonal_regularizer"}, ValueError, "`depthwise_regularizer`"),
        ({"bias_constraint": fsc.constraints.MaxNorm(2, axis=1)}, ValueError, "`bias_constraint`"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Config(**{"filters": 8, "kernel_size": 3} | arguments)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kernel_size": 10**400}, "`kernel_size` must be at most 16777216"),
        ({"dilation_rate": 2**40}, "`dilation_rate` must be at most"),
        (
            {"depthwise_initializer": initializers.GlorotUniform(None, [0, 0], [1])},
            "`input_axes` must have each axis",
        ),
        (
            {"depthwise_initializer": initializers.GlorotUniform(None, [0, -3], [1])},
            "`input_axes` must have each axis",
        ),
        ({"depthwise_initializer": initializers.Constant([])}, "`value` must be of the shape"),
        ({"depthwise_constraint": constraints.UnitNorm([0, 0])}, "`axis` must have each axis once"),
        (
            {"depthwise_initializer": initializers.Constant(np.ones((2, 5, 1)))},
            r"`value` must be of the shape \(3, None",
        ),
        (
            {"depth_multiplier": 4, "depthwise_initializer": initializers.STFT(window=[1.0, 2.0])},
            "`window` must have 3 values",
        ),
    ],
    ids=str,
)
def test_sizes_and_axes_that_no_layer_has_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        fsc.SeparableConv1DConfig(**{"filters": 4, "kernel_size": 3} | entries)


def test_a_config_of_any_size_computes_nothing_large():
    huge = {"filters": 2**24, "kernel_size": 2**24, "depth_multiplier": 2**24}
    for initializer in ("stft", "orthogonal", "he_normal", initializers.Constant(0.5)):
        assert fsc.SeparableConv1DConfig(**huge, depthwise_initializer=initializer).filters == 2**24


def test_given_values_may_have_any_number_of_channels():
    values = np.arange(15.0).reshape(3, 5, 1)
    config = fsc.SeparableConv1DConfig(4, 3, depthwise_initializer=initializers.Constant(values))
    np.testing.assert_array_equal(fsc.init_params(jax.random.key(0), 5, config)["depthwise_kernel"], values)
    with pytest.raises(ValueError, match=r"`value` must be of the shape \(3, 4, 1\)"):
        fsc.init_params(jax.random.key(0), 4, config)
