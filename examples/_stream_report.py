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
    """Writes a figure of the first seconds: the sound and what is said in it, and below it what is known when.

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
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    wave, likely = axes
    shown = sound[: int(seconds * rate)]
    top = 1.05 * max(abs(shown).max(), 1e-6)
    wave.plot(np.arange(len(shown)) / rate, shown, color=GREY, linewidth=0.4)
    for word, start, end in words:
        if start / rate < seconds:
            middle = (start + end) / 2 / rate
            wave.axvspan(start / rate, end / rate, color=color.get(word, "#dddddd"), alpha=0.3, linewidth=0)
            wave.text(
                middle,
                1.02 * top,
                word,
                ha="center",
                va="bottom",
                rotation=35,
                color=color.get(word, GREY),
                clip_on=False,
            )
            if word in color:
                likely.axvline(end / rate, color=color[word], linestyle=":", linewidth=1)
    wave.set(ylabel="sound", ylim=(-top, top), yticks=[])
    for word, values in scores.items():
        likely.step(arrival, values, where="post", color=color[word], label=word)
    for each in detections:
        likely.plot(each.time, each.score, "o", color=color[each.word], clip_on=False)
    likely.set(
        xlabel="time (s)", ylabel="probability of a keyword", xlim=(0, min(seconds, len(sound) / rate))
    )
    likely.set_ylim(0, 1.02)
    likely.legend(
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        title="drawn when known;\n● found\n⋯ the word's end",
    )
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
