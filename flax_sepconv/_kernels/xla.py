"""Hints to XLA's compiler: what it must not fuse, what it must not know, and many operations emitted at once."""

import functools
import types
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir, xla
from jax.sharding import NamedSharding, PartitionSpec
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo as hlo


def unfused(function: Callable) -> Callable:
    """Makes `function(*arrays, **static)` a computation that XLA's CPU backend neither inlines nor fuses with others.

    Calls with equal static arguments and shapes are traced, lowered and compiled once. JAX sets the same attribute for
    its `compute_on`; an XLA that ignores it computes the same numbers.
    """

    @functools.wraps(function)
    def call(*arrays, **static):
        with set_xla_metadata(inlineable="false"):
            return _call(function, tuple(static.items()), *arrays)

    return call


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(function, static, *arrays):
    with set_xla_metadata(inlineable=None):  # only the call itself is marked
        return function(*arrays, **dict(static))


def opaque(i: int) -> jax.Array:
    """Hides a number from XLA: computations that differ in nothing else are compiled once."""
    return lax.optimization_barrier(jnp.int32(i))


def emitted(function: Callable) -> Callable:
    """Makes `function(ops, *arrays, shape, **static)` one equation, `call(*arrays, shape=shape, **static)`.

    JAX takes 0.1 ms to trace and lower each operation, longer than XLA takes to compile it in a sum of many terms. Here
    `ops` writes StableHLO directly; for symbolic sizes and under `vmap` it is `lax` itself. The result has `shape` and
    the first array's dtype.
    """

    @functools.wraps(function)
    def call(*arrays, shape: Sequence[int], **static) -> jax.Array:
        return emitted_p.bind(*arrays, function=function, shape=tuple(shape), static=tuple(static.items()))

    return call


class _Value:
    """The result of an operation, with a `shape` as arrays have."""

    def __init__(self, value: ir.Value):
        self.value, self.shape = value, tuple(ir.RankedTensorType(value.type).shape)

    def like(self, shape) -> ir.Type:
        return ir.RankedTensorType.get([*shape], ir.RankedTensorType(self.value.type).element_type)


_STABLEHLO = types.SimpleNamespace(  # the functions of `lax` that `emitted` functions may call
    add=lambda a, b: _Value(hlo.add(a.value, b.value)),
    mul=lambda a, b: _Value(hlo.multiply(a.value, b.value)),
    eq=lambda a, b: _Value(hlo.compare(a.value, b.value, hlo.ComparisonDirectionAttr.get("EQ"))),
    select=lambda where, a, b: _Value(hlo.select(where.value, a.value, b.value)),
    rev=lambda x, axes: _Value(hlo.reverse(x.value, [*axes])),
    full=lambda shape, value, dtype: _Value(mlir.ir_constant(np.full(shape, value, dtype))),
    slice=lambda x, starts, stops, steps: _Value(hlo.slice(x.value, [*starts], [*stops], [*steps])),
    dynamic_slice=lambda x, at, sizes: _Value(hlo.dynamic_slice(x.value, [i.value for i in at], [*sizes])),
    reshape=lambda x, shape: _Value(hlo.reshape(x.like(shape), x.value)),
    pad=lambda x, zero, config: _Value(hlo.pad(x.value, zero.value, *zip(*config, strict=True))),
    broadcast_in_dim=lambda x, shape, axes: _Value(hlo.broadcast_in_dim(x.like(shape), x.value, [*axes])),
)

emitted_p = Primitive("emitted")
emitted_p.def_impl(functools.partial(xla.apply_primitive, emitted_p))


@emitted_p.def_abstract_eval
def _abstract(*arrays, shape, **_):
    sharding = NamedSharding(arrays[0].sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return arrays[0].update(shape=shape, weak_type=False, sharding=sharding)


def _with_lax(*arrays, function, shape, static):
    return function(lax, *arrays, shape=shape, **dict(static))


def _lowering(ctx, *values, function, shape, static):
    if not all(isinstance(n, int) for aval in (*ctx.avals_in, *ctx.avals_out) for n in aval.shape):
        plain = functools.partial(_with_lax, function=function, shape=shape, static=static)
        return mlir.lower_fun(plain, multiple_results=False)(ctx, *values)
    return [function(_STABLEHLO, *map(_Value, values), shape=shape, **dict(static)).value]


def _batch(arrays, axes, **params):
    return jax.vmap(functools.partial(_with_lax, **params), axes)(*arrays), 0


mlir.register_lowering(emitted_p, _lowering)
batching.primitive_batchers[emitted_p] = _batch
