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
from jax.test_util import check_grads

import flax_sepconv as fsc

Config = fsc.SeparableConv1DConfig


def runs_of(ids):
    """The runs of one row, as `(id, start, stop)`."""
    found, start = [], 0
    for value, group in itertools.groupby(np.asarray(ids).tolist()):
        stop = start + len(list(group))
        found.append((value, start, stop))
        start = stop
    return found


def one_by_one(params, x, config, ids):
    """The definition: every run through the layer alone, put where it stands; zeros elsewhere. For one row."""
    alone = dataclasses.replace(config, implementation="lax")
    time = config.time_axis
    reach = (config.kernel_size - 1) * config.dilation_rate
    length = x.shape[time] - (reach if config.padding == "valid" else 0)
    channels_last = config.channel_axis == -1
    y = jnp.zeros((length, config.filters) if channels_last else (config.filters, length), jnp.float32)
    for value, start, stop in runs_of(ids):
        if value == 0 or (config.padding == "valid" and stop - start <= reach):
            continue
        run = jax.lax.slice_in_dim(x, start, stop, axis=time % x.ndim)
        out = fsc.separable_conv1d(params, run, alone)
        y = jax.lax.dynamic_update_slice_in_dim(y, out.astype(y.dtype), start, time % x.ndim)
    return y


def whole(params, x, config, ids):
    """The definition for a batch."""
    return jnp.stack([one_by_one(params, row, config, each) for row, each in zip(x, ids, strict=True)])


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


def arrays(config, ids, seed=0, channels=2):
    key, of_params = jax.random.split(jax.random.key(seed))
    params = fsc.init_params(of_params, channels, config)
    x = jax.random.normal(key, (*ids.shape, channels))
    return params, x if config.channel_axis == -1 else x.swapaxes(1, 2)


@settings(max_examples=12)
@given(cases())
def test_every_run_gives_what_it_gives_alone(case):
    config, ids = case
    params, x = arrays(config, ids)
    expected = whole(params, x, config, ids)
    # Whatever stands in the padding is not read.
    padding = jnp.expand_dims(ids == 0, config.channel_axis)
    y = fsc.separable_conv1d(params, jnp.where(padding, jnp.nan, x), config, segment_ids=ids)
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
def test_gradients_are_those_of_the_runs_by_finite_differences(config):
    with jax.enable_x64(True):
        config = dataclasses.replace(config, param_dtype="float64")
        params, x = arrays(config, IDS)
        x = x.astype("float64")
        weights = jax.random.normal(jax.random.key(1), whole(params, x, config, IDS).shape, "float64")

        def loss(params, x):
            return jnp.sum(fsc.separable_conv1d(params, x, config, segment_ids=IDS) * weights)

        def definition(params, x):
            rows = [one_by_one_wide(params, row, config, each) for row, each in zip(x, IDS, strict=True)]
            return jnp.sum(jnp.stack(rows) * weights)

        gradients = jax.grad(loss, (0, 1))(params, x)
        direction = jax.tree.map(
            lambda a: jax.random.normal(jax.random.key(2), a.shape, a.dtype), (params, x)
        )
        step = 1e-6
        ahead, back = (
            definition(*jax.tree.map(lambda a, d, s=sign: a + s * step * d, (params, x), direction))
            for sign in (1, -1)
        )
        slope = sum(
            jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True)
        )
        np.testing.assert_allclose(slope, (ahead - back) / (2 * step), rtol=1e-6)
        check_grads(loss, (params, x), order=2, rtol=1e-5)
        # What is padding gets no gradient.
        padding = np.expand_dims(IDS == 0, config.channel_axis)
        np.testing.assert_array_equal(np.where(padding, gradients[1], 0), 0)


def one_by_one_wide(params, x, config, ids):
    """`one_by_one` in the dtype of its input."""
    alone = dataclasses.replace(config, implementation="lax")
    time, reach = config.time_axis % x.ndim, (config.kernel_size - 1) * config.dilation_rate
    pieces = []
    for value, start, stop in runs_of(ids):
        run = jax.lax.slice_in_dim(x, start, stop, axis=time)
        short = config.padding == "valid" and stop - start <= reach
        lost = reach if config.padding == "valid" else 0
        kept = 0 if short else stop - start - lost
        shape = [kept, config.filters] if time == 0 else [config.filters, kept]
        if value and not short:
            pieces.append(fsc.separable_conv1d(params, run, alone))
        elif kept:
            pieces.append(jnp.zeros(shape, x.dtype))
        gap = min(lost, stop - start)
        shape[time] = gap
        pieces.append(jnp.zeros(shape, x.dtype))
    y = jnp.concatenate(pieces, axis=time)
    length = x.shape[time] - (reach if config.padding == "valid" else 0)
    return jax.lax.slice_in_dim(y, 0, length, axis=time)


