"""Reads a convolution from PyTorch's state dict as one weight and one bias, whatever is folded into them.

| in the state dict | weight |
| --- | --- |
| `weight` | as it is |
| `weight_g`, `weight_v` | `g * v / ‖v‖`, the norm over the axes where `g` has one entry |
| `parametrizations.weight.original0`, `original1` | the same, by the names of newer versions |
| `weight` `(C, 1, 1, K)` or `(C, 1, K, 1)` of a `Conv2d` | `(C, 1, K)` |

A BatchNorm in eval mode after it is affine in each channel, `y ↦ scale * y + shift`, so the two become
`scale * weight` and `scale * bias + shift`. All of this is computed in float64, to be rounded once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_sepconv import _validation

_NORMALIZED = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


class Convolution(NamedTuple):
    """A convolution along one axis.

    Attributes:
        key: the name in the state dict of the array with the weight's shape.
        shape: its shape there.
        weight: `(out_channels, in_channels / groups, kernel_size)` in float64; unchanged if it has another rank.
        bias: `(out_channels,)` in float64, or `None`.
        dtypes: the dtypes of all arrays that the weight and the bias come from.
    """

    key: str
    shape: tuple[int, ...]
    weight: np.ndarray
    bias: np.ndarray | None
    dtypes: tuple[np.dtype, ...]


def convolution(state_dict: Mapping[str, Any], prefix: str, part: str) -> Convolution:
    """Reads the convolution under a prefix.

    Args:
        state_dict: tensors or arrays by name.
        prefix: the prefix of `weight`.
        part: the name of the argument that gave the prefix.

    Raises:
        ValueError: there is no weight, or its bias does not fit it.
        TypeError: `state_dict` is not a mapping, or holds anything but floating arrays there.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"`state_dict` must be a mapping, what `module.state_dict()` gives; got {type(state_dict).__name__}."
        )
    names = [
        names for names in (("weight",), *_NORMALIZED) if all(prefix + each in state_dict for each in names)
    ]
    if not names:
        raise ValueError(_missing(state_dict, prefix, part))
    arrays = [_array(prefix + name, state_dict[prefix + name]) for name in names[0]]
    weight, key = arrays[-1].astype(np.float64), prefix + names[0][-1]
    shape = weight.shape
    if len(arrays) == 2:
        weight = _normalized(weight, arrays[0].astype(np.float64), key)
    along = [size for size in shape[2:] if size != 1] or [1]
    if weight.ndim > 3 and len(along) == 1:
        weight = weight.reshape(*shape[:2], *along)
    bias = _channels(state_dict, prefix + "bias", len(weight) if shape else 0, key)
    dtypes = tuple(each.dtype for each in (*arrays, bias) if each is not None)
    return Convolution(key, shape, weight, None if bias is None else bias.astype(np.float64), dtypes)


def with_batch_norm(
    before: Convolution, state_dict: Mapping[str, Any], prefix: str, eps: float, argument: str
) -> Convolution:
    """Folds a BatchNorm in eval mode into the convolution before it.

    Args:
        before: the convolution.
        state_dict: tensors or arrays by name.
        prefix: the prefix of `running_mean` in the names of the BatchNorm.
        eps: its `eps`.
        argument: the name of the argument that gave the prefix.

    Raises:
        ValueError: there is no such BatchNorm, or it has another number of channels.
        TypeError: `state_dict` holds anything but floating arrays there.
    """
    keys = [f"{prefix}{name}" for name in ("running_mean", "running_var", "weight", "bias")]
    if not all(key in state_dict for key in keys[:2]):
        raise ValueError(
            f"`state_dict` must hold {keys[0]!r} and {keys[1]!r}, the statistics of a BatchNorm; got "
            f"{_shown(state_dict, prefix)}. `{argument}` must be what stands before 'running_mean', with the dot. "
            "Without running statistics (`track_running_stats=False`) there is nothing constant to fold."
        )
    found = [_channels(state_dict, key, len(before.weight), before.key) for key in keys]
    mean, var, gamma, beta = (each if each is None else each.astype(np.float64) for each in found)
    assert mean is not None
    assert var is not None
    scale = (1.0 if gamma is None else gamma) / np.sqrt(var + eps)
    shift = (0.0 if before.bias is None else before.bias) - mean
    return before._replace(
        weight=before.weight * scale[:, None, None],
        bias=shift * scale + (0.0 if beta is None else beta),
        dtypes=(*before.dtypes, *(each.dtype for each in found if each is not None)),
    )


