"""Converts between the layer and PyTorch's form of it, a depthwise `Conv1d` followed by a pointwise one.

    torch.nn.Sequential(Conv1d(C, C * M, K, groups=C), Conv1d(C * M, F, 1))

| `state_dict` | here |
| --- | --- |
| `0.weight` `(C * M, 1, K)` | `depthwise_kernel` `(K, C, M)` |
| `1.weight` `(F, C * M, 1)` | `pointwise_kernel` `(1, C * M, F)` |
| `1.bias` `(F,)` | `bias` `(F,)` |
| `0.bias` `(C * M,)` | added to `bias`, as `pointwise_kernel[0].T @ 0.bias` |

Neither side flips a kernel, and both put channel `c` under multiplier `m` at `c * M + m`, so weights are transposed and
nothing else. PyTorch pads the input and adds the depthwise bias afterwards, to every sample alike, so its contribution
to the output is the same constant at the edges and inside.

`weight_norm` in both of PyTorch's forms, BatchNorm in eval mode and kernels of `Conv2d` along one axis are folded into
these weights (`_state_dict.py`). Weights may be tensors or NumPy arrays; torch is imported only to make tensors.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import _validation, _window
from flax_sepconv._keras.objects import integer, non_negative
from flax_sepconv._types import DataFormat
from flax_sepconv.config import SeparableConv1DConfig, check_config
from flax_sepconv.interop import _state_dict

__all__ = ["from_state_dict", "to_state_dict"]


def from_state_dict(
    state_dict: Mapping[str, Any],
    depthwise: str = "0.",
    pointwise: str = "1.",
    *,
    depth_multiplier: int = 1,
    strides: int = 1,
    padding: str | int | tuple[int, ...] = "valid",
    dilation_rate: int = 1,
    data_format: DataFormat = "channels_first",
    depthwise_batch_norm: str | None = None,
    pointwise_batch_norm: str | None = None,
    eps: float = 1e-5,
    **arguments,
) -> tuple[SeparableConv1DConfig, dict[str, jax.Array]]:
    """Makes one layer from a depthwise and a pointwise `Conv1d` with nothing but a BatchNorm between them.

    A state dict holds weights, not settings, so pass the modules' other settings here, under this library's names.
    Weights of a `Conv2d` will do if one axis of the kernel is 1, for data without that axis.

    Args:
        state_dict: what `module.state_dict()` gives, with tensors on any device, or with arrays.
        depthwise: the prefix of `weight` and `bias` in the names of the depthwise convolution, with the dot.
        pointwise: the prefix of the pointwise convolution.
        depth_multiplier: `out_channels / in_channels` of the depthwise convolution. Its weight does not tell:
            `Conv1d(4, 8, 3, groups=4)` and `Conv1d(8, 8, 3, groups=8)` have weights of the same shape.
        strides: `stride` of the depthwise convolution, in samples.
        padding: padding of the depthwise convolution: PyTorch's number of zeros on both sides, or a pair of numbers for
            the left and the right, if this layer has such a padding; or `"valid"`, `"same"` or `"causal"`. A module
            that pads `dilation * (kernel_size - 1)` zeros on the left only is `"causal"`.
        dilation_rate: `dilation` of the depthwise convolution, in samples.
        data_format: `"channels_first"`, so that the layer takes what the modules took, or `"channels_last"`.
        depthwise_batch_norm: the prefix of `running_mean` in the names of a BatchNorm in eval mode between the two
            convolutions, with the dot; `None` if there is none.
        pointwise_batch_norm: the same for a BatchNorm after the pointwise convolution, before any activation.
        eps: `eps` of both BatchNorms.
        **arguments: any other arguments of `SeparableConv1DConfig`, such as `activation` for what follows in PyTorch.
            `param_dtype` is the tensors' dtype unless it is given.

    Returns:
        The config and its parameters. `use_bias` is true if either convolution has a bias or a BatchNorm. Folded
        weights are computed in float64 and rounded once.

    Raises:
        ValueError: names are missing, shapes are not those of a depthwise separable convolution, this layer does not
            have the padding, or the config refuses an argument.
        TypeError: `state_dict` is not a mapping, holds anything but floating tensors under these names, or an argument
            is given that the weights determine.

    Warns:
        UserWarning: the order of names suggests that something with weights is between the two convolutions, such as a
            BatchNorm that was not given.

    Example:
        >>> import numpy as np
        >>> from flax_sepconv.interop.torch import from_state_dict
        >>> depthwise = {"0.weight": np.ones((12, 1, 3), "float32"), "0.bias": np.ones(12, "float32")}
        >>> pointwise = {"1.weight": np.ones((64, 12, 1), "float32")}
        >>> config, params = from_state_dict(depthwise | pointwise, padding=1, activation="relu")
        >>> config.filters, config.kernel_size, config.padding, config.use_bias
        (64, 3, 'same', True)
        >>> {name: value.shape for name, value in params.items()}
        {'depthwise_kernel': (3, 12, 1), 'pointwise_kernel': (1, 12, 64), 'bias': (64,)}
    """
    for argument in ("filters", "kernel_size", "use_bias"):
        if argument in arguments:
            raise TypeError(f"`{argument}` follows from the weights and must not be given; got it too.")
    first = _state_dict.convolution(state_dict, depthwise, "depthwise")
    if first.weight.ndim != 3 or first.shape[1] != 1 or 0 in first.shape:
        raise ValueError(
            f"`state_dict[{first.key!r}]` must be (in_channels * depth_multiplier, 1, kernel_size), the weight of a "
            f"Conv1d with groups=in_channels, or of a Conv2d with one axis of 1 more; got the shape {first.shape}."
        )
    channels, _, kernel_size = first.weight.shape
    second = _state_dict.convolution(state_dict, pointwise, "pointwise")
    if second.weight.ndim != 3 or second.weight.shape[1:] != (channels, 1) or 0 in second.shape:
        batch_norm = (
            f" {pointwise!r} is a BatchNorm: pass it as `depthwise_batch_norm`, and as `pointwise` what stands before "
            "'weight' of the convolution behind it."
            if pointwise + "running_mean" in state_dict
            else ""
        )
        raise ValueError(
            f"`state_dict[{second.key!r}]` must be (filters, {channels}, 1), the weight of a Conv1d with kernel_size=1 "
            f"and groups=1 on the {channels} channels that the depthwise one gives; got the shape {second.shape}."
            f"{batch_norm}"
        )
    multiplier = _validation.count("depth_multiplier", depth_multiplier)
    if channels % multiplier:
        raise ValueError(
            f"`depth_multiplier` must divide the {channels} channels of {first.key!r}; got {multiplier}."
        )

    eps = non_negative("eps", eps)
    if depthwise_batch_norm is not None:
        first = _state_dict.with_batch_norm(
            first, state_dict, depthwise_batch_norm, eps, "depthwise_batch_norm"
        )
    between = _state_dict.names_between(state_dict, depthwise, pointwise, depthwise_batch_norm)
    if between:
        warnings.warn(_left_out(between, depthwise, pointwise), stacklevel=2)
    if pointwise_batch_norm is not None:
        second = _state_dict.with_batch_norm(
            second, state_dict, pointwise_batch_norm, eps, "pointwise_batch_norm"
        )

    arguments.setdefault("param_dtype", functools.reduce(jnp.promote_types, first.dtypes + second.dtypes))
    config = SeparableConv1DConfig(
        second.weight.shape[0],
        kernel_size,
        strides=strides,
        padding=_padding(padding, kernel_size, strides, dilation_rate, one_axis=len(first.shape) == 3),
        data_format=data_format,
        dilation_rate=dilation_rate,
        depth_multiplier=multiplier,
        use_bias=first.bias is not None or second.bias is not None,
        **arguments,
    )
    _validation.check_width("param_dtype", config.param_dtype)
    params = {
        "depthwise_kernel": first.weight[:, 0].T.reshape(kernel_size, channels // multiplier, multiplier),
        "pointwise_kernel": second.weight.T,
    }
    if config.use_bias:
        bias = np.zeros(config.filters) if second.bias is None else second.bias
        params["bias"] = bias if first.bias is None else bias + second.weight[:, :, 0] @ first.bias
    return config, {name: jnp.asarray(value.astype(config.param_dtype)) for name, value in params.items()}


def to_state_dict(
    config: SeparableConv1DConfig,
    params: Mapping[str, Any],
    depthwise: str = "0.",
    pointwise: str = "1.",
    *,
    tensors: bool = True,
) -> dict[str, Any]:
    """Makes the state dict of the two `Conv1d` of a layer: the inverse of `from_state_dict`, exact to the last bit.

    The depthwise convolution has no bias, since the layer has none there: make it with `bias=False`, or add zeros
    under `depthwise + "bias"`.

    Args:
        config: the layer's arguments.
        params: its parameters.
        depthwise: the prefix of `weight` in the name of the depthwise convolution, with the dot.
        pointwise: the prefix of `weight` and `bias` in the names of the pointwise convolution.
        tensors: `True` for tensors of PyTorch, which is imported; `False` for NumPy arrays, without PyTorch.

    Returns:
        `depthwise + "weight"` `(in_features * depth_multiplier, 1, kernel_size)`, `pointwise + "weight"`
        `(filters, in_features * depth_multiplier, 1)` and, with `use_bias`, `pointwise + "bias"` `(filters,)`, in
        the dtypes of `params`. They share no memory with `params`.

    Raises:
        ValueError: parameters are missing, unknown or of a wrong shape, or both convolutions have one prefix.
        TypeError: `config` is not a config, or `params` not a mapping.
        ImportError: `tensors` is true and torch is not installed.

    Example:
        >>> import jax
        >>> import flax_sepconv as fsc
        >>> from flax_sepconv.interop.torch import to_state_dict
        >>> config = fsc.SeparableConv1DConfig(64, 3, depth_multiplier=2)
        >>> state = to_state_dict(config, fsc.init_params(jax.random.key(0), 12, config), tensors=False)
        >>> {name: value.shape for name, value in state.items()}
        {'0.weight': (24, 1, 3), '1.weight': (64, 24, 1), '1.bias': (64,)}
    """
    if depthwise == pointwise:
        raise ValueError(f"`depthwise` and `pointwise` must be two prefixes; got {depthwise!r} for both.")
    check_config(config)
    _validation.check_params(params, None, config)
    first, second = (np.asarray(params[name]) for name in ("depthwise_kernel", "pointwise_kernel"))
    state = {
        depthwise + "weight": first.reshape(config.kernel_size, 1, -1).T,
        pointwise + "weight": second.T,
    }
    if config.use_bias:
        state[pointwise + "bias"] = np.asarray(params["bias"])
    state = {key: value.copy() for key, value in state.items()}
    return _tensors(state) if tensors else state


def _left_out(between: list[str], depthwise: str, pointwise: str) -> str:
    """Words the warning about modules whose names are between those of the convolutions."""
    norms = [name.removesuffix("running_mean") for name in between if name.endswith("running_mean")]
    what = f"a BatchNorm {norms[0]!r}" if norms else repr(between[0])
    then = (
        f"pass depthwise_batch_norm={norms[0]!r}, with its `eps`"
        if norms
        else "the two are no depthwise separable convolution"
    )
    return (
        f"`state_dict` has {what} between {depthwise!r} and {pointwise!r}, which is left out. If it is between the "
        f"two, {then}; if not, leave its entries out of `state_dict`."
    )


def _padding(padding, kernel_size: int, strides, dilation_rate, one_axis: bool) -> Any:
    """Returns this layer's word for PyTorch's `padding`; the config checks words."""
    if isinstance(padding, str):
        return padding
    amounts = padding if isinstance(padding, (tuple, list)) and 1 <= len(padding) <= 2 else (padding,)
    left, right = amounts[0], amounts[-1]
    left, right = integer("padding", left), integer("padding", right)
    strides = _validation.size("strides", strides)
    reach = _window.span(kernel_size, _validation.size("dilation_rate", dilation_rate)) - 1
    if len(amounts) == 2 and not one_axis:
        raise ValueError(
            f"`padding` must be a number of zeros, or a word, with the weight of a Conv2d, whose pair is of two axes; "
            f"got {padding!r}. Pass what it pads along the kernel: {max(left, right)}, if the other axis has none."
        )
    known = {(reach, 0): "causal"}
    if strides == 1:  # at other strides "same" depends on the length
        known[reach // 2, reach - reach // 2] = "same"
    known[0, 0] = "valid"
    if (left, right) in known:
        return known[left, right]
    words = ", ".join(f"{list(pair)} ({word!r})" for pair, word in known.items())
    raise ValueError(
        f"`padding` must be a word, or zeros on the left and on the right that are one: {words} for "
        f"kernel_size={kernel_size}, strides={strides} and dilation_rate={dilation_rate}; got {[left, right]}. For "
        "others pad the input with jnp.pad and pass 'valid'; where the module cuts what it padded off its end, as "
        "causal ones do, pass 'causal'."
    )


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        import torch  # not this module: the package of that name
    except ImportError:
        raise ImportError(
            "`tensors=True` needs PyTorch: pip install torch. `tensors=False` gives NumPy arrays without it."
        ) from None
    # Through float64, which is exact, because torch.tensor does not know NumPy's bfloat16.
    tensor: Any = torch.tensor  # pyright: ignore[reportAttributeAccessIssue]
    return {
        key: tensor(value.astype(np.float64), dtype=getattr(torch, value.dtype.name))
        for key, value in state.items()
    }
