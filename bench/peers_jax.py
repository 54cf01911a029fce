"""Peers that run on JAX: this library, plain lax, Flax Linen and NNX, Haiku, Equinox, Keras.

Each is a pure function of parameters and input, compiled for the problem's shapes ahead of time; so the time of the
first compile and the memory that the program asks for are known, and every call is dispatched alike.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import flax_sepconv as fsc
from bench.peers import Layer, Peer, Unavailable, on_gpu
from bench.problem import Problem
from bench.shapes import Shape
from flax_sepconv._types import Implementation

if on_gpu():
    jax.config.update("jax_default_matmul_precision", "highest")

COMPILES = 3
"""How often value-and-gradient is compiled for its time; fewer where that takes more than two seconds."""


class Definition(NamedTuple):
    """A peer's layer for one problem.

    `linear(params, x)` is the layer before its activation; `params` its own tree, with the problem's numbers;
    `weights(tree)` the depthwise kernel, pointwise kernel and bias in such a tree; `channels_last` how `x` and the
    output lie.
    """

    linear: Callable[[Any, jax.Array], Any]
    params: Any
    weights: Callable[[Any], tuple]
    channels_last: bool = True


def _peer(name: str, define: Callable[[Problem], Definition]) -> Peer:
    return Peer(name, lambda problem: _build(define(problem), problem), jax.default_backend())


def _build(definition: Definition, problem: Problem) -> Layer:
    linear, params, weights, channels_last = definition

    def apply(params, x):
        return jax.nn.relu(linear(params, x))

    def native(a):
        return jnp.asarray(a if channels_last else a.transpose(0, 2, 1))

    def keras(a):
        a = np.asarray(a)
        return a if channels_last else a.transpose(0, 2, 1)

    params = jax.tree.map(jnp.asarray, params)
    x, cotangent = native(problem.x), native(problem.cotangent)

    def gradient(params, x, cotangent):
        y, vjp = jax.vjp(apply, params, x)
        return y, vjp(cotangent)

    forward, _ = _compile(apply, params, x, most=1)
    notes: dict[str, float] = {"forward_temp_bytes": _temp_bytes(forward)}
    value_and_gradient = None
    if problem.shape.gradient:
        value_and_gradient, notes["compile_s"] = _compile(gradient, params, x, cotangent, most=COMPILES)
        notes["gradient_temp_bytes"] = _temp_bytes(value_and_gradient)

    def arrays(result):
        if not isinstance(result, tuple):
            return {"output": keras(result)}
        y, (params_gradient, x_gradient) = result
        parts = zip(("depthwise_kernel", "pointwise_kernel", "bias"), weights(params_gradient), strict=True)
        shapes = problem.shape.array_shapes()
        return {
            "output": keras(y),
            "x": keras(x_gradient),
            **{name: np.asarray(value).reshape(shapes[name]) for name, value in parts},
        }

    return Layer(
        lambda: jax.block_until_ready(forward(params, x)),
        value_and_gradient and (lambda: jax.block_until_ready(value_and_gradient(params, x, cotangent))),
        arrays,
        notes,
    )


def _compile(function, *args, most: int):
    """The compiled program, and the median seconds from function to program of `most` compilations, for two seconds."""
    times = []
    while True:
        jax.clear_caches()  # what is traced once, such as jnp's own functions, must not be another peer's gift
        start = time.perf_counter()
        compiled = jax.jit(lambda *args: function(*args)).lower(*args).compile()
        times.append(time.perf_counter() - start)
        if len(times) == most or sum(times) > 2:
            return compiled, statistics.median(times)


def _temp_bytes(compiled) -> int:
    analysis = compiled.memory_analysis()
    return -1 if analysis is None else analysis.temp_size_in_bytes


def _ours(problem: Problem, implementation: Implementation | None) -> Definition:
    s = problem.shape
    config = fsc.SeparableConv1DConfig(
        s.filters,
        s.kernel_size,
        strides=s.strides,
        padding=s.padding,
        dilation_rate=s.dilation,
        depth_multiplier=s.multiplier,
        implementation=implementation,
    )
    names = ("depthwise_kernel", "pointwise_kernel", "bias")
    params = {name: getattr(problem, name) for name in names}
    return Definition(
        lambda params, x: fsc.separable_conv1d(params, x, config),
        params,
        lambda tree: tuple(tree[name] for name in names),
    )


def ours() -> Peer:
    """This library, choosing for itself; where one window is asked for, as a step of a stream."""

    def build(problem):
        streams = problem.shape.suite == "latency"
        return _stream_step(problem) if streams else _build(_ours(problem, None), problem)

    return Peer("flax_sepconv", build, jax.default_backend())


def _stream_step(problem: Problem) -> Layer:
    """One step of a stream, whose state is all of the window but its last sample; the next state is computed too."""
    s = problem.shape
    config = fsc.SeparableConv1DConfig(
        s.filters, s.kernel_size, padding="causal", depth_multiplier=s.multiplier, activation="relu"
    )
    _, params, *_ = _ours(problem, None)
    params = jax.tree.map(jnp.asarray, params)
    state, chunk = jnp.asarray(problem.x[:, :-1]), jnp.asarray(problem.x[:, -1:])

    def step(params, chunk, state):
        return fsc.stream_step(params, chunk, state, config)

    compiled, _ = _compile(step, params, chunk, state, most=1)
    return Layer(
        lambda: jax.block_until_ready(compiled(params, chunk, state)),
        None,
        lambda result: {"output": np.asarray(result[0])},
        {"forward_temp_bytes": _temp_bytes(compiled)},
    )


def grouped() -> Peer:
    """`lax.conv_general_dilated` with `feature_group_count`, and a matrix product."""
    return _peer("lax", lambda problem: _ours(problem, "lax"))


def _kernels(problem: Problem):
    """Depthwise `(K, 1, C * M)`, as Flax, Haiku and lax have it, the pointwise kernel, and the bias."""
    s = problem.shape
    return problem.depthwise_kernel.reshape(s.kernel_size, 1, s.wide), problem.pointwise_kernel, problem.bias


def _flax_arguments(s: Shape) -> dict[str, Any]:
    return {
        "kernel_size": (s.kernel_size,),
        "strides": s.strides,
        "padding": s.padding.upper(),
        "kernel_dilation": s.dilation,
        "feature_group_count": s.channels,
        "use_bias": False,
    }


def linen() -> Peer:
    """Two `flax.linen.Conv`."""
    from flax import linen as nn

    def define(problem: Problem) -> Definition:
        s = problem.shape
        model = nn.Sequential([nn.Conv(s.wide, **_flax_arguments(s)), nn.Conv(s.filters, (1,))])
        depthwise, pointwise, bias = _kernels(problem)
        params = {"layers_0": {"kernel": depthwise}, "layers_1": {"kernel": pointwise, "bias": bias}}
        return Definition(
            lambda params, x: model.apply({"params": params}, x),
            params,
            lambda t: (t["layers_0"]["kernel"], t["layers_1"]["kernel"], t["layers_1"]["bias"]),
        )

    return _peer("flax.linen", define)


def nnx() -> Peer:
    """Two `flax.nnx.Conv`, by nnx's functional interface."""
    from flax import nnx

    def define(problem: Problem) -> Definition:
        s = problem.shape

        def make():
            rngs = nnx.Rngs(0)
            depthwise = nnx.Conv(s.channels, s.wide, **_flax_arguments(s), rngs=rngs)
            return nnx.Sequential(depthwise, nnx.Conv(s.wide, s.filters, (1,), rngs=rngs))

        model = nnx.eval_shape(make)  # draws nothing: the problem has the numbers
        graph, state = nnx.split(model)
        names = (("layers", 0, "kernel"), ("layers", 1, "kernel"), ("layers", 1, "bias"))
        flat = nnx.to_flat_state(state)
        assert sorted(path for path, _ in flat) == sorted(names), flat
        values: dict[tuple, Any] = dict(zip(names, _kernels(problem), strict=True))
        params = nnx.from_flat_state([(path, var.replace(jnp.asarray(values[path]))) for path, var in flat])

        def weights(tree):
            flat = dict(nnx.to_flat_state(tree))
            return tuple(flat[name][...] for name in names)

        return Definition(lambda params, x: nnx.merge(graph, params)(x), params, weights)

    return _peer("flax.nnx", define)


