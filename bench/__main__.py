"""`python -m bench`: the command line."""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from bench import peers, shapes, timing

SUITES = ("layers", "long", "dilation", "latency", "per-example")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times this library and its peers side by side, turn by turn, after verifying their numbers.",
    )
    add = parser.add_argument
    add("--suite", nargs="+", choices=(*SUITES, "all"), help="what to measure (default: layers)")
    add("--only", nargs="+", metavar="NAME", help="only shapes whose name begins so, of every suite")
    add(
        "--shape",
        nargs="+",
        default=[],
        type=shapes.parse,
        metavar="B,L,C,F,K[,M,S,D[,PADDING]]",
        help="your own",
    )
    add("--scale", type=int, default=1, metavar="N", help="N times the batch of every shape (default: 1)")
    add(
        "--peers", nargs="+", metavar="NAME", choices=peers.REGISTRY, help="only these (ours is always there)"
    )
    add(
        "--seconds",
        type=float,
        default=16.0,
        help="time for the turns of one shape, both modes (default: 16)",
    )
    add(
        "--warm",
        type=float,
        default=80.0,
        metavar="MS",
        help="milliseconds of runs that no turn counts, for a steady state; 0 is one run after a rest (default: 80)",
    )
    add("--malloc", choices=("keep", "default"), default="keep", help="see bench/timing.py (default: keep)")
    add(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/bench"),
        help="folder for results (default: runs/bench)",
    )
    add(
        "--redraw",
        type=pathlib.Path,
        metavar="JSON",
        help="tables and figure of a run made before; measures nothing",
    )
    add("--list", action="store_true", help="shapes and peers")
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> tuple[list[shapes.Shape], set[str]]:
    """The shapes that were asked for, with batches to scale, and the suites."""
    wanted, suites = _named(args)
    return _scaled(wanted, args), suites


def _scaled(wanted: Sequence[shapes.Shape], args: argparse.Namespace) -> list[shapes.Shape]:
    return [dataclasses.replace(s, batch=s.batch * args.scale) for s in wanted]


def _named(args: argparse.Namespace) -> tuple[list[shapes.Shape], set[str]]:
    if args.only:
        unknown = [name for name in args.only if not any(s.name.startswith(name) for s in shapes.SHAPES)]
        if unknown:
            raise SystemExit(f"no shape is named like {', '.join(unknown)}; see --list.")
        named = [s for s in shapes.SHAPES if s.name.startswith(tuple(args.only))]
        return named + args.shape, set(args.suite or ())
    suites = args.suite or ([] if args.shape else ["layers"])
    suites = SUITES if "all" in suites else suites
    return [s for s in shapes.SHAPES if s.suite in suites] + args.shape, set(suites)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = arguments(argv)
    malloc = timing.keep_freed_memory() if args.malloc == "keep" else "default"
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # a GPU is shared with the other libraries
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 180)
    if args.list:
        for shape in shapes.SHAPES:
            console.print(
                f"{shape.suite:10} {shape.name:18} {shape.describe():40} {shape.source}", markup=False
            )
        console.print(f"\npeers: {', '.join(peers.REGISTRY)}")
        return 0
    if args.redraw:
        results = json.loads(args.redraw.read_text())
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        results = run(args, malloc, console)
    write(results, args.out, console)
    return 0


def run(args: argparse.Namespace, malloc: str, console) -> dict:
    """Measures what was asked for; the dict that is written as JSON."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from bench import dilation, layers, machine, per_example

    wanted, suites = chosen(args)
    more = [suite for suite in ("dilation", "per-example") if suite in suites]
    budget = timing.Budget(args.seconds, args.warm / 1e3)
    names = [name for name in peers.REGISTRY if not args.peers or name in (*args.peers, peers.OURS)]
    results = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "malloc": malloc,
        "seconds": args.seconds,
        "warm_ms": args.warm,
        "scale": args.scale,
        "machine": machine.description(),
        "peers": names,
        "missing": {},
        "shapes": [],
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("the machine's limits", total=len(wanted) + len(more))
        results["limits"] = machine.limits()
        ready = []
        for name in names:
            progress.update(bar, description=f"import {name}")
            try:
                ready.append(peers.load(name))
            except peers.Unavailable as error:
                results["missing"][name] = str(error)
        for done, shape in enumerate(wanted):

            def tell(share, what, done=done):
                progress.update(bar, completed=done + share, description=what)

            results["shapes"].append(layers.measure(shape, ready, budget, results["limits"], tell))
            save(results, args.out)
        for done, suite in enumerate(more, len(wanted)):

            def tell_more(share, what, done=done):
                progress.update(bar, completed=done + share, description=what)

            if suite == "dilation":
                dilated = _scaled(shapes.DILATION, args)
                results["dilation"] = dilation.measure(dilated, ready, budget.share(len(dilated)), tell_more)
            else:
                results["per_example"] = per_example.measure(names, budget.share(2), tell_more)
            save(results, args.out)
    return results


def save(results: dict, out: pathlib.Path) -> None:
    """Writes what there is so far: a run that is cut off can be drawn with `--redraw`."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def write(results: dict, out: pathlib.Path, console) -> None:
    """The tables on the console and in a file, and the figure."""
    from bench import report

    report.print_report(results, console)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "tables.txt").open("w") as file:
        report.print_report(results, type(console)(file=file, width=180))
    try:
        from bench import figure
    except ImportError as error:
        console.print(f"no figure: {error.name} is not installed (pip install matplotlib)")
        return
    figure.draw(results, out / "ratios.png")
    console.print(f"written: {out}/results.json, tables.txt, ratios.png")


if __name__ == "__main__":
    sys.exit(main())
