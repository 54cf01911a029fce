"""Depthwise separable 1-D convolution for JAX and Flax: `tf.keras.layers.SeparableConv1D`, complete.

Config, then parameters, then function, then loss terms, then optax transforms:

    config = fsc.SeparableConv1DConfig(64, 3, padding="same", activation="relu")
    params = fsc.init_params(key, in_features, config)
    y = fsc.separable_conv1d(params, x, config)
    loss = data_loss + fsc.regularization_loss(params, config) + fsc.activity_loss(y, config)
    optimizer = fsc.constrained(optax.adam(1e-3), config)

For Flax models, `fsc.SeparableConv1D` is the layer in `flax.linen` and `fsc.nnx.SeparableConv1D` in `flax.nnx`;
`fsc.layer_configs(model, x)` takes the place of `config`. `lengths=` is for batches of sequences of different lengths,
`fsc.init_stream` and `fsc.stream_step` are for sequences that arrive chunk by chunk.
"""

import importlib
from typing import TYPE_CHECKING

from flax_sepconv import activations, constraints, initializers, parallel, regularizers
from flax_sepconv._layer_configs import layer_configs
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.functional import depthwise_conv1d, init_params, separable_conv1d
from flax_sepconv.linen import SeparableConv1D, SeparableConvolution1D
from flax_sepconv.losses import activity_loss, regularization_loss
from flax_sepconv.streaming import init_stream, stream_latency, stream_step
from flax_sepconv.transforms import constrain, constrained, freeze

if TYPE_CHECKING:
    from flax_sepconv import interop, nnx

__version__ = "0.2.0"

__all__ = [
    "SeparableConv1D",
    "SeparableConv1DConfig",
    "SeparableConvolution1D",
    "activations",
    "activity_loss",
    "constrain",
    "constrained",
    "constraints",
    "depthwise_conv1d",
    "freeze",
    "init_params",
    "init_stream",
    "initializers",
    "interop",
    "layer_configs",
    "nnx",
    "parallel",
    "regularization_loss",
    "regularizers",
    "separable_conv1d",
    "stream_latency",
    "stream_step",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"]


if not TYPE_CHECKING:  # or a type checker would accept any name

    def __getattr__(name: str) -> object:
        # `flax.nnx` takes as long to import as everything else here, so it is imported on first use.
        if name in ("interop", "nnx"):
            return importlib.import_module(f"flax_sepconv.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
