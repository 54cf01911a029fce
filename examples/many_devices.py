"""Trains one network on the devices of many processes, batches and sequences divided among them.

    pip install -e '.[examples]'
    python examples/many_devices.py                        # two processes on this machine, two devices in each
    python examples/many_devices.py --processes 1 --devices 1        # the same training on one device

On a cluster, start on each machine, with the address of the first for all:

    python examples/many_devices.py --coordinator 10.0.0.1:1234 --processes 16 --process-id 0   # to 15

or, where JAX finds that out by itself (Slurm, TPU pods), with `--cluster` alone. The folder of `--out` must be one that
all of them share.

The network takes noise out of sums of waves, drawn anew at each step. Sequences are divided among `--sequence` devices,
which exchange what the windows at the ends of their parts read; batches are divided among the rest. What is drawn and
where follows from seed and step alone, so that every division ends at the same weights, to rounding.

Started without an address, the program starts its processes and watches them: when one of them dies, be it by
`kill -9`, it ends the others and starts them all again, and they go on from the last checkpoint. A cluster's
scheduler does the same by giving the same command again.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import flax_sepconv as fsc

try:
    import orbax.checkpoint as ocp
except ImportError as error:
    sys.exit(f"{error}. This example needs more than the library does: pip install -e '.[examples]'")

BATCH, LENGTH, WAVES, NOISE = 16, 512, 3, 0.5
CONFIGS = {
    "wide": fsc.SeparableConv1DConfig(32, 7, padding="same", depth_multiplier=4, activation="gelu"),
    "wider": fsc.SeparableConv1DConfig(
        32,
        7,
        padding="same",
        dilation_rate=6,
        activation="gelu",
        pointwise_regularizer=fsc.regularizers.L2(1e-5),
    ),
    "out": fsc.SeparableConv1DConfig(1, 7, padding="same", depthwise_constraint=fsc.constraints.MaxNorm(1.0)),
}
OPTIMIZER = fsc.constrained(optax.adam(3e-3), CONFIGS)
RESTARTS = 5


class State(NamedTuple):
    """All that a training is between two steps, and all that a checkpoint holds."""

    step: jax.Array
    params: Any
    optimizer: Any


def start(seed: int) -> State:
    """The state before the first step."""
    features = {"wide": 1, "wider": 32, "out": 32}
    keys = jax.random.split(jax.random.key(seed), len(CONFIGS))
    params = {
        name: fsc.init_params(key, features[name], config)
        for key, (name, config) in zip(keys, CONFIGS.items(), strict=True)
    }
    return State(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params))


def batch(key, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Noisy and clean sequences `(BATCH, LENGTH, 1)`, each device's part drawn on that device."""
    keys = jax.random.split(key, 4)
    shape = (BATCH, 1, WAVES)
    frequency = jax.random.uniform(keys[0], shape, minval=0.02, maxval=0.2)
    phase = jax.random.uniform(keys[1], shape, maxval=2 * jnp.pi)
    height = jax.random.normal(keys[2], shape)
    clean = (height * jnp.sin(frequency * jnp.arange(LENGTH)[:, None] + phase)).sum(-1, keepdims=True)
    noisy = clean + NOISE * jax.random.normal(keys[3], clean.shape)
    divided = NamedSharding(mesh, PartitionSpec("data", "sequence"))
    return jax.lax.with_sharding_constraint((noisy, clean), divided)


def rest(params, noisy, clean, mesh: Mesh) -> jax.Array:
    """The mean square of what is left of the noise."""
    x = noisy
    for name, config in CONFIGS.items():
        x = fsc.parallel.separable_conv1d(params[name], x, config, mesh=mesh, batch="data", length="sequence")
    return jnp.mean((noisy + x - clean) ** 2)


