"""Initializers match Keras in distribution: bounds, moments and fans; and in what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv import initializers
from flax_sepconv.initializers import (
    STFT,
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    Identity,
    LecunNormal,
    LecunUniform,
    Ones,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
    Zeros,
)

KEY = jax.random.key(0)
KERNEL = (5, 64, 128)  # the depthwise kernel's axes: taps, channels, multiplier
FAN_IN, FAN_OUT = 5 * 64, 5 * 128

# After truncation at two standard deviations, a standard normal's standard deviation.
TRUNCATED = 0.87962566103423978


def uniform(variance):
    return variance, math.sqrt(3 * variance)


def truncated(variance):
    return variance, 2 * math.sqrt(variance) / TRUNCATED


# Each with its mean, its variance and a bound around the mean that it comes close to.
RANDOM = [
    (RandomNormal(0.5, 2.0), 0.5, (4.0, np.inf)),
    (RandomUniform(-1, 3), 1.0, uniform(4 / 3)),
    (RandomUniform(-1, 3), 1.0, uniform(4 / 3)),
    (TruncatedNormal(0.5, 2.0), 0.5, truncated((2 * TRUNCATED) ** 2)),
    (GlorotUniform(), 0.0, uniform(2 / (FAN_IN + FAN_OUT))),
    (GlorotNormal(), 0.0, truncated(2 / (FAN_IN + FAN_OUT))),
    (HeUniform(), 0.0, uniform(2 / FAN_IN)),
    (HeNormal(), 0.0, truncated(2 / FAN_IN)),
    (LecunUniform(), 0.0, uniform(1 / FAN_IN)),
    (LecunNormal(), 0.0, truncated(1 / FAN_IN)),
    (VarianceScaling(), 0.0, truncated(1 / FAN_IN)),
    (VarianceScaling(3, "fan_out", "uniform"), 0.0, uniform(3 / FAN_OUT)),
    (VarianceScaling(3, "fan_avg", "untruncated_normal"), 0.0, (6 / (FAN_IN + FAN_OUT), np.inf)),
    (VarianceScaling(1, "fan_out", "uniform", input_axes=[0], output_axes=[-1]), 0.0, uniform(1 / 128)),
    (HeUniform(input_axes=(0, 1), output_axes=(2,)), 0.0, uniform(2 / FAN_IN)),
    (Orthogonal(2.0), 0.0, (4 / FAN_IN, np.inf)),
]


@pytest.mark.parametrize(("init", "mean", "spread"), RANDOM, ids=repr)
def test_moments_and_bounds(init, mean, spread):
    variance, bound = spread
    values = np.asarray(init(KEY, KERNEL), float) - mean
    # Of n values, the mean is within 5 / sqrt(n) standard deviations, the variance within about 10 / sqrt(n).
    assert abs(values.mean()) < 5 * math.sqrt(variance / values.size)
    np.testing.assert_allclose(values.var(), variance, rtol=0.05)
    if np.isfinite(bound):
        assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize(("init", "mean", "spread"), RANDOM, ids=repr)
def test_half_precision_is_float32_rounded_once(init, mean, spread):
    exact = init(KEY, (4, 3, 2))
    assert exact.dtype == jnp.float32
    for dtype in (jnp.float16, jnp.bfloat16):
        np.testing.assert_array_equal(init(KEY, (4, 3, 2), dtype), exact.astype(dtype))


@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"),
    [
        ((3, 4, 2), 12, 6),  # a depthwise kernel
        ((1, 8, 5), 8, 5),  # a pointwise kernel
        ((5,), 5, 5),  # a bias
        ((6, 7), 6, 7),
        ((), 1, 1),
        ((2, 3, 4, 5), 24, 30),
    ],
)
def test_fans(shape, fan_in, fan_out):
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    inits = [RandomUniform(-1, 1), *(VarianceScaling(1.0, mode, "uniform") for mode in fans)]
    values, *scaled = jax.jit(lambda key: [init(key, shape) for init in inits])(KEY)
    for mode, each in zip(fans, scaled, strict=True):
        np.testing.assert_allclose(each, values * math.sqrt(3 / fans[mode]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    ["glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal"],
)
@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 8, 5), (6, 7)])
def test_kernels_are_those_of_jax(name, shape):
    theirs = getattr(jax.nn.initializers, name)()
    np.testing.assert_allclose(initializers.get(name)(KEY, shape), theirs(KEY, shape), rtol=1e-5)


@pytest.mark.parametrize("init", [init for init, _, _ in RANDOM], ids=repr)
def test_a_seed_replaces_the_key(init):
    seeded = type(init)(**init.get_config() | {"seed": 7})
    np.testing.assert_array_equal(seeded(KEY, (3, 4, 2)), seeded(None, (3, 4, 2)))
    np.testing.assert_array_equal(seeded(None, (3, 4, 2)), init(jax.random.key(7), (3, 4, 2)))
    assert not np.array_equal(init(KEY, (3, 4, 2)), init(jax.random.key(1), (3, 4, 2)))


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**40 + 1, np.int64(5)])
def test_any_integer_is_a_seed(seed):
    init = RandomNormal(seed=seed)
    assert jnp.isfinite(init(None, (3,))).all()
    assert type(initializers.serialize(init)["config"]["seed"]) is int


@pytest.mark.parametrize(
    "init", [Zeros(), Ones(), Constant(3), GlorotUniform(), Orthogonal(), HeNormal(seed=1)]
)
def test_initializers_trace(init):
    shape = (3, 4, 2)
    keys = jax.random.split(KEY, 5)
    compiled = jax.jit(lambda key: init(key, shape))
    np.testing.assert_allclose(compiled(KEY), init(KEY, shape), rtol=1e-6, atol=1e-7)
    assert jax.vmap(lambda key: init(key, shape))(keys).shape == (5, *shape)


def test_zeros_and_ones():
    assert initializers.get("zeros")(KEY, (2, 3), jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(Zeros()(None, (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(Ones()(None, (2, 3)), np.ones((2, 3)))


def test_constant_broadcasts_or_counts():
    values = np.arange(6.0, dtype=np.float32)
    np.testing.assert_array_equal(Constant(2)(None, (2, 3)), np.full((2, 3), 2.0))
    np.testing.assert_array_equal(Constant([1, 2])(None, (3, 2)), [[1, 2]] * 3)
    np.testing.assert_array_equal(Constant(values)(None, (1, 2, 3)), values.reshape(1, 2, 3))
    np.testing.assert_array_equal(Constant(jnp.ones((3, 1)))(None, (3, 2)), np.ones((3, 2)))
    assert Constant(np.float32(0.5)) == Constant(0.5)
    assert Constant(values) == Constant(tuple(values.tolist()))
    with pytest.raises(ValueError, match="broadcast"):
        Constant([1, 2])(None, (3,))


@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 8, 5), (1, 4, 9), (6, 7), (7, 7)])
def test_orthogonal(shape):
    matrix = np.asarray(Orthogonal(2.0)(KEY, shape)).reshape(-1, shape[-1])
    short = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-5)


def test_identity():
    np.testing.assert_array_equal(Identity(2)(None, (2, 3)), [[2, 0, 0], [0, 2, 0]])
    assert initializers.serialize("identity")["config"] == {}
    assert initializers.serialize(Identity(2))["config"] == {"gain": 2}


def test_stft_atoms():
    time, frequency = np.arange(8)[:, None], np.arange(5) / 8
    cosines = STFT(window=None)(None, (8, 1, 5))
    np.testing.assert_allclose(cosines[:, 0], np.cos(2 * np.pi * time * frequency), atol=1e-6)
    sines = STFT("imag", window=None)(None, (8, 1, 5))
    np.testing.assert_allclose(sines[:, 0], -np.sin(2 * np.pi * time * frequency), atol=1e-6)
    weights = np.arange(1.0, 9.0)
    np.testing.assert_allclose(
        STFT(window=weights, scaling="spectrum")(None, (8, 1, 5)),
        cosines * weights[:, None, None] / weights.sum(),
        atol=1e-6,
    )
    np.testing.assert_allclose(np.square(STFT()(None, (8, 1, 5))[:, 0, 0]).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("Zeros zeros zero ZerosV2", Zeros()),
        ("Ones ones one OnesV2", Ones()),
        ("Constant constant ConstantV2", Constant(0.0)),
        ("RandomNormal random_normal normal RandomNormalV2", RandomNormal(0.0, 0.05)),
        ("RandomUniform random_uniform uniform RandomUniformV2", RandomUniform(-0.05, 0.05)),
        ("TruncatedNormal truncated_normal TruncatedNormalV2", TruncatedNormal(0.0, 0.05)),
        (
            "VarianceScaling variance_scaling VarianceScalingV2",
            VarianceScaling(1.0, "fan_in", "truncated_normal"),
        ),
        ("GlorotUniform glorot_uniform glorot_uniformV2 GlorotUniformV2", GlorotUniform()),
        ("GlorotNormal glorot_normal glorot_normalV2 GlorotNormalV2", GlorotNormal()),
        ("HeUniform he_uniform he_uniformV2 HeUniformV2", HeUniform()),
        ("HeNormal he_normal he_normalV2 HeNormalV2", HeNormal()),
        ("LecunUniform lecun_uniform lecun_uniformV2 LecunUniformV2", LecunUniform()),
        ("LecunNormal lecun_normal lecun_normalV2 LecunNormalV2", LecunNormal()),
        ("Orthogonal orthogonal OrthogonalInitializer OrthogonalV2", Orthogonal(1.0)),
        ("Identity identity IdentityInitializer IdentityV2", Identity(1.0)),
        ("STFT stft STFTInitializer", STFT("real", "hann", "density", False)),
    ],
)
def test_names(names, expected):
    for name in names.split():
        assert initializers.get(name) == expected
        if not name.endswith("V2"):
            assert getattr(initializers, name, type(expected)) is type(expected)


def test_older_configs_are_understood():
    old = {
        "class_name": "VarianceScaling",
        "config": {"distribution": "NORMAL", "seed": None, "dtype": "float32"},
    }
    assert initializers.get(old) == VarianceScaling(distribution="truncated_normal")
    array = {"class_name": "__numpy__", "config": {"value": [1.0, 2.0], "dtype": "float32"}}
    assert initializers.get({"class_name": "Constant", "config": {"value": array}}) == Constant([1.0, 2.0])


def test_jaxs_own_zeros_and_ones_have_a_name():
    assert initializers.get(jax.nn.initializers.zeros) is jax.nn.initializers.zeros
    assert initializers.serialize(jax.nn.initializers.zeros) == initializers.serialize("zeros")
    assert initializers.serialize(jax.nn.initializers.ones) == initializers.serialize("ones")
    with pytest.raises(ValueError, match=r"`initializer` is <function .*, which Keras 3 has no name for"):
        initializers.serialize(jax.nn.initializers.he_normal())


def test_none_is_no_initializer():
    assert initializers.get(None) is None
    assert initializers.serialize(None) is None


SEED_GENERATOR = {"module": "keras.random", "class_name": "SeedGenerator", "config": {"seed": 3}}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: RandomNormal(stddev="1"), TypeError, "`stddev` must be a number; got '1'."),
        (lambda: RandomNormal(seed=0.5), TypeError, "`seed` must be an integer; got 0.5."),
        (lambda: RandomNormal(seed=True), TypeError, "`seed` must be an integer; got True."),
        (
            lambda: initializers.get(
                {"class_name": "HeNormal", "config": {"seed": SEED_GENERATOR}}, argument="x"
            ),
            ValueError,
            "`x`: `seed` must be an integer or None; got a SeedGenerator, whose state this library does not keep",
        ),
        (lambda: VarianceScaling(0), ValueError, "`scale` must be above 0; got 0."),
        (
            lambda: VarianceScaling(mode="fan"),
            ValueError,
            "`mode` must be 'fan_in' or 'fan_out' or 'fan_avg'",
        ),
        (
            lambda: VarianceScaling(distribution="beta"),
            ValueError,
            "`distribution` must be 'truncated_normal' or",
        ),
        (lambda: VarianceScaling(distribution=1), TypeError, "`distribution` must be 'truncated_normal' or"),
        (
            lambda: GlorotUniform(input_axes=[0], output_axes=[3])(KEY, (2, 2, 2)),
            ValueError,
            r"`output_axes` must be within an array of 3 axes; got \(3,\).",
        ),
        (
            lambda: HeNormal(input_axes=0),
            TypeError,
            "`input_axes` must be a sequence of integers or None; got 0.",
        ),
        (lambda: Constant("1"), TypeError, "`value` must be a number; got '1'."),
        (lambda: Constant(["1"]), ValueError, "`value` must be a number or an array of finite numbers"),
        (
            lambda: Constant([[1], [1, 2]]),
            ValueError,
            "`value` must be a number or an array of finite numbers",
        ),
        (lambda: Constant([np.inf]), ValueError, "`value` must be a number or an array of finite numbers"),
        (
            lambda: Identity()(KEY, (3, 4, 2)),
            ValueError,
            r"`Identity` must be given the shape of a matrix; got \(3",
        ),
        (
            lambda: Orthogonal()(KEY, (5,)),
            ValueError,
            "`Orthogonal` must be given a shape of two or more axes",
        ),
        (lambda: RandomNormal(stddev=-1), ValueError, "`stddev` must be at least 0; got -1."),
        (lambda: TruncatedNormal(stddev=-0.1), ValueError, "`stddev` must be at least 0; got -0.1."),
        (lambda: RandomUniform(1, 0), ValueError, "`minval` must be at most `maxval`; got 1 and 0."),
        (lambda: STFT("both"), ValueError, "`side` must be 'real' or 'imag'; got 'both'."),
        (
            lambda: STFT(window="round"),
            ValueError,
            "`window` must be a window that scipy.signal knows; got 'round'",
        ),
        (lambda: STFT(periodic=1), TypeError, "`periodic` must be False or True; got 1."),
        (
            lambda: STFT()(KEY, (8, 2, 5)),
            ValueError,
            r"`STFT` must be given a shape \(times, 1, frequencies\)",
        ),
        (lambda: STFT()(KEY, (5,)), ValueError, r"`STFT` must be given a shape \(times, 1, frequencies\)"),
        (
            lambda: STFT(window=[1, 2])(KEY, (3, 1, 5)),
            ValueError,
            "`window` must have 3 values, not all zero",
        ),
        (
            lambda: initializers.get("Initializer", argument="x"),
            ValueError,
            "`x` cannot be 'Initializer': it is Keras's base class",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        make()


def test_a_callable_that_is_not_called_as_initializers_are_is_refused():
    with pytest.raises(TypeError, match=r"a callable `init\(key, shape, dtype\) -> array`; got <function"):
        fsc.SeparableConv1DConfig(4, 3, depthwise_initializer=lambda shape, dtype=None: jnp.ones(shape))
