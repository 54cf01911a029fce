"""How well a stream was heard: a table of keywords, and a figure of the sound and the scores as they come."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

COLORS = ("#3465a4", "#d9731a", "#3a8f4d", "#8f4a9e")
GREY = "#8a8a8a"


class Detection(NamedTuple):
    """A keyword that was found."""

    word: str
    time: float  # when it was known, in seconds from the beginning
    score: float  # its probability then


Words = Sequence[tuple[str, int, int]]  # a word, its first sample, and the one after its last


def match(
    words: Words, detections: Sequence[Detection], rate: int
) -> tuple[dict[int, float], list[Detection]]:
    """How long after its end, in seconds, each keyword was known, by its place in `words`; and the false alarms."""
    delays: dict[int, float] = {}
    alarms = []
    for detection in detections:
        for index, (word, start, end) in enumerate(words):
            if (
                word == detection.word
                and index not in delays
                and start < detection.time * rate < end + rate / 2
            ):
                delays[index] = detection.time - end / rate
                break
        else:
            alarms.append(detection)
    return delays, alarms


def report(words: Words, detections: Sequence[Detection], rate: int) -> Table:
    """A line for each keyword that was said or found."""
    delays, alarms = match(words, detections, rate)
    table = Table(
        "keyword", "said", "found", "known after its end", "found where it was not", box=SIMPLE_HEAD
    )
    names = {detection.word for detection in detections} | {words[index][0] for index in delays}
    for name in sorted(names):
        said = sum(word == name for word, _, _ in words)
        after = [1e3 * delay for index, delay in delays.items() if words[index][0] == name]
        median = f"{np.median(after):.0f} ms" if after else ""
        table.add_row(
            name, str(said), str(len(after)), median, str(sum(each.word == name for each in alarms))
        )
    return table


def draw(
    path: pathlib.Path,
    sound: np.ndarray,
    rate: int,
    words: Words,
    arrival: np.ndarray,
    scores: Mapping[str, np.ndarray],
    detections: Sequence[Detection],
    seconds: float = 12.0,
) -> None:
    """Writes a figure of the first seconds: the sound, the scores as they come, and how late keywords are found.

    Args:
        path: where to, with a suffix that matplotlib knows.
        sound: `(samples,)`.
        rate: samples per second.
        words: what is said, if that is known.
        arrival: `(frames,)`, when the scores of each frame were there, in seconds.
        scores: for each keyword `(frames,)` probabilities.
        detections: what was found.
        seconds: how many to draw.
    """
    color = dict(zip(scores, COLORS, strict=False))
    shown = sound[: int(seconds * rate)]
    seconds = len(shown) / rate
    detections = [each for each in detections if each.time <= seconds]
    delays, alarms = match(words, detections, rate)
    heights = (1, 1, 0.6) if words else (1, 1)
    figure = Figure(figsize=(13, 2.6 * sum(heights)), layout="constrained")
    axes: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    wave, likely, *late = axes

    title = "What is said: keywords in color, other words in grey" if words else "The sound"
    wave.set_title(title, loc="left", pad=48 if words else None)
    top = 1.05 * max(abs(shown).max(initial=0), 1e-6)
    wave.plot(np.arange(len(shown)) / rate, shown, color=GREY, linewidth=0.4)
    for word, start, end in words:
        if start / rate < seconds:
            middle, tint = (start + end) / 2 / rate, color.get(word, GREY)
            wave.axvspan(
                start / rate, end / rate, color=tint, alpha=0.25 if word in color else 0.1, linewidth=0
            )
            wave.text(middle, 1.05 * top, word, color=tint, ha="center", va="bottom", rotation=30)
            if word in color:
                likely.axvline(end / rate, color=tint, linestyle=":", linewidth=1)
    wave.set(ylabel="sound", ylim=(-top, top), yticks=[])

    title = "Scores as they arrive: a point where a keyword is found"
    likely.set_title(title + (", a dotted line where one ends" if words else ""), loc="left")
    for word, values in scores.items():
        likely.step(arrival, values, where="post", color=color[word], label=word)
    for each in detections:
        likely.plot(each.time, each.score, "o", color=color[each.word], clip_on=False)
    likely.set(ylabel="probability", ylim=(0, 1.02), xlim=(0, seconds))
    likely.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    for panel in late:
        panel.set_title("Latency: how long after its end each keyword is found", loc="left")
        for index, (word, _, end) in enumerate(words):
            if word in color and end / rate <= seconds:
                delay = 1e3 * delays.get(index, 0.0)
                panel.bar(end / rate, delay, width=0.08, color=color[word])
                label = f"{delay:.0f} ms" if index in delays else "missed"
                panel.text(end / rate, max(delay, 0), label, color=color[word], ha="center", va="bottom")
        for each in alarms:
            panel.text(each.time, 0, "false alarm", color=color[each.word], ha="center", va="top")
        low, high = (1e3 * edge([0.0, *delays.values()]) for edge in (min, max))
        room = 0.4 * max(high, 50)
        panel.set(ylabel="latency (ms)", ylim=(low - room, max(high, 50) + room))
    axes[-1].set_xlabel("time (s)")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