def names_between(
    state_dict: Mapping[str, Any], first: str, second: str, batch_norm: str | None
) -> list[str]:
    """Lists the names between those of two modules, without those of the BatchNorm that is folded."""
    keys = [str(key) for key in state_dict]
    begin, end = ([at for at, key in enumerate(keys) if key.startswith(prefix)] for prefix in (first, second))
    between = keys[begin[-1] + 1 : end[0]] if begin and end else []
    return [key for key in between if batch_norm is None or not key.startswith(batch_norm)]


def _normalized(v: np.ndarray, g: np.ndarray, key: str) -> np.ndarray:
    """Computes the weight that `weight_norm` makes from a direction and a length."""
    if g.ndim not in (0, v.ndim) or any(
        size not in (1, of) for size, of in zip(g.shape, v.shape, strict=False)
    ):
        raise ValueError(
            f"`state_dict[{key!r}]` must have a length for each slice along one axis, or one for all of it, as "
            f"`weight_norm` makes them; got the shape {v.shape} and lengths of the shape {g.shape}."
        )
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    with np.errstate(invalid="ignore"):  # a filter of zeros is NaN in PyTorch too
        return g * v / np.sqrt(np.sum(v * v, axes, keepdims=True))


def _channels(state_dict: Mapping[str, Any], key: str, channels: int, weight: str) -> np.ndarray | None:
    """Returns an array with one entry for each channel, or `None` if there is none."""
    if key not in state_dict:
        return None
    array = _array(key, state_dict[key])
    if array.shape != (channels,):
        raise ValueError(
            f"`state_dict[{key!r}]` must have the shape {(channels,)}, one entry for each channel that {weight!r} "
            f"gives; got {array.shape}."
        )
    return array


def _array(key: str, value) -> np.ndarray:
    """Copies a tensor or an array in its own dtype."""
    try:
        dtype = _validation.float_dtype("dtype", str(value.dtype).removeprefix("torch."))
    except (AttributeError, TypeError):
        came = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"`state_dict[{key!r}]` must be a floating tensor or array; got {came}.") from None
    if hasattr(value, "detach"):
        # PyTorch converts to NumPy's own dtypes only; float64 holds every narrower one exactly.
        value = value.detach().cpu().double().numpy()
    return np.array(value, dtype.name)


def _missing(state_dict: Mapping[str, Any], prefix: str, part: str) -> str:
    computed = [f"{prefix}{name}" for name in ("weight_orig", "parametrizations.weight.original")]
    if any(key in state_dict for key in computed):
        return (
            f"`state_dict` must hold {prefix + 'weight'!r}, the weight of the {part} convolution; got "
            f"{_shown(state_dict, prefix)}, from which PyTorch computes it. Make it a plain weight there first, by "
            "`torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')`, "
            "`torch.nn.utils.remove_spectral_norm(module)` or `torch.nn.utils.prune.remove(module, 'weight')`."
        )
    return (
        f"`state_dict` must hold {prefix + 'weight'!r}, the weight of the {part} convolution; got "
        f"{_shown(state_dict, prefix)}. `{part}` must be what stands before 'weight', with the dot."
    )


def _shown(state_dict: Mapping[str, Any], prefix: str) -> str:
    """Lists the names under a prefix for a message, or all names if there are none."""
    names = [str(key) for key in state_dict if str(key).startswith(prefix)] or list(map(str, state_dict))
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "") or "an empty one"
