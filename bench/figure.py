"""The figure: for each shape, how fast this library is against the fastest peer and against the machine."""

import pathlib
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from bench.peers import OURS
from bench.report import MODES, TINY_MS, Row, geometric_mean, rows

COLORS = {"forward": "#1f6fb2", "gradient": "#d1661b"}
MARKERS = {"forward": "o", "gradient": "D"}
PEER, TEXT, FAINT = "#9a9a9a", "#333333", "#e9e9e9"
LEGEND = (
    "Below each name: batch, length, channels→filters, k: kernel size, s: strides, d: dilation rate, m: depth "
    "multiplier; padding is 'same' unless said. Thin lines: quartiles over rounds. Beside each mark: the fastest peer."
)
TICKS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)


def draw(results: Mapping, path: pathlib.Path) -> None:
    """Writes the figure as PNG; one row a shape, in the order in which they were measured."""
    found = {mode: {row.name: row for row in rows(results, mode)} for mode in MODES}
    names = [e["name"] for e in results["shapes"] if any(e["name"] in found[mode] for mode in MODES)]
    if not names:
        return
    height = 0.36 * len(names) + 1.8
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, *limits) = plt.subplots(
            1, 3, figsize=(13, height), sharey=True, width_ratios=(2.2, 1, 1), layout="constrained"
        )
        _against_peers(left, found, names)
        for axes, mode in zip(limits, MODES, strict=True):
            _against_machine(axes, found[mode], names, mode)
        labels = []
        for name in names:
            row = next(found[mode][name] for mode in MODES if name in found[mode])
            labels.append(f"{name}\n{row.shape}" if name != row.shape.replace(" ", "") else row.shape)
        left.set_yticks(range(len(names)), labels, color=TEXT, fontsize=8, linespacing=1.05)
        left.set_ylim(len(names) - 0.4, -0.6)
        for axes in (left, *limits):
            axes.tick_params(length=0)
            for y in range(0, len(names), 2):
                axes.axhspan(y - 0.5, y + 0.5, color="#f6f6f6", zorder=0, linewidth=0)
        machine = results["machine"]
        figure.suptitle(
            f"{OURS} and the fastest of its peers: float32, {machine['cores']} cores of {machine['processor']}, "
            f"{machine['device']}, {results['date'][:10]}",
            fontsize=11,
            fontweight="bold",
            color=TEXT,
        )
        # Room for the legends below, which are wider than their panels.
        figure.get_layout_engine().set(rect=(0, 0.75 / height, 1, 1 - 0.75 / height))  # pyright: ignore
        figure.text(0.5, 0.12 / height, LEGEND, ha="center", va="bottom", fontsize=8, color=TEXT)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _against_peers(axes, found: Mapping[str, Mapping[str, Row]], names: list[str]) -> None:
    """Left: the fastest peer's time over ours, with quartiles, and who that peer is."""
    everything = [row for mode in MODES for row in found[mode].values()]
    ends = [value for row in everything for value in (row.ratio, *row.spread, 0.6, 1.6)]
    low, high = min(ends), max(ends)
    room = (high / low) ** 0.17  # for the peers' names
    low, high = low / room, high * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.axvline(1, color=TEXT, linewidth=1.2, zorder=1)
    for mode, offset in (("forward", -0.17), ("gradient", 0.17)):
        for i, name in enumerate(names):
            row = found[mode].get(name)
            if row is None:
                continue
            color = COLORS[mode]
            axes.plot(
                [1, row.ratio], [i + offset] * 2, color=color, alpha=0.25, linewidth=3, solid_capstyle="butt"
            )
            axes.plot(row.spread, [i + offset] * 2, color=color, linewidth=1)
            axes.plot(
                row.ratio,
                i + offset,
                MARKERS[mode],
                color=color,
                markersize=5.5,
                markerfacecolor="white" if row.tiny else color,
            )
            axes.annotate(
                row.best_name,
                (
                    max(row.ratio, row.spread[1]) if row.ratio >= 1 else min(row.ratio, row.spread[0]),
                    i + offset,
                ),
                (6 if row.ratio >= 1 else -6, 0),
                textcoords="offset points",
                ha="left" if row.ratio >= 1 else "right",
                va="center",
                fontsize=6.5,
                color="#777777",
            )
        counted = [row.ratio for row in found[mode].values() if not row.tiny]
        mean = f", {geometric_mean(counted):.2f} in the geometric mean" if counted else ""
        axes.plot([], [], MARKERS[mode], color=COLORS[mode], label=f"{MODES[mode]}{mean}")
    if any(row.tiny for row in everything):
        axes.plot(
            [], [], "o", color=TEXT, markerfacecolor="white", label=f"under {TINY_MS} ms: mostly dispatch"
        )
    axes.xaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(axis="x", color=FAINT, zorder=0)
    axes.set_title(
        f"Speed against the fastest peer\n←  the peer is faster   |   {OURS} is faster  →",
        fontsize=9,
        color=TEXT,
    )
    _legend(axes)


def _against_machine(axes, found: Mapping[str, Row], names: list[str], mode: str) -> None:
    """Right: the least time that the machine's limits allow, as a share of ours and of the fastest peer's."""
    for i, name in enumerate(names):
        row = found.get(name)
        if row is not None:
            ours, peer = 100 * row.least / row.ours, 100 * row.least / row.best
            axes.barh(i, ours, height=0.42, color=COLORS[mode], zorder=2)
            axes.plot([peer, peer], [i - 0.32, i + 0.32], color="black", linewidth=1.6, zorder=3)
    axes.barh(0, 0, color=COLORS[mode], label=OURS)
    axes.plot([], [], "|", color="black", markersize=9, markeredgewidth=1.6, label="the fastest peer")
    axes.set_xlim(0, max(100, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(axis="x", color=FAINT, zorder=0)
    axes.set_title(f"Share of the machine's limit\n{MODES[mode]}", fontsize=9, color=TEXT)
    _legend(axes)


def _legend(axes) -> None:
    """Below the axis, on one line."""
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + ScaledTranslation(0, -0.3, axes.figure.dpi_scale_trans),
        ncols=2,
        frameon=False,
        fontsize=8,
        borderpad=0,
    )
    legend.set_in_layout(False)
