"""Lengths that are symbolic dimensions of `jax.export`, and what must be known about them."""

import contextlib
from typing import Any

from jax import export

from flax_sepconv import _window

try:
    from jax.errors import InconclusiveDimensionOperation
except ImportError:  # older JAX
    from jax.core import InconclusiveDimensionOperation


def check_length(length: Any, geometry: dict[str, Any], implementation: str | None) -> None:
    """Refuses a symbolic length that may give no output, or about which too little is known.

    Args:
        length: a symbolic dimension.
        geometry: kernel size, strides, padding and dilation rate.
        implementation: how the depthwise step is computed.

    Raises:
        ValueError: the length is refused; the message says what would do.
    """
    strides = geometry["strides"]
    shortest = _window.shortest(geometry["kernel_size"], geometry["padding"], geometry["dilation_rate"])
    long_enough = False
    with contextlib.suppress(InconclusiveDimensionOperation):
        long_enough = length >= shortest
    if not long_enough:
        raise ValueError(
            f"`length` must be known to be at least {shortest}; got the symbolic dimension {length}. Make it with "
            f"jax.export.symbolic_shape(..., constraints=['{length} >= {shortest}'])."
        )
    amounts = (length, length)
    with contextlib.suppress(InconclusiveDimensionOperation):
        amounts = _window.padding_amounts(length, **geometry)
    if any(map(export.is_symbolic_dim, amounts)):
        raise ValueError(
            f"`length` must be a multiple of strides={strides} for padding='same', such as the symbolic dimension "
            f"'{strides}*t', because how much is padded depends on the remainder; got {length}."
        )
    if implementation not in (None, "lax"):
        raise ValueError(
            f"`implementation` must be None or 'lax' for a symbolic length; got {implementation!r}."
        )
