"""How a contraction is divided among devices: each does its own part of groups, batch, multipliers and channels.

    T(x, k, y) = sum over g, n, m, c of a form of x[g, n, :, c], k[g, :, m, c] and y[g, n, :, m, c]

XLA finds that out by itself where a contraction is elementwise work and reductions, but it gathers the operand of a
Fourier transform on every device, whichever axis is split, and that of a loop over the batch. `by_parts` tells it.
The axes along time stay whole here; `flax_sepconv.parallel` splits the sequence.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, auto_axes, use_abstract_mesh

AXES = {"input": "gnlc", "kernel": "gkmc", "output": "gnomc"}
TIME = "lko"


def by_parts(function: Callable, operands: Sequence[str], result: str) -> Callable:
    """`function(a, b, **static)`, computed on each device for what that device holds.

    Args:
        function: contracts two arrays, over the axes that the result does not have.
        operands: the axes of the two arrays, a letter for each; those of `TIME` stay whole.
        result: the axes of the result.

    Returns:
        A function of the same arguments. On one device, and inside `shard_map`, it is `function` itself.
    """
    everywhere = "".join(dict.fromkeys("".join([*operands, result])))
    contracted = [axis for axis in everywhere if axis not in result]
    rule = f"{', '.join(' '.join(axes) for axes in operands)} -> {' '.join(result)}"

    def call(a, b, **static):
        if on_one_device():
            return function(a, b, **static)

        def partition(mesh, arrays, out):
            split = _split(zip((*operands, result), (*arrays, out), strict=True))
            summed = tuple(name for axis in contracted for name in split.get(axis, ()))

            def part(a, b):
                # One device's program knows nothing of the mesh, whose axes may be explicit, that is set around.
                with use_abstract_mesh(AbstractMesh((), ())), _for_one_device(True):
                    own = function(a, b, **static)
                    return lax.psum(own, summed) if summed else own

            a, b, out = (
                NamedSharding(mesh, PartitionSpec(*(split.get(axis) for axis in axes)))
                for axes in (*operands, result)
            )
            return mesh, part, out, (a, b)

        divided = custom_partitioning(lambda a, b: function(a, b, **static))
        whole = tuple(axis for axis in everywhere if axis in TIME)
        divided.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
        return divided(a, b)

    return call


def _split(arrays) -> dict[str, tuple[str, ...]]:
    """Which mesh axes divide which axis: as the arrays are divided already, those with sequences first."""
    split: dict[str, tuple[str, ...]] = {}
    for axes, array in sorted(arrays, key=lambda pair: "n" not in pair[0]):
        for axis, names in zip(axes, array.sharding.spec, strict=False):
            names = (names,) if isinstance(names, str) else tuple(names or ())
            taken = {name for others in split.values() for name in others}
            if names and axis not in TIME and axis not in split and not taken & set(names):
                split[axis] = names
    return split


_one_device = contextvars.ContextVar("_one_device", default=False)


def on_one_device() -> bool:
    """Whether what is traced is being lowered for one device, on which nothing is divided."""
    return _one_device.get()


@contextlib.contextmanager
def _for_one_device(one: bool):
    before = _one_device.set(one)
    try:
        yield
    finally:
        _one_device.reset(before)


def lower(function: Callable, ctx: mlir.LoweringRuleContext, *operands):
    """What a rule lowers to that computes `function(*operands)`.

    For one device that is without `custom_partitioning`, through which everything is traced twice.
    """
    function = on_auto_axes(function, ctx.avals_out[0].sharding)
    with _for_one_device(getattr(ctx.module_context.axis_context, "num_devices", None) == 1):
        return mlir.lower_fun(function, multiple_results=False)(ctx, *operands)


@functools.cache
def asks_for_devices():
    """A parameter for equations that may be lowered to what `by_parts` makes.

    JAX tells the lowering of a program which devices it is for only if it finds a primitive that asks for them, in
    the program or in a jaxpr among its equations' parameters. This is such a jaxpr.
    """
    asks = custom_partitioning(lambda x: x)
    asks.def_partition(lambda *_: None, sharding_rule="-> ")
    return jax.make_jaxpr(asks)(jax.ShapeDtypeStruct((), "float32"))


# --- Explicit axes: arrays whose types say how they are divided -----------------------------------------------


def result_sharding(axes: Mapping[str, str], result: str, *arrays) -> NamedSharding:
    """How the slot `result` is divided, from the types of the other slots' arrays, in the order of `axes`."""
    operands = [letters for slot, letters in axes.items() if slot != result]
    split = _split(zip(operands, arrays, strict=True))
    # Where no mesh is set, only what is divided knows of one.
    meshes = [array.sharding.mesh for array in arrays]
    mesh = next((mesh for mesh in meshes if not mesh.empty), meshes[0])
    return NamedSharding(mesh, PartitionSpec(*(split.get(axis) for axis in axes[result])))


def on_auto_axes(function: Callable, sharding: Any) -> Callable:
    """`function` with the division left to XLA inside, and its result divided as `sharding` says."""
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    return auto_axes(function, out_sharding=sharding)
