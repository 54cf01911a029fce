"""Both steps as one primitive: four contractions of one form, none of which stores the array between the steps.

T(x, k, p, y) = sum over n, o, c, m, f, t of  x[n, o * strides + t * dilation - low, c]
                                            * k[t, c, m]
                                            * p[c, m, f]
                                            * y[n, o, f]

slot       shape        axes
input      (N, L, C)    batch, length, channel
kernel     (K, C, M)    tap, channel, multiplier
pointwise  (C, M, F)    channel, multiplier, filter
output     (N, O, F)    batch, length, filter
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._kernels import depthwise_step, dispatch, pointwise, primitive

AXES = {"input": "nlc", "kernel": "kcm", "pointwise": "cmf", "output": "nof"}
PACKED_AXES = AXES | {"runs": "nl"}


def compute(slots, *, platform: str | None, sharded: bool, **params) -> jax.Array:
    """Computes the contraction on a platform, one step after the other.

    The pointwise kernel's gradient needs the depthwise output of the forward pass. On a CPU, XLA computes that once if
    both are in one program. Elsewhere a barrier makes XLA compute it again rather than store it: it is as large as the
    input.
    """
    if params["result"] == "pointwise" and platform != "cpu":
        slots = lax.optimization_barrier(dict(slots))
    contract = functools.partial(depthwise_step.compute, platform=platform, sharded=sharded, grouped=False)
    local = None if sharded else platform
    return _steps(slots, contract=contract, platform=local, **params)


def _steps(
    slots, *, result: str, contract: Callable, precision, platform: str | None = None, **params
) -> jax.Array:
    def step(result: str, *given: str, **more) -> jax.Array:
        arrays = {slot: slots[slot] for slot in (*given, "runs") if slot in slots} | more
        return contract(arrays, result=result, precision=precision, **params)

    if result in ("input", "kernel"):
        p, y = slots["pointwise"], slots["output"]
        h = pointwise.input_gradient(lax.collapse(p, 0, 2), y, precision)
        h = h.reshape(*h.shape[:2], *p.shape[:2])
        return step(result, "kernel" if result == "input" else "input", output=h)
    h = lax.collapse(step("output", "input", "kernel"), 2)
    if result == "output":
        return pointwise.output(h, lax.collapse(slots["pointwise"], 0, 2), precision, platform == "cpu")
    parts = dispatch.parts(h.shape[2] * slots["output"].shape[2], platform)
    gradient = pointwise.kernel_gradient(h, slots["output"], precision, parts)
    return gradient.reshape(*slots["kernel"].shape[1:], gradient.shape[1])


def _batch(contract: Callable, slots: dict, dims: dict, *, result: str, **params):
    """Batches: if only sequences are batched, that is a larger batch; otherwise each step has its own rule."""
    batched = {slot: dim for slot, dim in dims.items() if dim is not None}
    if {*batched, result} == {"input", "output"} and "runs" not in slots:
        ((slot, dim),) = batched.items()
        value = jnp.moveaxis(slots[slot], dim, 0)
        out = contract(slots | {slot: lax.collapse(value, 0, 2)}, **params)
        return out.reshape(*value.shape[:2], *out.shape[1:]), 0

    def step(arrays, **params) -> jax.Array:
        bind = depthwise_step.contract_packed if "runs" in slots else depthwise_step.contract
        group = {slot: lax.expand_dims(array, (0,)) for slot, array in arrays.items()}
        return lax.squeeze(bind(group, **params), (0,))

    one = functools.partial(_steps, result=result, contract=step, **params)
    return jax.vmap(jax.checkpoint(one), (dims,))(slots), 0


contract = primitive.form("separable_conv1d", AXES, compute, _batch, widens=True)
contract_packed = primitive.form("packed_separable_conv1d", PACKED_AXES, compute, _batch, widens=True)
