"""float16 and bfloat16 lose what rounding results loses: every sum is one of float32, those of gradients too.

Kernels, inputs and cotangents are positive, so that nothing cancels: each result is as exact as its roundings. Kept
in a half type, sums of so many terms would be off by many of them, or stop growing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_sepconv as fsc
from tests import reference

CASES = [
    (None, {"kernel_size": 3}),
    (None, {"kernel_size": 12, "strides": 2, "padding": "causal"}),
    (None, {"kernel_size": 40, "depth_multiplier": 2}),
    (None, {"kernel_size": 140, "padding": "valid"}),
    ("taps", {"kernel_size": 12, "depth_multiplier": 2}),
    ("fourier", {"kernel_size": 12, "depth_multiplier": 2}),
    ("lax", {"kernel_size": 12, "depth_multiplier": 2}),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("implementation", "arguments"), CASES, ids=str)
def test_sums_are_of_float32(implementation, arguments, dtype):
    config = fsc.SeparableConv1DConfig(
        **{"filters": 3, "padding": "same"} | arguments, param_dtype=dtype, implementation=implementation
    )
    rng = np.random.default_rng(0)
    draw = lambda shape, mean=1.0: rng.uniform(0.5 * mean, 1.5 * mean, shape).astype(dtype)  # noqa: E731
    x = draw((2, 300, 8))
    # Means rather than sums, which float16 could not hold after another sum over all outputs.
    means = {"depthwise_kernel": 1 / config.kernel_size, "pointwise_kernel": 1 / 8, "bias": 1.0}
    params = {weight.name: draw(weight.shape, means[weight.name]) for weight in config.weights(8)}
    cotangent = draw(config.output_shape(x.shape))

    @jax.jit
    def value_and_gradients(params, x, cotangent):
        y, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
        return y, *vjp(cotangent)

    computed = value_and_gradients(params, x, cotangent)
    exact = reference.separable(params, x, config), *reference.gradients(params, x, cotangent, config)
    # The depthwise step's output, or the cotangent of that, is rounded before the other step.
    two_roundings = 1.05 * float(jnp.finfo(dtype).eps)

    def compare(ours, theirs):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, float), theirs, rtol=two_roundings)

    jax.tree.map(compare, computed, exact)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("implementation", [None, "lax"])
def test_preferred_element_type_keeps_the_sums(dtype, implementation):
    narrow = fsc.SeparableConv1DConfig(
        5, 3, padding="same", dtype=dtype, bias_initializer="normal", implementation=implementation
    )
    config = dataclasses.replace(narrow, preferred_element_type="float32")
    params = fsc.init_params(jax.random.key(0), 8, config)
    x = jax.random.normal(jax.random.key(1), (2, 20, 8))
    for more in (
        {},
        {"lengths": [20, 7]},
        {"segment_ids": np.repeat([[1, 2, 0]], [9, 7, 4], 1).repeat(2, 0)},
    ):
        y = fsc.separable_conv1d(params, x, config, **more)
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y.astype(dtype), fsc.separable_conv1d(params, x, narrow, **more))
    # The activation is of the sums too, and what comes back is of them.
    active = dataclasses.replace(config, activation="tanh")
    y, vjp = jax.vjp(lambda params: fsc.separable_conv1d(params, x, config), params)
    z, of_active = jax.vjp(lambda params: fsc.separable_conv1d(params, x, active), params)
    np.testing.assert_array_equal(z, jnp.tanh(y))
    for ours, theirs in zip(
        jax.tree.leaves(of_active(jnp.ones_like(z))), jax.tree.leaves(vjp(1 - z**2)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_preferred_element_type_means_what_it_means_in_flax():
    kwargs = {"dtype": "bfloat16", "preferred_element_type": jnp.float32, "rngs": nnx.Rngs(0)}
    theirs = nnx.Conv(8, 5, 1, **kwargs)
    ours = fsc.nnx.SeparableConv1D(8, 5, 1, depthwise_initializer="ones", **kwargs)
    ours.pointwise_kernel[...] = theirs.kernel[...]
    x = jax.random.normal(jax.random.key(1), (2, 20, 8))
    assert ours(x).dtype == theirs(x).dtype == jnp.float32
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    layer = fsc.SeparableConv1D.from_config(ours.config)
    variables = {"params": nnx.to_pure_dict(nnx.state(ours, nnx.Param))}
    np.testing.assert_array_equal(layer.apply(variables, x), ours(x))
    with pytest.raises(ValueError, match=r"must be one of None, float32, as .* got b"):
        fsc.separable_conv1d(
            variables["params"], x, fsc.SeparableConv1DConfig(5, 1, preferred_element_type="bfloat16")
        )
