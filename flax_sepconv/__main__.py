"""The command line: shows what a Keras model's file holds, and moves its weights to a safetensors file and back.

flax-sepconv inspect model.keras
flax-sepconv convert --all model.keras model.safetensors
flax-sepconv convert --all trained.safetensors trained.keras --into model.keras

`python -m flax_sepconv` is the same.
"""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax_sepconv
from flax_sepconv import _report
from flax_sepconv._messages import printable
from flax_sepconv._report import Row
from flax_sepconv._tree import leaves_of
from flax_sepconv.config import SeparableConv1DConfig
from flax_sepconv.interop import _tensors, keras, safetensors
from flax_sepconv.interop._files import separable_layers
from flax_sepconv.interop._flax_layers import to_flax

_FILE = "a .keras archive, an .h5 file, a model's folder, or what `convert` wrote"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command line without the program's name; `None` takes the process's.

    Returns:
        The exit status: 0; 1 if a file cannot be read or written, with a message that says why; or 2 if no command was
        given, with the help text. If a pipe is closed, the process ends as any other in it.
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
        description="Read Keras's model files, and move their weights to safetensors files and back, without Keras or "
        "TensorFlow.",
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
        help="show the layers in a file",
        description="Show every layer in a model's file: its path, its class, and the shapes and the number of its "
        "parameters; for a SeparableConv1D, also the settings that differ from Keras's defaults.",
    )
    convert = commands.add_parser(
        "convert",
        help="write the layers in a file to a safetensors file, or into a copy of a Keras model's file",
        description="Write the SeparableConv1D layers in a model's file, parameters and configs, to a safetensors "
        "file. flax_sepconv.interop.safetensors.load reads both back; any safetensors reader reads the parameters, "
        "as tensors named LAYER/depthwise_kernel, LAYER/pointwise_kernel and LAYER/bias. With --all, write every "
        "layer's weights, as variables of Flax named params/LAYER/kernel. With --into, write the weights into a copy "
        "of a Keras model's file, which is then the trained Keras model.",
    )
    for command in (inspect, convert):
        command.add_argument("file", metavar="FILE", help=_FILE)
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.add_argument(
            "--config",
            metavar="JSON",
            help="the model's to_json() in a file, where a .h5 file holds weights alone",
        )
    convert.add_argument("out", metavar="OUT", help="the file to write")
    convert.add_argument(
        "--all", action="store_true", help="write every layer, as Flax's variables, without configs"
    )
    convert.add_argument(
        "--into", metavar="MODEL", help="write a copy of this .keras or .h5 file with the weights in FILE"
    )
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def _inspect(options: argparse.Namespace, prog: str) -> str:
    rows = _rows(options, prog)
    if not options.json:
        return _report.table(options.file, rows)
    described = {
        name: {
            "class_name": row.class_name,
            "config": safetensors.entries(row.config)
            if isinstance(row.config, SeparableConv1DConfig)
            else row.config,
            "parameters": {
                leaf: {"shape": value.shape, "dtype": value.dtype.name} for leaf, value in row.weights.items()
            },
        }
        for name, row in rows.items()
    }
    return _json(options.file, _report.arrays(rows), {"layers": described})


def _convert(options: argparse.Namespace, prog: str) -> str:
    _check_out(options)
    into = {"config": options.config} if _tensors.is_safetensors(options.file) else {}
    if options.all:
        variables = _variables(options)
        if not variables:
            raise ValueError(f"{options.file}: no weights; nothing is written")
        if options.into:
            keras.save_variables(options.into, variables, options.out, **into)
        elif _tensors.is_safetensors(options.file):
            raise ValueError(
                f"{options.file} holds variables already; pass --into MODEL to have them in Keras"
            )
        else:
            safetensors.save_variables(options.out, variables)
        arrays, names = [*variables.values()], {"arrays": [*variables]}
        summary = f"{len(arrays)} arrays, {_report.count(arrays):,} parameters"
    else:
        layers = _read(options, prog)
        if not layers:
            raise ValueError(f"{options.file}: no SeparableConv1D layers; nothing is written")
        if options.into:
            params = {name: params for name, (_, params) in layers.items()}
            keras.save(options.into, params, options.out, **into)
        else:
            safetensors.save(options.out, layers)
        rows = _separable(layers)
        arrays, names = _report.arrays(rows), {"layers": [*layers]}
        summary = _report.summary(rows)
    return _json(options.out, arrays, names) if options.json else f"{printable(options.out)}: {summary}"


