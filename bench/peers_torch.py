"""PyTorch: `Conv1d` with groups on (batch, channels, length), the 2-D form in channels-last, and `torch.compile`."""

import shutil
import signal
import threading

import numpy as np
import torch
from torch import nn

from bench.peers import Layer, Peer, Unavailable, on_gpu
from bench.problem import Problem

CUDA = torch.cuda.is_available() and on_gpu()
if CUDA:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
DEVICE = torch.device("cuda" if CUDA else "cpu")
COMPILE_SECONDS = 120
"""`torch.compile` of one layer, forward and backward, is given up after this long."""


class _Separable(nn.Module):
    """Depthwise and pointwise convolution, padding within the former where it is the same on both sides, and relu."""

    def __init__(self, problem: Problem, channels_last: bool):
        super().__init__()
        s = problem.shape
        low, high = s.pads
        self.pad = None if low == high else (low, high)
        inside = low if low == high else 0
        if channels_last:
            self.depthwise = nn.Conv2d(
                s.channels,
                s.wide,
                (1, s.kernel_size),
                (1, s.strides),
                (0, inside),
                (1, s.dilation),
                groups=s.channels,
                bias=False,
            )
            self.pointwise = nn.Conv2d(s.wide, s.filters, 1)
        else:
            self.depthwise = nn.Conv1d(
                s.channels,
                s.wide,
                s.kernel_size,
                s.strides,
                inside,
                s.dilation,
                groups=s.channels,
                bias=False,
            )
            self.pointwise = nn.Conv1d(s.wide, s.filters, 1)
        with torch.no_grad():
            for parameter, value in (
                (self.depthwise.weight, problem.depthwise_kernel.reshape(s.kernel_size, s.wide).T),
                (self.pointwise.weight, problem.pointwise_kernel[0].T),
                (self.pointwise.bias, problem.bias),
            ):
                assert parameter is not None
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(parameter.shape))
        if channels_last:
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x):
        if self.pad is not None:
            x = nn.functional.pad(x, self.pad)
        return torch.relu(self.pointwise(self.depthwise(x)))


def _build(problem: Problem, channels_last: bool, wrap=lambda module: module) -> Layer:
    s = problem.shape
    module = _Separable(problem, channels_last).to(DEVICE)
    run = wrap(module)

    def native(a):
        a = torch.from_numpy(np.ascontiguousarray(a.transpose(0, 2, 1))).to(DEVICE)
        return a[:, :, None].contiguous(memory_format=torch.channels_last) if channels_last else a

    def keras(a):
        a = a.detach().cpu().numpy()
        return (a[:, :, 0] if channels_last else a).transpose(0, 2, 1)

    x, cotangent = native(problem.x), native(problem.cotangent)
    x_gradient = x.clone(memory_format=torch.preserve_format).requires_grad_()
    wanted = (x_gradient, *module.parameters())

    def wait(result):
        if CUDA:
            torch.cuda.synchronize()
        return result

    def forward():
        with torch.inference_mode():
            return wait(run(x))

    def gradient():
        y = run(x_gradient)
        return wait((y, *torch.autograd.grad(y, wanted, cotangent)))

    def arrays(result):
        if isinstance(result, torch.Tensor):
            return {"output": keras(result)}
        y, gx, depthwise, pointwise, bias = result
        depthwise, pointwise, bias = (a.detach().cpu().numpy() for a in (depthwise, pointwise, bias))
        return {
            "output": keras(y),
            "x": keras(gx),
            "depthwise_kernel": depthwise.reshape(s.channels, s.multiplier, s.kernel_size).transpose(2, 0, 1),
            "pointwise_kernel": pointwise.reshape(1, s.filters, s.wide).transpose(0, 2, 1),
            "bias": bias,
        }

    return Layer(forward, gradient if s.gradient else None, arrays)


def length_last() -> Peer:
    """`nn.Conv1d` with groups and a pointwise `nn.Conv1d`, on (N, C, L)."""
    return Peer("torch", lambda problem: _build(problem, channels_last=False), _device())


def channels_last() -> Peer:
    """The same as `nn.Conv2d` over a height of 1, in the channels-last memory format."""
    return Peer("torch-cl", lambda problem: _build(problem, channels_last=True), _device())


def compiled() -> Peer:
    """`torch.compile` of the channels-last form, where it can compile."""
    if not CUDA and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise Unavailable("torch.compile finds no C++ compiler")

    def build(problem: Problem) -> Layer:
        torch._dynamo.reset()
        layer = _build(problem, channels_last=True, wrap=lambda module: torch.compile(module, dynamic=False))
        with _alarm(COMPILE_SECONDS):
            layer.forward()
            if layer.gradient is not None:
                layer.gradient()
        return layer

    return Peer("torch.compile", build, _device())


def _device() -> str:
    return "gpu" if CUDA else "cpu"


class _alarm:
    """Raises `TimeoutError` in the main thread after some seconds, where the system has alarms."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.armed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def __enter__(self):
        if self.armed:
            self.previous = signal.signal(signal.SIGALRM, self._expired)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        if self.armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.previous)

    def _expired(self, *_):
        raise TimeoutError(f"not compiled after {self.seconds:.0f} s")
