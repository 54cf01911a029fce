"""What the results say, in tables a person reads: every figure here comes from the dict that is written as JSON."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from bench.peers import BASE, OURS
from bench.timing import quartiles

MODES = {"forward": "forward", "gradient": "value and all gradients"}

TINY_MS = 0.2
"""Below this, the time of the fastest is mostly dispatch; such shapes stay out of the means."""

DISTURBED = 0.1
"""Cores kept busy by other processes above which a reader is told."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One shape in one mode: milliseconds of ours, of the fastest peer and of plain lax, and the machine's least.

    `ratio` is the fastest peer's time over ours, above 1 where ours is faster; `spread` the quartiles of that
    ratio taken round by round; `rested` the ratio after a rest and one run, if that was measured too.
    """

    name: str
    shape: str
    suite: str
    ours: float
    best: float
    best_name: str
    lax: float | None
    least: float
    ratio: float
    spread: tuple[float, float]
    rested: float | None

    @property
    def tiny(self) -> bool:
        """Whether dispatch dominates."""
        return min(self.ours, self.best) < TINY_MS


def rows(results: Mapping, mode: str) -> list[Row]:
    """A row for each shape that ours and one peer at least were timed on, on one kind of device."""
    found = []
    for entry in results["shapes"]:
        timed = {name: peer for name, peer in entry["peers"].items() if mode in peer}
        ours = timed.pop(OURS, None)
        if ours is None:
            continue
        device = ours["device"]
        timed = {name: peer[mode] for name, peer in timed.items() if peer["device"] == device}
        if not timed:
            continue
        best_name = min(timed, key=lambda name: timed[name]["median_ms"])
        best, mine = timed[best_name], ours[mode]
        paired = [
            b / a for a, b in zip(mine["round_medians_ms"], best["round_medians_ms"], strict=True) if a and b
        ]
        ratio = best["median_ms"] / mine["median_ms"]
        low, _, high = quartiles(paired or [ratio])
        found.append(
            Row(
                entry["name"],
                entry["shape"],
                entry["suite"],
                mine["median_ms"],
                best["median_ms"],
                best_name,
                timed[BASE]["median_ms"] if BASE in timed else None,
                entry["least_ms"][mode],
                ratio,
                (low, high),
                best["rested_ms"] / mine["rested_ms"]
                if "rested_ms" in best and "rested_ms" in mine
                else None,
            )
        )
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Of one value or more."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def print_report(results: Mapping, console: Console) -> None:
    """Everything: what was run where, a table for each suite and mode, what each peer took, and the means."""
    header(results, console)
    for suite in dict.fromkeys(entry["suite"] for entry in results["shapes"]):
        for mode in MODES:
            listed = [row for row in rows(results, mode) if row.suite == suite]
            if listed:
                console.print(_comparison(suite, mode, listed))
                console.print(summary(mode, listed))
                console.print()
        for table in (*(_every_peer(results, suite, mode) for mode in MODES), _costs(results, suite)):
            if table.row_count:
                console.print(table)
                console.print()
    if "dilation" in results:
        console.print(_dilation(results["dilation"]))
        for name, why in results["dilation"].get("failed", {}).items():
            console.print(f"dilations in turns: {name}: {why}", markup=False, style="red")
    if "per_example" in results:
        console.print(_per_example(results["per_example"]))
    for name, why in results["missing"].items():
        console.print(f"left out: {name}: {why}", markup=False)
    for entry in results["shapes"]:
        for name, why in entry["failed"].items():
            console.print(f"{entry['name']}: {name}: {why}", markup=False, style="red")


def header(results: Mapping, console: Console) -> None:
    """What was run, where, and the limits of the machine."""
    m, limits = results["machine"], results["limits"]
    bandwidth = ", ".join(f"{b:.0f} at {int(s) / 2**20:.0f} MiB" for s, b in limits["bandwidth_gbs"].items())
    console.print(
        f"{m['processor']}, {m['cores']} cores, {m['device']}, Python {m['python']}, {results['date']}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in m["versions"].items()), style="dim")
    console.print(
        f"malloc: {results['malloc']}. Not counted in a turn: {_not_counted(results)}. "
        f"Limits: {limits['peak_gflops']:.0f} GFLOP/s, GB/s {bandwidth}. "
        f"Load average at the start: {m['load_average']:.1f}.\n",
        markup=False,
    )
    others = [(e["others_cores"], e["name"]) for e in results["shapes"] if e.get("others_cores") is not None]
    if others and max(others)[0] > DISTURBED:
        listed = ", ".join(f"{name} {cores:.2f}" for cores, name in others if cores > DISTURBED)
        console.print(f"Other processes kept cores busy while these were timed: {listed}.\n", style="red")


def _not_counted(results: Mapping) -> str:
    warm = results.get("warm_ms", 0)
    return f"{warm:g} ms" if warm else "one run"


def _color(ratio: float) -> str:
    return "green" if ratio >= 1 else "yellow" if ratio >= 0.75 else "red"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _comparison(suite: str, mode: str, listed: list[Row]) -> Table:
    title = f"{suite}, {MODES[mode]}: milliseconds, medians"
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("name", "shape"):
        table.add_column(column, no_wrap=True)
    for column in ("ours", "fastest peer", "", "peer / ours", "quartiles", "lax / ours", "limit / ours"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in listed:
        table.add_row(
            row.name + " *" * row.tiny,
            row.shape,
            _ms(row.ours),
            _ms(row.best),
            row.best_name,
            f"[{_color(row.ratio)}]{row.ratio:.2f}[/]",
            f"{row.spread[0]:.2f} to {row.spread[1]:.2f}",
            f"{row.lax / row.ours:.1f}" if row.lax else "",
            f"{row.least / row.ours:.2f}",
        )
    if any(row.tiny for row in listed):
        table.caption = f"* under {TINY_MS} ms: mostly dispatch, not in the means"
    return table


def summary(mode: str, listed: list[Row]) -> str:
    """Means, the worst shape and the ratio to plain lax, tiny shapes apart."""
    counted = [row for row in listed if not row.tiny]
    lines = []
    for title, group in (
        (mode, counted),
        (f"{mode}, under {TINY_MS} ms", [row for row in listed if row.tiny]),
    ):
        if not group:
            continue
        worst = min(group, key=lambda row: row.ratio)
        line = (
            f"{title}: {geometric_mean(row.ratio for row in group):.2f} times the speed of the fastest peer in the "
            f"geometric mean of {len(group)}, worst {worst.ratio:.2f} ({worst.name}, {worst.best_name})"
        )
        to_lax = [(row.lax / row.ours, row.name) for row in group if row.lax]
        if to_lax:
            least, name = min(to_lax)
            line += f"; {geometric_mean(r for r, _ in to_lax):.1f} times lax, least {least:.1f} ({name})"
        lines.append(line + ".")
        rested = [row.rested for row in group if row.rested]
        if rested:
            lines.append(f"{title}, after a rest of 50 ms and one run: {geometric_mean(rested):.2f} times.")
    return "\n".join(lines)


def _every_peer(results: Mapping, suite: str, mode: str) -> Table:
    """Milliseconds of every peer, the fastest of a shape in bold."""
    names = [name for name in results["peers"] if name not in results["missing"]]
    table = Table(title=f"{suite}, {MODES[mode]}, every peer: milliseconds", title_justify="left")
    table.add_column("name", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for entry in results["shapes"]:
        times = {name: peer[mode]["median_ms"] for name, peer in entry["peers"].items() if mode in peer}
        if entry["suite"] != suite or not times:
            continue
        least = min(times.values())
        cells = []
        for name in names:
            if name in times:
                cells.append(f"[bold green]{_ms(least)}[/]" if times[name] == least else _ms(times[name]))
            else:
                why = entry["failed"].get(name)
                cells.append("" if why is None else "wrong" if "wrong" in why else "failed")
        table.add_row(entry["name"], *cells)
    return table


def _costs(results: Mapping, suite: str) -> Table:
    """First compile of value and gradient, and the memory that the compiled programs ask for."""
    table = Table(title=f"{suite}: compile time and memory of JAX programs", title_justify="left")
    table.add_column("name", no_wrap=True)
    for column in ("compile s", "lax", "ratio", "input MB", "forward temp", "lax", "gradient temp", "lax"):
        table.add_column(column, justify="right")
    for entry in results["shapes"]:
        ours, lax = (entry["peers"].get(name, {}) for name in (OURS, BASE))
        if entry["suite"] != suite or "compile_s" not in ours:
            continue
        theirs = lax.get("compile_s")
        ratio = f"{ours['compile_s'] / theirs:.2f}" if theirs else ""
        memory = [
            f"{peer[f'{mode}_temp_bytes'] / 1e6:.1f}" if f"{mode}_temp_bytes" in peer else ""
            for mode in ("forward", "gradient")
            for peer in (ours, lax)
        ]
        compile_s = [f"{s:.2f}" if s else "" for s in (ours["compile_s"], theirs)]
        table.add_row(entry["name"], *compile_s, ratio, f"{entry['input_bytes'] / 1e6:.1f}", *memory)
    return table


def _dilation(found: Mapping) -> Table:
    table = Table(title=f"dilations in turns: {found['shape']}", title_justify="left")
    dilations = list(next(iter(next(iter(found["peers"].values())).values()))) if found["peers"] else []
    for column in ("peer", "", *(f"d{d} ms" for d in dilations), "most / least"):
        table.add_column(column, justify="right" if "/" in column or "ms" in column else "left")
    for name, modes in found["peers"].items():
        for mode, times in modes.items():
            medians = [times[d]["median_ms"] for d in dilations]
            table.add_row(name, mode, *map(_ms, medians), f"{max(medians) / min(medians):.2f}")
    return table


def _per_example(found: Mapping) -> Table:
    table = Table(title=f"per-example gradients: {found['net']}", title_justify="left")
    for column in (
        "peer",
        "batch",
        "batch gradient ms",
        "per-example ms",
        "ratio",
        "compile s",
        "per-example compile s",
    ):
        table.add_column(column, justify="left" if column == "peer" else "right")
    for name, batches in found["peers"].items():
        for batch, values in batches.items():
            one, each = (values[mode]["median_ms"] for mode in ("batch", "per_example"))
            compile_s = (f"{values[f'{mode}_compile_s']:.2f}" for mode in ("batch", "per_example"))
            table.add_row(name, batch, _ms(one), _ms(each), f"{each / one:.2f}", *compile_s)
    return table
