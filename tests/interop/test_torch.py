"""A depthwise and a pointwise `Conv1d` are this layer: by definition in float64, and in PyTorch if installed."""

import collections
import pkgutil
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


@settings(max_examples=20)
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


@settings(max_examples=15)
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
        ((1, 1), 3, 1, "same"),
        ((1, 2), 4, 1, "same"),  # the odd zero is on the right
        ((0, 0), 1, 1, "valid"),
        ((4, 0), 3, 2, "causal"),
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
            r"`padding` must be .*: \[2, 0\] \('causal'\), \[0, 0\] \('valid'\) for .*; got \[1, 1\]",
        ),
        (
            {"padding": (0, 2)},
            ValueError,
            r"`padding` must be .*'causal'\), \[1, 1\] \('same'\), \[0, 0\] .* for kernel_size=3.*; got \[0, 2\]",
        ),
        ({"padding": (1, 1, 1)}, TypeError, r"`padding` must be an integer; got \(1, 1, 1\)"),
        ({"padding": "full"}, ValueError, r"`padding` must be one of .*; got 'full'"),
        ({"padding": 1.0}, TypeError, r"`padding` must be an integer; got 1.0"),
        ({"padding": (1, 1.5)}, TypeError, r"`padding` must be an integer; got 1.5"),
        ({"eps": -1.0}, ValueError, r"`eps` must be at least 0; got -1.0"),
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
            r"must hold '2.weight', the weight of the pointwise convolution; got '0.weight'",
        ),
    ],
)
def test_refused_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        from_state_dict(state(), **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"0.weight": (6, 3, 3)},
            r"'0.weight'\]` must be .*groups=in_channels, .*; got the shape \(6, 3, 3\)",
        ),
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
        from_state_dict(
            state(biases=()) | {key: np.zeros(shape, np.float32) for key, shape in changed.items()}
        )


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
            r"`params` must have 'depthwise_kernel', .*; got no 'pointwise_kernel'",
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


