"""The layer on many devices: sequences are sharded, and devices exchange only the samples that windows share.

    device        0            1            2
    holds     |a b c d|    |e f g h|    |i j k l|
    reads     |a b c d|  c d|e f g h|  g h|i j k l|      three taps, causal: the halo is two samples

Batches need none of this: under plain `jax.jit`, a batch that is sharded over devices stays in place.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from flax_sepconv import _callables, _packed, _ragged, _window, functional
from flax_sepconv._messages import shown
from flax_sepconv._validation import check_input, check_params, check_width
from flax_sepconv.config import SeparableConv1DConfig, check_config

__all__ = [
    "Axes",
    "separable_conv1d",
]

Axes: TypeAlias = str | tuple[str, ...] | None
"""The name of an axis of a mesh, a tuple of names, or `None`."""


def separable_conv1d(
    params: Mapping[str, Any],
    x: ArrayLike,
    config: SeparableConv1DConfig,
    *,
    mesh: Mesh,
    batch: Axes = None,
    length: Axes = None,
    features: Axes = None,
    lengths: ArrayLike | Sequence[int] | None = None,
    segment_ids: ArrayLike | Sequence[Any] | None = None,
) -> jax.Array:
    """Applies `flax_sepconv.separable_conv1d`, sharded over the devices of a mesh.

    Along `length`, `lax.ppermute` brings each device the samples outside of its block that its windows read, and no
    others. At stride 1 this halo has `(kernel_size - 1) * dilation_rate` samples, from several neighbours if blocks are
    shorter than that. Along `batch` and `features` nothing is exchanged, except that gradients of shared arrays are
    summed over devices.

    Args:
        params: as for `separable_conv1d`.
        x: `(*batch, length, in_features)`, or channels_first.
        config: the layer's arguments.
        mesh: the devices. If its axes are explicit, as `jax.make_mesh` makes them by default, a jitted caller must be
            within `jax.set_mesh(mesh)`.
        batch: the axis or axes of the mesh that shard the first batch axis of `x`.
        length: the axis or axes that shard the sequences of the input and the output. If a length is not a multiple of
            `strides` times the number of devices, zeros are appended and the result is cut, which moves data. Lengths
            that are such multiples avoid that if the padding is `"same"` or `"causal"`.
        features: the axis or axes that shard the filters. Each device holds its shard of the pointwise kernel, the bias
            and the output.
        lengths: integers `(*batch,)`: the number of samples in each whole sequence, as in `separable_conv1d`.
        segment_ids: integers `(*batch, length)`: the sequence of each sample in packed rows, as there. Devices also
            exchange the ids of the halo.

    Returns:
        What `separable_conv1d` returns, sharded as the arguments say, except along a length that is not a multiple of
        the number of devices.

    Raises:
        ValueError: for what `separable_conv1d` refuses; for an axis that the mesh does not have or that is named twice;
            for no axis at all; for a first batch axis or `filters` that the number of devices does not divide.
        TypeError: for what `separable_conv1d` refuses, or if `mesh` is not a `jax.sharding.Mesh`.

    Example:
        >>> import jax
        >>> import flax_sepconv as fsc
        >>> mesh = jax.make_mesh((1, jax.device_count()), ("data", "sequence"))
        >>> config = fsc.SeparableConv1DConfig(64, 3, padding="same", activation="relu")
        >>> params = fsc.init_params(jax.random.key(0), 12, config)
        >>> x = jax.random.normal(jax.random.key(1), (8, 96, 12))
        >>> y = fsc.parallel.separable_conv1d(params, x, config, mesh=mesh, batch="data", length="sequence")
        >>> y.shape
        (8, 96, 64)
    """
    check_config(config)
    array = jnp.asarray(check_input(x, config))
    params = check_params(params, array.shape[config.channel_axis], config)
    check_width("dtype", config.dtype)
    lengths, segment_ids = _ragged.check(array, config, lengths, segment_ids)
    if isinstance(segment_ids, np.ndarray):  # ids may fit into none of JAX's types
        segment_ids = _packed.run_numbers(segment_ids)
    sizes = _check_axes(mesh, batch=batch, length=length, features=features)
    if config.filters % sizes["features"]:
        raise ValueError(
            f"`features` names {sizes['features']} devices, which must divide the filters; got {config.filters}."
        )
    if batch is not None and (array.ndim < 3 or array.shape[0] % sizes["batch"]):
        raise ValueError(
            f"`batch` names {sizes['batch']} devices, which must divide the first of the batch axes of `x`; got "
            f"the shape {array.shape}."
        )
    time = config.time_axis
    of_batch = (batch, *[None] * (array.ndim - 3)) if array.ndim > 2 else ()

    def spec(length: Axes, channels: Axes) -> PartitionSpec:
        return PartitionSpec(*of_batch, *((length, channels) if time == -2 else (channels, length)))

    def placed(value: Any, spec: PartitionSpec) -> Any:
        """Shards `value` for `shard_map`, which does so by itself along automatic axes only."""
        if value is None or AxisType.Explicit not in mesh.axis_types:
            return value
        return jax.sharding.reshard(value, NamedSharding(mesh, spec))

    # The activation may need whole rows or columns, as softmax does, so it is applied after.
    local = dataclasses.replace(config, filters=config.filters // sizes["features"], activation=None)
    out_length: Any = config.output_length(array.shape[time])
    blocks = None
    if sizes["length"] > 1:
        blocks = _blocks(array.shape[time], config, sizes["length"], lengths is not None)
        array = _resized(array, time, blocks.count * blocks.rows)
        if segment_ids is not None:
            segment_ids = _resized(segment_ids, -1, blocks.count * blocks.rows)

    def apply(params, x, lengths, segment_ids):
        if blocks is not None:
            return _of_block(params, x, local, lengths, segment_ids, axes=length, blocks=blocks)
        y = functional.separable_conv1d(params, x, local, lengths=lengths, segment_ids=segment_ids)
        return y, _ragged.outputs_kept(local, y.shape[time], lengths, segment_ids)

    weights = {"depthwise_kernel": (), "pointwise_kernel": (None, None, features), "bias": (features,)}
    of_params = {name: PartitionSpec(*weights[name]) for name in params}
    of_ids = PartitionSpec(*of_batch, length)
    in_specs = of_params, spec(length, None), PartitionSpec(*of_batch), of_ids
    params = {name: jnp.asarray(value) for name, value in params.items()}
    arrays = params, array, lengths, segment_ids
    arrays = jax.tree.map(placed, arrays, in_specs, is_leaf=lambda value: value is None)
    out_specs = spec(length, features), of_ids
    y, kept = jax.shard_map(apply, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*arrays)
    if y.shape[time] != out_length:
        y = _resized(placed(y, spec(None, features)), time, out_length)
        kept = None if kept is None else _resized(placed(kept, PartitionSpec(*of_batch)), -1, out_length)
    y = _callables.activated(config, y)
    return y if kept is None else _ragged.where(kept, y, config)


def _check_axes(mesh: Mesh, **axes: Axes) -> dict[str, int]:
    """Counts the devices that each argument names, which must be different axes of the mesh."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh; got {shown(mesh)}.")
    sizes, taken = {}, {}
    for argument, value in axes.items():
        names = () if value is None else (value,) if isinstance(value, str) else value
        if not isinstance(names, tuple):
            raise TypeError(
                f"`{argument}` must be the name of an axis, a tuple of names or None; got {value!r}."
            )
        for name in names:
            if name not in mesh.axis_names:
                raise ValueError(f"`{argument}` must name axes of the mesh, {mesh.axis_names}; got {name!r}.")
            if name in taken:
                raise ValueError(
                    f"`{argument}` must name an axis of its own; got {name!r}, as `{taken[name]}`."
                )
            taken[name] = argument
        sizes[argument] = math.prod(mesh.shape[name] for name in names)
    if not taken:
        raise ValueError("one of `batch`, `length` and `features` must name an axis of the mesh; got none.")
    return sizes