def haiku() -> Peer:
    """`hk.DepthwiseConv1D` and `hk.Conv1D`."""
    import haiku as hk

    def define(problem: Problem) -> Definition:
        s = problem.shape

        def model(x):
            y = hk.DepthwiseConv1D(
                s.multiplier,
                s.kernel_size,
                s.strides,
                s.dilation,
                [s.pads],
                with_bias=False,
                name="depthwise",
            )(x)
            return hk.Conv1D(s.filters, 1, name="pointwise")(y)

        depthwise, pointwise, bias = _kernels(problem)
        return Definition(
            hk.without_apply_rng(hk.transform(model)).apply,
            {"depthwise": {"w": depthwise}, "pointwise": {"w": pointwise, "b": bias}},
            lambda t: (t["depthwise"]["w"], t["pointwise"]["w"], t["pointwise"]["b"]),
        )

    return _peer("haiku", define)


def equinox() -> Peer:
    """Two `eqx.nn.Conv1d` under `vmap`; channels first, as Equinox has it."""
    import equinox as eqx

    def define(problem: Problem) -> Definition:
        s = problem.shape
        depthwise, pointwise, bias = _kernels(problem)
        key = jax.random.key(0)

        def make():
            conv, k, m = eqx.nn.Conv1d, s.kernel_size, s.wide
            depthwise = conv(
                s.channels, m, k, s.strides, [s.pads], s.dilation, s.channels, use_bias=False, key=key
            )
            return eqx.nn.Sequential([depthwise, conv(m, s.filters, 1, key=key)])

        model = eqx.filter_eval_shape(make)  # draws nothing: the problem has the numbers

        def leaves(model):
            return model[0].weight, model[1].weight, model[1].bias

        values = (depthwise.transpose(2, 1, 0), pointwise.transpose(2, 1, 0), bias[:, None])
        model = eqx.tree_at(leaves, model, tuple(map(jnp.asarray, values)))
        params, static = eqx.partition(model, eqx.is_array)

        def weights(tree):
            depthwise, pointwise, bias = map(np.asarray, leaves(tree))
            return depthwise.transpose(2, 1, 0), pointwise.transpose(2, 1, 0), bias

        return Definition(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, weights, False)

    return _peer("equinox", define)


def keras() -> Peer:
    """`keras.layers.SeparableConv1D` on the JAX backend; it refuses causal padding, which is added before it."""
    import keras

    if keras.backend.backend() != "jax":
        raise Unavailable(f"Keras runs on {keras.backend.backend()} in this process, not on jax")

    def define(problem: Problem) -> Definition:
        s = problem.shape
        causal = s.padding == "causal"
        layer = keras.layers.SeparableConv1D(
            s.filters,
            s.kernel_size,
            strides=s.strides,
            padding="valid" if causal else s.padding,
            dilation_rate=s.dilation,
            depth_multiplier=s.multiplier,
        )
        layer.build((s.batch, s.length + s.pads[0] * causal, s.channels))
        params = [problem.depthwise_kernel, problem.pointwise_kernel, problem.bias]

        def apply(params, x):
            if causal:
                x = keras.ops.pad(x, [[0, 0], list(s.pads), [0, 0]])
            return layer.stateless_call(params, [], x)[0]

        return Definition(apply, params, tuple)

    return _peer("keras-jax", define)