@pytest.mark.parametrize("config", CONFIGS)
def test_batches_of_kernels_of_ids_and_of_both(config):
    params, x = arrays(config, IDS)
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    def function(params, x, ids):
        return fsc.separable_conv1d(params, x, config, segment_ids=ids)

    def loss(params, x, ids):
        return jnp.sum(function(params, x, ids) ** 2)

    ids = jnp.asarray(IDS)
    for in_axes, arguments in {
        (0, None, None): (many, x, ids),
        (None, 0, 0): (params, x, ids),
        (0, 0, 0): (many, x, ids),
        (None, None, 0): (params, x[0], ids),
        (0, 0, None): (many, x, ids[0]),
    }.items():
        one = [
            [
                leaf if axis is None else jax.tree.map(lambda a, i=i: a[i], leaf)
                for leaf, axis in zip(arguments, in_axes, strict=True)
            ]
            for i in range(2)
        ]
        for each in (function, jax.grad(loss, (0, 1))):
            batched = jax.vmap(each, in_axes)(*arguments)
            expected = jax.tree.map(lambda *a: jnp.stack(a), *(each(*case) for case in one))
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), batched, expected
            )


def test_a_nan_stays_in_its_run():
    config = Config(3, 5, padding="same", dilation_rate=2)
    params, x = arrays(config, IDS)
    clean = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    x = x.at[0, 5].set(jnp.nan)
    y = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
    others = IDS[0] != 2
    np.testing.assert_allclose(y[0, others], clean[0, others], rtol=1e-5)
    assert np.isnan(y[0, ~others]).any()
    gradient = jax.grad(lambda x: fsc.separable_conv1d(params, x, config, segment_ids=IDS)[0, others].sum())(
        x
    )
    assert np.isfinite(gradient).all()


def test_left_padding_is_a_mask_and_ids_may_be_of_any_integers():
    config = Config(3, 3, padding="same", activation="relu")
    params, x = arrays(config, IDS)
    mask = np.arange(12) >= np.array([[4], [0]])
    y = fsc.separable_conv1d(params, x, config, segment_ids=mask.astype(int))
    np.testing.assert_allclose(y[0, 4:], fsc.separable_conv1d(params, x[0, 4:], config), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1], fsc.separable_conv1d(params, x[1], config), rtol=1e-5, atol=1e-6)
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
    exact = whole(*rounded, dataclasses.replace(config, dtype=None), IDS)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype("float32"), exact, rtol=2 * float(jnp.finfo(dtype).eps), atol=2e-2)


def test_the_depthwise_step_alone():
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 12, 3)),
        jax.random.normal(jax.random.key(1), (4, 3, 2)),
    )
    for padding, first in itertools.product(("same", "causal", "valid"), (False, True)):
        form = {"padding": padding, "data_format": "channels_first" if first else "channels_last"}
        given = x.swapaxes(1, 2) if first else x
        y = fsc.depthwise_conv1d(given, kernel, segment_ids=IDS, **form)
        y = y.swapaxes(1, 2) if first else y
        lost = 3 if padding == "valid" else 0
        for row, ids in enumerate(IDS):
            for value, start, stop in runs_of(ids):
                if stop - start <= lost:
                    continue
                alone = fsc.depthwise_conv1d(x[row, start:stop], kernel, padding=padding)
                expected = alone if value else jnp.zeros_like(alone)
                np.testing.assert_allclose(y[row, start : stop - lost], expected, rtol=1e-5, atol=1e-6)


def test_lengths_of_the_depthwise_step():
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 12, 3)),
        jax.random.normal(jax.random.key(1), (4, 3, 2)),
    )
    lengths = np.array([7, 12])
    for padding, strides in itertools.product(("same", "causal", "valid"), (1, 2)):
        y = fsc.depthwise_conv1d(
            x.at[0, 7:].set(jnp.nan), kernel, padding=padding, strides=strides, lengths=lengths
        )
        for row, length in enumerate(lengths):
            alone = fsc.depthwise_conv1d(x[row, :length], kernel, padding=padding, strides=strides)
            np.testing.assert_allclose(y[row, : len(alone)], alone, rtol=1e-5, atol=1e-6)
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
    of_second = fsc.init_params(jax.random.key(3), 3, second)
    between = first.output_segment_ids(IDS)
    y = fsc.separable_conv1d(of_first, x, first, segment_ids=IDS)
    y = fsc.separable_conv1d(of_second, y, second, segment_ids=between)
    out = second.output_segment_ids(between)
    for row, ids in enumerate(IDS):
        for value, start, stop in runs_of(ids):
            if value and stop - start >= 4:
                alone = fsc.separable_conv1d(of_first, x[row, start:stop], first)
                alone = fsc.separable_conv1d(of_second, alone, second)
                np.testing.assert_allclose(y[row, start : start + len(alone)], alone, rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(out[row, start : start + len(alone)], value)


def test_a_packed_batch_trains_to_the_weights_of_its_documents():
    config = Config(4, 3, padding="same", activation="relu")
    params, x = arrays(config, IDS)
    target = jax.random.normal(jax.random.key(5), (*IDS.shape, 4))
    real = jnp.asarray(IDS != 0)[..., None]

    def packed(params):
        y = fsc.separable_conv1d(params, x, config, segment_ids=IDS)
        return jnp.sum(jnp.where(real, y - target, 0) ** 2)

    def documents(params):
        y = whole(params, x, config, IDS)
        return jnp.sum(jnp.where(real, y - target, 0) ** 2)

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
