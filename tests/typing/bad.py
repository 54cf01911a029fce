"""Wrong user code: each line that ends in `# error` is flagged by pyright and by mypy, and no other."""

import jax.numpy as jnp
from flax import nnx

import flax_sepconv as fsc

rngs = nnx.Rngs(0)
config = fsc.SeparableConv1DConfig(64, 3)
params = {"bias": jnp.ones(3)}

fsc.SeparableConv1D(64)  # error
fsc.SeparableConv1D("64", 3)  # error
fsc.SeparableConv1D(64, "3")  # error
fsc.SeparableConv1D(64, 3, padding="full")  # error
fsc.SeparableConv1D(64, 3, padding=1)  # error
fsc.SeparableConv1D(64, 3, kernel_regularizer="l2")  # error
fsc.SeparableConv1D(64, 3, data_format="channels")  # error
fsc.SeparableConv1D(64, 3, implementation="fast")  # error
fsc.SeparableConv1D(64, 3, activation=3)  # error
fsc.SeparableConv1D(64, 3, use_bias="no")  # error
fsc.SeparableConv1D(64, 3, name=3)  # error
fsc.SeparableConv1D(64.0, 3)  # error

fsc.nnx.SeparableConv1D(12, 64, 3)  # error
fsc.nnx.SeparableConv1D(12, 64, rngs=rngs)  # error
fsc.nnx.SeparableConv1D(12, "64", 3, rngs=rngs)  # error
fsc.nnx.SeparableConv1D(12, 64, 3, padding="full", rngs=rngs)  # error
fsc.nnx.SeparableConv1D(12, 64, 3, kernel_regularizer="l2", rngs=rngs)  # error
fsc.nnx.SeparableConv1D(12, 64, 3, rngs=0)  # error

fsc.SeparableConv1DConfig(64)  # error
fsc.SeparableConv1DConfig("64", 3)  # error
fsc.SeparableConv1DConfig(64, 3, padding="full")  # error
fsc.SeparableConv1DConfig(64, 3, strides="2")  # error
fsc.SeparableConv1DConfig(64, 3, regularizer="l2")  # error
config.filters = 3  # error
print(config.kernel)  # error

fsc.separable_conv1d(params, jnp.ones((1, 9, 3)))  # error
fsc.separable_conv1d(params, "x", config)  # error
fsc.separable_conv1d(params, jnp.ones((1, 9, 3)), config, length=3)  # error
fsc.depthwise_conv1d(jnp.ones((9, 3)), jnp.ones((3, 3, 1)), padding="full")  # error
fsc.init_params(0, "3", config)  # error
fsc.activity_loss(jnp.ones((9, 3)), "config")  # error
length: int = config.output_length(None)  # error
fsc.constrain("all")  # error
print(fsc.nothing)  # error
