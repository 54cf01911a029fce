"""One multilinear form as a JAX primitive that composes with every transformation.

A form multiplies one array for each *slot* and sums over all their axes. Leaving one slot out gives a *contraction*
of that slot's shape: the form's derivative with respect to it. For three slots,

    T(x, k, y) = sum of x * k * y        output = dT/dy,  input's gradient = dT/dx,  kernel's gradient = dT/dk

Each contraction is linear in each remaining array, and its derivatives and transposes are the other contractions. So
one primitive, whose parameter is the slot left out, is closed under `jvp` and `transpose`; with a rule for `vmap` it
composes with everything.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from flax_sepconv._dtypes import wide
from flax_sepconv._kernels import sharding
from flax_sepconv._window import Window

try:
    from jax.experimental.jet import jet_rules
except ImportError:  # `jet` is experimental
    jet_rules = {}

PLATFORMS = ("cpu", "cuda", "rocm")  # the platforms with their own lowering


def form(name: str, axes: Mapping[str, str], compute: Callable, batch: Callable, widens: bool) -> Callable:
    """Makes the primitive of a form.

    Args:
        name: the primitive's name.
        axes: the axes of each slot, as letters. `l`, `k` and `o` have the window's sizes; any other letter has one
            size in all slots.
        compute: `compute(slots, *, result, platform, sharded, window, **params)`, the contraction in JAX operations,
            for arrays by slot. `platform` is one of `PLATFORMS`, or `None` for any other.
        batch: `batch(contract, slots, dims, *, result, window, **params)`, the rule for `vmap`, like JAX's.
        widens: whether the output and its cotangent are float32 where the other arrays are narrower.

    Returns:
        `contract(slots, *, window, **params)`, the contraction of all arrays but one.
    """
    primitive = Primitive(name)
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))

    def contract(slots: Mapping[str, Any], *, result: str | None = None, **params) -> jax.Array:
        (result,) = axes.keys() - slots.keys()
        arrays = sharding.alike([slots[slot] for slot in axes if slot in slots])
        return primitive.bind(*arrays, result=result, devices=sharding.asks_for_devices(), **params)

    def by_slot(result: str, values) -> dict[str, Any]:
        return dict(zip((slot for slot in axes if slot != result), values, strict=True))

    @primitive.def_abstract_eval
    def _(*avals, result: str, window: Window, **_):
        slots = by_slot(result, avals)
        sizes: dict[str, Any] = {}
        for slot, aval in slots.items():
            sizes |= zip(axes[slot], aval.shape, strict=True)
        sizes |= {"l": window.length, "k": window.kernel_size, "o": window.output_length}
        dtype = next(aval.dtype for slot, aval in slots.items() if slot != "output")
        return avals[0].update(
            shape=tuple(sizes[letter] for letter in axes[result]),
            dtype=wide(dtype) if widens and result == "output" else dtype,
            weak_type=False,
            sharding=sharding.result_sharding(axes, result, avals),
        )

    def jvp(primals, tangents, *, result: str, devices, **params):
        slots = by_slot(result, primals)
        terms = [
            contract(slots | {slot: tangent}, **params)
            for slot, tangent in zip(slots, tangents, strict=True)
            if type(tangent) is not ad.Zero
        ]
        # JAX does not call this where every tangent is zero.
        return contract(slots, **params), functools.reduce(jnp.add, terms)

    def transpose(cotangent, *values, result: str, devices, **params):
        slots = by_slot(result, values)
        (linear,) = (slot for slot, value in slots.items() if ad.is_undefined_primal(value))
        given = {slot: value for slot, value in slots.items() if slot != linear}
        zero = type(cotangent) is ad.Zero
        gradient = ad.Zero(slots[linear].aval) if zero else contract(given | {result: cotangent}, **params)
        return [gradient if slot == linear else None for slot in slots]

    def taylor(primals, series, *, result: str, devices, **params):
        # Runs are integers; JAX makes series of zeros for them too.
        coefficients = [
            [primal, *terms] if jnp.issubdtype(primal.dtype, jnp.inexact) else [primal]
            for primal, terms in zip(primals, series, strict=True)
        ]

        def coefficient(order: int) -> jax.Array:
            """Sums over all ways to share the order among the slots."""
            shares = itertools.product(*(range(len(each)) for each in coefficients))
            arrays = [map(list.__getitem__, coefficients, share) for share in shares if sum(share) == order]
            return functools.reduce(jnp.add, [contract(by_slot(result, each), **params) for each in arrays])

        first, *rest = map(coefficient, range(1 + len(series[0])))
        return first, rest

    def batched(arrays, dims, *, result: str, devices, **params):
        return batch(contract, by_slot(result, arrays), by_slot(result, dims), result=result, **params)

    def lowering(platform: str | None, ctx, *operands, result: str, devices, **params):
        sharded, (out,) = sharding.is_sharded(ctx), ctx.avals_out

        def function(*arrays):
            if any(type(n) is int and n == 0 for array in arrays for n in array.shape):  # no term in any sum
                return lax.full(out.shape, 0, out.dtype)
            slots = by_slot(result, arrays)
            return compute(slots, result=result, platform=platform, sharded=sharded, **params)

        function = sharding.on_auto_axes(function, out.sharding)
        return mlir.lower_fun(function, multiple_results=False)(ctx, *operands)

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    jet_rules[primitive] = taylor
    mlir.register_lowering(primitive, functools.partial(lowering, None))
    for platform in PLATFORMS:
        mlir.register_lowering(primitive, functools.partial(lowering, platform), platform=platform)
    return contract
