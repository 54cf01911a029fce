"""Tables of a model's layers, for the command line. What comes from files is escaped."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax_sepconv._keras.objects import KerasObject
from flax_sepconv._messages import printable
from flax_sepconv.config import SeparableConv1DConfig


class Row(NamedTuple):
    """A layer in a table.

    Attributes:
        class_name: its class; `None` where the file does not say.
        config: the config of a `SeparableConv1D`, or what the file says about another layer.
        weights: its arrays by their names.
    """

    class_name: str | None
    config: SeparableConv1DConfig | dict[str, Any] | None
    weights: Mapping[str, Any]

    @property
    def is_separable(self) -> bool:
        """Whether it is a `SeparableConv1D`."""
        return isinstance(self.config, SeparableConv1DConfig)


def table(path: str, layers: Mapping[str, Row]) -> str:
    """Formats a table of layers, the settings of the separable ones below them, and a summary.

    Args:
        path: the file's name.
        layers: the layers by their names.
    """
    if not layers:
        return f"{printable(path)}: no layers"
    heading = ("layer", "class", "parameters", "dtype", "weights")
    rows = [
        (
            printable(name),
            printable(layer.class_name or "-"),
            f"{count(layer.weights.values()):,}",
            " ".join(dict.fromkeys(str(value.dtype) for value in layer.weights.values())) or "-",
            ", ".join(f"{printable(leaf)} {value.shape}" for leaf, value in layer.weights.items()) or "-",
        )
        for name, layer in layers.items()
    ]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    widths[-1] = len(heading[-1])  # nothing behind it needs aligning
    lines = [_aligned(heading, widths), "  ".join("-" * width for width in widths)]
    for row, layer in zip(rows, layers.values(), strict=True):
        lines.append(_aligned(row, widths))
        if isinstance(layer.config, SeparableConv1DConfig):
            lines += [
                f"    {kind}: {', '.join(settings)}" for kind, settings in _settings(layer.config) if settings
            ]
    return "\n".join([*lines, "", f"{printable(path)}: {summary(layers)}"])


def summary(layers: Mapping[str, Row]) -> str:
    """Says how many layers there are and how many parameters they have."""
    number, separable = len(layers), sum(layer.is_separable for layer in layers.values())
    kind = "SeparableConv1D layer" if separable == number else "layer"
    some = f", {separable} of them SeparableConv1D" if 0 < separable < number else ""
    return f"{number} {kind}{'s' * (number != 1)}{some}, {count(arrays(layers)):,} parameters"


def arrays(layers: Mapping[str, Row]) -> list[Any]:
    """Returns all arrays of the layers."""
    return [value for layer in layers.values() for value in layer.weights.values()]


def count(arrays: Iterable[Any]) -> int:
    """Counts the numbers that arrays hold."""
    return sum(value.size for value in arrays)


def _aligned(row: Sequence[str], widths: Iterable[int]) -> str:
    cells = [
        f"{cell:>{w}}" if i == 2 else f"{cell:<{w}}"
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _settings(config: SeparableConv1DConfig) -> list[tuple[str, list[str]]]:
    """Returns the settings that differ from the defaults, by kind, without initializers, which have already drawn."""
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
