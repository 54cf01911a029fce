"""PyTorch's way to write the layer, there and back: a depthwise `Conv1d`, then a pointwise one.

    torch.nn.Sequential(Conv1d(C, C * M, K, groups=C), Conv1d(C * M, F, 1))

| `state_dict` | here |
| --- | --- |
| `0.weight` `(C * M, 1, K)` | `depthwise_kernel` `(K, C, M)` |
| `1.weight` `(F, C * M, 1)` | `pointwise_kernel` `(1, C * M, F)` |
| `1.bias` `(F,)` | `bias` `(F,)` |
| `0.bias` `(C * M,)` | added to `bias`, as `pointwise_kernel[0].T @ 0.bias` |

Neither side flips a kernel, and both put channel `c` under multiplier `m` at `c * M + m`: weights are transposed and
nothing else. PyTorch pads the input and adds the depthwise bias after that, to every sample alike, so what it
contributes to the output is the same constant at the edges and inside.

Tensors are taken as they come, or as arrays of NumPy; torch is imported to make tensors, and only then.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_sepconv import _arguments, _validation, _window
from flax_sepconv._keras_object import integer
from flax_sepconv.config import SeparableConv1DConfig, check_config


def from_state_dict(
    state_dict: Mapping[str, Any],
    depthwise: str = "0.",
    pointwise: str = "1.",
    *,
    depth_multiplier: int = 1,
    strides: int = 1,
    padding: str | int | tuple[int] = "valid",
    dilation_rate: int = 1,
    data_format: str = "channels_first",
    **arguments,
) -> tuple[SeparableConv1DConfig, dict[str, jax.Array]]:
    """The layer that a depthwise and a pointwise `Conv1d` are together, with nothing between the two.

    A state dict holds weights, not settings: what else the two modules were made with is given here, under this
    library's names.

    Args:
        state_dict: what `module.state_dict()` gives, of tensors on any device, or of arrays.
        depthwise: what stands before `weight` and `bias` in the names of the depthwise convolution, with the dot.
        pointwise: likewise of the pointwise convolution.
        depth_multiplier: `out_channels / in_channels` of the depthwise convolution. Its weight does not tell:
            `Conv1d(4, 8, 3, groups=4)` and `Conv1d(8, 8, 3, groups=8)` have the same.
        strides: `stride` of the depthwise convolution, in samples.
        padding: of the depthwise convolution: PyTorch's number of zeros on both sides, where this layer has it, or
            `"valid"`, `"same"` or `"causal"`, which is what a module does that pads on the left only.
        dilation_rate: `dilation` of the depthwise convolution, in samples.
        data_format: `"channels_first"`, so that the layer takes what the modules took, or `"channels_last"`.
        **arguments: any other of `SeparableConv1DConfig`, such as `activation` for what follows in PyTorch.
            `param_dtype` is that of the tensors unless it is given.

    Returns:
        The config and its parameters. `use_bias` is true if either convolution has a bias; a depthwise bias is
        folded in float64 and rounded once.

    Raises:
        ValueError: names missing, shapes that are not those of a depthwise separable convolution, a padding that
            this layer does not have, or whatever the config refuses.
        TypeError: `state_dict` is not a mapping, holds something else than floating tensors there, or an argument
            is given that the weights determine.

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
    first, first_bias = _conv1d(state_dict, depthwise, "depthwise")
    second, second_bias = _conv1d(state_dict, pointwise, "pointwise")
    if first.ndim != 3 or first.shape[1] != 1 or 0 in first.shape:
        raise ValueError(
            f"`state_dict[{depthwise + 'weight'!r}]` must be (in_channels * depth_multiplier, 1, kernel_size), the "
            f"weight of a Conv1d with groups=in_channels; got the shape {first.shape}."
        )
    channels, _, kernel_size = first.shape
    if second.ndim != 3 or second.shape[1:] != (channels, 1) or 0 in second.shape:
        raise ValueError(
            f"`state_dict[{pointwise + 'weight'!r}]` must be (filters, {channels}, 1), the weight of a Conv1d with "
            f"kernel_size=1 and groups=1 on the {channels} channels that the depthwise one gives; got the shape "
            f"{second.shape}."
        )
    for bias, weight, prefix in ((first_bias, first, depthwise), (second_bias, second, pointwise)):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"`state_dict[{prefix + 'bias'!r}]` must have the shape {weight.shape[:1]}, one entry for each "
                f"channel that {prefix + 'weight'!r} gives; got {bias.shape}."
            )
    multiplier = _arguments.count("depth_multiplier", depth_multiplier)
    if channels % multiplier:
        raise ValueError(
            f"`depth_multiplier` must divide the {channels} channels of {depthwise + 'weight'!r}; got {multiplier}."
        )

    weights = [w for w in (first, second, first_bias, second_bias) if w is not None]
    arguments.setdefault("param_dtype", functools.reduce(jnp.promote_types, [w.dtype for w in weights]))
    config = SeparableConv1DConfig(
        second.shape[0],
        kernel_size,
        strides=strides,
        padding=_padding(padding, kernel_size, strides, dilation_rate),
        data_format=data_format,
        dilation_rate=dilation_rate,
        depth_multiplier=multiplier,
        use_bias=first_bias is not None or second_bias is not None,
        **arguments,
    )
    _validation.check_width("param_dtype", config.param_dtype)
    params = {
        "depthwise_kernel": first[:, 0].T.reshape(kernel_size, channels // multiplier, multiplier),
        "pointwise_kernel": second.T,
    }
    if config.use_bias:
        params["bias"] = _folded(second[:, :, 0], first_bias, second_bias)
    return config, {name: jnp.asarray(value.astype(config.param_dtype)) for name, value in params.items()}


def to_state_dict(
    config: SeparableConv1DConfig,
    params: Mapping[str, Any],
    depthwise: str = "0.",
    pointwise: str = "1.",
    *,
    tensors: bool = True,
) -> dict[str, Any]:
    """The state dict of the two `Conv1d` that a layer is: `from_state_dict` the other way, to the last bit.

    The depthwise convolution has no bias, since the layer has none there: make it with `bias=False`, or add zeros
    under `depthwise + "bias"`.

    Args:
        config: the layer's arguments.
        params: its parameters.
        depthwise: what to put before `weight` in the name of the depthwise convolution, with the dot.
        pointwise: what to put before `weight` and `bias` in the names of the pointwise convolution.
        tensors: `True` for tensors of PyTorch, which is imported; `False` for NumPy arrays, without it.

    Returns:
        `depthwise + "weight"` `(in_features * depth_multiplier, 1, kernel_size)`, `pointwise + "weight"`
        `(filters, in_features * depth_multiplier, 1)` and, with `use_bias`, `pointwise + "bias"` `(filters,)`, in
        the dtypes of `params`. They share no memory with `params`.

    Raises:
        ValueError: parameters missing, unknown or mis-shaped, or one prefix for both convolutions.
        TypeError: `config` is not a config, or `params` not a mapping.
        ImportError: `tensors` without torch.

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


def _conv1d(state_dict, prefix: str, part: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The weight of one convolution, and its bias if it has one."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"`state_dict` must be a mapping, what `module.state_dict()` gives; got {type(state_dict).__name__}."
        )
    if prefix + "weight" not in state_dict:
        there = [str(key) for key in state_dict if str(key).startswith(prefix)] or list(map(str, state_dict))
        shown = ", ".join(map(repr, there[:8])) + (", …" if len(there) > 8 else "")
        raise ValueError(
            f"`state_dict` must hold {prefix + 'weight'!r}, the weight of the {part} Conv1d; got "
            f"{shown or 'an empty one'}. `{part}` must be what stands before 'weight', with the dot."
        )
    weight, bias = (
        _array(key, state_dict[key]) if key in state_dict else None
        for key in (prefix + "weight", prefix + "bias")
    )
    assert weight is not None
    return weight, bias


def _array(key: str, value) -> np.ndarray:
    """A copy of a tensor, or of an array, in its own dtype."""
    try:
        dtype = _arguments.float_dtype("dtype", str(value.dtype).removeprefix("torch."))
    except (AttributeError, TypeError):
        came = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"`state_dict[{key!r}]` must be a floating tensor or array; got {came}.") from None
    if hasattr(value, "detach"):
        # PyTorch converts to NumPy's own dtypes only; float64 holds every narrower one exactly.
        value = value.detach().cpu().double().numpy()
    return np.array(value, dtype.name)


def _padding(padding, kernel_size: int, strides, dilation_rate) -> Any:
    """This layer's word for PyTorch's `padding`; words are the config's to judge."""
    if isinstance(padding, str):
        return padding
    (amount,) = padding if isinstance(padding, (tuple, list)) and len(padding) == 1 else (padding,)
    amount = integer("padding", amount)
    strides = _arguments.size("strides", strides)
    reach = _window.span(kernel_size, _arguments.size("dilation_rate", dilation_rate)) - 1
    if amount == 0:
        return "valid"
    # Zeros on both sides, as many whatever the length: that is "same" at stride 1, where both halves are equal. At
    # other strides "same" depends on the length.
    if strides == 1 and 2 * amount == reach:
        return "same"
    same = f"or {reach // 2}, which is 'same', " if strides == 1 and reach and reach % 2 == 0 else ""
    raise ValueError(
        f"`padding` must be 'valid', 'same', 'causal', 0 {same}for kernel_size={kernel_size}, strides={strides} and "
        f"dilation_rate={dilation_rate}; got {padding!r}. For another number of zeros pad the input with jnp.pad and "
        "pass 'valid'; where the module cuts what it padded off its end, as causal ones do, pass 'causal'."
    )


def _folded(matrix: np.ndarray, first_bias, second_bias) -> np.ndarray:
    """`second_bias + matrix @ first_bias` in float64, where either may be absent."""
    bias = np.zeros(len(matrix)) if second_bias is None else second_bias.astype(np.float64)
    return bias if first_bias is None else bias + matrix.astype(np.float64) @ first_bias.astype(np.float64)


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        import torch  # not this module: the package of that name
    except ImportError:
        raise ImportError(
            "`tensors=True` needs PyTorch: pip install torch. `tensors=False` gives NumPy arrays without it."
        ) from None
    # Through float64, which is exact, since torch.tensor does not know NumPy's bfloat16.
    tensor: Any = torch.tensor  # pyright: ignore[reportAttributeAccessIssue]
    return {
        key: tensor(value.astype(np.float64), dtype=getattr(torch, value.dtype.name))
        for key, value in state.items()
    }