def _check_out(options: argparse.Namespace) -> None:
    """Refuses an output file that would replace a model, or whose name would not fit its contents."""
    out, into, read = options.out, options.into, filter(None, (options.file, options.into))
    if os.path.exists(out):
        if any(os.path.samefile(out, file) for path in read for file in _files(path)):
            raise ValueError(f"{out} is what is read; give another name for the file to write")
        if not os.path.isfile(out):
            raise ValueError(
                f"{out} is not a file that can be replaced; give another name for the file to write"
            )
        if not options.force:
            raise ValueError(f"{out} exists; --force replaces it")
    if into and out.endswith(".safetensors"):
        raise ValueError(f"{out} would be a copy of {into}; give it the ending of that")
    if not into and out.endswith((".keras", ".h5", ".hdf5")):
        raise ValueError(
            f"{out} would be a safetensors file; give it that ending, or pass --into MODEL for a copy of a Keras model"
        )


def _rows(options: argparse.Namespace, prog: str) -> dict[str, Row]:
    """Reads everything that a file tells about its layers."""
    path = options.file
    if _tensors.is_safetensors(path):
        if not safetensors.has_variables(path):
            return _separable(safetensors.read(path))
        found: dict[str, dict[str, Any]] = {}
        for name, array in safetensors.read_variables(path).items():
            collection, *layer, leaf = name.split("/")
            leaf = leaf if collection == "params" else f"{collection}/{leaf}"
            found.setdefault("/".join(layer), {})[leaf] = array
        return {name: Row(None, None, weights) for name, weights in found.items()}
    separable = _separable(_read(options, prog, strict=False))
    try:
        every = keras.layers(path, config=options.config)
    except ValueError as error:
        if not os.path.isdir(path):
            raise
        _say(prog, f"note: {error}")
        return separable
    configs = {name: row.config for name, row in separable.items()}
    return {
        name: Row(layer.class_name, configs.get(name, layer.config), layer.weights)
        for name, layer in every.items()
    }


def _separable(layers: Mapping[str, tuple[SeparableConv1DConfig, dict]]) -> dict[str, Row]:
    return {name: Row("SeparableConv1D", config, params) for name, (config, params) in layers.items()}


def _read(options: argparse.Namespace, prog: str, strict: bool = True) -> separable_layers.Layers:
    """Reads the `SeparableConv1D` layers of a file of any kind."""
    if _tensors.is_safetensors(options.file):
        return safetensors.read(options.file)
    layers, notes = separable_layers.read(options.file, config=options.config, strict=strict)
    for note in notes:
        _say(prog, f"note: {note}")
    return layers


def _variables(options: argparse.Namespace) -> dict[str, Any]:
    """Reads every weight of a file of any kind, by the joined names of Flax's variables."""
    if _tensors.is_safetensors(options.file):
        return safetensors.read_variables(options.file)
    every = keras.layers(options.file, config=options.config)
    layers = {(name,) if name else (): layer for name, layer in every.items()}
    return {"/".join(at): value for at, value in leaves_of(to_flax(layers))[0].items()}


def _files(path: str) -> Iterator[str]:
    """Yields a file, or the files in a folder, if they exist."""
    folders = os.walk(path) if os.path.isdir(path) else [("", (), (path,))]
    for folder, _, names in folders:
        yield from filter(os.path.exists, (os.path.join(folder, name) for name in names))


def _say(prog: str, message: str) -> None:
    print(f"{prog}: {printable(message)}", file=sys.stderr)


def _json(path: str, arrays: Iterable[Any], more: dict[str, Any]) -> str:
    return json.dumps({"file": path, "parameters": _report.count(arrays), **more}, indent=2)


if __name__ == "__main__":
    sys.exit(main())
