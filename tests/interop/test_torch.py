"""A depthwise and a pointwise `Conv1d` are this layer: by definition in float64, and in PyTorch if installed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from flax_sepconv.interop.torch import from_state_dict, to_state_dict
from tests import reference


def state(channels=6, kernel_size=3, filters=4, dtype=np.float32, biases=("0.bias", "1.bias"), seed=0):
    """What `Sequential(Conv1d(..., groups=...), Conv1d(..., 1)).state_dict()` would be, in NumPy."""
    rng = np.random.default_rng(seed)
    shapes = {"0.weight": (channels, 1, kernel_size), "1.weight": (filters, channels, 1)}
    shapes |= {key: {"0.bias": (channels,), "1.bias": (filters,)}[key] for key in biases}
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}


def two_convolutions(state, x, *, multiplier, strides, dilation, pads):
    """PyTorch's definition of both `Conv1d`, in float64: `(batch, channels, length)` there and back."""
    first, second = (state[key].astype(np.float64) for key in ("0.weight", "1.weight"))
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), pads])
    size = first.shape[2]
    windows = range(0, x.shape[2] - (size - 1) * dilation, strides)
    y = np.empty((len(x), len(first), len(windows)))
    for o, start in enumerate(windows):
        for channel in range(len(first)):
            taps = x[:, channel // multiplier, start : start + (size - 1) * dilation + 1 : dilation]
            y[:, channel, o] = taps @ first[channel, 0]
    y += state.get("0.bias", np.zeros(len(first)))[:, None]
    return np.einsum("fc,ncl->nfl", second[..., 0], y) + state.get("1.bias", np.zeros(len(second)))[:, None]


@settings(max_examples=40)
@given(
    reference.configs(), st.sets(st.sampled_from(["0.bias", "1.bias"])), st.integers(1, 4), st.integers(0, 99)
)
def test_equals_its_definition(config, biases, in_features, seed):
    length = (config.kernel_size - 1) * config.dilation_rate + 5
    given = state(
        in_features * config.depth_multiplier, config.kernel_size, config.filters, biases=biases, seed=seed
    )
    x = np.random.default_rng(seed).normal(size=(2, in_features, length)).astype(np.float32)
    ours, params = from_state_dict(
        given,
        depth_multiplier=config.depth_multiplier,
        strides=config.strides,
        padding=config.padding,
        dilation_rate=config.dilation_rate,
        data_format=config.data_format,
    )
    assert ours.use_bias == bool(biases)
    first = config.data_format == "channels_first"
    y = fsc.separable_conv1d(params, x if first else x.swapaxes(1, 2), ours)

    reach = (config.kernel_size - 1) * config.dilation_rate
    total = max((-(-length // config.strides) - 1) * config.strides + reach + 1 - length, 0)
    pads = {"valid": (0, 0), "causal": (reach, 0), "same": (total // 2, total - total // 2)}[config.padding]
    expected = two_convolutions(
        given,
        x,
        multiplier=config.depth_multiplier,
        strides=config.strides,
        dilation=config.dilation_rate,
        pads=pads,
    )
    np.testing.assert_allclose(y if first else y.swapaxes(1, 2), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(reference.layers(), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_there_and_back_to_the_last_bit(layer, dtype):
    config, params, _ = layer
    params = {name: jnp.asarray(value, dtype) for name, value in params.items()}
    written = to_state_dict(config, params, "a.", "b.", tensors=False)
    there = {k: v for k, v in config.geometry.items() if k != "kernel_size"}
    back, again = from_state_dict(
        written, "a.", "b.", depth_multiplier=config.depth_multiplier, data_format=config.data_format, **there
    )
    assert back == fsc.SeparableConv1DConfig(
        config.filters,
        depth_multiplier=config.depth_multiplier,
        data_format=config.data_format,
        use_bias=config.use_bias,
        param_dtype=dtype,
        **config.geometry,
    )
    assert again.keys() == params.keys()
    for name, value in params.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def test_other_settings_are_the_configs():
    config, _ = from_state_dict(
        state(), activation="relu", depthwise_constraint="max_norm", name="conv", param_dtype="float16"
    )
    assert config == fsc.SeparableConv1DConfig(
        4,
        3,
        data_format="channels_first",
        activation="relu",
        depthwise_constraint="max_norm",
        name="conv",
        param_dtype="float16",
    )


@pytest.mark.parametrize(
    ("padding", "kernel_size", "dilation_rate", "word"),
    [
        (0, 3, 1, "valid"),
        ((0,), 4, 2, "valid"),
        (1, 3, 1, "same"),
        ([4], 5, 2, "same"),
        ("SAME", 4, 1, "same"),
    ],
)
def test_numbers_of_zeros_become_words(padding, kernel_size, dilation_rate, word):
    config, _ = from_state_dict(state(kernel_size=kernel_size), padding=padding, dilation_rate=dilation_rate)
    assert config.padding == word


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        # "same" at stride 2 pads (0, 1) or (1, 1), as the length has it; PyTorch (1, 1) always.
        (
            {"padding": 1, "strides": 2},
            ValueError,
            r"`padding` must be 'valid', 'same', 'causal', 0 for .*; got 1",
        ),
        (
            {"padding": 2},
            ValueError,
            r"`padding` must be .* or 1, which is 'same', for kernel_size=3, .*; got 2",
        ),
        ({"padding": "full"}, ValueError, r"`padding` must be one of .*; got 'full'"),
        ({"padding": 1.0}, TypeError, r"`padding` must be an integer; got 1.0"),
        ({"padding": (1, 1)}, TypeError, r"`padding` must be an integer; got \(1, 1\)"),
        (
            {"depth_multiplier": 4},
            ValueError,
            r"`depth_multiplier` must divide the 6 channels of '0.weight'; got 4",
        ),
        ({"depth_multiplier": 0}, ValueError, r"`depth_multiplier` must be at least 1; got 0"),
        (
            {"strides": 2, "dilation_rate": 2},
            ValueError,
            r"`strides` and `dilation_rate` cannot both differ from 1",
        ),
        ({"filters": 4}, TypeError, r"`filters` follows from the weights"),
        (
            {"depthwise": "0"},
            ValueError,
            r"must hold '0weight'.*got '0.weight', .*`depthwise` must be .* with the dot",
        ),
        (
            {"pointwise": "2."},
            ValueError,
            r"must hold '2.weight', the weight of the pointwise Conv1d; got '0.weight'",
        ),
    ],
)
def test_refused_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        from_state_dict(state(), **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"0.weight": (6, 3, 3)}, r"'0.weight'\]` must be .*groups=in_channels; got the shape \(6, 3, 3\)"),
        (
            {"0.weight": (6, 1, 3, 3)},
            r"'0.weight'\]` must be \(in_channels \* depth_multiplier, 1, kernel_size\)",
        ),
        ({"0.weight": (6,)}, r"'0.weight'\]` must be .*; got the shape \(6,\)"),
        ({"0.weight": (6, 1, 0)}, r"'0.weight'\]` must be .*; got the shape \(6, 1, 0\)"),
        (
            {"1.weight": (4, 6, 3)},
            r"'1.weight'\]` must be \(filters, 6, 1\).*kernel_size=1.*the shape \(4, 6, 3\)",
        ),
        (
            {"1.weight": (4, 3, 1)},
            r"'1.weight'\]` must be .*groups=1 on the 6 channels.*got the shape \(4, 3, 1\)",
        ),
        ({"1.weight": (4, 6)}, r"'1.weight'\]` must be .*; got the shape \(4, 6\)"),
        ({"1.weight": (0, 6, 1)}, r"'1.weight'\]` must be .*; got the shape \(0, 6, 1\)"),
        ({"0.bias": (4,)}, r"'0.bias'\]` must have the shape \(6,\).*; got \(4,\)"),
        ({"1.bias": (4, 1)}, r"'1.bias'\]` must have the shape \(4,\).*; got \(4, 1\)"),
    ],
)
def test_shapes_of_other_convolutions_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state() | {key: np.zeros(shape, np.float32) for key, shape in changed.items()})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"`state_dict` must be a mapping, what `module.state_dict\(\)` gives; got NoneType"),
        (
            state() | {"0.weight": [[[1.0]]]},
            r"`state_dict\['0.weight'\]` must be a floating tensor or array; got list",
        ),
        (state(dtype=np.int8), r"`state_dict\['0.weight'\]` must be a floating tensor or array; got int8"),
    ],
)
def test_what_is_no_tensor_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        from_state_dict(given)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match=r"must hold '0.weight'.*; got an empty one"):
        from_state_dict({})


