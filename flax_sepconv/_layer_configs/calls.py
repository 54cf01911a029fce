"""A primitive by which a layer notes its call in a traced program, with its config and weights.

The primitive returns the weights as they came. Layers bind it only while `layer_configs` traces a model; `origins` then
reads from the program which of the model's stored parameters the weights were.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flax_sepconv.config import SeparableConv1DConfig

# A user context is part of jit's cache key, so that what `nn.jit` has traced before is traced again.
tracing = jax.make_user_context(False)

call_p = Primitive("separable_conv1d_call")
call_p.multiple_results = True


def noted(params: Mapping[str, Any], config: SeparableConv1DConfig) -> dict[str, Any]:
    """Returns a layer's weights as they came, and notes them if `layer_configs` is tracing the model.

    Args:
        params: the weights that the layer computes with, by name and in the order of `config.weights`.
        config: the layer's arguments.
    """
    if not tracing.value:
        return dict(params)
    own = tuple(tuple(range(value.ndim)) for value in params.values())
    return dict(zip(params, call_p.bind(*params.values(), config=config, own=own), strict=True))


@call_p.def_impl
def _impl(*weights, **_):
    return weights


@call_p.def_abstract_eval
def _abstract(*weights, **_):
    return weights


def _jvp(weights, tangents, **params):
    return call_p.bind(*weights, **params), tangents


def _batch(weights, dims, *, own, config):
    """Batches: `own` are the axes of one layer's weights, without those that `vmap` adds."""
    own = tuple(
        axes if dim is None else tuple(axis + (axis >= dim) for axis in axes)
        for axes, dim in zip(own, dims, strict=True)
    )
    return call_p.bind(*weights, own=own, config=config), dims


ad.primitive_jvps[call_p] = _jvp
batching.primitive_batchers[call_p] = _batch
mlir.register_lowering(call_p, lambda ctx, *weights, **_: weights)
