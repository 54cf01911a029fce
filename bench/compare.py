"""`python -m bench.compare COMMIT`: the working tree's arithmetic against a commit's, and against plain lax.

Both versions run in one process, turn by turn, with bias and activation: run time in a steady state, compile time
(tracing and lowering included), and temporary memory, forward and with all gradients. Run it on an idle machine.
`--without NAME` takes a form away from the working tree: against `HEAD` that says what the form buys.
"""

import argparse
import dataclasses
import importlib
import io
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import shapes, timing

MODES = ("forward", "gradient")

HEADER = (
    f"{'shape':34} {'mode':8}   old ms   new ms  old/new  lax/new compile: old, new, lax ms, new/lax  temporary MB: "
    "old, new, lax"
)

DEEP = tuple(
    (kernel_size, filters) for kernel_size, filters in ((33, 128), (39, 128), (51, 256)) for _ in range(4)
)
"""Taps and filters of the layers of a network whose compile time is compared, on 2 sequences of 300 samples of 128."""


TUNED = {
    "few": {"few": 0, "few_kernel": 0},
    "parts": {"parts": 1},
    "blocked": {"blocked_from": 10**6, "blocked_most": 10**6},
    "fft": {"fft_from": 10**6, "fft_kernel_from": 10**6, "fft_unblocked_from": 10**6},
}
WITHOUT = (*TUNED, "convolution", "one-axis")
"""What may be taken away: forms of `flax_sepconv._kernels`, the pointwise product as a convolution, and the pointwise
gradient in parts or over one axis."""


class Program(NamedTuple):
    """What was compiled: how to run it, seconds until then, and bytes that it needs besides arguments and results."""

    run: Callable[[], Any]
    compile_s: float
    temp_bytes: int


def library(root: pathlib.Path) -> Any:
    """Imports `flax_sepconv` from the tree at `root`, whichever is imported already."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "flax_sepconv"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("flax_sepconv")
    finally:
        sys.path.pop(0)


def checkout(commit: str, to: pathlib.Path) -> pathlib.Path:
    """The package as it was in a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "flax_sepconv"], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(to, filter="data")
    return to


def take_away(fsc, name: str) -> None:
    """Takes a form of `WITHOUT` away from an imported library."""
    kernels = fsc._kernels
    if name in TUNED:
        tunings = kernels.dispatch.TUNINGS
        tunings["cpu"] = dataclasses.replace(tunings["cpu"], **TUNED[name])
    else:
        function = "output" if name == "convolution" else "kernel_gradient"
        original = getattr(kernels.pointwise, function)
        setattr(kernels.pointwise, function, lambda a, b, precision, _: original(a, b, precision))


def compiled(function: Callable, *arguments, times: int = 3) -> Program:
    """Compiles a function several times, each from tracing on."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        program = jax.jit(lambda *a: function(*a)).lower(*arguments).compile()
        seconds.append(time.perf_counter() - start)
    memory = program.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(program(*arguments)),
        statistics.median(seconds),
        memory.temp_size_in_bytes if memory else 0,
    )


def programs(fsc, shape: shapes.Shape, implementation: str | None) -> dict[str, Program]:
    """One layer, forward and with all gradients."""
    config = fsc.SeparableConv1DConfig(
        shape.filters,
        shape.kernel_size,
        strides=shape.strides,
        padding=shape.padding,
        dilation_rate=shape.dilation,
        depth_multiplier=shape.multiplier,
        activation="relu",
        implementation=implementation,
    )
    params = fsc.init_params(jax.random.key(0), shape.channels, config)
    x = np.random.default_rng(0).standard_normal((shape.batch, shape.length, shape.channels), dtype="f")

    def forward(params, x):
        return fsc.separable_conv1d(params, x, config)

    def loss(params, x):
        return jnp.mean(forward(params, x) ** 2)

    functions = (forward, jax.value_and_grad(loss, (0, 1)))
    return {mode: compiled(f, params, jnp.asarray(x)) for mode, f in zip(MODES, functions, strict=True)}


def deep(fsc, implementation: str | None) -> dict[str, float]:
    """Seconds to compile the network `DEEP`, forward and with its parameters' gradients."""
    configs, params, channels = [], [], 128
    for kernel_size, filters in DEEP:
        config = fsc.SeparableConv1DConfig(
            filters, kernel_size, padding="same", activation="relu", implementation=implementation
        )
        params.append(fsc.init_params(jax.random.key(0), channels, config))
        configs.append(config)
        channels = filters

    def network(params, x):
        for config, of_layer in zip(configs, params, strict=True):
            x = fsc.separable_conv1d(of_layer, x, config)
        return x

    gradient = jax.grad(lambda params, x: network(params, x).sum())
    x = jnp.ones((2, 300, 128))
    return {
        mode: compiled(f, params, x).compile_s for mode, f in zip(MODES, (network, gradient), strict=True)
    }