def test_float64_is_not_made_narrower_unasked():
    with pytest.raises(ValueError, match=r"`param_dtype` float64 needs"):
        from_state_dict(state(dtype=np.float64))
    config, params = from_state_dict(state(dtype=np.float64), param_dtype="float32")
    assert {value.dtype for value in params.values()} == {config.param_dtype} == {np.dtype("float32")}
    with jax.enable_x64(True):
        config, params = from_state_dict(state(dtype=np.float64))
        np.testing.assert_array_equal(
            params["pointwise_kernel"][0].T, state(dtype=np.float64)["1.weight"][..., 0]
        )


def test_a_depthwise_bias_is_folded_in_float64():
    # In float32 the sum of 1e8, 1 and -1e8 is 0.
    given = state(channels=3, filters=1)
    given |= {"0.bias": np.float32([1e8, 1, -1e8]), "1.weight": np.ones((1, 3, 1), np.float32)}
    del given["1.bias"]
    assert from_state_dict(given)[1]["bias"] == 1


def test_nothing_is_shared_with_what_came():
    given = state(channels=64, filters=64)
    _, params = from_state_dict(given)
    before = {name: np.array(value) for name, value in params.items()}
    written = to_state_dict(fsc.SeparableConv1DConfig(64, 3), params, tensors=False)
    for array in [*given.values(), *written.values()]:
        array *= 0
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pointwise": "0."}, r"`depthwise` and `pointwise` must be two prefixes; got '0.' for both"),
        ({"params": {}}, r"`params` must have 'depthwise_kernel'"),
        (
            {"params": {"depthwise_kernel": np.ones((3, 2))}},
            r"`params\['depthwise_kernel'\]` must have the shape",
        ),
        (
            {"config": fsc.SeparableConv1DConfig(4, 5)},
            r"`params\['depthwise_kernel'\]` must have the shape \(5, 6, 1\)",
        ),
        ({"config": fsc.SeparableConv1DConfig(4, 3, use_bias=False)}, r"`params` must not have a 'bias'"),
    ],
)
def test_a_layer_that_does_not_fit_is_not_written(changed, message):
    config, params = from_state_dict(state())
    with pytest.raises(ValueError, match=message):
        to_state_dict(**{"config": config, "params": params, "tensors": False} | changed)


