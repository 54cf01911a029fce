"""What a dilation costs: each peer's layers of one shape and many dilations, in turns with one another.

The suite's tables take each dilation at a time of its own, and a shared machine changes from one to the next.
"""

from collections.abc import Callable, Sequence

from bench import layers, timing
from bench.peers import Layer, Peer
from bench.problem import TOLERANCE, Problem
from bench.shapes import Shape


def measure(
    shapes: Sequence[Shape], peers: Sequence[Peer], budget: timing.Budget, tell: Callable[[float, str], None]
) -> dict:
    """By peer, mode and dilation: times, ready for JSON; a peer that fails on one of the shapes is named, with why."""
    result: dict = {"shape": shapes[0].describe(), "peers": {}, "failed": {}}
    for i, peer in enumerate(peers):
        tell(i / len(peers), f"dilations: {peer.name}")
        try:
            built = {shape.dilation: _verified(peer, Problem.draw(shape)) for shape in shapes}
        except Exception as error:  # whatever a library throws, the others are measured
            result["failed"][peer.name] = f"{type(error).__name__}: {error}"[:200]
            continue
        modes: dict[str, dict[str, dict]] = {}
        for mode in ("forward", "gradient"):
            calls = {str(d): call for d, layer in built.items() if (call := getattr(layer, mode))}
            if calls:
                rounds = timing.take_turns(calls, budget.share(1 / len(peers) / 2))
                modes[mode] = {d: timing.summary(each) for d, each in rounds.items()}
        result["peers"][peer.name] = modes
    return result


def _verified(peer: Peer, problem: Problem) -> Layer:
    layer = peer.build(problem)
    largest = max(layers.verify(layer, problem.answer()).values())
    if not largest <= TOLERANCE:
        raise ValueError(f"wrong numbers, not timed: by {largest:.1g} for {problem.shape.describe()}")
    return layer
