"""Whatever JAX can do with a plain convolution it can do with the layer, in every implementation and of packed rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify, jet, ode, sparse

import flax_sepconv as fsc
from flax_sepconv._kernels import IMPLEMENTATIONS
from tests.reference import assert_close

CHANNELS = 2  # and as many filters, for a layer that is a differential equation
IDS = np.repeat([1, 2], [5, 4])[None]
CONFIG = fsc.SeparableConv1DConfig(CHANNELS, 3, padding="same", activation="tanh", bias_initializer="normal")
PARAMS = fsc.init_params(jax.random.key(0), CHANNELS, CONFIG)
X = jax.random.normal(jax.random.key(1), (1, IDS.size, CHANNELS))


def plain(params, x):
    """The layer in operations of JAX alone."""
    convolve = functools.partial(
        lax.conv_general_dilated, window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    kernel = params["depthwise_kernel"].reshape(3, 1, CHANNELS)
    h = convolve(x, kernel, feature_group_count=CHANNELS)
    return jnp.tanh(convolve(h, params["pointwise_kernel"]) + params["bias"])


def plain_packed(params, x):
    return jnp.concatenate([plain(params, x[:, :5]), plain(params, x[:, 5:])], axis=1)


def packed(params, x):
    return fsc.separable_conv1d(params, x, CONFIG, segment_ids=IDS)


def layer(implementation):
    config = fsc.SeparableConv1DConfig(
        CHANNELS, 3, padding="same", activation="tanh", implementation=implementation
    )
    return lambda params, x: fsc.separable_conv1d(params, x, config)


FORMS = {name: (layer(name), plain) for name in IMPLEMENTATIONS} | {"packed": (packed, plain_packed)}


def loss(function):
    return lambda params, x: jnp.sum(function(params, x) ** 2)


def taylor(function):
    arrays, tree = jax.tree.flatten((PARAMS, X))  # `jet` takes arrays alone
    series = [(jnp.cos(array), array, jnp.sin(array)) for array in arrays]
    return jax.jit(lambda *args: jet.jet(lambda *arrays: function(*tree.unflatten(arrays)), *args))(
        arrays, series
    )


def taylor_of_a_gradient(function):
    gradient = jax.grad(loss(function), 1)
    return jax.jit(lambda x: jet.jet(lambda x: gradient(PARAMS, x), (x,), ((x, jnp.cos(x)),)))(X)


def checked(function):
    error, out = jax.jit(checkify.checkify(jax.grad(loss(function)), errors=checkify.float_checks))(PARAMS, X)
    error.throw()
    return out


def sparsified(function):
    return sparse.sparsify(function)(PARAMS, X)


def wide(function):
    with jax.enable_x64(True):
        return jax.jit(jax.grad(loss(function)))(*jax.tree.map(lambda a: a.astype("float64"), (PARAMS, X)))


def linear(function):
    @jax.jit
    def both(params, x):
        y, tangent = jax.linearize(function, params, x)
        return tangent(params, x), jax.linear_transpose(tangent, params, x)(y)

    return both(PARAMS, X)


def hessian(function):
    of_kernel = jax.hessian(lambda kernel: loss(function)(PARAMS | {"depthwise_kernel": kernel}, X))
    return jax.jit(of_kernel)(PARAMS["depthwise_kernel"])


def of_custom_batches(function):
    batched = jax.custom_batching.sequential_vmap(function)
    return jax.vmap(batched, (None, 0))(PARAMS, jnp.stack([X, 2 * X]))


def differential_equation(function):
    def end(params):
        return jnp.sum(ode.odeint(lambda y, _: function(params, y), X, jnp.array([0.0, 0.5]))[1])

    return jax.jit(jax.grad(end))(PARAMS)


def rematerialized(function):
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.jit(jax.grad(jax.checkpoint(loss(function), policy=keep), (0, 1)))(PARAMS, X)


def without_jit(function):
    with jax.disable_jit(), jax.checking_leaks():
        return function(PARAMS, X)


TRANSFORMATIONS = [
    taylor,
    taylor_of_a_gradient,
    checked,
    sparsified,
    wide,
    linear,
    hessian,
    of_custom_batches,
    differential_equation,
    rematerialized,
    without_jit,
]


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_as_of_a_plain_convolution(transformation):
    expected = {}
    for ours, theirs in FORMS.values():
        if theirs not in expected:
            expected[theirs] = transformation(theirs)
        jax.tree.map(assert_close, transformation(ours), expected[theirs])
