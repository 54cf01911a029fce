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

LENGTH, CHANNELS, WIDTH, CLASSES, KERNEL = 128, 9, 64, 6, 5
BATCHES = (4, 16, 64, 256)
PATIENCE = 60.0
"""Seconds of compiling after which a peer gets no larger batch."""


def measure(names: Sequence[str], seconds: float, tell: Callable[[float, str], None]) -> dict:
    """By peer and batch size: seconds to compile and milliseconds to run either gradient, ready for JSON."""
    known = {"flax_sepconv": _sepconv(None), "lax": _sepconv("lax"), "flax.linen": _linen}
    programs = {name: known[name] for name in names if name in known}
    result: dict = {
        "net": f"3 layers, {CHANNELS}→{WIDTH}→{WIDTH}→{WIDTH}, k{KERNEL}, length {LENGTH}",
        "peers": {},
    }
    slow = set()
    for i, batch in enumerate(BATCHES):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((batch, LENGTH, CHANNELS), dtype=np.float32))
        labels = jnp.asarray(rng.integers(0, CLASSES, batch))
        calls, found, gradients = {}, {}, {}
        for name, make in programs.items():
            if name in slow:
                continue
            tell((i + 0.2) / len(BATCHES), f"per-example: batch {batch}, {name}, compile")
            found[name] = {}
            for mode, (function, params) in _gradients(make).items():
                jax.clear_caches()
                start = time.perf_counter()
                compiled = jax.jit(function).lower(params, x, labels).compile()
                found[name][f"{mode}_compile_s"] = time.perf_counter() - start
                calls[name, mode] = _call(compiled, params, x, labels)
            if found[name]["per_example_compile_s"] > PATIENCE:
                slow.add(name)
            mean = jax.tree.map(lambda g: g.mean(0), calls[name, "per_example"]())
            gradients[name] = (mean, calls[name, "batch"]())
        for name, (mean, batch_gradient) in gradients.items():
            difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), mean, batch_gradient)
            found[name]["largest_difference"] = max(jax.tree.leaves(difference))
        tell((i + 0.5) / len(BATCHES), f"per-example: batch {batch}")
        for (name, mode), rounds in timing.take_turns(calls, seconds / len(BATCHES)).items():
            found[name][mode] = timing.summary(rounds)
        for name, values in found.items():
            result["peers"].setdefault(name, {})[str(batch)] = values
    return result


def _call(compiled, *args):
    return lambda: jax.block_until_ready(compiled(*args))


def _gradients(make):
    apply, params = make()

    def loss(params, x, label):
        logits = apply(params, x[None])[0]
        return -jax.nn.log_softmax(logits)[label]

    def mean_loss(params, x, labels):
        logits = jax.nn.log_softmax(apply(params, x))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    return {
        "batch": (jax.grad(mean_loss), params),
        "per_example": (jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)), params),
    }


def _sepconv(implementation):
    def make():
        config = fsc.SeparableConv1DConfig(
            WIDTH, KERNEL, padding="same", activation="relu", implementation=implementation
        )
        keys = jax.random.split(jax.random.key(0), 4)
        layers = [
            fsc.init_params(key, CHANNELS if i == 0 else WIDTH, config) for i, key in enumerate(keys[:3])
        ]

        def apply(params, x):
            for layer in params["layers"]:
                x = fsc.separable_conv1d(layer, x, config)
            return x.mean(1) @ params["head"]

        return apply, {"layers": layers, "head": jax.random.normal(keys[3], (WIDTH, CLASSES)) / WIDTH**0.5}

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
    return net.apply, net.init(jax.random.key(0), jnp.zeros((1, LENGTH, CHANNELS)))
