"""Measures layers: for each shape, build every peer, verify its numbers, and let those that are right take turns."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence

from bench import machine, timing
from bench.peers import OURS, Layer, Peer
from bench.problem import TOLERANCE, Problem, differences
from bench.shapes import Shape

Report = Callable[[float, str], None]
"""Told the share of one shape's work that is done, and what is being done."""

RESTED = 0.15  # of the time for turns, for the figure after a rest
BUILDING = 0.3  # of the work of a shape, as the progress bar shows it


def measure(
    shape: Shape, peers: Sequence[Peer], budget: timing.Budget, limits: Mapping, tell: Report
) -> dict:
    """Everything that is found out about one shape, ready for JSON.

    Args:
        shape: the layer.
        peers: who computes it.
        budget: for the turns, half of it forward and half with gradients.
        limits: what `machine.limits` gave.
        tell: see `Report`.
    """
    problem = Problem.draw(shape)
    answer = problem.answer()
    modes = ("forward", "gradient") if shape.gradient else ("forward",)
    result = {
        "name": shape.name,
        "shape": shape.describe(),
        "suite": shape.suite,
        "source": shape.source,
        "least_ms": {mode: machine.least_ms(shape.flops(mode), shape.bytes(mode), limits) for mode in modes},
        "gflop": {mode: shape.flops(mode) / 1e9 for mode in modes},
        "input_bytes": problem.x.nbytes,
        "peers": {},
        "failed": {},
    }
    layers: dict[str, Layer] = {}
    for i, peer in enumerate(peers):
        tell(BUILDING * i / len(peers), f"{shape.name}: {peer.name}, build and verify")
        began = time.perf_counter()
        try:
            layer = peer.build(problem)
            wrong = verify(layer, answer)
        except Exception as error:  # whatever a library throws, the others are measured
            text = str(error).strip().splitlines()
            result["failed"][peer.name] = f"{type(error).__name__}: {text[0] if text else ''}"[:200]
            continue
        errors = {name: e for name, e in wrong.items() if not e <= TOLERANCE}
        if errors:
            listed = ", ".join(f"{name} by {e:.1g}" for name, e in errors.items())
            result["failed"][peer.name] = f"wrong numbers, not timed: {listed}"
            continue
        layers[peer.name] = layer
        result["peers"][peer.name] = {
            "device": peer.device,
            "build_and_verify_s": time.perf_counter() - began,
            "largest_error": max(wrong.values()),
            **layer.notes,
        }

    done = BUILDING
    others = machine.watch_others()
    for mode in modes:
        calls = {
            name: getattr(layer, mode) for name, layer in layers.items() if getattr(layer, mode) is not None
        }

        def tick(took, mode=mode):
            nonlocal done
            done += took / budget.seconds * (1 - BUILDING)
            tell(min(done, 1.0), f"{shape.name}: {mode}")

        share = budget.share(1 / len(modes))
        for name, rounds in (
            timing.take_turns(calls, share.share(1 - RESTED), tick) if calls else {}
        ).items():
            result["peers"][name][mode] = timing.summary(rounds)
        if budget.warm and OURS in calls and len(calls) > 1:
            # Once more, ours and the fastest other, with one run after a rest.
            medians = {name: result["peers"][name][mode]["median_ms"] for name in calls if name != OURS}
            both = {name: calls[name] for name in (OURS, min(medians, key=medians.__getitem__))}
            for name, rounds in timing.take_turns(both, share.share(RESTED)._replace(warm=0.0), tick).items():
                result["peers"][name][mode]["rested_ms"] = timing.summary(rounds)["median_ms"]
    result["others_cores"] = others()
    tell(1.0, shape.name)
    del layers
    gc.collect()
    return result


def verify(layer: Layer, answer: Mapping) -> dict[str, float]:
    """Relative differences of the output and of every gradient from the answer, by name."""
    forward = differences(layer.arrays(layer.forward()), {"output": answer["output"]})
    if layer.gradient is None:
        return forward
    gradient = differences(layer.arrays(layer.gradient()), dict(answer))
    return {name: max(forward.get(name, 0.0), e) for name, e in gradient.items()}
