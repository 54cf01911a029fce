"""The machine: what it is, and the two limits of it that bound every layer, measured through JAX.

    least time = max(flops / matrix product peak, bytes / copy bandwidth)

Bandwidth depends on whether the data fits into caches, so it is measured at several sizes and read at a layer's own.
"""

import importlib.metadata
import math
import os
import pathlib
import platform
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "tensorflow", "torch"),
    *("onnxruntime", "onnx", "flax-sepconv"),
)


def description() -> dict:
    """Processor, cores, devices and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def watch_others():
    """Starts watching; the function returned tells how many cores other processes kept busy since, or `None`."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return lambda: None

    def busy():  # user, nice, system, idle, iowait, irq, softirq, steal
        fields = [int(f) for f in stat.read_text().splitlines()[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    start, before = time.perf_counter(), busy()
    return lambda: max(0.0, busy() - before) / (time.perf_counter() - start)


def limits(seconds: float = 3.0) -> dict:
    """Float32 matrix product peak in GFLOP/s, and by size in bytes the bandwidth of reading and writing, in GB/s."""
    cpu = jax.default_backend() == "cpu"
    n = 2048 if cpu else 8192
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    peak = 2 * n**3 / _best(lambda: product(a), seconds / 3) / 1e9
    sizes = [1 << p for p in ((20, 22, 24, 26, 28) if cpu else (24, 28, 31))]
    bandwidth = {str(size): size / _best(_copy(size), seconds * 2 / 3 / len(sizes)) / 1e9 for size in sizes}
    return {"peak_gflops": peak, "bandwidth_gbs": bandwidth}


def _copy(size: int):
    """A copy that reads half of the bytes and writes the other half, into memory that is there already."""
    x, into = (jnp.zeros(size // 8, jnp.float32) for _ in range(2))
    copy = jax.jit(lambda x, _: x + 1, donate_argnums=1, keep_unused=True)

    def run():
        nonlocal into
        into = copy(x, into)
        return into

    return run


def _best(run, seconds: float) -> float:
    """Least seconds of a run."""
    jax.block_until_ready(run())
    best, stop = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return best


def least_ms(flops: int, size: int, limits: Mapping) -> float:
    """The least milliseconds for `flops` operations on `size` bytes."""
    return 1e3 * max(flops / limits["peak_gflops"], size / _bandwidth(size, limits["bandwidth_gbs"])) / 1e9


def _bandwidth(size: int, measured: Mapping[str, float]) -> float:
    """Between two measured sizes on a straight line over the logarithm; beyond them, the nearest.

    A small copy's figure is mostly dispatch, so none counts for less than that of a larger copy.
    """
    points = sorted((math.log(int(s)), b) for s, b in measured.items())
    points = [(at, max(b for _, b in points[i:])) for i, (at, _) in enumerate(points)]
    return float(np.interp(math.log(size), [at for at, _ in points], [b for _, b in points]))
