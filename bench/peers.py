"""Who is measured: each library's layer as its own users would write it, in the layout that it likes best.

A peer is a name, the package that it needs, and `build`, which makes a `Layer` of a problem: parameters and input
already in the peer's layout and on its device, so that no turn pays for a transpose or a copy.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bench.problem import Problem


@dataclasses.dataclass
class Layer:
    """One problem, built by one peer.

    `forward` and `gradient` run the layer, wait for the results and return them; `gradient` gives the output and
    the gradients of `problem.GRADIENTS` for the problem's cotangent. `arrays` turns what either returned into
    NumPy arrays by name in Keras's layout, to be verified. `notes` holds what else the peer knows of itself:
    `compile_s`, `forward_temp_bytes`, `gradient_temp_bytes`.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], Any] | None
    arrays: Callable[[Any], dict[str, np.ndarray]]
    notes: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to measure; `device` is where it runs."""

    name: str
    build: Callable[[Problem], Layer]
    device: str = "cpu"


# Name: package to install, module and function that make the peer.
REGISTRY = {
    "flax_sepconv": ("flax-sepconv", "bench.peers_jax", "ours"),
    "lax": ("flax-sepconv", "bench.peers_jax", "grouped"),
    "flax.linen": ("flax", "bench.peers_jax", "linen"),
    "flax.nnx": ("flax", "bench.peers_jax", "nnx"),
    "haiku": ("dm-haiku", "bench.peers_jax", "haiku"),
    "equinox": ("equinox", "bench.peers_jax", "equinox"),
    "keras-jax": ("keras", "bench.peers_jax", "keras"),
    "tensorflow": ("tensorflow", "bench.peers_tensorflow", "tensorflow"),
    "torch": ("torch", "bench.peers_torch", "length_last"),
    "torch-cl": ("torch", "bench.peers_torch", "channels_last"),
    "torch.compile": ("torch", "bench.peers_torch", "compiled"),
    "onnxruntime": ("onnxruntime", "bench.peers_onnx", "onnxruntime"),
}

OURS, BASE = "flax_sepconv", "lax"


def on_gpu() -> bool:
    """Whether JAX runs on a GPU; every peer that can follows it there, and float32 is float32 (no TF32)."""
    return jax.default_backend() == "gpu"


class Unavailable(Exception):
    """A peer cannot run here; the message says why."""


def load(name: str) -> Peer:
    """The peer of that name.

    Raises:
        Unavailable: a package is missing, or something else that the peer needs.
    """
    package, module, function = REGISTRY[name]
    try:
        with _quiet():
            return getattr(importlib.import_module(module), function)()
    except ImportError as error:
        missing = error.name or package
        raise Unavailable(f"{missing} is not installed (pip install {package})") from error


@contextlib.contextmanager
def _quiet():
    """Hides what C++ code prints: TensorFlow says at every start, whatever its log level, that it finds no GPU."""
    sys.stderr.flush()
    held = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
