"""Padded and packed sequences on eight devices. `test_parallel.py` runs them in a process that has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

import flax_sepconv as fsc
from tests import reference
from tests.eight_devices import KINDS, MESHES, divisions, moved, placed
from tests.reference import assert_close


def loss(params, x, function):
    return jnp.sum(jnp.sin(function(params, x)) ** 2)


@settings(max_examples=10)
@given(
    division=divisions(),
    kind=st.sampled_from(KINDS),
    layer=reference.layers(batch_axes=st.just(0)),
    batch=st.integers(0, 2),
    packed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_divided_sequences_are_those_of_the_whole_layer(division, kind, layer, batch, packed, seed):
    (name, axes), (config, params, x) = division, layer
    rng, mesh = np.random.default_rng(seed), MESHES[kind][name]
    strides = 1 if packed else config.strides
    config = dataclasses.replace(config, filters=8, strides=strides, activation="sigmoid")
    shape = (8, 3)[: max(batch, 1) if "batch" in axes else batch]
    channels = x.shape[config.channel_axis]
    params = {w.name: rng.normal(size=w.shape).astype("f") for w in config.weights(channels)}
    x = rng.normal(size=shape + x.shape).astype("f")
    length = x.shape[config.time_axis]
    if packed:
        sequences = {"segment_ids": rng.integers(0, 3, (*shape, length)).repeat(4, -1)[..., :length]}
        real = sequences["segment_ids"] != 0
    else:
        sequences = {"lengths": rng.integers(-1, length + 2, shape)}
        real = np.arange(length) < sequences["lengths"][..., None]
    x = np.where(np.expand_dims(real, config.channel_axis), x, np.nan).astype("f")

    def whole(params, x):
        return fsc.separable_conv1d(params, x, config, **sequences)

    def divided(params, x):
        return fsc.parallel.separable_conv1d(params, x, config, mesh=mesh, **axes, **sequences)

    with jax.set_mesh(mesh):
        ours, expected = (
            jax.jit(lambda p, x, f=f: (f(p, x), jax.grad(loss, (0, 1))(p, x, f)))(params, x)
            for f in (divided, whole)
        )
    jax.tree.map(assert_close, ours, expected)


GEOMETRIES = [
    {"kernel_size": 5, "padding": "same", "dilation_rate": 2},
    {"kernel_size": 4, "padding": "causal"},
    {"kernel_size": 7, "padding": "same", "strides": 2},
]


@pytest.mark.parametrize("arguments", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_just_the_halo_is_exchanged(arguments, kind):
    mesh, channels = MESHES[kind]["line"], 3
    config = fsc.SeparableConv1DConfig(4, activation="relu", **arguments)
    params = fsc.init_params(jax.random.key(0), channels, config)
    x = jax.random.normal(jax.random.key(1), (2, 64, channels))
    reach = (config.kernel_size - 1) * config.dilation_rate
    cases = {"lengths": (jnp.array([50, 3]), ())}
    if config.strides == 1:
        cases["segment_ids"] = jnp.arange(64) // 7 + jnp.zeros((2, 1), int), (None, "n")
    for name, (value, spec) in cases.items():
        with jax.set_mesh(mesh):

            def apply(params, x, value, name=name):
                return fsc.parallel.separable_conv1d(
                    params, x, config, mesh=mesh, length="n", **{name: value}
                )

            arrays = placed(mesh, params), placed(mesh, x, None, "n"), placed(mesh, value, *spec)
            forward = jax.jit(apply).lower(*arrays).compile()
            assert forward(*arrays).sharding.spec[1] == "n"
        # With strides a window of "same" begins at samples that depend on the length: nearly `strides` / 2 more.
        rows = reach if config.strides == 1 else 3 + 3
        ids = 2 * rows if name == "segment_ids" else 0
        assert moved(forward) == {"collective-permute": 2 * channels * rows + ids}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", GEOMETRIES[:2])
def test_a_divided_batch_of_packed_rows_stays_where_it_is(arguments, kind):
    mesh = MESHES[kind]["line"]
    config = fsc.SeparableConv1DConfig(6, depth_multiplier=2, **arguments)
    params = fsc.init_params(jax.random.key(0), 5, config)
    x = jax.random.normal(jax.random.key(1), (16, 40, 5))
    ids = jax.random.randint(jax.random.key(2), (16, 10), 0, 3).repeat(4, axis=1)

    def gradient(params, x, ids):
        apply = lambda params, x: fsc.separable_conv1d(params, x, config, segment_ids=ids)  # noqa: E731
        return jax.value_and_grad(loss, (0, 1))(params, x, apply)

    def forward(params, x, ids):
        return fsc.separable_conv1d(params, x, config, segment_ids=ids)

    expected = gradient(params, x, ids), forward(params, x, ids)
    with jax.set_mesh(mesh):
        arrays = placed(mesh, params), *placed(mesh, (x, ids), "n")
        compiled = [jax.jit(f).lower(*arrays).compile() for f in (gradient, forward)]
        jax.tree.map(assert_close, tuple(f(*arrays) for f in compiled), expected)
    assert set(moved(compiled[0])) == {"all-reduce"}
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert moved(compiled[0])["all-reduce"] <= 1 + 2 * numbers
    assert moved(compiled[1]) == {}


def test_impossible_sequences_are_refused():
    mesh = MESHES[AxisType.Auto]["line"]
    config = fsc.SeparableConv1DConfig(4, 3, strides=2)
    params = fsc.init_params(jax.random.key(0), 3, config)
    for sequences, message in [
        ({"segment_ids": np.ones((6, 20), int)}, "`segment_ids` cannot be used with strides=2"),
        ({"lengths": [3]}, r"`lengths` must have the shape of the batch axes of `x`, \(6,\); got \(1,\)"),
        ({"lengths": [3], "segment_ids": [3]}, "cannot both be given"),
    ]:
        with pytest.raises(ValueError, match=message):
            fsc.parallel.separable_conv1d(
                params, jnp.ones((6, 20, 3)), config, mesh=mesh, length="n", **sequences
            )