def test_torch_is_not_imported_for_arrays(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    config, params = from_state_dict(state())
    from_state_dict(to_state_dict(config, params, tensors=False))
    with pytest.raises(ImportError, match="pip install torch"):
        to_state_dict(config, params)


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


def same_output(torch, model, config, params, x, to_ours=lambda x: x):
    """Whether a PyTorch model in eval mode and a layer give the same, to rounding."""
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    np.testing.assert_allclose(
        fsc.separable_conv1d(params, to_ours(x.numpy()), config), to_ours(expected), atol=2e-6, rtol=2e-6
    )


@pytest.fixture
def convolutions(torch):
    """A depthwise and a pointwise convolution, each as the functions wrap them, and an input for both."""

    def make(*around, cls="Conv1d", size=3, **settings):
        torch.manual_seed(0)
        cls = getattr(torch.nn, cls)
        pointwise = cls(8, 5, 1)
        return [*around, cls(4, 8, size, groups=4, **settings), pointwise], torch.randn(3, 4, 11)

    return make


def batch_norm(torch, channels, **settings):
    """A BatchNorm that has seen and learned something."""
    norm = torch.nn.BatchNorm1d(channels, **settings)
    for name, tensor in norm.state_dict().items():
        if tensor.ndim:
            torch.nn.init.uniform_(tensor, 0.5 if name == "running_var" else -1.0, 2.0)
    return norm


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("form", ["torch.nn.utils", "torch.nn.utils.parametrizations"])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_folded(torch, convolutions, form, dim):
    weight_norm = pkgutil.resolve_name(form).weight_norm
    layers, x = convolutions(padding=1)
    model = torch.nn.Sequential(*(weight_norm(layer, dim=dim) for layer in layers))
    for name, parameter in model.named_parameters():
        if name.endswith(("weight_g", "original0")):
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    assert "0.weight" not in model.state_dict()
    same_output(torch, model, *from_state_dict(model.state_dict(), depth_multiplier=2, padding=1), x)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("places", [("between",), ("behind",), ("between", "behind")])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_where_its_prefix_is_given(torch, convolutions, affine, places, bias):
    (depthwise, pointwise), x = convolutions(bias=bias, padding=1)
    norms = {
        place: batch_norm(torch, channels, affine=affine, eps=1e-2)
        for place, channels in (("between", 8), ("behind", 5))
        if place in places
    }
    ordered = {"depthwise": depthwise, "between": None, "pointwise": pointwise, "behind": None} | norms
    model = torch.nn.Sequential(collections.OrderedDict((k, v) for k, v in ordered.items() if v))
    config, params = from_state_dict(
        model.state_dict(),
        "depthwise.",
        "pointwise.",
        depth_multiplier=2,
        padding=1,
        depthwise_batch_norm="between." if "between" in places else None,
        pointwise_batch_norm="behind." if "behind" in places else None,
        eps=1e-2,
    )
    same_output(torch, model, config, params, x)


def test_a_batch_norm_that_was_not_given_is_named_and_the_advice_works(torch, convolutions):
    (depthwise, pointwise), x = convolutions()
    model = torch.nn.Sequential(depthwise, batch_norm(torch, 8), pointwise)
    state = model.state_dict()
    with pytest.raises(
        ValueError, match=r"'1.' is a BatchNorm: pass it as `depthwise_batch_norm`, and as `pointwise`"
    ):
        from_state_dict(state, "0.", "1.", depth_multiplier=2)
    with pytest.warns(
        UserWarning, match=r"a BatchNorm '1.' between .* pass depthwise_batch_norm='1.', .* leave its"
    ):
        left_out = from_state_dict(state, "0.", "2.", depth_multiplier=2)
    same_output(
        torch, model, *from_state_dict(state, "0.", "2.", depth_multiplier=2, depthwise_batch_norm="1."), x
    )
    without = {name: value for name, value in state.items() if not name.startswith("1.")}
    config, params = from_state_dict(without, "0.", "2.", depth_multiplier=2)
    assert config == left_out[0]
    jax.tree.map(np.testing.assert_array_equal, params, left_out[1])
    same_output(torch, torch.nn.Sequential(depthwise, pointwise), config, params, x)


@pytest.mark.parametrize("cls", ["PReLU", "GroupNorm", "BatchNorm1d"])
def test_what_else_has_weights_between_the_two_is_named(torch, convolutions, cls):
    (depthwise, pointwise), _ = convolutions()
    other = {
        "PReLU": {"num_parameters": 8},
        "GroupNorm": {"num_groups": 2, "num_channels": 8},
        "BatchNorm1d": {"num_features": 8, "track_running_stats": False},
    }[cls]
    between = getattr(torch.nn, cls)(**other)
    state = torch.nn.Sequential(depthwise, batch_norm(torch, 8), between, pointwise).state_dict()
    given = {"depth_multiplier": 2, "depthwise_batch_norm": "1."}
    with pytest.warns(
        UserWarning, match=r"has '2.weight' between '0.' and '3.', .* the two are no depthwise .* leave its"
    ):
        left_out = from_state_dict(state, "0.", "3.", **given)
    without = {name: value for name, value in state.items() if not name.startswith("2.")}
    assert from_state_dict(without, "0.", "3.", **given)[0] == left_out[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"depthwise_batch_norm": "0."},
            r"must hold '0.running_mean' and .*got '0.weight', .*`depthwise_batch_norm`",
        ),
        ({"pointwise_batch_norm": "n."}, r"must hold 'n.running_mean'.*`track_running_stats=False`"),
        (
            {"pointwise_batch_norm": "norm."},
            r"`state_dict\['norm.running_mean'\]` must have the shape \(4,\), .* that '1.weight' gives; got \(6,\)",
        ),
    ],
)
def test_what_is_no_batch_norm_is_refused(arguments, message):
    norm = {f"norm.{name}": np.ones(6, np.float32) for name in ("running_mean", "running_var")}
    statistics = {"n.weight": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=message):
        from_state_dict(state() | norm | statistics, **arguments)


