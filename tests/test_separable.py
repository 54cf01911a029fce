"""Both steps as one primitive: four contractions of one form, in every way to join them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import flax_sepconv as fsc
from flax_sepconv._depthwise import Geometry, implementations
from flax_sepconv._separable import steps
from flax_sepconv._separable.primitive import SLOTS, contract
from tests.test_depthwise import assert_close

FORMS = {
    "apart": steps.apart,
    "recomputing": functools.partial(steps.recomputing, differentiated=True),
    "joined": functools.partial(steps.joined, differentiated=True),
    "unshared": functools.partial(steps.joined, differentiated=False),
    "dense": lambda *arrays, implementation, **params: steps._dense(*arrays, differentiated=False, **params),
}


@st.composite
def problems(draw, longest=20, largest_kernel=12):
    """A geometry, whether there is a bias, and random arrays for the four slots."""
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 3), (2, 3)]))
    size = draw(st.integers(1, largest_kernel))
    reach = (size - 1) * dilation
    low, high = draw(st.integers(0, reach)), draw(st.integers(0, reach))
    length = draw(st.integers(max(1, reach + 1 - low - high), max(1, reach + 1 - low - high) + longest))
    geometry = Geometry(length, size, stride, dilation, low, high)
    n, m, c = (draw(st.integers(least, most)) for least, most in ((0, 2), (1, 3), (1, 4)))
    f = draw(st.sampled_from([1, 2, 3, 64]))  # the last has another product
    bias = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = {
        "input": (n, length, c),
        "kernel": (size, c, m),
        "pointwise": (c * m + bias, f),
        "output": (n, geometry.output_length, f),
    }
    return geometry, bias, {slot: rng.normal(size=shape).astype("f") for slot, shape in shapes.items()}


def exact(geometry, bias, slots, result):
    """The contraction in float64, from the definition: windows, and sums over them."""
    x, k, p, y = (None if slots.get(slot) is None else slots[slot].astype(float) for slot in SLOTS)
    length, size, stride, dilation, low, high = geometry
    at = np.arange(geometry.output_length)[:, None] * stride + np.arange(size) * dilation  # (O, K)
    channels = k.shape[1] if x is None else x.shape[-1]
    p = None if p is None else (p[:-1] if bias else p).reshape(channels, -1, p.shape[1])
    if result == "input":
        padded = np.zeros((y.shape[0], low + length + high, channels))
        np.add.at(padded, (slice(None), at), np.einsum("nof,cmf,tcm->notc", y, p, k))
        return padded[:, low : low + length]
    windows = np.pad(x, ((0, 0), (low, high), (0, 0)))[:, at]  # (N, O, K, C)
    if result == "kernel":
        return np.einsum("notc,cmf,nof->tcm", windows, p, y)
    if result == "output":
        out = np.einsum("notc,tcm,cmf->nof", windows, k, p)
        return out + slots["pointwise"][-1] if bias else out
    gradient = np.einsum("notc,tcm,nof->cmf", windows, k, y).reshape(-1, y.shape[2])
    return np.concatenate([gradient, y.sum((0, 1))[None]]) if bias else gradient


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=8)
@given(
    problem=problems(),
    implementation=st.sampled_from([None, None, "taps", "fourier"]),
    one_device=st.booleans(),
    crowded=st.booleans(),
)
def test_every_form_is_the_definition(result, form, problem, implementation, one_device, crowded):
    geometry, bias, slots = problem
    bias = bias and result in ("output", "pointwise")  # it has no part in the others, which do not get it
    if not bias:
        slots["pointwise"] = slots["pointwise"][: slots["kernel"].shape[1] * slots["kernel"].shape[2]]
    given_slots = {slot: array for slot, array in slots.items() if slot != result}
    params = {"geometry": geometry, "precision": None, "implementation": implementation, "bias": bias}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implementations, "BROAD", 2)
        patch.setattr(steps, "on_one_device", lambda: one_device)
        patch.setattr(steps, "_crowded", lambda *_: crowded)
        ours = FORMS[form](*given_slots.values(), result=result, **params)
    assert_close(ours, exact(geometry, bias, given_slots, result), 2e-5)


def contraction(result, geometry, bias):
    """The contraction as a function of its three arrays."""
    operands = [slot for slot in SLOTS if slot != result]
    params = {"geometry": geometry, "precision": None, "implementation": None, "bias": bias}
    return lambda *arrays: contract(dict(zip(operands, arrays, strict=True)), **params)


@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=5)
@given(problem=problems(longest=6, largest_kernel=4))
def test_derivatives_of_both_modes_and_orders(result, problem):
    geometry, bias, slots = problem
    arrays = tuple(array for slot, array in slots.items() if slot != result)
    check_grads(
        contraction(result, geometry, bias), arrays, order=2, modes=("fwd", "rev"), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("axes", [(0, None, None), (None, 1, None), (None, None, 0), (2, 0, None), (1, 0, 2)])
@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=4)
@given(problem=problems(longest=6, largest_kernel=4))
def test_vmap_is_a_loop(result, axes, problem):
    geometry, bias, slots = problem
    function = contraction(result, geometry, bias)
    arrays = [array for slot, array in slots.items() if slot != result]
    batched = [
        array if axis is None else np.stack([array, 2 * array + 1, -array], axis)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    expected = [
        function(*(v if axis is None else np.take(v, i, axis) for v, axis in zip(batched, axes, strict=True)))
        for i in range(3)
    ]
    assert_close(jax.vmap(function, axes)(*batched), jnp.stack(expected), 2e-5)


@pytest.mark.parametrize(("kernel_size", "multiplier"), [(3, 1), (3, 4)])  # joined, and dense
def test_an_ensemble_keeps_its_input_and_its_parameters_only(kernel_size, multiplier):
    config = fsc.SeparableConv1DConfig(3, kernel_size, depth_multiplier=multiplier, padding="same")
    members = jax.vmap(lambda key: fsc.init_params(key, 2, config))(jax.random.split(jax.random.key(0), 5))
    x = jnp.ones((4, 50, 2))
    apply = jax.vmap(functools.partial(fsc.separable_conv1d, config=config), (0, None))
    _, vjp = jax.vjp(apply, members, x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    assert kept <= x.size + sum(leaf.size for leaf in jax.tree.leaves(members))


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((8, 4096, 128), {"filters": 128, "kernel_size": 5}),
        ((16, 400, 256), {"filters": 256, "kernel_size": 31}),
        ((16, 1024, 128), {"filters": 196, "kernel_size": 17, "strides": 4}),
    ],
)
def test_gradients_take_no_more_memory_than_those_of_the_grouped_convolution(shape, arguments):
    def temporary_bytes(implementation):
        config = fsc.SeparableConv1DConfig(**arguments, padding="same", implementation=implementation)
        params = jax.eval_shape(lambda key: fsc.init_params(key, shape[-1], config), jax.random.key(0))
        y = jax.ShapeDtypeStruct((shape[0], config.output_length(shape[1]), config.filters), "float32")

        def value_and_gradients(params, x, cotangent):
            y, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
            return y, vjp(cotangent)

        lowered = jax.jit(value_and_gradients).lower(params, jax.ShapeDtypeStruct(shape, "float32"), y)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None) <= temporary_bytes("lax")
