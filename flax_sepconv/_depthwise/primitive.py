"""The depthwise step as a JAX primitive that every transformation knows.

The step is one of three contractions of the same trilinear form,

    T(x, k, y) = sum over g, n, o, m, c, t of  x[g, n, o * strides + t * dilation - low, c]
                                             * k[g, t, m, c]
                                             * y[g, n, o, m, c]

namely its derivative with respect to `y`; those with respect to `x` and `k` are its two gradients. Each is
bilinear in the two arrays that are left, and the derivatives and transposes of each are the other two. So one
primitive with three values of `result` is closed under `jvp`, `transpose` and, with them, `grad`, `hessian` and
the rest; and since every array has axes to fold a batch into, it is closed under `vmap` too.

    slot      shape              axes
    input     (G, N, L, C)       group, batch, length, channel
    kernel    (G, K, M, C)       group, tap, multiplier, channel
    output    (G, N, O, M, C)    group, batch, length, multiplier, channel

Channels are the minor axis throughout, so that they fill the lanes of a vector unit. A group has its own kernel:
one group for an ordinary layer, as many as examples for per-example gradients.
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
from flax_sepconv._depthwise.partitioning import AXES, asks_for_devices, lower, result_sharding
from flax_sepconv._dtypes import wide

SLOTS = tuple(AXES)


def contract(slots: Mapping[str, Any], *, differentiated: bool = False, **params) -> jax.Array:
    """The contraction of two slots' arrays, in the shape of the third slot.

    Args:
        slots: two arrays of one dtype, by the names of their slots.
        differentiated: whether there may be gradients in the same program.
        **params: `geometry`, `precision` and `implementation`.
    """
    (result,) = (slot for slot in SLOTS if slot not in slots)
    arrays = alike([slots[slot] for slot in SLOTS if slot in slots])
    params |= {"devices": asks_for_devices(), "differentiated": differentiated}
    return depthwise_p.bind(*arrays, result=result, **params)


depthwise_p = Primitive("depthwise_conv1d")


def _operands(result: str) -> tuple[str, str]:
    a, b = (slot for slot in SLOTS if slot != result)
    return a, b


def alike(arrays):
    """Under `shard_map`, what varies along a mesh axis can only meet what is marked as varying too."""
    varying = [_varying(jax.typeof(array)) for array in arrays]
    union = frozenset().union(*varying)
    return [
        _vary(array, tuple(union - own)) if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def _vary(array, axes: tuple[str, ...]) -> jax.Array:
    if hasattr(lax, "pcast"):
        return lax.pcast(array, axes, to="varying")
    return lax.pvary(array, axes)  # pyright: ignore[reportAttributeAccessIssue]  # JAX 0.8


def _varying(aval) -> frozenset[str]:
    # JAX 0.10 moved what was `vma`.
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma


depthwise_p.def_impl(functools.partial(xla.apply_primitive, depthwise_p))


@depthwise_p.def_abstract_eval
def _abstract(a, b, *, result, geometry: Geometry, **_):
    shape = _shape(result, a, b, geometry)
    return a.update(shape=shape, weak_type=False, sharding=result_sharding(AXES, result, a, b))


def _shape(result: str, a, b, geometry: Geometry) -> tuple[int, ...]:
    shapes = dict(zip(_operands(result), (a.shape, b.shape), strict=True))
    if result == "output":
        (g, n, _, c), (_, _, m, _) = shapes["input"], shapes["kernel"]
        return g, n, geometry.output_length, m, c
    if result == "input":
        (*_, c), (g, n, *_) = shapes["kernel"], shapes["output"]
        return g, n, geometry.length, c
    g, _, _, m, c = shapes["output"]
    return g, geometry.kernel_size, m, c


# --- Derivatives ---------------------------------------------------------------------------------------------


def _jvp(primals, tangents, *, result, **params):
    params["differentiated"] = True
    slots = dict(zip(_operands(result), primals, strict=True))
    out = contract(slots, **params)
    terms = [
        contract(slots | {slot: tangent}, **params)
        for slot, tangent in zip(slots, tangents, strict=True)
        if type(tangent) is not ad.Zero
    ]
    return out, functools.reduce(jnp.add, terms)  # JAX does not ask where every tangent is zero


def _transpose(cotangent, a, b, *, result, **params):
    slots = dict(zip(_operands(result), (a, b), strict=True))
    (linear,) = (slot for slot, value in slots.items() if ad.is_undefined_primal(value))
    if type(cotangent) is ad.Zero:
        gradient = ad.Zero(slots[linear].aval)
    else:
        gradient = contract({s: v for s, v in slots.items() if s != linear} | {result: cotangent}, **params)
    return [gradient if slot == linear else None for slot in slots]


ad.primitive_jvps[depthwise_p] = _jvp
ad.primitive_transposes[depthwise_p] = _transpose


# --- Batching ------------------------------------------------------------------------------------------------

# Into which axis a batch goes, by the slots that have it. A batch of inputs is more batch, a batch of kernels more
# multipliers (the outputs of one input), and a batch of all three more groups.
_FOLDS = {
    frozenset({"input", "output"}): {"input": 1, "output": 1},
    frozenset({"kernel", "output"}): {"kernel": 2, "output": 3},
    frozenset(SLOTS): {"input": 0, "kernel": 0, "output": 0},
}


def _batch(args, dims, *, result, **params):
    slots = dict(zip(_operands(result), args, strict=True))
    batched = {slot: dim for slot, dim in zip(slots, dims, strict=True) if dim is not None}
    size = next(slots[slot].shape[dim] for slot, dim in batched.items())
    having = frozenset({*batched, result})
    folds = _FOLDS.get(having, _FOLDS[frozenset(SLOTS)])
    folded = {}
    for slot, value in slots.items():
        if slot in batched:
            value = jnp.moveaxis(value, batched[slot], 0)
        elif slot in folds:  # an input and a kernel with a batch in common need it in the output too
            value = jnp.broadcast_to(value, (size, *value.shape))
        folded[slot] = _fold(value, folds[slot]) if slot in folds else value
    out = contract(folded, **params)
    axis = folds[result]
    letter = AXES[result][axis]
    slot = next(slot for slot in slots if letter in AXES[slot])  # says how much one of the batch has
    one = [n for i, n in enumerate(slots[slot].shape) if i != batched.get(slot)][AXES[slot].index(letter)]
    return out.reshape(*out.shape[:axis], size, one, *out.shape[axis + 1 :]), axis


def _fold(value, axis: int):
    """Merges the first axis into the one that is at `axis` without it."""
    return lax.collapse(jnp.moveaxis(value, 0, axis), axis, axis + 2)


batching.primitive_batchers[depthwise_p] = _batch


# --- Lowering ------------------------------------------------------------------------------------------------


def compute(slots: Mapping[str, Any], *, platform: str | None, geometry: Geometry, **params) -> jax.Array:
    """`contract` as it is lowered for a platform, for any other than those of `PLATFORMS` if it is `None`."""
    (result,) = (slot for slot in SLOTS if slot not in slots)
    a, b = (slots[slot] for slot in SLOTS if slot in slots)
    if 0 in (a.size, b.size):  # an empty batch of one axis or another, and no term in any sum
        return lax.full_like(a, 0, shape=_shape(result, a, b, geometry))
    *_, multiplier, channels = (a if result == "input" else b).shape  # the kernel's, or the output's
    function = implementations.choose(result, geometry, multiplier * channels, platform=platform, **params)
    # float16 and bfloat16 are multiplied and summed in float32, where their products are exact.
    return function(a.astype(wide(a.dtype)), b.astype(wide(b.dtype))).astype(a.dtype)


def _lowering(platform: str | None):
    def rule(ctx, *operands, result, devices, **params):
        def function(*operands):
            return compute(dict(zip(_operands(result), operands, strict=True)), platform=platform, **params)

        return lower(function, ctx, *operands)

    return rule


mlir.register_lowering(depthwise_p, _lowering(None))
for _platform in implementations.PLATFORMS:
    mlir.register_lowering(depthwise_p, _lowering(_platform), platform=_platform)
