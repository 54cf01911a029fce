"""Taking turns: what makes a comparison on a noisy machine fair, whatever library is measured.

Two effects double or halve a figure and are taken out. glibc gives large freed blocks back to the system, so every
call pays page faults for its results: `keep_freed_memory`. Workers of OpenMP and ONNX Runtime spin after a call and
take a core from whoever comes next: a turn begins with a rest until they sleep, and one run that is not counted.
A third remains: after a rest, a system may run all threads of a program on one core at first, and take tens of
milliseconds to put them on others. `Budget.warm` takes it out.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

REST = 0.05
"""Seconds of rest before a turn, as many as spinning workers commonly take to go to sleep."""

TURN = 0.04
"""Seconds of counted runs in a turn, as far as `FEWEST` and `MOST` allow."""

FEWEST, MOST = 3, 25
ROUNDS = 40


class Budget(NamedTuple):
    """Seconds for turns."""

    seconds: float
    """For all of them together."""

    warm: float = 0.0
    """At the beginning of each, for runs that are not counted; one is made in any case."""

    def share(self, part: float) -> "Budget":
        """The same with that part of the time."""
        return self._replace(seconds=self.seconds * part)


def keep_freed_memory() -> str:
    """Tells glibc's malloc to keep what is freed, before anything large is allocated; says what came of it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return "default (this C library has no mallopt)"
    threshold, trim, pad, arenas = (
        -3,
        -1,
        -2,
        -8,
    )  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX
    options = ((threshold, 1 << 30), (trim, 2**31 - 1), (pad, 1 << 28), (arenas, 1))
    accepted = [mallopt(option, value) for option, value in options]
    return "keep (freed memory stays with the process)" if all(accepted) else "default (mallopt refused)"


def rest() -> None:
    """Sleeps until no thread of this process spins any more, `REST` at the least and a second at the most."""
    time.sleep(REST)
    for _ in range(95):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.002:
            return


def take_turns(
    calls: Mapping[str, Callable[[], object]], budget: Budget, tick: Callable[[float], None] = lambda _: None
) -> dict[str, list[list[float]]]:
    """Times every call turn by turn, until the time is up.

    Args:
        calls: by name, something to run that returns when its results are there.
        budget: time to spend. Two rounds are made even if that takes longer; from then on, a call that has used its
            equal share of the time sits out, and one that has used it twice over sits out of the second round too. So
            the slow ones do not take the fast ones' time.
        tick: called after each turn with the seconds that it took.

    Returns:
        By name, for each round that it took part in the seconds of every counted run, and an empty list else.
    """
    names, seconds = list(calls), budget.seconds
    rounds: dict[str, list[list[float]]] = {name: [] for name in names}
    used = dict.fromkeys(names, 0.0)
    start = time.perf_counter()
    for i in range(ROUNDS):
        if i >= 2 and time.perf_counter() - start > seconds:
            break
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            if used[name] > (1 if i >= 2 else 2) * seconds / len(names):
                rounds[name].append([])
                continue
            began = time.perf_counter()
            rest()
            rounds[name].append(_turn(calls[name], budget.warm))
            took = time.perf_counter() - began
            used[name] += took
            tick(took)
    return rounds


def _turn(call: Callable[[], object], warm: float) -> list[float]:
    gc.collect(0)
    gc.disable()
    try:
        start, once = time.perf_counter(), _time(call)
        if once > 1:  # too slow for spinning threads or cold caches to matter: it counts
            return [once]
        while time.perf_counter() - start < warm:
            once = _time(call)
        fewest = FEWEST if once < 2 * TURN else 1
        return [_time(call) for _ in range(min(max(int(TURN / once), fewest), MOST))]
    finally:
        gc.enable()


def _time(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(rounds: list[list[float]]) -> dict:
    """Median and quartiles in milliseconds over all counted runs, how many they were, and each round's median."""
    runs = sorted(1e3 * t for r in rounds for t in r)
    low, middle, high = quartiles(runs)
    return {
        "median_ms": middle,
        "quartiles_ms": [low, high],
        "runs": len(runs),
        "round_medians_ms": [1e3 * statistics.median(r) if r else None for r in rounds],
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The three quartiles of one value or more."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
