"""What XLA's partitioner is told: each device contracts its own shard of groups, batch, multipliers and channels.

XLA finds that out by itself for elementwise work and plain reductions. But it gathers the operands of Fourier
transforms, whichever axis is sharded, and of loops over the batch on every device. Axes of time stay whole here;
`flax_sepconv.parallel` shards the sequence.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, auto_axes, use_abstract_mesh

TIME = "lko"


def per_device(function: Callable, operands: Sequence[str], result: str) -> Callable:
    """Returns `function`, computed on each device for its own shard of the arrays.

    The function contracts the arrays over the axes that the result does not have. Axes are named by letters; those in
    `TIME` stay whole.
    """
    everywhere = "".join(dict.fromkeys("".join([*operands, result])))
    contracted = [axis for axis in everywhere if axis not in result]

    def partition(mesh, arrays, out):
        split = _split(zip((*operands, result), (*arrays, out), strict=True))
        summed = tuple(name for axis in contracted for name in split.get(axis, ()))

        def part(*arrays):
            # One device's program must not see the mesh that is set outside: its axes may be explicit.
            with use_abstract_mesh(AbstractMesh((), ())):
                own = function(*arrays)
                return lax.psum(own, summed) if summed else own

        *shardings, out = (
            NamedSharding(mesh, PartitionSpec(*(split.get(axis) for axis in axes)))
            for axes in (*operands, result)
        )
        return mesh, part, out, tuple(shardings)

    sharded = custom_partitioning(function)
    rule = f"{', '.join(' '.join(axes) for axes in operands)} -> {' '.join(result)}"
    whole = tuple(axis for axis in everywhere if axis in TIME)
    sharded.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return sharded


def _split(arrays) -> dict[str, tuple[str, ...]]:
    """Returns the mesh axes that shard each axis: those of the arrays as they come, arrays with a batch first."""
    split: dict[str, tuple[str, ...]] = {}
    for axes, array in sorted(arrays, key=lambda pair: "n" not in pair[0]):
        # If no array in a program is sharded over a mesh, JAX names no mesh: every device has everything.
        for axis, names in zip(axes, getattr(array.sharding, "spec", ()), strict=False):
            names = (names,) if isinstance(names, str) else tuple(names or ())
            taken = {name for others in split.values() for name in others}
            if names and axis not in TIME and axis not in split and not taken & set(names):
                split[axis] = names
    return split


def is_sharded(ctx: mlir.LoweringRuleContext) -> bool:
    """Returns whether a program is lowered for several devices, or for a number that JAX does not tell."""
    return getattr(ctx.module_context.axis_context, "num_devices", None) != 1


@functools.cache
def asks_for_devices():
    """Returns a parameter for equations whose lowering calls `is_sharded`.

    JAX tells a lowering the number of devices only if the program, or a jaxpr among its equations' parameters, holds a
    primitive that asks for it. This is such a jaxpr.
    """
    asks = custom_partitioning(lambda x: x)
    asks.def_partition(lambda *_: None, sharding_rule="-> ")
    return jax.make_jaxpr(asks)(jax.ShapeDtypeStruct((), "float32"))


def result_sharding(axes: Mapping[str, str], result: str, arrays) -> NamedSharding:
    """Returns the sharding of the slot `result` along explicit axes, from the types of the other slots' arrays."""
    operands = [letters for slot, letters in axes.items() if slot != result]
    split = _split(zip(operands, arrays, strict=True))
    # Where no mesh is set, only sharded arrays have one.
    meshes = [array.sharding.mesh for array in arrays]
    mesh = next((mesh for mesh in meshes if not mesh.empty), meshes[0])
    return NamedSharding(mesh, PartitionSpec(*(split.get(axis) for axis in axes[result])))


def on_auto_axes(function: Callable, sharding: Any) -> Callable:
    """Returns `function` with the partition inside left to XLA and the result sharded by `sharding`."""
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    return auto_axes(function, out_sharding=sharding)


def alike(arrays):
    """Marks all arrays, under `shard_map`, as varying along the mesh axes of any: only then may they be combined."""
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
    # JAX 0.10 moved `vma`.
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma
