"""Ordinary user code: no error in pyright nor in mypy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import flax_sepconv as fsc

# ---- Layers of Linen --------------------------------------------------------------------------------------

fsc.SeparableConv1D(64, 3)
fsc.SeparableConv1D(64, (3,), 2, "same", name="b")
fsc.SeparableConv1D(filters=64, kernel_size=[3], strides=(2,), padding="SAME", data_format="channels_first")
fsc.SeparableConv1D(64, 3, activation=jax.nn.relu, depthwise_initializer=jax.nn.initializers.he_normal())
fsc.SeparableConv1D(64, 3, activation="relu", pointwise_constraint=fsc.constraints.MaxNorm(2, axis=1))
fsc.SeparableConv1D(64, 3, depthwise_regularizer={"class_name": "L2", "config": {"l2": 0.1}}, use_bias=False)
fsc.SeparableConv1D(
    64, 3, dtype=jnp.bfloat16, param_dtype="float32", precision="highest", implementation="lax"
)
fsc.SeparableConv1D(64, 3, 1, "causal", None, 4, decode=True, parent=None)
fsc.SeparableConvolution1D(64, 3)

sequential = nn.Sequential([fsc.SeparableConv1D(8, 3), nn.relu, fsc.SeparableConv1D(4, 5, name="last")])
variables = sequential.init(jax.random.key(0), jnp.ones((1, 20, 3)))


class Block(nn.Module):
    """A model with the layer inside."""

    features: int
    padding: str = "same"

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        x = fsc.SeparableConv1D(self.features, 3, padding="same", name="conv")(x, lengths)
        return nn.LayerNorm()(x)


class Scaled(fsc.SeparableConv1D):
    """A subclass with a field of its own."""

    scale: float = 1.0

    def __call__(self, x, lengths=None, **others) -> jax.Array:
        """Scales the layer's output."""
        return self.scale * super().__call__(x, lengths, **others)


Block(8)(jnp.ones((1, 20, 3)))
Scaled(64, 3, padding="same", scale=2.0)
layer = fsc.SeparableConv1D.from_config(fsc.SeparableConv1DConfig(8, 3), name="first")
y = layer.apply(variables, np.ones((1, 20, 3)))

# ---- Layers of NNX ----------------------------------------------------------------------------------------

rngs = nnx.Rngs(0)
module = fsc.nnx.SeparableConv1D(12, 64, 3, rngs=rngs)
fsc.nnx.SeparableConv1D(12, 64, (3,), 2, "same", activation="relu", rngs=rngs, decode=False)
fsc.nnx.SeparableConv1D.from_config(12, {"filters": 8, "kernel_size": [3]}, rngs=rngs, padding="same")
norm = jnp.linalg.norm(module.depthwise_kernel[...]) + module.bias[...].sum()
module.init_cache((8,), jnp.float32)
output: jax.Array = module(np.ones((8, 20, 12)), lengths=np.array([20] * 8))


class Net(nnx.Module):
    """A model with the layer inside."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = fsc.nnx.SeparableConv1D(12, 64, 3, padding="same", rngs=rngs)
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(self.conv(x).mean(-2))


class Mine(fsc.nnx.SeparableConv1D):
    """A subclass with a constructor of its own."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, width, 3, padding="same", rngs=rngs)


Net(rngs)(jnp.ones((8, 20, 12)))
Mine(12, rngs=rngs)(jnp.ones((8, 20, 12)))

# ---- Configs and functions --------------------------------------------------------------------------------

config = fsc.SeparableConv1DConfig(64, 3, padding="same", dtype=np.float32)
receptive: int = (config.kernel_size - 1) * config.dilation_rate + 1
length: int = config.output_length(100)
unknown: None = config.output_length(None)
lengths: jax.Array = config.output_length(jnp.array([100, 30]))
counted: np.ndarray = config.output_length(np.array([100, 30]))
batch, steps, channels = config.output_shape((8, 100, 12))
known: tuple[int, ...] = config.output_shape((8, 100, 12))
partial: tuple[int | None, ...] = config.output_shape((None, 100, 12))
params = fsc.init_params(jax.random.key(0), 12, config)
y = fsc.separable_conv1d(params, np.ones((8, 100, 12)), config)
y = fsc.separable_conv1d(params, y[..., :12], config, lengths=lengths)
y = config.activation(fsc.depthwise_conv1d(y, jnp.ones((3, 64, 1)), padding="causal", implementation="taps"))
restored = fsc.SeparableConv1DConfig.from_config(config.get_config())
step = jax.jit(fsc.separable_conv1d, static_argnames="config")

state = fsc.init_stream(config, (8,), 12)
y, state = fsc.stream_step(params, jnp.ones((8, 20, 12)), state, config)
y, state = fsc.stream_step(params, y[..., :12], state, config, position=20, lengths=lengths)
late: int = config.latency + fsc.stream_latency([config]) + fsc.stream_latency({"conv": config})
position: int = config.output_position(20)
positions: jax.Array = config.output_position(jnp.array([20, 0]))

# ---- Training ---------------------------------------------------------------------------------------------

configs = fsc.layer_configs(Block(8), jnp.ones((1, 20, 3)))
for path, each in configs.items():
    print(path.upper(), each.filters + 1)
loss = fsc.regularization_loss(variables["params"], configs) + fsc.activity_loss(y, config)
optimizer = optax.chain(optax.adam(1e-3), fsc.constrain(configs), fsc.freeze(configs))
opt_state = optimizer.init(params)
updates, opt_state = optimizer.update(params, opt_state, params)
penalty: jax.Array = fsc.regularizers.L2(0.1)(jnp.ones(3))
