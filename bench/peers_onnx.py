"""ONNX Runtime: two `Conv` nodes and `Relu` on (batch, channels, length); inference only."""

import os

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from bench.peers import Layer, Peer, on_gpu
from bench.problem import Problem

CUDA = on_gpu() and "CUDAExecutionProvider" in ort.get_available_providers()


def onnxruntime() -> Peer:
    """The peer, with as many threads as there are cores. Its workers may spin; a turn's rest waits for them."""
    return Peer("onnxruntime", _build, "gpu" if CUDA else "cpu")


def _build(problem: Problem) -> Layer:
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.log_severity_level = 3
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})] * CUDA + ["CPUExecutionProvider"]
    session = ort.InferenceSession(_model(problem).SerializeToString(), options, providers=providers)
    device = "cuda" if CUDA else "cpu"
    x = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(problem.x.transpose(0, 2, 1)), device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_output("y", device)

    def forward():
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    def arrays(result):
        return {"output": result.copy_outputs_to_cpu()[0].transpose(0, 2, 1)}

    return Layer(forward, None, arrays)


def _model(problem: Problem) -> onnx.ModelProto:
    s = problem.shape
    weights = {
        "depthwise": problem.depthwise_kernel.reshape(s.kernel_size, 1, s.wide).transpose(2, 1, 0),
        "pointwise": problem.pointwise_kernel.transpose(2, 1, 0),
        "bias": problem.bias,
    }
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "depthwise"],
            ["h"],
            kernel_shape=[s.kernel_size],
            strides=[s.strides],
            pads=list(s.pads),
            dilations=[s.dilation],
            group=s.channels,
        ),
        helper.make_node("Conv", ["h", "pointwise", "bias"], ["z"], kernel_shape=[1]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "separable_conv1d",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [s.batch, s.channels, s.length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [s.batch, s.filters, s.output_length])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
