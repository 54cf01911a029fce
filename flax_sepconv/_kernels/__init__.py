"""How both steps are computed: two functions in front of every implementation.

    separable ──► both_steps ─┐
                              ▼
    depthwise ──► depthwise_step ──► dispatch.plan ──► few, taps, blocked, kernel_gradient, fft, in_place, xla_conv

The functions take a layer's arrays. `both_steps` and `depthwise_step` are primitives that compose with every JAX
transformation. When one is lowered, `dispatch` chooses the form for the platform; a form is JAX operations on arrays.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_sepconv._dtypes import wide
from flax_sepconv._kernels import both_steps, depthwise_step, xla_conv
from flax_sepconv._kernels.dispatch import IMPLEMENTATIONS
from flax_sepconv._window import Window

__all__ = ["IMPLEMENTATIONS", "depthwise", "separable"]


def depthwise(
    x, kernel, window: Window, *, channel_axis: int = -1, precision, implementation: str | None, runs=None
) -> jax.Array:
    """Computes the depthwise step.

    Maps `(N, L, C)` and `(K, C, M)` of one dtype to `(N, O, C * M)`, or channels first if `channel_axis` is -2.
    `precision` applies to convolutions and matrix products, if there are any. `implementation` is one of
    `IMPLEMENTATIONS`, or `None` for the fastest; `"lax"` has JAX's own derivatives. `runs` `(N, L)` number the runs of
    packed rows and are 0 in padding: a window then reads its own run only, in one form whatever `implementation` is.
    """
    params = {"window": window, "precision": precision, "implementation": implementation}
    slots = {"input": _last(x, channel_axis)[None], "kernel": kernel[None]}
    if runs is not None:
        y = depthwise_step.contract_packed(slots | {"runs": runs[None]}, **params)
    elif implementation == "lax":
        return xla_conv.definition(x, kernel, window, precision, channel_axis)
    else:
        y = depthwise_step.contract(slots, **params)
    return _last(lax.collapse(y[0], 2), channel_axis)


def separable(
    x, depthwise_kernel, pointwise_kernel, bias, window: Window, *, channel_axis=-1, runs=None, **params
) -> jax.Array:
    """Computes both steps. No derivative stores the array between them.

    Takes what `depthwise` takes, the pointwise kernel `(C * M, F)` of the same dtype, and the bias `(F,)`, in float32
    or wider, or `None`. Returns `(N, O, F)`, in float32 or wider.
    """
    if params["implementation"] == "lax" and runs is None:
        h = depthwise(x, depthwise_kernel, window, channel_axis=channel_axis, **params)
        axes = "noc,cf->nof" if channel_axis == -1 else "nco,cf->nfo"
        dtype, precision = wide(x.dtype), params["precision"]
        y = jnp.einsum(axes, h, pointwise_kernel, precision=precision, preferred_element_type=dtype)
    else:
        by_channel = pointwise_kernel.reshape(*depthwise_kernel.shape[1:], -1)
        slots = {"input": _last(x, channel_axis), "kernel": depthwise_kernel, "pointwise": by_channel}
        if runs is None:
            y = both_steps.contract(slots, window=window, **params)
        else:
            y = both_steps.contract_packed(slots | {"runs": runs}, window=window, **params)
        y = _last(y, channel_axis)
    if bias is None:
        return y
    return y + (bias[None, None] if channel_axis == -1 else bias[None, :, None])


def _last(array, channel_axis: int) -> jax.Array:
    """Moves the channels last, or back."""
    return array if channel_axis == -1 else array.swapaxes(1, 2)
