"""float16 and bfloat16 lose what rounding results loses: every sum is one of float32, those of gradients too.

Kernels, inputs and cotangents are positive, so that nothing cancels: each result is as exact as its roundings. Kept
in a half type, sums of so many terms would be off by many of them, or stop growing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
