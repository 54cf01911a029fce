"""What a Keras model's file holds, and its layers as a safetensors file, from the command line.

python -m flax_sepconv inspect model.keras
python -m flax_sepconv convert model.keras layers.safetensors
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence

from flax_sepconv._keras_object import KerasObject
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop import _model_file, safetensors

_FILE = "a .keras archive, a whole-model .h5 file, or a SavedModel folder of Keras 2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command line without the program's name; `None` takes the process's.

    Returns:
        0, or 1 where the file cannot be read or written; a message says why.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "convert" and os.path.exists(options.out) and not options.force:
            raise FileExistsError(f"{options.out} exists; --force replaces it")
        layers, note = _model_file.read(options.file)
        if note:
            print(f"{parser.prog}: note: {note}", file=sys.stderr)
        if options.command == "inspect":
            print(_report(options.file, layers))
        else:
            safetensors.save(options.out, layers)
            print(f"{options.out}: {_sum(layers)}")
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flax_sepconv",
        description="Read SeparableConv1D layers out of Keras's files, without Keras or TensorFlow.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="show the SeparableConv1D layers in a file",
        description="Show the SeparableConv1D layers in a Keras model's file: the names on the way to each, the "
        "shapes and the number of its parameters, and whatever in its settings is not Keras's default.",
    )
    convert = commands.add_parser(
        "convert",
        help="write the SeparableConv1D layers in a file to a safetensors file",
        description="Write the SeparableConv1D layers in a Keras model's file, parameters and configs, to a "
        "safetensors file. flax_sepconv.interop.safetensors.load reads both back; any safetensors reader reads the "
        "parameters, as tensors named LAYER/depthwise_kernel, LAYER/pointwise_kernel and LAYER/bias.",
    )
    for command in (inspect, convert):
        command.add_argument("file", metavar="FILE", help=_FILE)
    convert.add_argument("out", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--force", action="store_true", help="replace OUT.safetensors if it exists")
    return parser


def _report(path: str, layers: dict) -> str:
    """A table of the layers, each with its settings below it, and a summary."""
    if not layers:
        return f"{path}: no SeparableConv1D layers"
    heading = ("layer", "depthwise kernel", "pointwise kernel", "bias", "parameters", "dtype")
    rows = [
        (
            name,
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
    """What differs from the defaults, by kind. Initializers have done their work and are left out."""
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