class _Blocks(NamedTuple):
    """Equal blocks of a sequence, and the number of time steps that a device reads before and after its block."""

    count: int
    rows: int
    before: int
    after: int


def _blocks(length: int, config: SeparableConv1DConfig, count: int, are_ragged: bool) -> _Blocks:
    """Returns the blocks: each one begins where its first window would begin without padding.

    The padding of `"same"` depends on the length, within bounds.
    """
    least, _ = most, _ = _window.padding_amounts(length, **config.geometry)
    span = _window.span(config.kernel_size, config.dilation_rate)
    if are_ragged and config.padding == "same":
        least, most = max(span - config.strides, 0) // 2, (span - 1) // 2
    outputs = -(-length // (config.strides * count))
    return _Blocks(count, outputs * config.strides, most, max(span - config.strides - least, 0))


def _of_block(
    params, x, config: SeparableConv1DConfig, lengths, segment_ids, *, axes: Axes, blocks: _Blocks
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the outputs of this device's block, and which of them belong to a sequence. Runs inside `shard_map`."""
    time = config.time_axis
    valid = dataclasses.replace(config, padding="valid")
    if segment_ids is not None:  # outputs of the halo are left out
        x, ids = _with_halo(x, time, axes, blocks), _with_halo(segment_ids, -1, axes, blocks)
        y = functional.separable_conv1d(params, x, config, segment_ids=ids)
        kept = _ragged.outputs_kept(config, y.shape[time], None, ids)
        own = blocks.before, blocks.before + blocks.rows
        return lax.slice_in_dim(y, *own, 1, time), lax.slice_in_dim(kept, *own, 1, -1)
    if lengths is None:
        return functional.separable_conv1d(params, _with_halo(x, time, axes, blocks), valid), None
    first = lax.axis_index(axes).astype(lengths.dtype) * blocks.rows
    x = _ragged.where(_ragged.steps(lengths, blocks.rows, first), x, config)
    x = _with_halo(x, time, axes, blocks)
    if config.padding == "same" and config.strides > 1:
        low, _ = _window.padding_amounts(lengths, **config.geometry)
        read = blocks.rows + max(config.kernel_size - config.strides, 0)
        x = _ragged.slices(x, blocks.before - low, read, time)
    y = functional.separable_conv1d(params, x, valid)
    kept = _ragged.outputs_kept(config, y.shape[time], lengths, None, first // config.strides)
    # An activation may have no derivative at the padding's outputs.
    return _ragged.where(kept, y, config), kept


def _with_halo(x, time: int, axes: Axes, blocks: _Blocks) -> jax.Array:
    """Returns the time steps that the windows of this device's block read. Runs inside `shard_map`."""
    time %= x.ndim
    before, after = [], []
    for parts, rows, towards in ((before, blocks.before, 1), (after, blocks.after, -1)):
        hop = 1
        while rows > 0:
            if hop < blocks.count:
                count = min(rows, blocks.rows)
                start = blocks.rows - count if towards == 1 else 0
                pairs = [(i, i + hop * towards) for i in range(blocks.count)]
                # A device that no pair sends to gets zeros: the padding at the ends of the sequence.
                pairs = [pair for pair in pairs if 0 <= pair[1] < blocks.count]
                part = lax.ppermute(lax.slice_in_dim(x, start, start + count, 1, time), axes, pairs)
            else:  # beyond the sequence for every device
                count = rows
                part = jnp.zeros((*x.shape[:time], count, *x.shape[time + 1 :]), x.dtype)
            parts.append(part)
            rows -= count
            hop += 1
    return jnp.concatenate([*reversed(before), x, *after], time)


def _resized(x, time: int, length: int) -> jax.Array:
    """Appends zeros or cuts off the end, for `length` time steps."""
    if length <= x.shape[time]:
        return x if length == x.shape[time] else lax.slice_in_dim(x, 0, length, 1, time)
    padding = [(0, 0)] * x.ndim
    padding[time] = (0, length - x.shape[time])
    return jnp.pad(x, padding)
