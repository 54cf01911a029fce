"""Both primitives compose with every transformation of JAX, to any order and in any dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import flax_sepconv as fsc
from flax_sepconv._kernels import both_steps, depthwise_step
from tests import reference
from tests.reference import assert_close

STEPS = {"depthwise": depthwise_step, "separable": both_steps}
CONTRACTIONS = [(step, result) for step, module in STEPS.items() for result in module.AXES]


@st.composite
def problems(draw, step, largest_kernel=6):
    """A window, and random arrays for all slots."""
    window = draw(reference.windows(longest=6, largest_kernel=largest_kernel))
    sizes = {"l": window.length, "k": window.kernel_size, "o": window.output_length}
    sizes |= {letter: draw(st.integers(1, 2 if letter in "gnm" else 3)) for letter in "gncmf"}
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = {slot: tuple(sizes[letter] for letter in axes) for slot, axes in STEPS[step].AXES.items()}
    return window, {slot: rng.normal(size=shape).astype("f") for slot, shape in shapes.items()}


def contraction(step, result, window, implementation=None):
    """The contraction as a function of its arrays."""
    operands = [slot for slot in STEPS[step].AXES if slot != result]
    params = {"window": window, "precision": None, "implementation": implementation}
    return jax.jit(lambda *arrays: STEPS[step].contract(dict(zip(operands, arrays, strict=True)), **params))


@pytest.mark.parametrize("implementation", [None, "taps", "fourier", "lax"])
@pytest.mark.parametrize(("step", "result"), CONTRACTIONS)
@settings(max_examples=3)
@given(data=st.data())
def test_a_contraction_is_the_definition(step, result, implementation, data):
    window, slots = data.draw(problems(step))
    slots.pop(result)
    ours = contraction(step, result, window, implementation)(*slots.values())
    if step == "separable":
        expected = reference.contraction(window, result, slots)
    else:
        groups = next(iter(slots.values())).shape[0]
        of_group = [{slot: array[g] for slot, array in slots.items()} for g in range(groups)]
        expected = np.stack([reference.contraction(window, result, each) for each in of_group])
    assert_close(ours, expected, 2e-5)


@pytest.mark.parametrize(("step", "result"), CONTRACTIONS)
@settings(max_examples=2)
@given(data=st.data())
def test_derivatives_of_both_modes_and_orders(step, result, data):
    window, slots = data.draw(problems(step, largest_kernel=3))
    slots.pop(result)
    function = contraction(step, result, window)
    check_grads(function, tuple(slots.values()), order=2, modes=("fwd", "rev"), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("step", "result"), CONTRACTIONS)
@settings(max_examples=5)
@given(data=st.data())
def test_vmap_is_a_loop(step, result, data):
    window, slots = data.draw(problems(step, largest_kernel=3))
    slots.pop(result)
    function = contraction(step, result, window)
    axes = data.draw(st.tuples(*[st.sampled_from([None, 0, 1, 2])] * len(slots)).filter(any_batched))
    batched = [
        array if axis is None else np.stack([array, 2 * array + 1, -array], axis)
        for array, axis in zip(slots.values(), axes, strict=True)
    ]
    expected = [
        function(*(v if axis is None else np.take(v, i, axis) for v, axis in zip(batched, axes, strict=True)))
        for i in range(3)
    ]
    assert_close(jax.jit(jax.vmap(function, axes))(*batched), jnp.stack(expected), 2e-5)


def any_batched(axes):
    return any(axis is not None for axis in axes)


@pytest.mark.parametrize("axis", ["batch", "kernels"])
@pytest.mark.parametrize("kernel_size", [3, 12, 100])
def test_nothing_has_gradients_of_zeros(kernel_size, axis):
    batch, kernels = (0, 2) if axis == "batch" else (3, 0)
    x, kernels = jnp.ones((batch, 140, 4)), jnp.ones((kernels, kernel_size, 4, 1))

    def layers(x, kernels):
        return jax.vmap(functools.partial(fsc.depthwise_conv1d, x, padding="same"))(kernels)

    y, vjp = jax.vjp(jax.jit(layers), x, kernels)
    assert y.shape == (len(kernels), batch, 140, 4)
    for gradient, of in zip(jax.jit(vjp)(y), (x, kernels), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(of.shape))


CONFIG = fsc.SeparableConv1DConfig(3, 3, padding="same", depth_multiplier=2, activation="tanh")
PARAMS = fsc.init_params(jax.random.key(0), 2, CONFIG)
X = jax.random.normal(jax.random.key(1), (3, 5, 2))


def loss(params, x, implementation=None):
    config = fsc.SeparableConv1DConfig(
        3, 3, padding="same", depth_multiplier=2, activation="tanh", implementation=implementation
    )
    return jnp.sum(fsc.separable_conv1d(params, x, config) ** 2)


def test_second_derivatives_agree_with_lax():
    expected = jax.jit(jax.hessian(functools.partial(loss, implementation="lax")))(PARAMS, X)
    for derivative in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        jax.tree.map(assert_close, jax.jit(derivative(loss))(PARAMS, X), expected)


def test_per_example_gradients_and_ensembles_are_loops():
    gradient = jax.jit(jax.grad(loss))
    ours = jax.jit(jax.vmap(gradient, (None, 0)))(PARAMS, X)
    expected = [gradient(PARAMS, x) for x in X]
    jax.tree.map(assert_close, ours, jax.tree.map(lambda *g: jnp.stack(g), *expected))
    members = jax.vmap(lambda key: fsc.init_params(key, 2, CONFIG))(jax.random.split(jax.random.key(2), 3))
    ours = jax.jit(jax.vmap(gradient, (0, None)))(members, X)
    expected = [gradient(jax.tree.map(lambda a, i=i: a[i], members), X) for i in range(3)]
    jax.tree.map(assert_close, ours, jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_checkpoint_linearize_and_scan():
    value, gradient = loss(PARAMS, X), jax.grad(loss)(PARAMS, X)
    jax.tree.map(assert_close, jax.grad(jax.checkpoint(loss))(PARAMS, X), gradient)
    out, tangent = jax.linearize(lambda p: loss(p, X), PARAMS)
    assert_close(out, value)
    inner = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, PARAMS)), strict=True))
    assert_close(tangent(PARAMS), inner)
    _, each = jax.lax.scan(lambda carry, x: (carry, loss(PARAMS, x)), None, X)
    assert_close(each.sum(), value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kernel_size", [3, 12, 70])
def test_gradients_in_other_dtypes_are_the_definitions(kernel_size, dtype):
    config = fsc.SeparableConv1DConfig(3, kernel_size, padding="same", param_dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        window = reference.Window(80, kernel_size, 1, 1, (kernel_size - 1) // 2, kernel_size // 2)
        params = fsc.init_params(jax.random.key(0), 4, config)
        x = jax.random.normal(jax.random.key(1), (2, 80, 4), dtype)
        cotangent = jax.random.normal(jax.random.key(2), (2, 80, 3), dtype)
        _, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
        of_params, of_x = jax.jit(vjp)(cotangent)
        assert {a.dtype.name for a in (of_x, *of_params.values())} == {dtype}
    slots = {
        "input": x,
        "kernel": params["depthwise_kernel"],
        "pointwise": params["pointwise_kernel"][0][:, None],
        "output": cotangent,
    }
    gradients = {
        "input": of_x,
        "kernel": of_params["depthwise_kernel"],
        "pointwise": of_params["pointwise_kernel"][0][:, None],
    }
    # Between the steps, and in the result, there is one rounding each.
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    for result, gradient in gradients.items():
        given_slots = {slot: array for slot, array in slots.items() if slot != result}
        assert_close(gradient, reference.contraction(window, result, given_slots), max(tolerance, 1e-14))
    assert_close(of_params["bias"], np.asarray(cotangent, float).sum((0, 1)), max(tolerance, 1e-14))
