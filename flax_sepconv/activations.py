"""Keras's activations: functions `x -> y` of the same dtype, most of them `jax.nn`'s own.

They are all names that Keras 3 and TF 2.0 know, with Keras's definitions. Where a name leaves a choice open, it is:

| name | definition |
| --- | --- |
| `relu` | `max(x, 0)`, with Keras's `negative_slope`, `max_value` and `threshold` |
| `leaky_relu` | slope 0.2 below zero (`jax.nn`: 0.01; the layer `LeakyReLU`: 0.3) |
| `gelu` | `x * Phi(x)` exactly (`jax.nn`: its tanh approximation) |
| `hard_sigmoid` | `relu6(x + 3) / 6`; Keras 2's is `hard_sigmoid_keras2`, `clip(0.2 * x + 0.5, 0, 1)` |
| `softmax`, `log_softmax`, `sparsemax`, `glu` | over the last axis; `glu` halves it |

`hard_sigmoid` is the only name whose meaning differs between Keras 2 (the reference) and Keras 3. Here it has Keras
3's meaning; `get(..., keras2=True)`, for configs and files that Keras 2 wrote, gives Keras 2's.

The layers that Keras allows as activations are `ReLU`, `LeakyReLU`, `ELU` and `Softmax` here.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from flax_sepconv._keras.identifiers import Family, is_keras2, resolve, to_config
from flax_sepconv._keras.objects import Axes, KerasObject, NonNegative, Number, non_negative, widened

__all__ = [
    "ELU",
    "LeakyReLU",
    "ReLU",
    "Softmax",
    "celu",
    "elu",
    "exponential",
    "gelu",
    "get",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_sigmoid_keras2",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "serialize",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softmax",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "sparsemax",
    "squareplus",
    "swish",
    "tanh",
    "tanh_shrink",
    "threshold",
]

_Function: TypeAlias = Callable[..., jax.Array]

celu: _Function = jax.nn.celu
elu: _Function = jax.nn.elu
exponential: _Function = jnp.exp
glu: _Function = jax.nn.glu
hard_sigmoid: _Function = jax.nn.hard_sigmoid
hard_silu: _Function = jax.nn.hard_silu
hard_swish: _Function = jax.nn.hard_silu
hard_tanh: _Function = jax.nn.hard_tanh
log_sigmoid: _Function = jax.nn.log_sigmoid
log_softmax: _Function = jax.nn.log_softmax
mish: _Function = jax.nn.mish
relu6: _Function = jax.nn.relu6
sigmoid: _Function = jax.nn.sigmoid
silu: _Function = jax.nn.silu
swish: _Function = jax.nn.silu
softmax: _Function = jax.nn.softmax
softplus: _Function = jax.nn.softplus
softsign: _Function = jax.nn.soft_sign
sparse_plus: _Function = jax.nn.sparse_plus
sparse_sigmoid: _Function = jax.nn.sparse_sigmoid
squareplus: _Function = jax.nn.squareplus
tanh: _Function = jnp.tanh


def linear(x: jax.Array) -> jax.Array:
    """Returns the input itself."""
    return x


def relu(
    x: jax.Array,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    threshold: float = 0.0,
) -> jax.Array:
    """Rectifies: returns `x` above a threshold, and zero or a slope below it.

    Args:
        x: an array.
        negative_slope: slope below the threshold.
        max_value: bound of the output, if any.
        threshold: what `x` must exceed to pass.

    Returns:
        `min(x, max_value)` where `x > threshold`, `negative_slope * (x - threshold)` elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> print(relu(jnp.array([-2.0, 0.5, 3.0]), negative_slope=0.5, max_value=2.0))
        [-1.   0.5  2. ]
    """
    if threshold == 0 and max_value is None:
        return leaky_relu(x, negative_slope) if negative_slope else jax.nn.relu(x)
    above = jnp.where(x > threshold, x, 0)
    if max_value is not None:
        above = jnp.clip(above, 0, max_value)
    return above - negative_slope * jax.nn.relu(threshold - x) if negative_slope else above


def leaky_relu(x: jax.Array, negative_slope: float = 0.2) -> jax.Array:
    """Returns `x` where positive, `negative_slope * x` elsewhere."""
    # At zero the slope is the negative side's, as in TensorFlow; `jax.nn` takes the positive side's. This matters in
    # padded sequences with a zero bias, where `x` is exactly zero.
    return jnp.where(x > 0, x, negative_slope * x)


def selu(x: jax.Array) -> jax.Array:
    """Returns `scale * x` where positive, `scale * alpha * (exp(x) - 1)` elsewhere: Klambauer et al. (2017)."""
    # At zero the slope is the positive side's, as in TensorFlow; `jax.nn` takes the negative side's.
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * jnp.where(x >= 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))


def gelu(x: jax.Array, approximate: bool = False) -> jax.Array:
    """Computes `x * Phi(x)` with the standard normal distribution function, exact or in its tanh approximation."""
    return jax.nn.gelu(x, approximate=approximate)


def hard_sigmoid_keras2(x: jax.Array) -> jax.Array:
    """Computes `clip(0.2 * x + 0.5, 0, 1)`, which Keras 2 calls `hard_sigmoid` and Keras 3 has no name for."""
    y = 0.2 * x + 0.5
    return jnp.where(y < 0, 0, jnp.where(y > 1, 1, y))  # TensorFlow's slope in the corners, unlike `jnp.clip`


def hard_shrink(x: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Returns `x` where `abs(x) > threshold`, zero elsewhere."""
    return jnp.where(jnp.abs(x) > threshold, x, 0)