def test_torch_is_not_imported_for_arrays():
    program = """
import sys
sys.modules["torch"] = None  # an import of it fails
import jax, flax_sepconv as fsc
from flax_sepconv.interop import torch
config = fsc.SeparableConv1DConfig(4, 3)
params = fsc.init_params(jax.random.key(0), 6, config)
torch.from_state_dict(torch.to_state_dict(config, params, tensors=False))
try:
    torch.to_state_dict(config, params)
except ImportError as error:
    assert "pip install torch" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch",
        reason="PyTorch is larger than all of the extra 'test', which does without it: pip install torch",
    )


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(
    ("multiplier", "settings"),
    [
        (1, {}),
        (2, {"stride": 3}),
        (3, {"dilation": 2, "padding": "same"}),
        (1, {"padding": 2}),
        (2, {"kernel_size": 4, "padding": "same"}),  # the odd zero is on the right
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_equals_pytorch(torch, multiplier, settings, biases):
    settings = {"kernel_size": 5, "stride": 1, "padding": 0, "dilation": 1} | settings
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv1d(4, 4 * multiplier, groups=4, bias=biases[0], **settings),
        torch.nn.Conv1d(4 * multiplier, 7, 1, bias=biases[1]),
        torch.nn.ReLU(),
    )
    x = torch.randn(3, 4, 20)
    config, params = from_state_dict(
        model.state_dict(),
        depth_multiplier=multiplier,
        strides=settings["stride"],
        padding=settings["padding"],
        dilation_rate=settings["dilation"],
        activation="relu",
    )
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(fsc.separable_conv1d(params, x.numpy(), config), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tensors_there_and_back(torch, dtype):
    with jax.enable_x64(dtype == "float64"):
        first = torch.nn.Conv1d(4, 8, 3, groups=4, bias=False, dtype=getattr(torch, dtype))
        second = torch.nn.Conv1d(8, 5, 1, dtype=getattr(torch, dtype))
        model = torch.nn.ModuleDict({"depthwise": first, "pointwise": second})
        prefixes = ("depthwise.", "pointwise.")
        config, params = from_state_dict(dict(model.named_parameters()), *prefixes, depth_multiplier=2)
        assert config.param_dtype == dtype
        written = to_state_dict(config, params, *prefixes)
    for key, tensor in model.state_dict().items():
        assert written[key].dtype == tensor.dtype
        assert torch.equal(written[key], tensor)
    model.load_state_dict(written)


def test_tensors_that_change_later_change_nothing(torch):
    model = torch.nn.Sequential(torch.nn.Conv1d(64, 64, 3, groups=64), torch.nn.Conv1d(64, 64, 1))
    _, params = from_state_dict(model.state_dict())
    before = {name: np.array(value) for name, value in params.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[name])
