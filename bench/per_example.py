"""Per-example gradients of a three-layer net: their time against the batch's gradient, and what compiling costs.

    vmap(grad(loss), in_axes=(None, 0, 0))(params, x, labels)   against   grad(mean of loss)(params, x, labels)

The net is three separable layers on windows of a sensor (UCI-HAR: 128 steps, 9 channels, 6 classes), averaged
over time, and a matrix product. jax-ml/jax #1606 is about its compile time.
"""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import flax_sepconv as fsc
from bench import timing
from flax_sepconv._types import Implementation

LENGTH, CHANNELS, WIDTH, CLASSES, KERNEL = 128, 9, 64, 6, 5
BATCHES = (4, 16, 64, 256)
PATIENCE = 5.0
"""Seconds of compiling, or of one run, after which a peer gets no larger batch."""


def measure(names: Sequence[str], budget: timing.Budget, tell: Callable[[float, str], None]) -> dict:
    """By peer and batch size: seconds to compile and milliseconds to run either gradient, ready for JSON."""
    known = {"flax_sepconv": _sepconv(None), "lax": _sepconv("lax"), "flax.linen": _linen}
    programs = {name: _gradients(known[name]) for name in names if name in known}
    net = f"3 layers, {CHANNELS}→{WIDTH}→{WIDTH}→{WIDTH}, k{KERNEL}, length {LENGTH}"
    result: dict = {"net": net, "peers": {name: {} for name in programs}}
    slow = set()
    for i, batch in enumerate(BATCHES):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, LENGTH, CHANNELS), dtype=np.float32)
        x, labels = map(jnp.asarray, (x, rng.integers(0, CLASSES, batch)))
        calls = {}
        for name, (params, functions) in programs.items():
            if name in slow:
                continue
            tell((i + 0.2) / len(BATCHES), f"per-example: batch {batch}, {name}, compile")
            found = result["peers"][name][str(batch)] = {}
            for mode, function in functions.items():
                calls[name, mode], found[f"{mode}_compile_s"] = _compile(function, params, x, labels)
            start = time.perf_counter()
            each = calls[name, "per_example"]()
            if max(time.perf_counter() - start, found["per_example_compile_s"]) > PATIENCE:
                slow.add(name)
            of_batch = calls[name, "batch"]()
            difference = jax.tree.map(lambda e, b: np.abs(np.mean(e, 0) - b).max(), each, of_batch)
            found["largest_difference"] = float(max(jax.tree.leaves(difference)))
        tell((i + 0.5) / len(BATCHES), f"per-example: batch {batch}")
        for (name, mode), rounds in timing.take_turns(calls, budget.share(1 / len(BATCHES))).items():
            result["peers"][name][str(batch)][mode] = timing.summary(rounds)
    return result


def _compile(function, *args):
    """A call of the compiled program that waits, and the seconds of compiling it."""
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args)), time.perf_counter() - start


def _gradients(make):
    """Parameters of the net that `make` gives, and the two gradients."""
    apply, shapes = make()
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape, dtype=np.float32)), shapes)

    def loss(params, x, label):
        return -jax.nn.log_softmax(apply(params, x[None])[0])[label]

    def mean_loss(params, x, labels):
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), labels[:, None], 1).mean()

    return params, {
        "batch": jax.grad(mean_loss),
        "per_example": jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)),
    }


def _sepconv(implementation: Implementation | None):
    """The net of this library's layers: how it is applied, and the shapes of its parameters."""

    def make():
        config = fsc.SeparableConv1DConfig(
            WIDTH, KERNEL, padding="same", activation="relu", implementation=implementation
        )

        def init(key):
            layers = [fsc.init_params(key, channels, config) for channels in (CHANNELS, WIDTH, WIDTH)]
            return {"layers": layers, "head": jnp.zeros((WIDTH, CLASSES))}

        def apply(params, x):
            for layer in params["layers"]:
                x = fsc.separable_conv1d(layer, x, config)
            return x.mean(1) @ params["head"]

        return apply, jax.eval_shape(init, jax.random.key(0))

    return make


def _linen():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                channels = x.shape[-1]
                x = nn.Conv(channels, (KERNEL,), feature_group_count=channels, use_bias=False)(x)
                x = nn.relu(nn.Conv(WIDTH, (1,))(x))
            return nn.Dense(CLASSES, use_bias=False)(x.mean(1))

    net = Net()
    return net.apply, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, LENGTH, CHANNELS)))