def soft_shrink(x: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Moves `x` towards zero by `threshold`, and no further than zero."""
    return jnp.where(x > threshold, x - threshold, jnp.where(x < -threshold, x + threshold, 0))


def tanh_shrink(x: jax.Array) -> jax.Array:
    """Computes `x - tanh(x)`."""
    return x - jnp.tanh(x)


def threshold(x: jax.Array, threshold: float, default_value: float) -> jax.Array:
    """Returns `x` where `x > threshold`, `default_value` elsewhere."""
    return jnp.where(x > threshold, x, default_value)


def sparsemax(x: jax.Array, axis: int = -1) -> jax.Array:
    """Projects onto the probability simplex along one axis: a softmax with exact zeros.

    Keras up to 3.15 takes too large a threshold where more than one entry is above it, and the result does not
    sum to 1 (keras-team/keras#23425, fixed since). This is the function as Keras documents it.

    Args:
        x: an array.
        axis: the axis that sums to 1 in the result.

    Returns:
        `max(x - tau, 0)`, where the threshold `tau` makes the sum 1.

    References:
        Martins and Astudillo, https://arxiv.org/abs/1602.02068

    Example:
        >>> import jax.numpy as jnp
        >>> print(sparsemax(jnp.array([1.0, 0.5, -1.0])))
        [0.75 0.25 0.  ]
    """
    wide = jnp.moveaxis(widened(x), axis, -1)
    descending = jnp.sort(wide, axis=-1, descending=True)
    count = jnp.arange(1, wide.shape[-1] + 1, dtype=wide.dtype)
    # The support is the largest set of top entries that all stay above the threshold they imply.
    support = 1 + count * descending > jnp.cumsum(descending, axis=-1)
    size = jnp.sum(support, axis=-1, keepdims=True)
    tau = (jnp.sum(jnp.where(support, descending, 0), axis=-1, keepdims=True) - 1) / size
    return jnp.moveaxis(jnp.maximum(wide - tau, 0), -1, axis).astype(x.dtype)


class _Layer(KerasObject):
    keras_module = "keras.layers"

    @abc.abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array: ...


def _optional_bound(name: str, value: Any) -> float | None:
    return None if value is None else non_negative(name, value)


@dataclass(frozen=True, repr=False)
class ReLU(_Layer):
    """Applies `relu` with fixed arguments: Keras's layer of that name as a function.

    Args:
        max_value: bound of the output, at least 0, or `None`.
        negative_slope: slope below the threshold, at least 0.
        threshold: what an input must exceed to pass, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> print(ReLU(max_value=1.0)(jnp.array([-1.0, 0.5, 2.0])))
        [0.  0.5 1. ]
    """

    max_value: Annotated[float | None, _optional_bound] = None
    negative_slope: NonNegative = 0.0
    threshold: NonNegative = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes `relu(x, negative_slope, max_value, threshold)`."""
        return relu(x, self.negative_slope, self.max_value, self.threshold)


@dataclass(frozen=True, repr=False)
class LeakyReLU(_Layer):
    """Applies `leaky_relu`, by default with slope 0.3: Keras's layer of that name as a function.

    Args:
        negative_slope: slope below zero, at least 0.
    """

    negative_slope: NonNegative = 0.3

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes `leaky_relu(x, negative_slope)`."""
        return leaky_relu(x, self.negative_slope)


@dataclass(frozen=True, repr=False)
class ELU(_Layer):
    """Applies `elu`: Keras's layer of that name as a function.

    Args:
        alpha: minus the limit towards minus infinity.
    """

    alpha: Number = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes `elu(x, alpha)`."""
        return elu(x, self.alpha)


@dataclass(frozen=True, repr=False)
class Softmax(_Layer):
    """Applies `softmax` over any axes: Keras's layer of that name as a function.

    Args:
        axis: the axis, or axes, that sum to 1 in the result.
    """

    axis: Axes = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes `softmax(x, axis)`."""
        return jax.nn.softmax(x, self.axis)


# Keras's names; where a function has two, `serialize` writes the first.
_FUNCTIONS = {
    "celu": celu,
    "elu": elu,
    "exponential": exponential,
    "gelu": gelu,
    "glu": glu,
    "hard_shrink": hard_shrink,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_swish,
    "hard_tanh": hard_tanh,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "log_sigmoid": log_sigmoid,
    "log_softmax": log_softmax,
    "mish": mish,
    "relu": relu,
    "relu6": relu6,
    "selu": selu,
    "sigmoid": sigmoid,
    "silu": silu,
    "soft_shrink": soft_shrink,
    "softmax": softmax,
    "softplus": softplus,
    "softsign": softsign,
    "sparse_plus": sparse_plus,
    "sparse_sigmoid": sparse_sigmoid,
    "sparsemax": sparsemax,
    "squareplus": squareplus,
    "swish": swish,
    "tanh": tanh,
    "tanh_shrink": tanh_shrink,
}
_NAMES = {function: name for name, function in reversed(_FUNCTIONS.items())}
# Called with one argument, as a layer does, these are the same functions.
_NAMES |= {jax.nn.relu: "relu", jax.nn.identity: "linear"}


def _leaky_relu_layer(negative_slope: float = 0.3, alpha: float | None = None) -> LeakyReLU:
    """Makes a `LeakyReLU` from Keras 2's arguments, where the slope is `alpha`."""
    return LeakyReLU(negative_slope if alpha is None else alpha)


def _thresholded_relu_layer(theta: float = 1.0) -> ReLU:
    """Makes a `ReLU` from Keras 2's `ThresholdedReLU`."""
    return ReLU(threshold=theta)


_KERAS_3 = Family(
    wanted="None, a name such as 'relu', a Keras config or a callable `x -> y`",
    classes=(ReLU, LeakyReLU, ELU, Softmax),
    makers={
        "ReLU": ReLU,
        "LeakyReLU": _leaky_relu_layer,
        "ELU": ELU,
        "Softmax": Softmax,
    },
    aliases={"ThresholdedReLU": _thresholded_relu_layer},
    functions=_FUNCTIONS,
    refused={
        "threshold": "it needs two numbers, and a name cannot give them. Pass "
        "`functools.partial(activations.threshold, threshold=..., default_value=...)`.",
        "PReLU": "its slopes are weights of their own. Use a layer for it, after this one.",
        "Activation": "that is a layer around an activation. Pass the activation.",
    },
    ignored=frozenset({"name", "trainable", "dtype"}),
)
_KERAS_2 = replace(_KERAS_3, functions=_FUNCTIONS | {"hard_sigmoid": hard_sigmoid_keras2})


def get(identifier: Any, *, argument: str = "activation", keras2: bool = False) -> Any:
    """Returns the activation that a name, a Keras config, an object or a callable stands for.

    Args:
        identifier: any name that Keras 3 or TF 2.0 knows, the config of a function or an activation layer of
            either, such a function or layer itself, any hashable callable `x -> y` (kept as it is), or
            `None`.
        argument: what messages call it.
        keras2: whether `"hard_sigmoid"` has Keras 2's meaning. For Keras 2's own objects it always has.

    Returns:
        A hashable callable; `linear` for `None`.

    Raises:
        ValueError: an unknown name, or a config with unknown or impossible entries.
        TypeError: none of the above.

    Example:
        >>> get(None) is linear, get("swish") is silu
        (True, True)
        >>> get({"class_name": "LeakyReLU", "config": {"alpha": 0.1}})
        LeakyReLU(negative_slope=0.1)
        >>> get("hard_sigmoid", keras2=True) is hard_sigmoid_keras2
        True
    """
    if identifier is None:
        return linear
    return resolve(identifier, _KERAS_2 if keras2 or is_keras2(identifier) else _KERAS_3, argument)


def serialize(activation: Any, *, argument: str = "activation") -> str | dict[str, Any]:
    """Returns what Keras 3's `keras.activations.serialize` gives for an activation, ready for JSON.

    Args:
        activation: whatever `get` takes.
        argument: what messages call it.

    Returns:
        A name, or the config of an activation layer, without the `name`, `trainable` and `dtype` that Keras
        adds and does not need.

    Raises:
        ValueError: a callable that Keras has no name for.

    Example:
        >>> import jax
        >>> serialize(jax.nn.silu), serialize(None)
        ('silu', 'linear')
    """
    resolved = get(activation, argument=argument)
    if resolved in _NAMES:
        return _NAMES[resolved]
    return to_config(resolved, _KERAS_3, argument)


def is_own(activation: Any) -> bool:
    """Returns whether this is a function or layer of this module that Keras has too. All but `glu` keep the shape.

    Args:
        activation: what `get` returns.

    Example:
        >>> is_own(relu), is_own(Softmax()), is_own(lambda x: x)
        (True, True, False)
    """
    return isinstance(activation, _Layer) or activation in _NAMES


def mixes(activation: Any, axis: int, ndim: int) -> bool:
    """Returns whether an activation mixes along an axis: an output there depends on several inputs.

    Args:
        activation: what `get` returns. A caller's own function is assumed to look at one entry at a time.
        axis: the axis, counted from the end, such as -2.
        ndim: rank of the array that the activation is applied to.

    Example:
        >>> mixes(softmax, -1, 3), mixes(softmax, -2, 3), mixes(relu, -1, 3)
        (True, False, False)
    """
    if isinstance(activation, Softmax):
        axes = (activation.axis,) if isinstance(activation.axis, int) else activation.axis
        return axes is None or axis in [each - ndim if each >= 0 else each for each in axes]
    return axis == -1 and activation in (softmax, log_softmax, sparsemax, glu)
