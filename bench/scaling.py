"""What a layer's programs exchange and compute on 1, 2, 4 and 8 devices, read off the compiled programs.

    python -m bench.scaling

Weak scaling: each device has the same part of the batch or of the sequence, however many there are. XLA is made to see
several devices on one machine, whose time says nothing of many machines; the numbers of bytes and of operations do.
`scaling.md` has the table, and the model that it bears out.
"""

import collections
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flax_sepconv as fsc

BATCH, LENGTH, CHANNELS = 8, 4096, 64  # of each device
CONFIG = fsc.SeparableConv1DConfig(64, 9, padding="same", dilation_rate=2, activation="gelu")
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "all-reduce")
BYTES = {"f32": 4, "c64": 8, "f64": 8, "bf16": 2, "f16": 2, "s32": 4, "pred": 1}


def collectives(compiled) -> dict[str, tuple[int, int]]:
    """How many operations of each kind a program has, and how many bytes their results have on one device."""
    counts, sizes = collections.Counter(), collections.Counter()
    for types, kind in re.findall(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text()):
        counts[kind] += 1
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", types):
            sizes[kind] += BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
    return {kind: (counts[kind], sizes[kind]) for kind in counts}


def programs(divided: str, devices: int):
    """The compiled forward pass and gradient of a layer whose batch or length is divided among devices."""
    mesh = jax.make_mesh((devices,), ("n",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    batch, length = (BATCH * devices, LENGTH) if divided == "batch" else (BATCH, LENGTH * devices)

    def apply(params, x):
        if divided == "batch":
            return fsc.separable_conv1d(params, x, CONFIG)  # plain jit
        return fsc.parallel.separable_conv1d(params, x, CONFIG, mesh=mesh, length="n")

    def loss(params, x):
        return jnp.mean(apply(params, x) ** 2)

    spec = PartitionSpec("n") if divided == "batch" else PartitionSpec(None, "n")
    x = jax.ShapeDtypeStruct((batch, length, CHANNELS), jnp.float32, sharding=NamedSharding(mesh, spec))
    params = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
        jax.eval_shape(lambda key: fsc.init_params(key, CHANNELS, CONFIG), jax.random.key(0)),
    )
    for name, function in (("forward", apply), ("gradient", jax.grad(loss, (0, 1)))):
        yield name, jax.jit(function).lower(params, x).compile()


def main() -> None:
    """Prints the table of `scaling.md`."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print("| divided | program | devices | a device's operations | moved by each device | with |")
    print("| --- | --- | --- | --- | --- | --- |")
    for divided in ("batch", "length"):
        rows = {}
        for devices in (1, 2, 4, 8):
            for name, compiled in programs(divided, devices):
                moved = collectives(compiled)
                flops = (compiled.cost_analysis() or {})["flops"] / 1e6
                total = sum(size for _, size in moved.values())
                how = ", ".join(f"{count} {kind}" for kind, (count, _) in sorted(moved.items())) or "nothing"
                rows[name, devices] = (
                    f"| {divided} | {name} | {devices} | {flops:,.1f} M | {total:,} B | {how} |"
                )
        for name in ("forward", "gradient"):
            for devices in (1, 2, 4, 8):
                print(rows[name, devices])


if __name__ == "__main__":
    main()
