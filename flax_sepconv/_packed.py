"""Several sequences packed into one row: each run of one segment id is a sequence by itself.

    segment_ids     3 3 3 5 5 0 0 3 3
    runs            1 1 1 2 2 0 0 3 3       numbered along the row; 0 is padding

Two samples belong to one sequence where their run numbers are equal, so a window reads just what it would if its
sequence stood alone: `x[o + t] if runs[o + t] == runs[o] else 0`. The caller chooses the ids and must give neighbouring
sequences different ones; everything behind this module sees run numbers only.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import _window
from flax_sepconv._validation import as_integers


def check_segment_ids(segment_ids: Any, shape: tuple[int, ...], strides: int) -> jax.Array | np.ndarray:
    """Returns segment ids as an array; refuses any that are not integers of `shape`, and any with strides."""
    ids = as_integers("segment_ids", segment_ids)
    if ids.shape != shape:
        raise ValueError(
            f"`segment_ids` must have the shape of `x` without its channels, {shape}; got {ids.shape}."
        )
    if strides != 1:
        raise ValueError(
            f"`segment_ids` cannot be used with strides={strides}: where the windows of a sequence start would depend "
            "on the sequences before it. Use strides=1, or `lengths` with one sequence per row."
        )
    return ids


def run_numbers(ids: jax.Array | np.ndarray) -> jax.Array:
    """Numbers the runs of equal ids along the last axis from 1; 0 where the id is 0."""
    starts = ids[..., 1:] != ids[..., :-1]
    runs = 1 + jnp.cumsum(jnp.pad(starts, [(0, 0)] * (ids.ndim - 1) + [(1, 0)]), axis=-1, dtype=jnp.int32)
    return jnp.where(ids != 0, runs, 0)


def of_outputs(values: Any, runs: Any, kernel_size: int, padding: str, dilation_rate: int) -> Any:
    """Returns the `values` of time steps, such as ids, at the outputs; 0 where a window is not within one run.

    With `"same"` and `"causal"` every time step has an output, in the same run.
    """
    if padding != "valid":
        return values
    reach = _window.span(kernel_size, dilation_rate) - 1
    first, last = runs[..., : runs.shape[-1] - reach], runs[..., reach:]
    where = np.where if isinstance(values, np.ndarray) else jnp.where
    return where(first == last, values[..., : values.shape[-1] - reach], 0)
