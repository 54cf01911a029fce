"""What the compiled programs are like: how much they keep and need, and what is compiled once."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

import flax_sepconv as fsc


def layer(channels, shape, kernel_size, filters=8, **arguments):
    """A config, parameters and an input."""
    config = fsc.SeparableConv1DConfig(filters, kernel_size, **{"padding": "same"} | arguments)
    return config, fsc.init_params(jax.random.key(0), channels, config), jnp.ones((*shape, channels))


def with_gradients(config):
    return jax.value_and_grad(lambda p, x: (fsc.separable_conv1d(p, x, config) ** 2).sum(), (0, 1))


@pytest.mark.parametrize("multiplier", [1, 4])
def test_a_layer_keeps_its_input_and_its_parameters_only(multiplier):
    config, params, x = layer(2, (4, 50), 3, depth_multiplier=multiplier)
    members = jax.tree.map(lambda a: jnp.stack([a] * 5), params)
    apply = functools.partial(fsc.separable_conv1d, config=config)
    for function, of in [(apply, params), (jax.vmap(apply, (0, None)), members)]:
        _, vjp = jax.vjp(function, of, x)
        kept = sum(leaf.size for leaf in jax.tree.leaves(vjp))
        assert kept <= x.size + sum(leaf.size for leaf in jax.tree.leaves(of))


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 8), (25, 8), (40, 512)])
def test_equal_calls_are_lowered_once(kernel_size, channels):
    config, params, x = layer(channels, (2, 120), kernel_size, filters=channels)
    params = [params] * 3  # a network of equal layers

    def loss(params, x):
        for of_layer in params:
            x = fsc.separable_conv1d(of_layer, x, config)
        return (x**2).sum()

    program = jax.jit(jax.value_and_grad(loss)).lower(params, x).as_text()
    calls = re.findall(r"func\.func private @\w+(.*?)\n  }", program, re.DOTALL)
    assert calls
    assert len(set(calls)) == len(calls)


def test_sums_are_fused_with_nothing_that_moves_data():
    # With a transpose or a pad they would not vectorize.
    for kernel_size, channels in [(12, 16), (40, 512)]:
        config, params, x = layer(
            channels, (2, 120), kernel_size, depth_multiplier=16 // min(channels, 16) or 1
        )
        program = jax.jit(with_gradients(config)).lower(params, x).compile().as_text()
        summing = [each for each in program.split("\n\n") if len(re.findall(r" multiply\(", each)) > 10]
        assert summing
        assert not [each for each in summing if re.search(r" (transpose|pad)\(", each)]


@pytest.mark.parametrize("kernel_size", [3, 12, 25])  # a reduction, one sum, two parts
def test_the_kernels_gradient_is_not_copied_for_an_axis_of_size_one(kernel_size):
    config, params, x = layer(64, (2, 120), kernel_size)
    program = jax.jit(jax.grad(lambda p: with_gradients(config)(p, x)[0])).lower(params).compile().as_text()
    # XLA's other order of these axes is the same in memory, but it writes a kernel from one to the other.
    assert f"f32[{kernel_size},64,1]{{2,1,0}}" in program
    assert f"f32[{kernel_size},64,1]{{1,0,2}}" not in program


def copies(kernel_size, length, **options):
    """Sizes of what is padded by itself in the compiled program of the output and all gradients."""
    config, params, x = layer(8, (2, length), kernel_size, **options)

    def value_and_gradients(params, x):
        y, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
        return y, vjp(y)

    program = jax.jit(value_and_gradients).lower(params, x).compile().as_text()
    roots = re.findall(r"ROOT \S+ = f32\[([\d,]+)\]\S* (?:pad|bitcast)\(%pad", program)
    roots += re.findall(r"ROOT \S+ = f32\[([\d,]+)\]\S* pad\(", program)
    return [math.prod(map(int, dims.split(","))) for dims in roots]


@pytest.mark.parametrize("kernel_size", [9, 12, 25])
def test_both_gradients_share_one_padded_copy(kernel_size):
    of_input, of_cotangent = 1, 1
    assert len(copies(kernel_size, 120)) == of_input + of_cotangent


@pytest.mark.parametrize("options", [{}, {"dilation_rate": 4}, {"padding": "causal"}], ids=str)
@pytest.mark.parametrize("kernel_size", [2, 5])
def test_few_taps_copy_nothing(kernel_size, options):
    assert not copies(kernel_size, 121, **options)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (3, {}),
        (8, {"padding": "causal"}),
        (7, {"dilation_rate": 8}),
        (17, {"strides": 4}),
        (33, {"padding": "valid"}),
    ],
)
def test_an_output_of_few_shifts_copies_no_input(kernel_size, options):
    def temporary_bytes(implementation):
        config = fsc.SeparableConv1DConfig(
            64, kernel_size, implementation=implementation, **{"padding": "same"} | options
        )
        params = jax.eval_shape(lambda key: fsc.init_params(key, 64, config), jax.random.key(0))
        forward = jax.jit(functools.partial(fsc.separable_conv1d, config=config))
        lowered = forward.lower(params, jax.ShapeDtypeStruct((4, 500, 64), "float32"))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None) <= temporary_bytes("lax")


@pytest.mark.parametrize(
    ("shape", "arguments", "most"),
    [
        ((8, 1024, 128), {"filters": 128, "kernel_size": 5}, 1),
        ((4, 400, 256), {"filters": 256, "kernel_size": 31}, 1),
        ((8, 512, 128), {"filters": 196, "kernel_size": 17, "strides": 4}, 1),
        # No copy of the input is kept for the kernel's gradient: padded, filling a block, or with channels repeated.
        ((4, 500, 64), {"filters": 64, "kernel_size": 16}, 0.6),
        ((8, 331, 96), {"filters": 96, "kernel_size": 21}, 0.6),
        ((8, 500, 4), {"filters": 64, "kernel_size": 8, "depth_multiplier": 8}, 0.6),
    ],
)
def test_gradients_take_no_more_memory_than_those_of_the_grouped_convolution(shape, arguments, most):
    def temporary_bytes(implementation):
        config = fsc.SeparableConv1DConfig(**arguments, padding="same", implementation=implementation)
        params = jax.eval_shape(lambda key: fsc.init_params(key, shape[-1], config), jax.random.key(0))
        y = jax.ShapeDtypeStruct((shape[0], config.output_length(shape[1]), config.filters), "float32")

        def value_and_gradients(params, x, cotangent):
            y, vjp = jax.vjp(functools.partial(fsc.separable_conv1d, config=config), params, x)
            return y, vjp(cotangent)

        lowered = jax.jit(value_and_gradients).lower(params, jax.ShapeDtypeStruct(shape, "float32"), y)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None) <= most * temporary_bytes("lax")
