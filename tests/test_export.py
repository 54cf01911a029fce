"""`jax.export`: one program for every platform, batch and length, of standard operations, that needs no library."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import flax_sepconv as fsc
from flax_sepconv._kernels import IMPLEMENTATIONS
from tests.reference import assert_close

PLATFORMS = ("cpu", "cuda", "tpu")
# What JAX writes into programs of symbolic shapes, and takes out when it compiles them: that sizes are as was promised,
# and sums along an axis of symbolic length.
SYMBOLIC = {"shape_assertion", "stablehlo.dynamic_reduce_window"}


def exported(config, shape, constraints=()):
    params = fsc.init_params(jax.random.key(0), 3, config)
    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape, constraints=constraints), jnp.float32)
    apply = jax.jit(lambda params, x: fsc.separable_conv1d(params, x, config))
    make = export.export(apply, platforms=PLATFORMS)
    return make(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params), x), params


def foreign(program) -> set[str]:
    return set(re.findall(r"custom_call @([\w.]+)", program.mlir_module()))


ANY_LENGTH = [
    {"padding": "valid", "strides": 2},
    {"padding": "causal", "strides": 3, "depth_multiplier": 2},
    {"padding": "same", "dilation_rate": 3, "activation": "gelu"},
    {"padding": "valid", "data_format": "channels_first", "activation": "softmax"},
    {"padding": "same", "kernel_size": 140},
    {"padding": "causal", "implementation": "lax"},
]


@pytest.mark.parametrize("arguments", ANY_LENGTH)
def test_any_batch_and_any_length(arguments):
    config = fsc.SeparableConv1DConfig(**{"filters": 4, "kernel_size": 5} | arguments)
    last = config.channel_axis == -1
    program, params = exported(config, "b, t, 3" if last else "b, 3, t", ["t >= 8"])
    assert foreign(program) <= SYMBOLIC
    for batch, length in ((1, 8), (3, 29)):
        x = jax.random.normal(jax.random.key(1), (batch, length, 3) if last else (batch, 3, length))
        assert_close(program.call(params, x), fsc.separable_conv1d(params, x, config))


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_any_batch_in_every_implementation(implementation):
    config = fsc.SeparableConv1DConfig(
        4, 5, strides=2, padding="same", depth_multiplier=2, implementation=implementation
    )
    program, params = exported(config, "a, b, 21, 3")
    assert foreign(program) <= SYMBOLIC
    x = jax.random.normal(jax.random.key(1), (2, 3, 21, 3))
    assert_close(program.call(params, x), fsc.separable_conv1d(params, x, config))


def test_same_padding_with_strides_takes_lengths_of_known_remainder():
    config = fsc.SeparableConv1DConfig(4, 5, strides=2, padding="same")
    program, params = exported(config, "b, 2*t, 3")
    x = jax.random.normal(jax.random.key(1), (2, 14, 3))
    assert_close(program.call(params, x), fsc.separable_conv1d(params, x, config))
    with pytest.raises(ValueError, match=r"`length` must be a multiple of strides=2 .* '2\*t'.*; got t"):
        exported(config, "b, t, 3")


def test_what_a_symbolic_length_cannot_do_is_refused():
    config = fsc.SeparableConv1DConfig(4, 5)
    with pytest.raises(ValueError, match=r"must be known to be at least 5; .*constraints=\['t >= 5'\]"):
        exported(config, "b, t, 3")
    config = fsc.SeparableConv1DConfig(4, 5, padding="causal", implementation="fourier")
    with pytest.raises(ValueError, match="`implementation` must be None or 'lax' for a symbolic length"):
        exported(config, "b, t, 3")


@pytest.mark.parametrize("shape", ["2, 20, 3", "b, 21, 3"])
# A sum over blocks, one of many taps, many multipliers.
@pytest.mark.parametrize(("kernel_size", "multiplier"), [(5, 2), (12, 1), (5, 5)])
def test_gradients_are_exported_too(kernel_size, multiplier, shape):
    config = fsc.SeparableConv1DConfig(4, kernel_size, padding="same", depth_multiplier=multiplier)
    program, params = exported(config, shape)
    assert foreign(program) <= SYMBOLIC
    x = jax.random.normal(jax.random.key(1), (2, 20 if shape.startswith("2") else 21, 3))
    loaded = export.deserialize(program.serialize(vjp_order=1))
    ours = jax.grad(lambda params: jnp.sum(loaded.call(params, x) ** 2))(params)
    theirs = jax.grad(lambda params: jnp.sum(fsc.separable_conv1d(params, x, config) ** 2))(params)
    jax.tree.map(assert_close, ours, theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": 33, "strides": 2},
        {"kernel_size": 12, "depth_multiplier": 2},
        {"kernel_size": 130},
        {"kernel_size": 20, "dilation_rate": 3, "depth_multiplier": 3},
        {"kernel_size": 5, "strides": 3, "depth_multiplier": 2},
    ],
)
def test_gradients_of_any_batch_are_those_of_one(arguments):
    # With a symbolic size each term of a sum is an equation, without all terms are one.
    config = fsc.SeparableConv1DConfig(4, padding="same", **arguments)
    params = fsc.init_params(jax.random.key(0), 8, config)
    (batch,) = export.symbolic_shape("b")
    x = jax.random.normal(jax.random.key(1), (3, 40, 8))

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda params, x: jnp.sum(fsc.separable_conv1d(params, x, config) ** 2), (0, 1))(
            params, x
        )

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    program = export.export(gradients)(shapes, jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    jax.tree.map(assert_close, program.call(params, x), gradients(params, x))


@pytest.mark.parametrize(
    ("padding", "packed"), [("valid", False), ("same", True), ("causal", True), ("valid", True)]
)
def test_any_batch_and_any_length_with_gradients(padding, packed):
    config = fsc.SeparableConv1DConfig(4, 3, padding=padding, dilation_rate=2, depth_multiplier=2)
    params = fsc.init_params(jax.random.key(0), 3, config)

    @jax.jit
    def with_gradients(params, x, ids):
        def loss(params, x):
            y = fsc.separable_conv1d(params, x, config, segment_ids=ids if packed else None)
            return jnp.sum(y**2), y

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    batch, length = export.symbolic_shape("b, t", constraints=["t >= 5"])
    shapes = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params),
        jax.ShapeDtypeStruct((batch, length, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )
    program = export.export(with_gradients, platforms=PLATFORMS)(*shapes)
    assert foreign(program) <= SYMBOLIC
    x = jax.random.normal(jax.random.key(1), (3, 20, 3))
    ids = jnp.repeat(jnp.array([[1, 2, 0, 3], [1, 1, 1, 0], [0, 4, 4, 2]]), jnp.array([7, 3, 2, 8]), axis=1)
    jax.tree.map(assert_close, program.call(params, x, ids), with_gradients(params, x, ids))


def test_program_runs_without_the_library(tmp_path):
    config = fsc.SeparableConv1DConfig(4, 5, padding="causal", activation="gelu")
    program, params = exported(config, "b, t, 3")
    assert foreign(program) <= SYMBOLIC
    assert set(program.platforms) == set(PLATFORMS)
    x = jax.random.normal(jax.random.key(1), (2, 33, 3))
    (tmp_path / "program").write_bytes(program.serialize())
    np.savez(tmp_path / "arrays.npz", x=x, **params)
    code = """
import sys
sys.modules["flax_sepconv"] = sys.modules["flax"] = None  # importing them fails
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(open("program", "rb").read()))
arrays = dict(np.load("arrays.npz"))
x = arrays.pop("x")
np.save("y.npy", program.call(arrays, x))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, check=True)
    assert_close(np.load(tmp_path / "y.npy"), fsc.separable_conv1d(params, x, config))
