"""The depthwise step as a primitive: three contractions of one trilinear form.

    T(x, k, y) = sum over g, n, o, c, m, t of  x[g, n, o * strides + t * dilation - low, c]
                                             * k[g, t, c, m]
                                             * y[g, n, o, c, m]

    slot      shape              axes
    input     (G, N, L, C)       group, batch, length, channel
    kernel    (G, K, C, M)       group, tap, channel, multiplier
    output    (G, N, O, C, M)    group, batch, length, channel, multiplier

Each group has its own kernel: an ordinary layer is one group, and per-example gradients have one group an example. So
every array has an axis that a `vmap` can fold into: batched inputs are a larger batch, batched kernels are more
multipliers, and where all three are batched there are more groups.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._dtypes import wide
from flax_sepconv._kernels import dispatch, primitive, sharding
from flax_sepconv._window import Window

AXES = {"input": "gnlc", "kernel": "gkcm", "output": "gnocm"}
PACKED_AXES = AXES | {"runs": "gnl"}
"""Adds the run of each time step in packed rows: only terms within one run count."""


def compute(
    slots, *, result: str, platform, sharded: bool, window: Window, precision, implementation, grouped=True
) -> jax.Array:
    """Computes the contraction on a platform from the arrays that are given; `grouped` if they have the first axis."""
    given = [slot for slot in PACKED_AXES if slot in slots]
    channels, multiplier = slots.get("kernel", slots.get("output")).shape[-2:]
    plan = dispatch.plan(result, window, channels * multiplier, platform, implementation, "runs" in slots)

    def one(a, b, *runs):
        # float16 and bfloat16 are multiplied and accumulated in float32, where their products are exact.
        wide_a, wide_b = a.astype(wide(a.dtype)), b.astype(wide(b.dtype))
        more = {"window": window, "precision": precision}
        return dispatch.contraction(plan, result, wide_a, wide_b, *runs, **more).astype(a.dtype)

    def groups(*arrays):
        if arrays[0].shape[0] == 1:
            return lax.expand_dims(one(*(lax.squeeze(array, (0,)) for array in arrays)), (0,))
        return jax.vmap(one)(*arrays)

    function = groups if grouped else one
    if sharded and plan.is_local:
        first = 0 if grouped else 1
        operands = [PACKED_AXES[slot][first:] for slot in given]
        function = sharding.per_device(function, operands, AXES[result][first:])
    return function(*(slots[slot] for slot in given))


# The axis that a batch is folded into, by the slots that are batched.
_FOLDS = {
    frozenset({"input", "output"}): {"input": 1, "output": 1, "runs": 1},
    frozenset({"kernel", "output"}): {"kernel": 3, "output": 4},
    frozenset(AXES): {"input": 0, "kernel": 0, "output": 0, "runs": 0},
}


def _batch(contract: Callable, slots: dict, dims: dict, *, result: str, **params):
    batched = {slot: dim for slot, dim in dims.items() if dim is not None}
    size = next(slots[slot].shape[dim] for slot, dim in batched.items())
    own = {"input" if slot == "runs" else slot for slot in batched}  # runs belong to the input
    folds = _FOLDS.get(frozenset({*own, result}), _FOLDS[frozenset(AXES)])
    sizes: dict[str, Any] = {}  # of one element of the batch
    folded = {}
    for slot, value in slots.items():
        if slot in batched:
            value = jnp.moveaxis(value, batched[slot], 0)
        elif slot in folds:  # a batch that an input and a kernel share must be in the output too
            value = jnp.broadcast_to(value, (size, *value.shape))
        sizes |= zip(PACKED_AXES[slot], value.shape[1:] if slot in folds else value.shape, strict=True)
        if slot in folds:
            axis = folds[slot]
            value = lax.collapse(jnp.moveaxis(value, 0, axis), axis, axis + 2)
        folded[slot] = value
    out = contract(folded, **params)
    axis = folds[result]
    return out.reshape(*out.shape[:axis], size, sizes[AXES[result][axis]], *out.shape[axis + 1 :]), axis


contract = primitive.form("depthwise_conv1d", AXES, compute, _batch, widens=False)
contract_packed = primitive.form("packed_depthwise_conv1d", PACKED_AXES, compute, _batch, widens=False)
