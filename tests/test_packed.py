"""Packed rows: each run of one segment id gives what it would give alone, in every way that a layer is used."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flax_sepconv as fsc
from tests.reference import depthwise, separable

Config = fsc.SeparableConv1DConfig


def runs_of(ids):
    """The runs of one row, as `(id, start, stop)`."""
    found, start = [], 0
    for value, group in itertools.groupby(np.asarray(ids).tolist()):
        stop = start + len(list(group))
        found.append((value, start, stop))
        start = stop
    return found


ACTIVATIONS = {
    "linear": lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
}


def one_by_one(params, x, config, ids):
    """The definition in float64: every run through the layer alone, put where it stands; zeros elsewhere."""
    first = config.channel_axis != -1
    rows = np.swapaxes(x, 1, 2) if first else np.asarray(x)
    reach = (config.kernel_size - 1) * config.dilation_rate if config.padding == "valid" else 0
    y = np.zeros((len(rows), rows.shape[1] - reach, config.filters))
    alone = dataclasses.replace(config, data_format="channels_last")
    for out, row, each in zip(y, rows, ids, strict=True):
        for value, start, stop in runs_of(each):
            if value and stop - start > reach:
                out[start : stop - reach] = ACTIVATIONS[config.get_config()["activation"]](
                    separable(params, row[start:stop], alone)
                )
    return np.swapaxes(y, 1, 2) if first else y


@st.composite
def cases(draw):
    config = Config(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 7)),
        padding=draw(st.sampled_from(["same", "causal", "valid"])),
        data_format=draw(st.sampled_from(["channels_last", "channels_first"])),
        dilation_rate=draw(st.integers(1, 3)),
        depth_multiplier=draw(st.integers(1, 2)),
        activation=draw(st.sampled_from([None, "sigmoid"])),
        use_bias=draw(st.booleans()),
        bias_initializer="random_normal",
        implementation=draw(st.sampled_from([None, "taps", "fourier", "lax"])),
    )
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    values = draw(st.lists(st.integers(-2, 3), min_size=len(lengths), max_size=len(lengths)))
    row = np.repeat(values, lengths)
    reach = (config.kernel_size - 1) * config.dilation_rate
    row = np.pad(row, (0, max(reach + 1 - len(row), 0)))
    ids = np.stack([row, np.roll(row, draw(st.integers(0, 5)))])
    return config, ids


def arrays(config, ids, channels=2):
    rng = np.random.default_rng(0)
    params = {w.name: rng.normal(size=w.shape).astype("float32") for w in config.weights(channels)}
    x = rng.normal(size=(*ids.shape, channels)).astype("float32")
    return params, x if config.channel_axis == -1 else x.swapaxes(1, 2)


@settings(max_examples=10)
@given(cases())
def test_every_run_gives_what_it_gives_alone(case):
    config, ids = case
    params, x = arrays(config, ids)
    expected = one_by_one(params, x, config, ids)
    # Whatever stands in the padding is not read.
    padding = jnp.expand_dims(ids == 0, config.channel_axis)
    y = fsc.separable_conv1d(params, np.where(padding, np.nan, x), config, segment_ids=ids)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    out = config.output_segment_ids(ids)
    assert out.shape == (len(ids), config.output_length(ids.shape[1]))
    if config.padding != "valid":
        np.testing.assert_array_equal(out, ids)
    zero = np.expand_dims(out == 0, config.channel_axis)
    np.testing.assert_array_equal(np.where(zero, y, 0), 0)


IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 3, 3, 3], [0, 0, 4, 4, 4, 4, 4, 4, 1, 2, 2, 2]])
CONFIGS = [
    Config(3, 3, padding="causal", activation="tanh", bias_initializer="random_normal"),
    Config(3, 4, padding="same", dilation_rate=2, depth_multiplier=2),
    Config(2, 2, padding="valid", data_format="channels_first"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_first_and_second_derivatives_are_those_of_the_runs_by_finite_differences(config):
    with jax.enable_x64(True):
        config = dataclasses.replace(config, param_dtype="float64")
        at = jax.tree.map(lambda a: a.astype("float64"), arrays(config, IDS))
        weights = np.random.default_rng(1).normal(size=one_by_one(*at, config, IDS).shape)
        direction = jax.tree.map(lambda a: jax.random.normal(jax.random.key(2), a.shape, a.dtype), at)

        def loss(at):
            return jnp.sum(fsc.separable_conv1d(*at, config, segment_ids=IDS) * weights)

        def along(function, at):
            return jax.jvp(function, (at,), (direction,))[1]

        def dot(a):
            return sum(jnp.vdot(*pair) for pair in zip(*map(jax.tree.leaves, (a, direction)), strict=True))

        @jax.jit
        def derivatives(at):
            gradient = jax.grad(loss)
            slope = along(loss, at)
            curved = [
                along(gradient, at),
                jax.grad(lambda at: dot(gradient(at)))(at),
                jax.grad(lambda at: along(loss, at))(at),
            ]
            return gradient(at), slope, curved

        def slope_between(function):
            """Of a function of one number, at 0."""
            step = 1e-6
            return jax.tree.map(lambda a, b: (a - b) / (2 * step), function(step), function(-step))

        def ahead(step):
            return jax.tree.map(lambda a, d: a + step * d, at, direction)

        gradient, slope, curved = derivatives(at)
        of_runs = slope_between(lambda step: np.sum(one_by_one(*ahead(step), config, IDS) * weights))
        np.testing.assert_allclose([slope, dot(gradient)], of_runs, rtol=1e-6)
        expected = slope_between(lambda step: derivatives(ahead(step))[0])
        for each in curved:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), each, expected)
        # What is padding gets no gradient.
        padding = np.expand_dims(IDS == 0, config.channel_axis)
        np.testing.assert_array_equal(np.where(padding, gradient[1], 0), 0)


KERNELS, IDS_ALONE, ROWS = (0, None, None), (None, None, 0), (None, 0, 0)  # the axes of params, x and ids
KERNELS_AND_X, ALL = (0, 0, None), (0, 0, 0)


@pytest.mark.parametrize(
    ("config", "axes"),
    [(CONFIGS[0], (KERNELS, ALL)), (CONFIGS[1], (IDS_ALONE, KERNELS_AND_X)), (CONFIGS[2], (ROWS, ALL))],
)
def test_batches_of_kernels_of_ids_and_of_both(config, axes):
    params, x = arrays(config, IDS)
    many = jax.tree.map(lambda a: np.stack([a, 2 * a]), params)

    def with_gradients(params, x, ids):
        def loss(params, x):
            y = fsc.separable_conv1d(params, x, config, segment_ids=ids)
            return jnp.sum(y**2), y

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    one = jax.jit(with_gradients)
    for of_params, of_x, of_ids in axes:
        arguments = (
            params if of_params is None else many,
            x[0] if of_x is None and of_ids == 0 else x,
            IDS[0] if of_x == 0 and of_ids is None else IDS,
        )
        in_axes = of_params, of_x, of_ids
        batched = jax.jit(jax.vmap(with_gradients, in_axes))(*arguments)
        each = [
            [
                leaf if axis is None else jax.tree.map(lambda a, i=i: a[i], leaf)
                for leaf, axis in zip(arguments, in_axes, strict=True)
            ]
            for i in range(2)
        ]
        expected = jax.tree.map(lambda *a: np.stack(a), *(one(*case) for case in each))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), batched, expected)


def test_a_nan_stays_in_its_run():
    config = Config(3, 5, padding="same", dilation_rate=2)
    params, x = arrays(config, IDS)
    clean = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    x = jnp.asarray(x).at[0, 5].set(jnp.nan)
    y = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    others = IDS[0] != 2
    np.testing.assert_allclose(y[0, others], clean[0, others], rtol=1e-5)
    assert np.isnan(y[0, ~others]).any()
    gradient = jax.grad(lambda x: fsc.separable_conv1d(params, x, config, segment_ids=IDS)[0, others].sum())(
        x
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kernel_size", [5, 33])  # one sum, and two whose last repeats a tap
def test_a_nan_reaches_no_output_before_it(kernel_size):
    config = Config(3, kernel_size, padding="causal")
    ids = np.ones((1, 60), int)
    params, x = arrays(config, ids)
    y = fsc.separable_conv1d(params, jnp.asarray(x).at[0, 20].set(jnp.nan), config, segment_ids=ids * 7)
    assert np.isfinite(y[0, :20]).all()
    assert np.isfinite(y[0, 20 + kernel_size :]).all()
    assert np.isnan(y[0, 20 : 20 + kernel_size]).all()


def test_left_padding_is_a_mask_and_ids_may_be_of_any_integers():
    config = Config(3, 3, padding="same", activation="relu")
    params, x = arrays(config, IDS)
    mask = np.arange(12) >= np.array([[4], [0]])
    y = fsc.separable_conv1d(params, x, config, segment_ids=mask.astype(int))
    np.testing.assert_allclose(y, one_by_one(params, x, config, mask), rtol=1e-5, atol=1e-5)
    expected = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    for ids in (IDS * 2**40, -IDS, IDS.astype("uint8"), IDS.tolist(), jnp.asarray(IDS, "int8")):
        np.testing.assert_array_equal(fsc.separable_conv1d(params, x, config, segment_ids=ids), expected)
    alone = fsc.separable_conv1d(params, x[0], config, segment_ids=IDS[0])  # without a batch axis
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype):
    config = Config(3, 5, padding="causal", dtype=dtype)
    params, x = arrays(config, IDS)
    rounded = jax.tree.map(lambda a: a.astype(dtype).astype("float32"), (params, x))
    y = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    exact = one_by_one(*rounded, dataclasses.replace(config, dtype=None), IDS)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype("float32"), exact, rtol=2 * float(jnp.finfo(dtype).eps), atol=2e-2)


RNG = np.random.default_rng(0)
INPUT, KERNEL = RNG.normal(size=(2, 12, 3)).astype("float32"), RNG.normal(size=(4, 3, 2)).astype("float32")


@pytest.mark.parametrize(("padding", "first"), [("same", True), ("causal", False), ("valid", True)])
def test_the_depthwise_step_alone(padding, first):
    given = INPUT.swapaxes(1, 2) if first else INPUT
    form = {"padding": padding, "data_format": "channels_first" if first else "channels_last"}
    y = fsc.depthwise_conv1d(given, KERNEL, segment_ids=IDS, **form)
    y = y.swapaxes(1, 2) if first else y
    lost = 3 if padding == "valid" else 0
    for row, ids in enumerate(IDS):
        for value, start, stop in runs_of(ids):
            if stop - start <= lost:
                continue
            (alone,) = depthwise(INPUT[row, None, start:stop], KERNEL, padding=padding)
            expected = alone if value else np.zeros_like(alone)
            np.testing.assert_allclose(y[row, start : stop - lost], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("padding", "strides"), [("same", 2), ("causal", 1), ("causal", 2), ("valid", 2)])
def test_lengths_of_the_depthwise_step(padding, strides):
    x, lengths = INPUT.copy(), [7, 12]
    x[0, 7:] = np.nan
    y = fsc.depthwise_conv1d(x, KERNEL, padding=padding, strides=strides, lengths=lengths)
    for row, length in enumerate(lengths):
        (alone,) = depthwise(INPUT[row, None, :length], KERNEL, padding=padding, strides=strides)
        np.testing.assert_allclose(y[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(y[row, len(alone) :], 0)


@pytest.mark.parametrize("config", CONFIGS)
def test_both_modules_take_segment_ids(config):
    params, x = arrays(config, IDS)
    expected = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    linen = fsc.SeparableConv1D.from_config(config)
    np.testing.assert_array_equal(linen.apply({"params": params}, x, segment_ids=IDS), expected)
    layer = fsc.nnx.SeparableConv1D.from_config(2, config, rngs=nnx.Rngs(0))
    nnx.update(layer, params)
    np.testing.assert_array_equal(layer(x, segment_ids=IDS), expected)


def test_two_layers_in_a_row():
    first = Config(3, 3, padding="valid", activation="relu", bias_initializer="ones")
    second = Config(2, 2, padding="valid")
    of_first, x = arrays(first, IDS)
    of_second, _ = arrays(second, IDS, channels=3)
    between = first.output_segment_ids(IDS)
    y = fsc.separable_conv1d(of_first, x, first, segment_ids=IDS)
    y = fsc.separable_conv1d(of_second, y, second, segment_ids=between)
    out = second.output_segment_ids(between)
    for row, ids in enumerate(IDS):
        for value, start, stop in runs_of(ids):
            if value and stop - start >= 4:
                alone = np.maximum(separable(of_first, x[row, start:stop], first), 0)
                alone = separable(of_second, alone, second)
                np.testing.assert_allclose(y[row, start : start + len(alone)], alone, rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(out[row, start : start + len(alone)], value)


def test_a_packed_batch_trains_to_the_weights_of_its_documents():
    config = Config(4, 3, padding="same", activation="relu")
    params, x = arrays(config, IDS)
    target = jax.random.normal(jax.random.key(5), (*IDS.shape, 4))
    where = [
        (row, start, stop) for row, ids in enumerate(IDS) for value, start, stop in runs_of(ids) if value
    ]
    lengths = np.array([stop - start for _, start, stop in where])

    def unpacked(a):
        """Each document in a row of its own, padded."""
        return jnp.stack([jnp.pad(a[row, i:j], ((0, lengths.max() - j + i), (0, 0))) for row, i, j in where])

    x_alone, target_alone = unpacked(x), unpacked(target)

    def packed(params):
        y = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
        return jnp.sum(jnp.where((IDS != 0)[..., None], y - target, 0) ** 2)

    def documents(params):
        y = fsc.separable_conv1d(params, x_alone, config, lengths=lengths)
        real = (np.arange(lengths.max()) < lengths[:, None])[..., None]
        return jnp.sum(jnp.where(real, y - target_alone, 0) ** 2)

    def trained(loss):
        @jax.jit
        def step(params):
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params))

        after = params
        for _ in range(50):
            after = step(after)
        return after

    one, other = trained(packed), trained(documents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
    assert packed(one) < 0.9 * packed(params)


X = jnp.ones((2, 12, 2))


@pytest.mark.parametrize(
    ("config", "ids", "lengths", "error", "message"),
    [
        (Config(3, 3, strides=2), IDS, None, ValueError, "`segment_ids` cannot be used with strides=2"),
        (
            Config(3, 3),
            IDS[:, :5],
            None,
            ValueError,
            r"`segment_ids` must have the shape of `x` .* \(2, 12\); got",
        ),
        (Config(3, 3), IDS * 1.0, None, TypeError, "`segment_ids` must hold integers"),
        (Config(3, 3), "12", None, TypeError, "`segment_ids` must be an array"),
        (Config(3, 3), IDS, [3, 4], ValueError, "`lengths` and `segment_ids` cannot both be given"),
        (
            Config(3, 3, data_format="channels_first", activation="softmax"),
            IDS,
            None,
            ValueError,
            "`segment_ids` cannot be used with an `activation` that works along time",
        ),
    ],
)
def test_refusals(config, ids, lengths, error, message):
    params = fsc.init_params(jax.random.key(0), 2, config)
    x = X if config.channel_axis == -1 else X.swapaxes(1, 2)
    with pytest.raises(error, match=message):
        fsc.separable_conv1d(params, x, config, segment_ids=ids, lengths=lengths)
