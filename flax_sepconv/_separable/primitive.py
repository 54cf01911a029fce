"""Both steps as one JAX primitive, so that a platform may join them as it likes.

They are one of four contractions of the same form,

    T(x, k, p, y) = sum over n, o, m, c, f, t of  x[n, o * strides + t * dilation - low, c]
                                                * k[t, c, m]
                                                * p[c * M + m, f]
                                                * y[n, o, f]

namely its derivative with respect to `y`; the other three are the gradients. As for the depthwise step alone, the
derivatives and transposes of each are among the others, so one primitive with four values of `result` is closed under
them. None needs the depthwise output from outside, so nothing but its arguments is kept for a backward pass.

    slot       shape          axes
    input      (N, L, C)      batch, length, channel
    kernel     (K, C, M)      tap, channel, multiplier
    pointwise  (C * M, F)     channel and multiplier, filter
    output     (N, O, F)      batch, length, filter

A bias is one more row of `pointwise`, which the depthwise output meets with a channel of ones.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from flax_sepconv._depthwise import implementations
from flax_sepconv._depthwise.geometry import Geometry
from flax_sepconv._depthwise.partitioning import asks_for_devices, lower, result_sharding
from flax_sepconv._depthwise.primitive import alike
from flax_sepconv._dtypes import wide
from flax_sepconv._separable import steps
from flax_sepconv._separable.steps import AXES, SLOTS


def contract(slots: Mapping[str, Any], *, bias: bool, differentiated: bool = False, **params) -> jax.Array:
    """The contraction of three slots' arrays, in the shape of the fourth slot.

    Args:
        slots: three arrays by the names of their slots, all of one dtype but for the output's, which is at least
            float32.
        bias: whether `pointwise` has, or is to have, a row for it.
        differentiated: whether there may be gradients in the same program, with which a platform may share work.
        **params: `geometry`, `precision` and `implementation`.
    """
    (result,) = (slot for slot in SLOTS if slot not in slots)
    if bias and result in ("input", "kernel"):  # it has no part in these
        slots, bias = {**slots, "pointwise": slots["pointwise"][:-1]}, False
    arrays = alike([slots[slot] for slot in SLOTS if slot in slots])
    params |= {"devices": asks_for_devices(), "differentiated": differentiated}
    return separable_p.bind(*arrays, result=result, bias=bias, **params)


separable_p = Primitive("separable_conv1d")


def _operands(result: str) -> list[str]:
    return [slot for slot in SLOTS if slot != result]


separable_p.def_impl(functools.partial(xla.apply_primitive, separable_p))


@separable_p.def_abstract_eval
def _abstract(*arrays, result, geometry: Geometry, bias, **_):
    avals = dict(zip(_operands(result), arrays, strict=True))
    shapes = {slot: aval.shape for slot, aval in avals.items()}
    dtype = next(aval.dtype for slot, aval in avals.items() if slot != "output")
    if result == "input":
        (n, *_), (_, c, _) = shapes["output"], shapes["kernel"]
        shape = (n, geometry.length, c)
    elif result == "kernel":
        *_, c = shapes["input"]
        shape = (geometry.kernel_size, c, shapes["pointwise"][0] // c)
    elif result == "pointwise":
        (_, c, m), (*_, f) = shapes["kernel"], shapes["output"]
        shape = (c * m + bias, f)
    else:
        (n, *_), (_, f) = shapes["input"], shapes["pointwise"]
        shape, dtype = (n, geometry.output_length, f), wide(dtype)
    return arrays[0].update(
        shape=shape, dtype=dtype, weak_type=False, sharding=result_sharding(AXES, result, *arrays)
    )


# --- Derivatives ---------------------------------------------------------------------------------------------


def _jvp(primals, tangents, *, result, bias, **params):
    params["differentiated"] = True
    slots = dict(zip(_operands(result), primals, strict=True))
    out = contract(slots, bias=bias, **params)
    # The ones that the bias meets do not change with the input or the kernel, nor does that row of a gradient.
    unbiased = slots | {"pointwise": slots["pointwise"][:-1]} if bias and result == "output" else slots
    terms = []
    for slot, tangent in zip(slots, tangents, strict=True):
        if type(tangent) is ad.Zero:
            continue
        constant = bias and slot in ("input", "kernel")
        given = unbiased if constant else slots
        term = contract(given | {slot: tangent}, bias=bias and not constant, **params)
        terms.append(jnp.pad(term, ((0, 1), (0, 0))) if constant and result == "pointwise" else term)
    return out, functools.reduce(jnp.add, terms)  # JAX does not ask where every tangent is zero


def _transpose(cotangent, *arrays, result, bias, **params):
    slots = dict(zip(_operands(result), arrays, strict=True))
    (linear,) = (slot for slot, value in slots.items() if ad.is_undefined_primal(value))
    if type(cotangent) is ad.Zero:
        gradient = ad.Zero(slots[linear].aval)
    else:
        given = {slot: value for slot, value in slots.items() if slot != linear}
        gradient = contract(given | {result: cotangent}, bias=bias, **params)
    return [gradient if slot == linear else None for slot in slots]


ad.primitive_jvps[separable_p] = _jvp
ad.primitive_transposes[separable_p] = _transpose


# --- Batching ------------------------------------------------------------------------------------------------


def _batch(arrays, dims, *, result, devices, differentiated, **params):
    """A batch of sequences is more batch; for any other, each of the two steps knows what to do."""
    operands = _operands(result)
    batched = {slot: dim for slot, dim in zip(operands, dims, strict=True) if dim is not None}
    if {*batched, result} != {"input", "output"}:
        one = functools.partial(steps.apart, result=result, differentiated=differentiated, **params)
        one = jax.checkpoint(one)
        return jax.vmap(one, dims)(*arrays), 0
    ((slot, dim),) = batched.items()
    slots = dict(zip(operands, arrays, strict=True))
    value = jnp.moveaxis(slots[slot], dim, 0)
    out = contract(slots | {slot: lax.collapse(value, 0, 2)}, differentiated=differentiated, **params)
    return out.reshape(*value.shape[:2], *out.shape[1:]), 0


batching.primitive_batchers[separable_p] = _batch


# --- Lowering ------------------------------------------------------------------------------------------------


def _lowering(platform: str | None):
    def rule(ctx, *operands, devices, **params):
        steps_of_platform = steps.joined if platform == "cpu" else steps.recomputing
        return lower(functools.partial(steps_of_platform, **params), ctx, *operands)

    return rule


mlir.register_lowering(separable_p, _lowering(None))
for _platform in implementations.PLATFORMS:
    mlir.register_lowering(separable_p, _lowering(_platform), platform=_platform)