def train(options: argparse.Namespace) -> None:
    """One process's part of the training, from the last checkpoint if there is one."""
    devices, sequence = jax.device_count(), options.sequence
    if devices % sequence or BATCH % (devices // sequence) or LENGTH % sequence:
        sys.exit(
            f"--sequence must divide the {devices} devices and {LENGTH}, and the quotient of the devices must "
            f"divide {BATCH}; got {sequence}."
        )
    mesh = jax.make_mesh(
        (devices // sequence, sequence), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    first = jax.process_index() == 0
    claim(options, first)

    @jax.jit
    def step(state: State) -> tuple[State, jax.Array]:
        noisy, clean = batch(jax.random.fold_in(jax.random.key(options.seed + 1), state.step), mesh)

        def loss(params):
            left = rest(params, noisy, clean, mesh)
            return left + fsc.regularization_loss(params, CONFIGS), left

        gradients, left = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), optimizer), left

    state = jax.jit(start, static_argnums=0, out_shardings=everywhere)(options.seed)
    checkpointing = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(options.out.absolute() / "checkpoints", options=checkpointing) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            state = checkpoints.restore(done, args=ocp.args.StandardRestore(state))
        if first:
            print(
                f"{devices} devices of {jax.process_count()} processes, batches among {devices // sequence}, "
                f"sequences among {sequence}; from step {done}",
                flush=True,
            )
        for number in range(done + 1, options.steps + 1):
            state, left = step(state)
            if number % options.checkpoint_every == 0 or number == options.steps:
                checkpoints.save(number, args=ocp.args.StandardSave(state))
                if first:
                    print(f"step {number}, error {left:.4f} of {NOISE**2}, checkpoint", flush=True)
    if first:
        params = jax.device_get(state.params)
        flat: dict[str, Any] = {
            f"{layer}/{name}": value for layer, weights in params.items() for name, value in weights.items()
        }
        unfinished = options.out / "params.unfinished.npz"
        np.savez(unfinished, **flat)
        os.replace(unfinished, options.out / "params.npz")
        print(f"written {options.out}/params.npz", flush=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the end")


def claim(options: argparse.Namespace, first: bool) -> None:
    """Makes `options.out` this training's folder, or refuses one of a training with other options."""
    mine = {name: getattr(options, name) for name in ("seed", "steps")}
    record = options.out / "options.json"
    if record.exists():
        theirs = json.loads(record.read_text())
        if theirs != mine:
            sys.exit(
                f"{options.out} has a training with {theirs}, not {mine}. Choose another folder with --out."
            )
    elif first:
        options.out.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(mine))
        os.replace(unfinished, record)


def watch(arguments: list[str], options: argparse.Namespace) -> None:
    """Starts the processes on this machine, and all of them again when one of them dies."""
    for attempt in range(RESTARTS + 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-u", __file__, *arguments, "--coordinator", address, "--process-id", str(i)]
            )
            for i in range(options.processes)
        ]
        print(f"processes {' '.join(str(process.pid) for process in processes)}", flush=True)
        try:
            codes: list[int | None] = [None]
            while None in codes and not any(codes):
                time.sleep(0.05)
                codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if not any(codes):
            return
        if not any(code is not None and code < 0 for code in codes):  # nothing killed it: it would fail again
            sys.exit(1)
        print(f"a process died ({codes}); attempt {attempt + 2}", flush=True)
    sys.exit(f"gave up after {RESTARTS} restarts")


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=300, help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="all that is random follows from it (default: %(default)s)")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/many-devices"), help="(default: %(default)s)")
    add("--checkpoint-every", type=int, default=50, metavar="STEPS", help="(default: %(default)s)")
    add("--processes", type=int, default=2, help="how many there are (default: %(default)s)")
    add("--devices", type=int, default=2, help="devices of each process, on CPUs only (default: %(default)s)")
    add("--sequence", type=int, help="devices that divide a sequence (default: 2, or 1 on one device)")
    add(
        "--coordinator", metavar="ADDRESS:PORT", help="of the first process (default: start all of them here)"
    )
    add("--process-id", type=int, help="which one this is, from 0")
    add("--cluster", action="store_true", help="let JAX find the processes by itself")
    options = parser.parse_args(argv)
    if min(options.steps, options.checkpoint_every, options.processes, options.devices) < 1:
        parser.error("--steps, --checkpoint-every, --processes and --devices must be at least 1")
    if (options.coordinator is None) != (options.process_id is None):
        parser.error("--coordinator and --process-id go together")
    if options.sequence is None:
        options.sequence = 1 if options.processes * options.devices == 1 else 2
    return options


def main(argv: list[str]) -> None:
    """Runs the program: the whole of it, or one process's part."""
    options = parse(argv)
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.cluster:
        jax.distributed.initialize()
    elif options.coordinator is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process_id)
    elif options.processes > 1:
        return watch(argv, options)
    train(options)
    if jax.process_count() > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
