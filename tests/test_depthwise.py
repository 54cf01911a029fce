"""Every implementation computes the same three contractions, and the primitive composes with every transform."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import flax_sepconv as fsc
from flax_sepconv._depthwise import (
    IMPLEMENTATIONS,
    Geometry,
    blocks,
    correlation,
    fusion,
    grouped,
    implementations,
    taps,
)
from flax_sepconv._depthwise.primitive import SLOTS, contract
from tests import reference

REFERENCE = {"output": grouped.output, "input": grouped.input_gradient, "kernel": grouped.kernel_gradient}


@st.composite
def problems(draw, longest=40, largest_kernel=20):
    """A geometry, with paddings of any size within a window, and random arrays for the three slots."""
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 5), (2, 3)]))
    size = draw(st.integers(1, largest_kernel))
    reach = (size - 1) * dilation
    low, high = draw(st.integers(0, reach)), draw(st.integers(0, reach))
    length = draw(st.integers(max(1, reach + 1 - low - high), max(1, reach + 1 - low - high) + longest))
    geometry = Geometry(length, size, stride, dilation, low, high)
    g, n, m, c = (draw(st.integers(1, k)) for k in (2, 2, 3, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = {
        "input": (g, n, length, c),
        "kernel": (g, size, m, c),
        "output": (g, n, geometry.output_length, m, c),
    }
    return geometry, {slot: rng.normal(size=shape).astype(np.float32) for slot, shape in shapes.items()}


def assert_close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1.0))


def contraction(result, geometry, implementation=None):
    """The contraction as a function of its two arrays, and their slots."""
    operands = [slot for slot in SLOTS if slot != result]
    params = {"geometry": geometry, "precision": None, "implementation": implementation}
    return (lambda a, b: contract(dict(zip(operands, (a, b), strict=True)), **params)), operands


@pytest.mark.parametrize("implementation", ["taps", "fourier"])
@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=15)
@given(problem=problems())
def test_every_contraction_is_the_grouped_convolutions(result, implementation, problem):
    geometry, arrays = problem
    function, operands = contraction(result, geometry, implementation)
    a, b = (arrays[slot] for slot in operands)
    assert_close(function(a, b), REFERENCE[result](a, b, geometry, "highest"))


# What sizes or a GPU ask for: many taps in pieces, sums in place. The thresholds are those of tests.
OF_ONE_MULTIPLIER = {
    "output": [blocks.output, taps.output, implementations._output_of_copy],
    "input": [taps.input_gradient],
    "kernel": [correlation.kernel_gradient],
}
FORMS = {
    "output": [
        functools.partial(taps.output, in_place=True),
        *(
            functools.partial(implementations._output_on_cpu, differentiated=differentiated, fused=fused)
            for differentiated, fused in [(False, False), (True, False), (True, True)]
        ),
    ],
    "input": [
        functools.partial(taps.input_gradient, in_place=True),
        functools.partial(implementations._input_gradient_on_cpu, fused=False),
        functools.partial(implementations._input_gradient_on_cpu, fused=True),
    ],
    "kernel": [correlation.plain_sums, implementations._kernel_gradient_of_channels],
}


@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=10)
@given(
    problem=problems(),
    few=st.sampled_from([1, 9]),
    width=st.sampled_from([3, 20]),
    unrolled=st.sampled_from([1, 4]),
    edged=st.sampled_from([5, 40]),
    lanes=st.sampled_from([2, 8]),
)
def test_every_form_is_the_grouped_convolutions(result, problem, few, width, unrolled, edged, lanes):
    geometry, arrays = problem
    a, b = (arrays[slot] for slot in SLOTS if slot != result)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "TERMS", 10)
        patch.setattr(blocks, "PIECE", 3)
        patch.setattr(blocks, "LANES", lanes)
        patch.setattr(taps, "EDGED", edged)
        patch.setattr(correlation, "FEW", few)
        patch.setattr(correlation, "WIDTH", width)
        patch.setattr(correlation, "UNROLLED", unrolled)
        patch.setattr(blocks, "UNROLLED", unrolled)
        fusion._call.clear_cache()  # traced once, whatever the thresholds
        several = arrays["kernel"].shape[2] > 1
        for form in FORMS[result] + ([] if several else OF_ONE_MULTIPLIER[result]):
            computed = jax.jit(lambda a, b, form=form: form(a, b, geometry=geometry))(a, b)
            assert_close(computed, REFERENCE[result](a, b, geometry, "highest"))


@pytest.mark.parametrize("padding", [(11, 4), (24, 0), (0, 0)])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (3, 1), (1, 2)])
def test_edges_in_one_sum_are_those_of_the_grouped_convolution(strides, dilation, padding):
    low, high = padding
    geometry = Geometry(200, taps.FEW + 5, strides, dilation, low * dilation, high * dilation)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, geometry.length, 3)).astype("f")
    kernel = rng.normal(size=(1, geometry.kernel_size, 1, 3)).astype("f")
    y = jax.jit(taps.output, static_argnums=2)(x, kernel, geometry)
    assert_close(y, grouped.output(x, kernel, geometry, "highest"))


@pytest.mark.parametrize("strides", [1, 2])
def test_the_inputs_gradient_of_many_taps_and_multipliers_is_the_grouped_convolutions(strides):
    # So many in one sum would not vectorize: they are added up afterwards.
    geometry = Geometry(90, blocks.TERMS // 3 + 1, strides, 1, 20, 11)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, geometry.kernel_size, 3, 3)).astype("f")
    cotangent = rng.normal(size=(1, 2, geometry.output_length, 3, 3)).astype("f")
    function, _ = contraction("input", geometry)
    gradient = jax.jit(function)(kernel, cotangent)
    assert_close(gradient, grouped.input_gradient(kernel, cotangent, geometry, "highest"))


@pytest.mark.parametrize(
    ("kernel_size", "channels", "over_blocks"),
    [(65, 256, True), (40, 512, True), (130, 8, True), (33, 256, False), (3, 1024, False)],
)
def test_many_taps_of_many_channels_go_over_blocks(kernel_size, channels, over_blocks):
    geometry = Geometry(200, kernel_size, 1, 1, kernel_size - 1, 0)
    x, kernel = jnp.ones((1, 1, 200, channels)), jnp.ones((1, kernel_size, 1, channels))
    for result, operands in [("output", (x, kernel)), ("input", (kernel, x[:, :, :, None]))]:
        function, _ = contraction(result, geometry)
        assert ("stablehlo.transpose" in jax.jit(function).lower(*operands).as_text()) == over_blocks


def test_programs_with_gradients_say_so():
    # They pad copies, and without would only take longer to compile.
    config = fsc.SeparableConv1DConfig(filters=2, kernel_size=5)
    params, x = fsc.init_params(jax.random.key(0), 3, config), jnp.ones((1, 20, 3))
    forward = lambda x: fsc.separable_conv1d(params, x, config).sum()  # noqa: E731
    geometry = Geometry(20, 5, 1, 1, 0, 0)
    depthwise = contraction("output", geometry)[0]
    rows, kernel = jnp.ones((1, 1, 20, 3)), jnp.ones((1, 5, 1, 3))
    for function, operand in [(forward, x), (lambda x: depthwise(x, kernel).sum(), rows)]:
        assert "differentiated=True" not in str(jax.make_jaxpr(function)(operand))
        assert "differentiated=False" not in str(jax.make_jaxpr(jax.value_and_grad(function))(operand))


@pytest.mark.parametrize("kernel_size", [33, 130])
def test_what_is_not_finite_stays_within_windows(kernel_size):
    geometry = Geometry(300, kernel_size, 1, 1, kernel_size - 1, 0)
    x, kernel = jnp.ones((1, 1, 300, 8)), jnp.ones((1, kernel_size, 1, 8))
    reached = np.zeros(300, bool)
    reached[150 : 150 + kernel_size] = True
    y = jax.jit(blocks.output, static_argnums=2)(x.at[0, 0, 150].set(jnp.inf), kernel, geometry)
    np.testing.assert_array_equal(~np.isfinite(y[0, 0, :, 0, 0]), reached)
    cotangent = jnp.ones((1, 1, 300, 1, 8)).at[0, 0, 149].set(jnp.nan)
    gradient = jax.jit(contraction("input", geometry, "taps")[0])(kernel, cotangent)
    np.testing.assert_array_equal(~np.isfinite(gradient[0, 0, :, 0]), reached[::-1])


@pytest.mark.parametrize("kernel_size", [33, 130])
def test_sums_over_blocks_are_no_one_computation_with_their_layouts(kernel_size):
    # Fused with a transpose, before or after it, they do not vectorize.
    geometry = Geometry(300, kernel_size, 1, 1, 16, kernel_size - 17)
    x, kernel = jnp.ones((1, 4, 300, 64)), jnp.ones((1, kernel_size, 1, 64))
    program = jax.jit(blocks.output, static_argnums=2).lower(x, kernel, geometry).compile().as_text()
    summing = [each for each in program.split("\n\n") if len(re.findall(r" multiply\(", each)) > 10]
    assert summing
    assert not [each for each in summing if re.search(r" (transpose|pad)\(", each)]


@pytest.mark.parametrize("kernel_size", [3, 12, 25])  # reductions, one sum, two parts
def test_the_kernels_gradient_is_not_copied_for_an_axis_of_size_one(kernel_size):
    config = fsc.SeparableConv1DConfig(8, kernel_size, padding="same")
    params, x = fsc.init_params(jax.random.key(0), 64, config), jnp.ones((2, 120, 64))
    gradient = jax.grad(lambda params: (fsc.separable_conv1d(params, x, config) ** 2).sum())
    program = jax.jit(gradient).lower(params).compile().as_text()
    # XLA's other order of these axes is the same in memory, but it writes a kernel from one to the other.
    assert f"f32[{kernel_size},64,1]{{2,1,0}}" in program
    assert f"f32[{kernel_size},64,1]{{1,0,2}}" not in program


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("both_steps", [True, False])
def test_sums_of_several_multipliers_read_a_kernel_in_their_order(both_steps, padding):
    # Fused with the transpose of the kernel, they do not vectorize. Both steps together need none.
    config = fsc.SeparableConv1DConfig(8, 12, padding=padding, depth_multiplier=2)
    params, x = fsc.init_params(jax.random.key(0), 16, config), jnp.ones((2, 120, 16))

    def total(params, x):
        if both_steps:
            return fsc.separable_conv1d(params, x, config).sum()
        return fsc.depthwise_conv1d(x, params["depthwise_kernel"], padding=padding).sum()

    program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(params, x).compile().as_text()
    summing = [each for each in program.split("\n\n") if len(re.findall(r" multiply\(", each)) > 10]
    assert summing
    assert not [each for each in summing if " transpose(" in each]
    assert not both_steps or " transpose(" not in program


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 8), (25, 8), (65, 256)])
def test_equal_calls_are_lowered_once(kernel_size, channels):
    config = fsc.SeparableConv1DConfig(8, kernel_size, padding="same")
    params, x = fsc.init_params(jax.random.key(0), channels, config), jnp.ones((2, 120, channels))

    def loss(params, x):
        return (fsc.separable_conv1d(params, x, config) ** 2).sum()

    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x).as_text()
    calls = re.findall(r"func\.func private @\w+(.*?)\n  }", program, re.DOTALL)
    assert calls
    assert len(set(calls)) == len(calls)


def pads_of_gradients(kernel_size, shape, padding="same", **options):
    """Sizes of what is padded in the compiled program of the output and all gradients."""
    config = fsc.SeparableConv1DConfig(8, kernel_size, padding=padding, **options)
    params = fsc.init_params(jax.random.key(0), shape[-1], config)

    def value_and_gradients(params, x):
        y, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
        return y, vjp(y)

    program = jax.jit(value_and_gradients).lower(params, jnp.ones(shape)).compile().as_text()
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]\S* pad\(", program)]


@pytest.mark.parametrize("kernel_size", [7, 12, 25])
def test_the_output_and_the_kernels_gradient_share_one_padded_copy(kernel_size):
    of_input, of_depthwise_gradient = 1, 1
    assert len(pads_of_gradients(kernel_size, (2, 120, 8))) == of_input + of_depthwise_gradient


@pytest.mark.parametrize("options", [{}, {"dilation_rate": 4}, {"padding": "causal"}], ids=str)
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_gradients_of_few_taps_copy_edges_only(kernel_size, options):
    shape = (2, 121, 8)
    assert sum(pads_of_gradients(kernel_size, shape, **options)) < math.prod(shape)


@pytest.mark.parametrize("axis", ["batch", "kernels"])
@pytest.mark.parametrize("kernel_size", [3, 12, 100])
def test_nothing_has_gradients_of_zeros(kernel_size, axis):
    batch, kernels = (0, 2) if axis == "batch" else (3, 0)
    x, kernels = jnp.ones((batch, 140, 4)), jnp.ones((kernels, kernel_size, 4, 1))

    def layers(x, kernels):
        return jax.vmap(functools.partial(fsc.depthwise_conv1d, x, padding="same"))(kernels)

    y, vjp = jax.vjp(jax.jit(layers), x, kernels)
    assert y.shape == (len(kernels), batch, 140, 4)
    for gradient, of in zip(vjp(y), (x, kernels), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(of.shape))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=5)
@given(problem=problems(longest=10, largest_kernel=4))
def test_derivatives_of_both_modes_and_orders(result, implementation, problem):
    geometry, arrays = problem
    function, operands = contraction(result, geometry, implementation)
    primals = tuple(arrays[slot] for slot in operands)
    check_grads(function, primals, order=2, modes=("fwd", "rev"), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("axes", [(0, None), (None, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize("result", SLOTS)
@settings(max_examples=5)
@given(problem=problems(longest=10, largest_kernel=4))
def test_vmap_is_a_loop(result, axes, problem):
    geometry, arrays = problem
    function, operands = contraction(result, geometry)
    batched = [
        arrays[slot] if axis is None else np.stack([arrays[slot], 2 * arrays[slot] + 1, -arrays[slot]], axis)
        for slot, axis in zip(operands, axes, strict=True)
    ]
    expected = [
        function(*(v if axis is None else np.take(v, i, axis) for v, axis in zip(batched, axes, strict=True)))
        for i in range(3)
    ]
    assert_close(jax.vmap(function, axes)(*batched), jnp.stack(expected))


@settings(max_examples=10)
@given(problem=problems(longest=10, largest_kernel=4))
def test_a_contraction_is_linear_in_each_array(problem):
    geometry, arrays = problem
    function, _ = contraction("output", geometry)
    (x, k, y) = arrays.values()
    (dx,) = jax.linear_transpose(lambda x: function(x, k), x)(y)
    (dk,) = jax.linear_transpose(lambda k: function(x, k), k)(y)
    form = np.vdot(function(x, k), y)
    size = max(abs(np.asarray(dx)).max() * x.size, 1.0)
    assert abs(np.vdot(x, dx) - form) <= 1e-5 * size
    assert abs(np.vdot(k, dk) - form) <= 1e-5 * size


CONFIG = fsc.SeparableConv1DConfig(3, 3, padding="same", depth_multiplier=2, activation="tanh")
PARAMS = fsc.init_params(jax.random.key(0), 2, CONFIG)
X = jax.random.normal(jax.random.key(1), (3, 5, 2))


def loss(params, x, config=CONFIG):
    return jnp.sum(fsc.separable_conv1d(params, x, config) ** 2)


def test_second_derivatives_agree_with_lax():
    definition = functools.partial(loss, config=dataclasses.replace(CONFIG, implementation="lax"))
    expected = jax.jit(jax.hessian(definition))(PARAMS, X)
    for derivative in (jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f)), lambda f: jax.jacrev(jax.jacrev(f))):
        jax.tree.map(assert_close, jax.jit(derivative(loss))(PARAMS, X), expected)


def test_per_example_gradients():
    ours = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, X)
    expected = [jax.grad(loss)(PARAMS, x) for x in X]
    jax.tree.map(assert_close, ours, jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_an_ensemble_is_a_loop_over_its_members():
    members = jax.vmap(lambda key: fsc.init_params(key, 2, CONFIG))(jax.random.split(jax.random.key(2), 3))
    ours = jax.vmap(jax.grad(loss), (0, None))(members, X)
    expected = [jax.grad(loss)(jax.tree.map(lambda a, i=i: a[i], members), X) for i in range(3)]
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


def test_only_the_input_and_the_parameters_are_kept():
    linear = dataclasses.replace(CONFIG, activation=None)
    _, vjp = jax.vjp(lambda p, x: fsc.separable_conv1d(p, x, linear), PARAMS, X)
    kept = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    assert kept <= X.size + sum(leaf.size for leaf in jax.tree.leaves(PARAMS))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=20)
@given(layer=reference.layers(batch_axes=st.just(1)))
def test_the_layer_is_the_definition_in_every_implementation(implementation, layer):
    config, params, x = layer
    config = dataclasses.replace(config, implementation=implementation)
    assert_close(fsc.separable_conv1d(params, x, config), reference.separable(params, x, config))


@pytest.mark.parametrize("result", SLOTS)
@pytest.mark.parametrize("size", [3, 15, 31, 65, 200])
def test_float32_errors_are_no_larger_than_the_grouped_convolutions(size, result):
    # With a tenth for chance: the errors of small sums are alike, and the others are 0.1 to 0.9 times its.
    rng = np.random.default_rng(0)
    geometry = Geometry(512, size, strides=1, dilation=1, low=size // 2, high=size - 1 - size // 2)
    shapes = {"input": (1, 2, 512, 16), "kernel": (1, size, 1, 16), "output": (1, 2, 512, 1, 16)}
    arrays = [rng.normal(size=shape).astype("f") for slot, shape in shapes.items() if slot != result]
    with jax.enable_x64(True):
        exact = np.asarray(REFERENCE[result](*(array.astype("d") for array in arrays), geometry, "highest"))
    errors = {}
    for implementation in IMPLEMENTATIONS:
        function, _ = contraction(result, geometry, implementation)
        errors[implementation] = np.sqrt(np.mean((np.asarray(function(*arrays)) - exact) ** 2))
    assert max(errors.values()) <= 1.1 * errors["lax"], errors
