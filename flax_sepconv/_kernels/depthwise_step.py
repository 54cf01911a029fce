"""The depthwise step as a primitive: three contractions of one trilinear form.

    T(x, k, y) = sum over g, n, o, c, m, t of  x[g, n, o * strides + t * dilation - low, c]
                                             * k[g, t, c, m]
                                             * y[g, n, o, c, m]

    slot      shape              axes
    input     (G, N, L, C)       group, batch, length, channel
    kernel    (G, K, C, M)       group, tap, channel, multiplier
    output    (G, N, O, C, M)    group, batch, length, channel, multiplier

A group has its own kernel: one for an ordinary layer, as many as examples for per-example gradients. So every array
has an axis that takes a batch of `vmap`: of inputs it is more batch, of kernels more multipliers, and of all three
more groups.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._dtypes import wide
from flax_sepconv._kernels import dispatch, primitive, sharding
from flax_sepconv._window import Window

AXES = {"input": "gnlc", "kernel": "gkcm", "output": "gnocm"}


def compute(
    slots: Mapping[str, Any],
    *,
    result: str,
    platform,
    sharded: bool,
    window: Window,
    precision,
    implementation,
) -> jax.Array:
    """The contraction as a platform computes it, from the two arrays that are given."""
    a, b = (slots[slot] for slot in AXES if slot != result)
    channels, multiplier = slots.get("kernel", slots.get("output")).shape[-2:]
    plan = dispatch.plan(result, window, channels * multiplier, platform, implementation)

    def one(a, b):
        # float16 and bfloat16 are multiplied and accumulated in float32, where their products are exact.
        wide_a, wide_b = a.astype(wide(a.dtype)), b.astype(wide(b.dtype))
        return dispatch.contraction(plan, result, wide_a, wide_b, window, precision).astype(a.dtype)

    def function(a, b):
        if a.shape[0] == 1:
            return lax.expand_dims(one(lax.squeeze(a, (0,)), lax.squeeze(b, (0,))), (0,))
        return jax.vmap(one)(a, b)

    if sharded and plan.is_local:
        operands = [axes for slot, axes in AXES.items() if slot != result]
        function = sharding.per_device(function, operands, AXES[result])
    return function(a, b)


# Into which axis a batch goes, by the slots that have it.
_FOLDS = {
    frozenset({"input", "output"}): {"input": 1, "output": 1},
    frozenset({"kernel", "output"}): {"kernel": 3, "output": 4},
    frozenset(AXES): {"input": 0, "kernel": 0, "output": 0},
}


def _batch(contract: Callable, slots: dict, dims: dict, *, result: str, **params):
    batched = {slot: dim for slot, dim in dims.items() if dim is not None}
    size = next(slots[slot].shape[dim] for slot, dim in batched.items())
    folds = _FOLDS.get(frozenset({*batched, result}), _FOLDS[frozenset(AXES)])
    sizes: dict[str, Any] = {}  # of one of the batch
    folded = {}
    for slot, value in slots.items():
        if slot in batched:
            value = jnp.moveaxis(value, batched[slot], 0)
        elif slot in folds:  # an input and a kernel with a batch in common need it in the output too
            value = jnp.broadcast_to(value, (size, *value.shape))
        sizes |= zip(AXES[slot], value.shape[1:] if slot in folds else value.shape, strict=True)
        if slot in folds:
            axis = folds[slot]
            value = lax.collapse(jnp.moveaxis(value, 0, axis), axis, axis + 2)
        folded[slot] = value
    out = contract(folded, **params)
    axis = folds[result]
    return out.reshape(*out.shape[:axis], size, sizes[AXES[result][axis]], *out.shape[axis + 1 :]), axis


contract = primitive.form("depthwise_conv1d", AXES, compute, _batch, widens=False)
