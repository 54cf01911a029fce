"""The types of the layer's arguments, as callers write them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

Size: TypeAlias = int | Sequence[int]
"""A positive integer, or a sequence of one as Keras allows; the config keeps the integer."""

Padding: TypeAlias = Literal["valid", "same", "causal", "VALID", "SAME", "CAUSAL"]
DataFormat: TypeAlias = Literal["channels_last", "channels_first"]
Implementation: TypeAlias = Literal["taps", "fourier", "lax"]

Identifier: TypeAlias = str | Mapping[str, Any] | Callable[..., Any] | None
"""What Keras allows for a part of a layer: a name, a config dict, an object or class, any callable, or `None`."""
