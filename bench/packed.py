"""What `segment_ids` cost: a causal layer over packed rows against the same layer without, in one process.

    python -m bench.packed              # a minute; prints the table that docs/performance.md has

Each row holds five sequences. The figures are medians of calls in turns, after calls that are not counted.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import flax_sepconv as fsc

SHAPES = ((8, 1024, 256, 4), (16, 512, 64, 4), (4, 2048, 768, 4), (8, 1024, 256, 31), (16, 512, 64, 31))
"""Batch, length, channels and filters, taps."""
TURNS, WARM, COUNTED = 5, 3, 5


def ratios(batch: int, length: int, channels: int, taps: int) -> tuple[float, float]:
    """How many times as long the layer takes with `segment_ids`: forward, and with all gradients."""
    config = fsc.SeparableConv1DConfig(channels, taps, padding="causal", activation="silu")
    params = fsc.init_params(jax.random.key(0), channels, config)
    x = jax.random.normal(jax.random.key(1), (batch, length, channels))
    ids = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 6, (batch, length)), axis=1))

    def plain(params, x, ids):
        return fsc.separable_conv1d(params, x, config)

    def packed(params, x, ids):
        return fsc.separable_conv1d(params, x, config, segment_ids=ids)

    def gradients(layer):
        return jax.grad(lambda params, x: jnp.sum(layer(params, x, ids) ** 2), (0, 1))

    forward = [jax.jit(layer) for layer in (plain, packed)]
    backward = [jax.jit(gradients(layer)) for layer in (plain, packed)]
    without, with_ids = _medians([lambda f=f: f(params, x, ids) for f in forward])
    without_back, with_ids_back = _medians([lambda f=f: f(params, x) for f in backward])
    return with_ids / without, with_ids_back / without_back


def _medians(calls) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS):
        for call, found in zip(calls, times, strict=True):
            for _ in range(WARM):
                jax.block_until_ready(call())
            for _ in range(COUNTED):
                start = time.perf_counter()
                jax.block_until_ready(call())
                found.append(time.perf_counter() - start)
    return [float(np.median(found)) for found in times]


def main() -> None:
    """Prints a table in Markdown."""
    print(
        "| batch, length | channels and filters | taps | forward | with gradients |\n| --- | --- | --- | --- | --- |"
    )
    for batch, length, channels, taps in SHAPES:
        forward, backward = ratios(batch, length, channels, taps)
        print(f"| {batch}, {length} | {channels} | {taps} | {forward:.2f} | {backward:.2f} |", flush=True)


if __name__ == "__main__":
    main()
