"""Tests that need eight devices. `test_parallel.py` runs them in a process that has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flax_sepconv as fsc
from bench.scaling import collectives
from flax_sepconv._kernels import IMPLEMENTATIONS
from tests import reference
from tests.reference import assert_close

MESHES = {
    kind: {
        name: jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
        for name, shape, names in [
            ("line", (8,), ("n",)),
            ("square", (2, 4), ("m", "n")),
            ("cube", (2, 2, 2), ("m", "n", "f")),
        ]
    }
    for kind in (AxisType.Auto, AxisType.Explicit)
}
KINDS = list(MESHES)


def moved(compiled) -> dict[str, int]:
    """How many 32-bit numbers each kind of collective operation gives to each device."""
    return {kind: size // 4 for kind, (_, size) in collectives(compiled).items()}


def loss(params, x, function):
    y = function(params, x)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)) * (1 + jnp.arange(y.shape[-1])))


def placed(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


# --- Batches under plain jit


@pytest.mark.parametrize("kernel_size", [3, 12])
def test_one_process_compiles_for_one_device_and_for_eight(kernel_size):
    # Nothing that is traced for one is taken for eight, nor the other way round.
    config = fsc.SeparableConv1DConfig(6, kernel_size, padding="same")
    params = fsc.init_params(jax.random.key(0), 5, config)
    x = jax.random.normal(jax.random.key(1), (16, 40, 5))
    gradient = jax.jit(jax.grad(lambda *a: loss(*a, lambda p, x: fsc.separable_conv1d(p, x, config)), (0, 1)))
    mesh = MESHES[AxisType.Auto]["line"]
    sharded = placed(mesh, params), placed(mesh, x, "n")
    for first, second in [((params, x), sharded), (sharded, (params, x))]:
        jax.clear_caches()
        jax.tree.map(assert_close, gradient(*first), gradient(*second))
        assert set(moved(gradient.lower(*sharded).compile())) == {"all-reduce"}
        assert not moved(gradient.lower(params, x).compile())


SAME = {"padding": "same", "depth_multiplier": 2}
CAUSAL = {"padding": "causal", "strides": 2, "depth_multiplier": 2, "data_format": "channels_first"}


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        *(({"implementation": name} | SAME, AxisType.Auto) for name in IMPLEMENTATIONS),
        *(({"implementation": name} | CAUSAL, AxisType.Explicit) for name in IMPLEMENTATIONS),
        ({"implementation": "lax", "padding": "same"}, AxisType.Auto),
        ({"kernel_size": 12, "dilation_rate": 3}, AxisType.Auto),
        ({"kernel_size": 130, "padding": "same"}, AxisType.Auto),  # transforms, and with 10 channels blocks
        ({"kernel_size": 130} | SAME, AxisType.Explicit),
    ],
)
def test_a_divided_batch_stays_where_it_is(arguments, kind):
    mesh = MESHES[kind]["line"]
    config = fsc.SeparableConv1DConfig(**{"filters": 6, "kernel_size": 3, "activation": "gelu"} | arguments)
    params = fsc.init_params(jax.random.key(0), 5, config)
    x = jax.random.normal(jax.random.key(1), (16, *((40, 5) if config.channel_axis == -1 else (5, 40))))
    apply = lambda params, x: fsc.separable_conv1d(params, x, config)  # noqa: E731
    gradient = jax.value_and_grad(lambda *a: loss(*a, apply), (0, 1))
    expected = apply(params, x), gradient(params, x)
    with jax.set_mesh(mesh):
        arrays = placed(mesh, params), placed(mesh, x, "n")
        forward, backward = (jax.jit(f).lower(*arrays).compile() for f in (apply, gradient))
        assert moved(forward) == {}
        # The loss, the gradients of the parameters, and what a program needs to sum in parts before that.
        numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
        summed = moved(backward)
        assert set(summed) == {"all-reduce"}
        assert summed["all-reduce"] <= 1 + 2 * numbers + 140 * 5
        ours = forward(*arrays), backward(*arrays)
    assert ours[0].sharding.spec[0] == ours[1][1][1].sharding.spec[0] == "n"
    jax.tree.map(assert_close, ours, expected)


@pytest.mark.parametrize(("kernel_size", "multiplier"), [(3, 1), (15, 1), (15, 2)])
@pytest.mark.parametrize("divided", ["sequence", "channels"])
def test_gradients_of_sequences_or_channels_on_auto_axes(divided, kernel_size, multiplier):
    mesh = MESHES[AxisType.Auto]["line"]
    spec = {"sequence": (None, "n"), "channels": (None, None, "n")}[divided]
    config = fsc.SeparableConv1DConfig(32, kernel_size, padding="same", depth_multiplier=multiplier)
    params = fsc.init_params(jax.random.key(0), 64, config)
    x = jax.random.normal(jax.random.key(1), (8, 96, 64))
    apply = lambda params, x: fsc.separable_conv1d(params, x, config)  # noqa: E731
    gradient = jax.value_and_grad(lambda *a: loss(*a, apply), (0, 1))
    compiled = jax.jit(gradient).lower(placed(mesh, params), placed(mesh, x, *spec)).compile()
    computed = compiled(placed(mesh, params), placed(mesh, x, *spec))
    jax.tree.map(assert_close, computed, gradient(params, x))
    assert divided == "sequence" or set(moved(compiled)) == {"all-reduce"}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_divided_channels_forward_move_nothing_but_the_sum(multiplier):
    mesh = MESHES[AxisType.Auto]["line"]
    config = fsc.SeparableConv1DConfig(64, 3, padding="same", depth_multiplier=multiplier)
    params = fsc.init_params(jax.random.key(0), 64, config)
    x = jax.random.normal(jax.random.key(1), (8, 96, 64))
    arrays = {name: placed(mesh, value, None, "n") for name, value in params.items() if value.ndim == 3}
    arrays = arrays | {"bias": placed(mesh, params["bias"])}, placed(mesh, x, None, None, "n")
    compiled = jax.jit(lambda params, x: fsc.separable_conv1d(params, x, config)).lower(*arrays).compile()
    assert_close(compiled(*arrays), fsc.separable_conv1d(params, x, config))
    output, edges = 8 * 96 * 64, 2 * 8 * 2 * 64
    assert moved(compiled)["all-reduce"] == output
    assert sum(moved(compiled).values()) <= output + edges


def test_divided_channels_move_nothing_through_the_depthwise_step():
    mesh = MESHES[AxisType.Auto]["line"]
    kernel, x = jnp.ones((3, 64, 2)), jnp.ones((4, 96, 64))
    y = jax.random.normal(jax.random.key(0), (4, 96, 128))

    def gradients(kernel, x, y):
        out, vjp = jax.vjp(lambda kernel, x: fsc.depthwise_conv1d(x, kernel, padding="same"), kernel, x)
        return out, vjp(y)

    arrays = placed(mesh, kernel, None, "n"), *placed(mesh, (x, y), None, None, "n")
    compiled = jax.jit(gradients).lower(*arrays).compile()
    jax.tree.map(assert_close, compiled(*arrays), gradients(kernel, x, y))
    assert not moved(compiled)


def test_explicit_axes_need_no_mesh_to_be_set():
    config = fsc.SeparableConv1DConfig(6, 3)
    params = fsc.init_params(jax.random.key(0), 5, config)
    x = jax.random.normal(jax.random.key(1), (8, 20, 5))
    gradient = jax.grad(lambda *a: loss(*a, lambda p, x: fsc.separable_conv1d(p, x, config)), (0, 1))
    ours = jax.jit(gradient)(params, placed(MESHES[AxisType.Explicit]["line"], x, "n"))
    jax.tree.map(assert_close, ours, gradient(params, x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_is_set_and_nothing_is_on_it(kind):
    config = fsc.SeparableConv1DConfig(6, 3)
    params = fsc.init_params(jax.random.key(0), 5, config)
    x = jax.random.normal(jax.random.key(1), (8, 20, 5))
    apply = lambda params, x: fsc.separable_conv1d(params, x, config)  # noqa: E731
    expected = apply(params, x)
    with jax.set_mesh(MESHES[kind]["line"]):
        assert_close(jax.jit(apply)(params, x), expected)


# --- Sequences, batches and filters by `parallel.separable_conv1d`


@st.composite
def divisions(draw):
    """A mesh and which of its axes divide what."""
    name, choices = draw(
        st.sampled_from(
            [
                ("line", [{"length": "n"}, {"batch": "n"}, {"features": "n"}]),
                (
                    "square",
                    [{"batch": "m", "length": "n"}, {"length": "n", "features": "m"}, {"length": "m"}],
                ),
                (
                    "cube",
                    [{"batch": "m", "length": "n", "features": "f"}, {"length": ("m", "n"), "features": "f"}],
                ),
            ]
        )
    )
    return name, draw(st.sampled_from(choices))


def on(mesh, axes, config):
    return lambda params, x: fsc.parallel.separable_conv1d(params, x, config, mesh=mesh, **axes)


@settings(max_examples=5)
@given(
    division=divisions(),
    layer=reference.layers(batch_axes=st.just(0)),
    batch=st.integers(0, 2),
    activation=st.sampled_from([None, "softmax", "gelu"]),
)
def test_divided_layers_are_the_whole_layer(division, layer, batch, activation):
    (name, axes), (config, params, x) = division, layer
    mesh = MESHES[AxisType.Auto][name]
    config = dataclasses.replace(config, filters=8 * config.filters, activation=activation)
    batch = max(batch, 1) if "batch" in axes else batch
    rng = np.random.default_rng(0)
    params = {
        w.name: rng.normal(size=w.shape).astype("f") for w in config.weights(x.shape[config.channel_axis])
    }
    x = rng.normal(size=((8, 3)[:batch] + x.shape)).astype("f")
    whole = lambda params, x: fsc.separable_conv1d(params, x, config)  # noqa: E731
    results = [
        jax.jit(lambda p, x, f=f: (f(p, x), jax.grad(loss, (0, 1))(p, x, f)))(params, x)
        for f in (on(mesh, axes, config), whole)
    ]
    jax.tree.map(assert_close, *results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 5, "padding": "same"},
        {"kernel_size": 4, "padding": "causal", "dilation_rate": 3},
        {"kernel_size": 5, "padding": "same", "strides": 2},
        {"kernel_size": 9, "padding": "causal", "strides": 4},
        {"kernel_size": 8, "padding": "causal", "dilation_rate": 5},  # the halo is wider than four blocks
        {"kernel_size": 1, "padding": "same", "strides": 2},
    ],
)
def test_just_the_halo_is_exchanged(arguments, kind):
    mesh, channels = MESHES[kind]["line"], 3
    config = fsc.SeparableConv1DConfig(4, **arguments)
    params = fsc.init_params(jax.random.key(0), channels, config)
    x = jax.random.normal(jax.random.key(1), (2, 64, channels))
    apply = on(mesh, {"length": "n"}, config)
    gradient = jax.grad(lambda *a: loss(*a, apply), (0, 1))
    with jax.set_mesh(mesh):
        arrays = placed(mesh, params), placed(mesh, x, None, "n")
        forward, backward = (jax.jit(f).lower(*arrays).compile() for f in (apply, gradient))
        assert forward(*arrays).sharding.spec[1] == backward(*arrays)[1].sharding.spec[1] == "n"
    # A block begins with the first row, after the padding, of its first window.
    reach = (config.kernel_size - 1) * config.dilation_rate
    before = reach if config.padding == "causal" else max(reach + 1 - config.strides, 0) // 2
    halo = 2 * channels * (before + max(reach + 1 - config.strides - before, 0))
    assert moved(forward).get("collective-permute", 0) == halo
    assert set(moved(forward)) <= {"collective-permute"}
    assert set(moved(backward)) <= {"collective-permute", "all-reduce"}
    # Once for the kernel's gradient, once back for the input's.
    assert moved(backward).get("collective-permute", 0) <= 2 * halo


def test_per_device_shares_of_the_filters_move_nothing():
    mesh = MESHES[AxisType.Auto]["line"]
    config = fsc.SeparableConv1DConfig(16, 3, activation="relu")
    params = fsc.init_params(jax.random.key(0), 3, config)
    params = {
        "depthwise_kernel": placed(mesh, params["depthwise_kernel"]),
        "pointwise_kernel": placed(mesh, params["pointwise_kernel"], None, None, "n"),
        "bias": placed(mesh, params["bias"], "n"),
    }
    x = placed(mesh, jax.random.normal(jax.random.key(1), (2, 20, 3)))
    apply = jax.jit(on(mesh, {"features": "n"}, config))
    assert moved(apply.lower(params, x).compile()) == {}
    assert apply(params, x).sharding.spec == PartitionSpec(None, None, "n")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_inside_shard_map(implementation):
    mesh = MESHES[AxisType.Auto]["square"]
    config = fsc.SeparableConv1DConfig(
        4, 5, padding="same", depth_multiplier=2, implementation=implementation
    )
    params = fsc.init_params(jax.random.key(0), 3, config)
    x = jax.random.normal(jax.random.key(1), (4, 32, 3))
    whole = lambda params, x: fsc.separable_conv1d(params, x, config)  # noqa: E731
    results = [
        jax.jit(jax.value_and_grad(lambda *a, f=f: loss(*a, f), (0, 1)))(params, x)
        for f in (on(mesh, {"batch": "m", "length": "n"}, config), whole)
    ]
    jax.tree.map(assert_close, *results)


REFUSED = [
    ({}, "one of `batch`, `length` and `features` must name an axis"),
    ({"length": "t"}, r"`length` must name axes of the mesh, \('m', 'n'\); got 't'"),
    ({"length": "n", "batch": "n"}, "`length` must name an axis of its own; got 'n', as `batch`"),
    ({"batch": "n"}, "`batch` names 4 devices, which must divide the first of the batch axes"),
    ({"features": ("m", "n")}, "`features` names 8 devices, which must divide the filters; got 4"),
]


def test_impossible_divisions_are_refused():
    config = fsc.SeparableConv1DConfig(4, 3)
    params = fsc.init_params(jax.random.key(0), 3, config)
    for axes, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            on(MESHES[AxisType.Auto]["square"], axes, config)(params, jnp.ones((6, 20, 3)))
    mesh = MESHES[AxisType.Auto]["line"]
    with pytest.raises(TypeError, match="`length` must be the name of an axis"):
        on(mesh, {"length": 0}, config)(params, jnp.ones((6, 20, 3)))
    with pytest.raises(TypeError, match=r"`mesh` must be a jax.sharding.Mesh; got 8"):
        on(8, {"length": "n"}, config)(params, jnp.ones((6, 20, 3)))
    with pytest.raises(ValueError, match="the output would be empty"):
        on(mesh, {"length": "n"}, config)(params, jnp.ones((6, 2, 3)))


# --- Weights that carry the names of their axes


def test_nnx_weights_carry_their_division():
    from flax import nnx

    init = nnx.with_partitioning(nnx.initializers.glorot_uniform(), (None, None, "n"))
    mesh = MESHES[AxisType.Auto]["line"]
    with jax.set_mesh(mesh):
        layer = fsc.nnx.SeparableConv1D(
            3, 16, 3, pointwise_initializer=init, pointwise_constraint="max_norm", rngs=nnx.Rngs(0)
        )
        assert layer.pointwise_kernel[...].sharding.spec == PartitionSpec(None, None, "n")
        x = jax.random.normal(jax.random.key(0), (8, 20, 3))
        y = nnx.jit(lambda layer, x: layer(x))(layer, x)
    params = {
        name: np.asarray(value) for name, value in nnx.to_pure_dict(nnx.state(layer, nnx.Param)).items()
    }
    assert_close(y, fsc.separable_conv1d(params, x, layer.config))


def test_linen_weights_carry_logical_axes():
    import flax.linen as nn

    names = {"pointwise_kernel": (None, "embed", "mlp"), "bias": ("mlp",)}
    layer = fsc.SeparableConv1D(
        16,
        3,
        pointwise_initializer=nn.with_partitioning(nn.initializers.lecun_normal(), names["pointwise_kernel"]),
        bias_initializer=nn.with_partitioning(nn.initializers.zeros, names["bias"]),
        pointwise_constraint="max_norm",
        depthwise_regularizer="l2",
    )
    x = jnp.ones((8, 20, 3))
    mesh = MESHES[AxisType.Auto]["line"]
    rules = [("mlp", "n"), ("embed", None)]
    specs = nn.get_partition_spec(jax.eval_shape(layer.init, jax.random.key(0), x))
    assert specs["params"]["pointwise_kernel"] == PartitionSpec(None, "embed", "mlp")
    shardings = nn.logical_to_mesh_sharding(specs, mesh, rules)
    variables = jax.jit(layer.init, out_shardings=shardings)(jax.random.key(0), x)
    assert variables["params"]["bias"].value.sharding.spec == PartitionSpec("n")
    y = jax.jit(layer.apply)(variables, placed(mesh, x))
    assert_close(y, layer.apply(nn.unbox(variables), x))
    # The rest of the library takes the boxed tree too.
    configs = fsc.layer_configs(layer, x)
    assert fsc.regularization_loss(variables["params"], configs) > 0
    update = fsc.constrain(configs).update
    gradients = jax.tree.map(jnp.ones_like, variables["params"])
    updates, _ = update(gradients, fsc.constrain(configs).init(variables["params"]), variables["params"])
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
