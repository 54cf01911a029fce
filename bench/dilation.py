"""What a dilation costs: each peer's layers of one shape and many dilations, in turns with one another.

The suite's tables take each dilation at a time of its own, and a shared machine changes from one to the next.
"""

from collections.abc import Callable, Sequence

from bench import timing
from bench.peers import Peer
from bench.problem import Problem
from bench.shapes import Shape


def measure(
    shapes: Sequence[Shape], peers: Sequence[Peer], seconds: float, tell: Callable[[float, str], None]
) -> dict:
    """By peer, mode and dilation: times, ready for JSON; a peer that cannot do all of the shapes is left out."""
    result: dict = {"shape": shapes[0].describe(), "peers": {}}
    for i, peer in enumerate(peers):
        tell(i / len(peers), f"dilations: {peer.name}")
        try:
            layers = {shape.dilation: peer.build(Problem.draw(shape)) for shape in shapes}
        except Exception:  # why, the suite's own table has said
            continue
        modes: dict[str, dict[str, dict]] = {}
        for mode in ("forward", "gradient"):
            calls = {str(d): call for d, layer in layers.items() if (call := getattr(layer, mode))}
            if calls:
                rounds = timing.take_turns(calls, seconds / len(peers) / 2)
                modes[mode] = {d: timing.summary(each) for d, each in rounds.items()}
        result["peers"][peer.name] = modes
    return result
