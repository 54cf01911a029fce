"""The command line: shows what a Keras model's file holds, and writes its layers to a safetensors file.

flax-sepconv inspect model.keras
flax-sepconv convert model.keras layers.safetensors

`python -m flax_sepconv` is the same.
"""

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax_sepconv
from flax_sepconv._keras.objects import KerasObject
from flax_sepconv._messages import printable
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop import safetensors
from flax_sepconv.interop._files import model_file

_FILE = "a .keras archive, a whole-model .h5 file, a SavedModel folder of Keras 2, or what `convert` wrote"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command line without the program's name; `None` takes the process's.

    Returns:
        The exit status: 0, 1 where a file cannot be read or written, and a message says why, or 2 where no command
        was given, and the help says which there are. Where a pipe was closed, the process ends as any other in it.
    """
    if arguments is None and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal cannot encode is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    as_module = arguments is None and os.path.basename(sys.argv[0]) == "__main__.py"
    parser = _parser("python -m flax_sepconv" if as_module else "flax-sepconv")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        print({"inspect": _inspect, "convert": _convert}[options.command](options, parser.prog), flush=True)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (ValueError, ImportError) as error:
        reason = str(error)
    else:
        return 0
    _say(parser.prog, reason)
    return 1


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Read SeparableConv1D layers out of Keras's files, without Keras or TensorFlow.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"flax-sepconv {flax_sepconv.__version__}",
        help="show the version",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="show the SeparableConv1D layers in a file",
        description="Show the SeparableConv1D layers in a model's file: the names on the way to each, the shapes and "
        "the number of its parameters, and whatever in its settings is not Keras's default.",
    )
    convert = commands.add_parser(
        "convert",
        help="write the SeparableConv1D layers in a file to a safetensors file",
        description="Write the SeparableConv1D layers in a model's file, parameters and configs, to a safetensors "
        "file. flax_sepconv.interop.safetensors.load reads both back; any safetensors reader reads the parameters, "
        "as tensors named LAYER/depthwise_kernel, LAYER/pointwise_kernel and LAYER/bias.",
    )
    for command in (inspect, convert):
        command.add_argument("file", metavar="FILE", help=_FILE)
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
    convert.add_argument("out", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--force", action="store_true", help="replace OUT.safetensors if it exists")
    return parser


def _inspect(options: argparse.Namespace, prog: str) -> str:
    layers = _read(options.file, prog)
    if not options.json:
        return _report(options.file, layers)
    described = {
        name: {
            "config": safetensors.entries(config),
            "parameters": {
                leaf: {"shape": value.shape, "dtype": value.dtype.name} for leaf, value in params.items()
            },
        }
        for name, (config, params) in layers.items()
    }
    return _json(options.file, layers, {"layers": described})


def _convert(options: argparse.Namespace, prog: str) -> str:
    out = options.out
    if os.path.exists(out):
        if any(os.path.samefile(out, file) for file in _files(options.file)):
            raise ValueError(f"{out} is what is read; give another name for the file to write")
        if not os.path.isfile(out):
            raise ValueError(
                f"{out} is not a file that can be replaced; give another name for the file to write"
            )
        if not options.force:
            raise ValueError(f"{out} exists; --force replaces it")
    layers = _read(options.file, prog)
    if not layers:
        raise ValueError(f"{options.file}: no SeparableConv1D layers; nothing is written")
    safetensors.save(out, layers)
    return _json(out, layers, {"layers": [*layers]}) if options.json else f"{printable(out)}: {_sum(layers)}"


def _read(path: str, prog: str) -> dict[str, tuple[SeparableConv1DConfig, dict]]:
    """Reads the layers of any file that has some."""
    if safetensors.is_safetensors(path):
        return safetensors.read(path)
    layers, note = model_file.read(path)
    if note:
        _say(prog, f"note: {note}")
    return layers


def _files(path: str) -> Iterator[str]:
    """Returns a file, or those in a folder, as far as they are there."""
    folders = os.walk(path) if os.path.isdir(path) else [("", (), (path,))]
    for folder, _, names in folders:
        yield from filter(os.path.exists, (os.path.join(folder, name) for name in names))


def _say(prog: str, message: str) -> None:
    print(f"{prog}: {printable(message)}", file=sys.stderr)


def _json(path: str, layers: dict, more: dict[str, Any]) -> str:
    count = _count(params for _, params in layers.values())
    return json.dumps({"file": path, "parameters": count, **more}, indent=2)


def _report(path: str, layers: dict) -> str:
    """Formats a table of the layers, each with its settings below it, and a summary."""
    path = printable(path)
    if not layers:
        return f"{path}: no SeparableConv1D layers"
    heading = ("layer", "depthwise kernel", "pointwise kernel", "bias", "parameters", "dtype")
    rows = [
        (
            printable(name),
            *(
                str(params[leaf].shape) if leaf in params else "-"
                for leaf in ("depthwise_kernel", "pointwise_kernel", "bias")
            ),
            f"{_count([params]):,}",
            " ".join(dict.fromkeys(str(value.dtype) for value in params.values())),
        )
        for name, (_, params) in layers.items()
    ]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [_aligned(heading, widths), "  ".join("-" * width for width in widths)]
    for row, (config, _) in zip(rows, layers.values(), strict=True):
        lines.append(_aligned(row, widths))
        lines += [f"    {kind}: {', '.join(settings)}" for kind, settings in _settings(config) if settings]
    return "\n".join([*lines, "", f"{path}: {_sum(layers)}"])


def _aligned(row: Sequence[str], widths: Iterable[int]) -> str:
    cells = [
        f"{cell:>{w}}" if i == 4 else f"{cell:<{w}}"
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _settings(config: SeparableConv1DConfig) -> list[tuple[str, list[str]]]:
    """Returns what differs from the defaults, by kind. Initializers have done their work and are left out."""
    default = SeparableConv1DConfig(config.filters, config.kernel_size, param_dtype=config.param_dtype)
    kinds: dict[str, list[str]] = {"settings": [], "regularizers": [], "constraints": []}
    for field in dataclasses.fields(config):
        value, (where, _, kind) = getattr(config, field.name), field.name.rpartition("_")
        if value == getattr(default, field.name) or field.name == "name" or kind == "initializer":
            continue
        if f"{kind}s" in kinds:
            kinds[f"{kind}s"].append(f"{where} {_shown(value)}")
        else:
            kinds["settings"].append(f"{field.name} {_shown(value)}")
    return list(kinds.items())


def _shown(value: object) -> str:
    if isinstance(value, KerasObject):
        return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in value.get_config().items())})"
    return getattr(value, "__name__", str(value))


def _count(params: Iterable[dict]) -> int:
    return sum(value.size for each in params for value in each.values())


def _sum(layers: dict) -> str:
    count = _count(params for _, params in layers.values())
    return f"{len(layers)} SeparableConv1D layer{'s' * (len(layers) != 1)}, {count:,} parameters"


if __name__ == "__main__":
    sys.exit(main())