def steady(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Lower quartiles of the run times in milliseconds, turn by turn: other processes only ever add to them."""
    budget = timing.Budget(seconds, warm=0.04)
    rounds = timing.take_turns({str(i): call for i, call in enumerate(calls)}, budget)
    return [timing.summary(rounds[str(i)])["quartiles_ms"][0] for i in range(len(calls))]


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


def main(argv: list[str] | None = None) -> int:
    """Compares, and prints a line for each shape and mode."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="shapes whose name begins so (default: those of the suite layers)",
    )
    parser.add_argument(
        "--shape", nargs="+", default=[], type=shapes.parse, metavar="B,L,C,F,K[,M,S,D[,PADDING]]"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of turns for each shape and mode (default: 4)"
    )
    parser.add_argument("--without", choices=WITHOUT, help="take this away from the working tree")
    args = parser.parse_args(argv)
    timing.keep_freed_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    new = library(pathlib.Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        old = library(checkout(args.commit, pathlib.Path(folder)))
    if args.without:
        take_away(new, args.without)
    named = [
        s
        for s in shapes.SHAPES
        if (s.name.startswith(tuple(args.only)) if args.only else s.suite == "layers")
    ]
    rows: dict[str, list] = {mode: [] for mode in MODES}
    print(HEADER)
    for shape in args.shape or named:
        ours, theirs, lax = (
            programs(new, shape, None),
            programs(old, shape, None),
            programs(new, shape, "lax"),
        )
        for mode in MODES:
            of_mode = [each[mode] for each in (theirs, ours, lax)]
            was, now, plain = steady([program.run for program in of_mode], args.seconds)
            old_s, new_s, lax_s = (program.compile_s for program in of_mode)
            rows[mode].append((was / now, plain / now, new_s / lax_s, old_s / lax_s))
            cells = (was, now, was / now, plain / now, 1e3 * old_s, 1e3 * new_s, 1e3 * lax_s, new_s / lax_s)
            numbers = " ".join(f"{cell:8.3g}" for cell in cells)
            memory = " ".join(f"{program.temp_bytes / 1e6:7.1f}" for program in of_mode)
            print(f"{shape.describe():34.34} {mode:8} {numbers} {memory}", flush=True)
    for mode, values in rows.items():
        speed, lax, compile_new, compile_old = (
            geometric_mean(column) for column in zip(*values, strict=True)
        )
        least = min(row[0] for row in values), min(row[1] for row in values)
        print(f"{mode}: {speed:.2f} of the commit's speed (least {least[0]:.2f})")
        print(f"  {lax:.1f} times lax's (least {least[1]:.1f})")
        most = max(row[2] for row in values)
        print(
            f"  compiles in {compile_new:.2f} of lax's time (most {most:.2f}), the commit in {compile_old:.2f}"
        )
    deep_new, deep_old, deep_lax = deep(new, None), deep(old, None), deep(new, "lax")
    for mode in MODES:
        now, was = deep_new[mode] / deep_lax[mode], deep_old[mode] / deep_lax[mode]
        print(f"{len(DEEP)} layers, {mode}: compile in {now:.1f} of lax's time, the commit in {was:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
