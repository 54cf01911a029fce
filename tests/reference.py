"""The layer's definition in float64 NumPy, and random layers to try it on."""

import numpy as np
from hypothesis import strategies as st

import flax_sepconv as fsc
from flax_sepconv._window import Window


def taps(size, length, *, strides=1, padding="valid", dilation_rate=1):
    """How many outputs there are, and for each tap which of them it counts in and which samples it multiplies."""
    reach = (size - 1) * dilation_rate
    out = -(-length // strides) if padding != "valid" else -(-(length - reach) // strides)
    low = {
        "valid": 0,
        "causal": reach,
        "same": max((out - 1) * strides + reach + 1 - length, 0) // 2,
    }[padding]
    samples = np.arange(out) * strides + np.arange(size)[:, None] * dilation_rate - low
    real = (samples >= 0) & (samples < length)
    return out, [(np.flatnonzero(r), s[r]) for r, s in zip(real, samples, strict=True)]


def depthwise(x, kernel, **geometry):
    """`(batch, length, channels)` and `(size, channels, multiplier)`: the sum that defines the depthwise step."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    out, each_tap = taps(len(kernel), x.shape[1], **geometry)
    y = np.zeros((len(x), out, *kernel.shape[1:]))
    for weights, (outputs, samples) in zip(kernel, each_tap, strict=True):
        y[:, outputs] += x[:, samples, :, None] * weights
    return y.reshape(len(x), out, kernel[0].size)


def separable(params, x, config):
    """The layer before its activation, in float64, for any batch axes and both data formats."""
    x = np.asarray(x, np.float64)
    if config.data_format == "channels_first":
        x = np.swapaxes(x, -1, -2)
    geometry = {k: v for k, v in config.geometry.items() if k != "kernel_size"}
    flat = x.reshape(-1, *x.shape[-2:])
    y = depthwise(flat, params["depthwise_kernel"], **geometry) @ np.asarray(
        params["pointwise_kernel"][0], np.float64
    )
    if config.use_bias:
        y += np.asarray(params["bias"], np.float64)
    y = y.reshape(*x.shape[:-2], *y.shape[-2:])
    return np.swapaxes(y, -1, -2) if config.data_format == "channels_first" else y


def gradients(params, x, cotangent, config):
    """Those of `sum(cotangent * y)`, for the parameters and the input `(batch, length, channels)`, in float64."""
    x, cotangent = np.asarray(x, np.float64), np.asarray(cotangent, np.float64)
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    geometry = {k: v for k, v in config.geometry.items() if k != "kernel_size"}
    kernel, pointwise = params["depthwise_kernel"], params["pointwise_kernel"][0]
    wide = depthwise(x, kernel, **geometry)
    of_wide = (cotangent @ pointwise.T).reshape(*wide.shape[:2], *kernel.shape[1:])
    of_x, of_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for tap, (outputs, samples) in enumerate(taps(len(kernel), x.shape[1], **geometry)[1]):
        of_kernel[tap] = np.einsum("noc,nocm->cm", x[:, samples], of_wide[:, outputs])
        of_x[:, samples] += np.einsum("nocm,cm->noc", of_wide[:, outputs], kernel[tap])
    of_pointwise = np.einsum("now,nof->wf", wide, cotangent)[None]
    of_params = {"depthwise_kernel": of_kernel, "pointwise_kernel": of_pointwise}
    if config.use_bias:
        of_params["bias"] = cotangent.sum((0, 1))
    return of_params, of_x


@st.composite
def configs(draw, **fixed):
    """Configs of every geometry, small enough for the definition's loops."""
    strides, dilation = draw(
        st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (5, 1), (1, 2), (1, 3), (1, 7)])
    )
    arguments = {
        "filters": draw(st.integers(1, 5)),
        "kernel_size": draw(st.integers(1, 6)),
        "strides": strides,
        "padding": draw(st.sampled_from(["valid", "same", "causal"])),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "dilation_rate": dilation,
        "depth_multiplier": draw(st.integers(1, 3)),
        "use_bias": draw(st.booleans()),
        "bias_initializer": "random_normal",
    }
    return fsc.SeparableConv1DConfig(**arguments | fixed)


@st.composite
def layers(draw, batch_axes=None, **fixed):
    """A config, parameters and an input that fit each other, as float32 NumPy arrays."""
    config = draw(configs(**fixed))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    in_features = draw(st.integers(1, 4))
    shortest = (config.kernel_size - 1) * config.dilation_rate + 1 if config.padding == "valid" else 1
    length = draw(st.integers(shortest, shortest + 12))
    batch_axes = st.integers(0, 3) if batch_axes is None else batch_axes
    batch = [draw(st.integers(1, 3)) for _ in range(draw(batch_axes))]
    last = (length, in_features) if config.data_format == "channels_last" else (in_features, length)
    params = {w.name: rng.normal(size=w.shape).astype(np.float32) for w in config.weights(in_features)}
    return config, params, rng.normal(size=(*batch, *last)).astype(np.float32)


def assert_close(a, b, tolerance=1e-5):
    """Whether all entries of `a` are within `tolerance` of the largest of `b`, or of 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1.0))


@st.composite
def windows(draw, longest=20, largest_kernel=12):
    """Windows with paddings of any size within their span."""
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 5)]))
    size = draw(st.integers(1, largest_kernel))
    reach = (size - 1) * dilation
    low, high = draw(st.integers(0, reach)), draw(st.integers(0, reach))
    shortest = max(1, reach + 1 - low - high)
    return Window(draw(st.integers(shortest, shortest + longest)), size, stride, dilation, low, high)


def contraction(window, result, slots):
    """What the slots of the depthwise step or of both steps contract to, in float64, from the definition.

    Args:
        window: which samples each output reads.
        result: the slot that is asked for.
        slots: `input` `(N, L, C)`, `kernel` `(K, C, M)`, `output` `(N, O, C, M)`; or with `pointwise` `(C, M, F)` an
            output `(N, O, F)`.
    """
    slots = {slot: np.asarray(array, np.float64) for slot, array in slots.items()}
    axes = {"input": "notc", "kernel": "tcm", "output": "nocm"}
    if "pointwise" in {*slots, result}:
        axes |= {"pointwise": "cmf", "output": "nof"}
    steps = np.arange(window.kernel_size) * window.dilation
    at = np.arange(window.output_length)[:, None] * window.strides + steps  # of the padded input
    if "input" in slots:
        slots["input"] = np.pad(slots["input"], ((0, 0), (window.low, window.high), (0, 0)))[:, at]
    subscripts = ",".join(axes[slot] for slot in slots) + "->" + axes[result]
    y = np.einsum(subscripts, *slots.values(), optimize=True)
    if result != "input":
        return y
    padded = np.zeros((y.shape[0], window.low + window.length + window.high, y.shape[3]))
    np.add.at(padded, (slice(None), at), y)
    return padded[:, window.low : window.low + window.length]