@pytest.mark.parametrize(("size", "axis"), [((1, 3), 3), ((3, 1), 2), ((1, 1), 2)])
def test_kernels_of_conv2d_along_one_axis_are_taken(torch, convolutions, size, axis):
    layers, x = convolutions(cls="Conv2d", size=size, padding=[int(each > 1) for each in size])
    model = torch.nn.Sequential(*layers)
    config, params = from_state_dict(model.state_dict(), depth_multiplier=2, padding=int(max(size) > 1))
    same_output(torch, model, config, params, x.unsqueeze(5 - axis), lambda x: x.squeeze(5 - axis))


def test_a_pair_of_two_axes_is_no_pair_of_two_sides(torch, convolutions):
    layers, x = convolutions(cls="Conv2d", size=(3, 1), padding=(2, 0), dilation=(2, 1))
    model = torch.nn.Sequential(*layers)
    given = {"depth_multiplier": 2, "dilation_rate": 2}
    with pytest.raises(
        ValueError, match=r"`padding` must be a number .*got \(2, 0\). Pass .* along the kernel: 2"
    ):
        from_state_dict(model.state_dict(), padding=(2, 0), **given)
    config, params = from_state_dict(model.state_dict(), padding=2, **given)
    same_output(torch, model, config, params, x.unsqueeze(3), lambda x: x.squeeze(3))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_advice_about_padding_works(torch, convolutions, stride):
    given = {"depth_multiplier": 2, "strides": stride}
    layers, x = convolutions(stride=stride, padding=2)
    model = torch.nn.Sequential(*layers)
    with pytest.raises(ValueError, match=r"For others pad the input with jnp.pad and pass 'valid'"):
        from_state_dict(model.state_dict(), padding=2, **given)
    config, params = from_state_dict(model.state_dict(), padding="valid", **given)
    with torch.no_grad():
        expected = model(x)
    padded = jnp.pad(x.numpy(), [(0, 0), (0, 0), (2, 2)])
    np.testing.assert_allclose(fsc.separable_conv1d(params, padded, config), expected, atol=2e-6)
    if stride == 1:  # "where the module cuts what it padded off its end"
        config, params = from_state_dict(model.state_dict(), padding="causal", **given)
        np.testing.assert_allclose(
            fsc.separable_conv1d(params, x.numpy(), config), expected[..., :-2], atol=2e-6
        )
    # A module that pads the left only, of two numbers as PyTorch's own padding takes them.
    layers, x = convolutions(torch.nn.ConstantPad1d((2, 0), 0.0), stride=stride)
    model = torch.nn.Sequential(*layers)
    config, params = from_state_dict(model.state_dict(), "1.", "2.", padding=(2, 0), **given)
    same_output(torch, model, config, params, x)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("how", ["parametrizations", "spectral_norm", "prune"])
def test_another_parametrization_is_refused_and_the_advice_works(torch, convolutions, how):
    from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, spectral_norm

    layers, x = convolutions()
    wrap, remove = {
        "parametrizations": (
            parametrizations.spectral_norm,
            lambda module: parametrize.remove_parametrizations(module, "weight"),
        ),
        "spectral_norm": (spectral_norm, remove_spectral_norm),
        "prune": (
            lambda module: prune.l1_unstructured(module, "weight", 0.5),
            lambda module: prune.remove(module, "weight"),
        ),
    }[how]
    model = torch.nn.Sequential(wrap(layers[0]), layers[1]).eval()
    model(x)
    with pytest.raises(
        ValueError, match=r"must hold '0.weight'.* Make it a plain weight there first, by `torch.nn"
    ):
        from_state_dict(model.state_dict(), depth_multiplier=2)
    remove(layers[0])
    same_output(torch, model, *from_state_dict(model.state_dict(), depth_multiplier=2), x)
