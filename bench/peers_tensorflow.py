"""TensorFlow: `tf.nn.separable_conv2d` over a height of 1, as `tf.keras.layers.SeparableConv1D` calls it."""

import contextlib
import importlib

import numpy as np

# PyTorch's builds for CUDA bring Triton, which `torch.compile` imports; after TensorFlow that ends the process.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

import tensorflow as tf

from bench.peers import Layer, Peer, on_gpu
from bench.problem import Problem

GPUS = tf.config.list_physical_devices("GPU") if on_gpu() else []
tf.config.set_visible_devices(GPUS, "GPU")
tf.config.experimental.enable_tensor_float_32_execution(False)
for _gpu in GPUS:
    tf.config.experimental.set_memory_growth(_gpu, True)


def tensorflow() -> Peer:
    """The peer; compiled by `tf.function`, without XLA."""
    return Peer("tensorflow", _build, "gpu" if GPUS else "cpu")


def _build(problem: Problem) -> Layer:
    s = problem.shape
    causal = s.padding == "causal"

    def layer(x, depthwise, pointwise, bias):
        if causal:
            x = tf.pad(x, [[0, 0], list(s.pads), [0, 0]])
        y = tf.nn.separable_conv2d(
            x[:, None],
            depthwise[None],
            pointwise[None],
            strides=(1, s.strides, s.strides, 1),
            padding="VALID" if causal else s.padding.upper(),
            dilations=(1, s.dilation),
        )
        return tf.nn.relu(tf.nn.bias_add(y, bias)[:, 0])

    @tf.function(autograph=False)
    def forward(*arguments):
        return layer(*arguments)

    @tf.function(autograph=False)
    def gradient(cotangent, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = layer(*arguments)
        return y, *tape.gradient(y, arguments, cotangent)

    arguments = [
        tf.constant(a) for a in (problem.x, problem.depthwise_kernel, problem.pointwise_kernel, problem.bias)
    ]
    cotangent = tf.constant(problem.cotangent)
    names = ("output", "x", "depthwise_kernel", "pointwise_kernel", "bias")

    def wait(result):
        if GPUS:
            tf.test.experimental.sync_devices()
        return result  # on a CPU a tf.function returns when it is done

    def arrays(result):
        result = result if isinstance(result, tuple) else (result,)
        return {name: np.asarray(value) for name, value in zip(names, result, strict=False)}

    return Layer(
        lambda: wait(forward(*arguments)),
        (lambda: wait(gradient(cotangent, *arguments))) if s.gradient else None,
        arrays,
    )
