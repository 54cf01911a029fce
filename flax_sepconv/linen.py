"""The layer as a `flax.linen` module.

The module makes parameters and calls `separable_conv1d`; no arithmetic lives here.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_sepconv import _arguments
from flax_sepconv._layer_configs.calls import noted
from flax_sepconv._validation import check_input, check_width
from flax_sepconv.config import SeparableConv1DConfig, Weight
from flax_sepconv.functional import as_initial, separable_conv1d
from flax_sepconv.losses import store_losses
from flax_sepconv.streaming import check_streamable, init_stream, refuse_lengths, stream_step

if TYPE_CHECKING:
    _Arguments = SeparableConv1DConfig
else:
    # The config's fields once more, as a dataclass that a Linen module can inherit: Linen's are not frozen, and
    # `name` is Linen's own field.
    _Arguments = dataclasses.make_dataclass(
        "_Arguments",
        [
            (f.name, f.type, dataclasses.field(default=f.default, kw_only=f.kw_only))
            for f in dataclasses.fields(SeparableConv1DConfig)
            if f.name != "name"
        ],
    )


class SeparableConv1D(_Arguments, nn.Module):  # pyright: ignore[reportGeneralTypeIssues]
    """Depthwise separable 1-D convolution: `tf.keras.layers.SeparableConv1D` as a Linen module.

    Takes the arguments of `SeparableConv1DConfig`, in the same order, which is Keras's. Its parameters are those
    of `separable_conv1d`, by the same names.

    With `decode=True` the layer, which has to be causal, takes a sequence chunk by chunk and keeps the state of
    `stream_step` in the collection `cache`: make that mutable, and give each call the `cache` that the one before
    returned. A call without one starts a new stream; `init` makes the state before the first chunk. The cache is that
    of one place in a model: a layer that is called in several places of it cannot stream.

    When the collection `losses` is mutable, a call stores there what Keras's `layer.losses` would hold: the term
    of each regularized weight, once however often the layer is called, and the term of the output, once a call.
    Nothing is computed for it otherwise, nor by `init`.

    Args:
        decode: whether to stream. After the config's arguments, by name only.

    Raises:
        ValueError: on construction, whatever `SeparableConv1DConfig` refuses, and `decode` of a layer that cannot
            be streamed.
        TypeError: likewise.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import flax_sepconv as fsc
        >>> layer = fsc.SeparableConv1D(64, 3, padding="same", activation="relu", depthwise_regularizer="l2")
        >>> x = jnp.ones((8, 100, 12))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(variables, x, mutable=["losses"])
        >>> y.shape, list(state["losses"])
        ((8, 100, 64), ['depthwise_kernel'])
    """

    decode: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        config = self.config  # refuses what a config refuses
        if _arguments.boolean("decode", self.decode):
            check_streamable(config)

    @property
    def config(self) -> SeparableConv1DConfig:
        """The layer's arguments as a config, under the module's name."""
        return SeparableConv1DConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(SeparableConv1DConfig)}
        )

    @nn.compact
    def __call__(self, x, lengths=None) -> jax.Array:
        """Applies the layer to `(*batch, length, in_features)`, or channels_first as its config says.

        With `lengths` `(*batch,)`, what stands in `x` beyond them reaches no output, as `separable_conv1d` has it.
        With `decode=True`, `x` is the next chunk of a stream, as `stream_step` has it.
        """
        config = self.config
        check_width("param_dtype", config.param_dtype)
        params = {}
        x = check_input(x, config)
        for weight in config.weights(x.shape[config.channel_axis]):
            params[weight.name] = self.param(weight.name, functools.partial(_draw, weight, config))
        params = noted(params, config)
        if self.decode:
            refuse_lengths(lengths)
            y = self._stream(params, jnp.asarray(x), config)
        else:
            y = separable_conv1d(params, x, config, lengths=lengths)
        if self.is_mutable_collection("losses") and not self.is_initializing():
            store_losses(functools.partial(self.sow, "losses"), params, y, config)
        return y

    def _stream(self, params, x, config: SeparableConv1DConfig) -> jax.Array:
        of_stream = x.shape[:-2], x.shape[config.channel_axis], x.dtype
        cache = self.variable("cache", "inputs", init_stream, config, *of_stream)
        y, state = stream_step(params, x, cache.value, config)
        if not self.is_initializing():
            cache.value = state
        return y


SeparableConvolution1D = SeparableConv1D
"""Keras's other name of the layer."""


def _draw(weight: Weight, config: SeparableConv1DConfig, key):
    """The initial value of a weight, in whatever box its initializer puts it."""
    drawn = weight.initializer(key, weight.shape, config.param_dtype)
    return jax.tree.map(lambda value: as_initial(value, weight, config), drawn)
