"""Every layer of ours is found under whatever wraps modules, or refused by name where no config would be right."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import flax_sepconv as fsc
from flax_sepconv._tree import leaves_of

# As many taps as channels in, channels out and layers, so that no axis can be told from its size.
N = 3
X = jnp.zeros((2, 8, N))


def norm(w):
    """A term that is not the sum of its parts: of a stack as a whole it is another number."""
    return jnp.sqrt(jnp.sum(jnp.asarray(w, jnp.float32) ** 2))


REGULARIZED = {
    "padding": "same",
    "depthwise_regularizer": norm,
    "bias_regularizer": norm,
    "pointwise_constraint": fsc.constraints.MaxNorm(0.5, axis=(0, 1, 2)),
}


def conv(**arguments):
    return fsc.SeparableConv1D(N, 3, **(REGULARIZED | arguments))


class Step(nn.Module):
    """A layer as the step of a scan."""

    @nn.compact
    def __call__(self, x, _=None):
        return conv(name="conv")(x), None


def module(call):
    """A Linen module whose call is a function of it and the input."""
    return type("Model", (nn.Module,), {"__call__": nn.compact(call), "__module__": __name__})()


def filled(tree):
    """A tree of shapes as one of numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def check(params, configs, expected):
    """Loss terms and constraints act on each layer of `expected`, `{path: axes that were added}`, by itself."""
    assert {path: getattr(config, "stack_axes", ()) for path, config in configs.items()} == expected
    tx = optax.chain(fsc.constrain(configs), fsc.freeze(configs))

    @jax.jit
    def loss_and_constrained(params):
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return fsc.regularization_loss(params, configs), optax.apply_updates(params, updates)

    def norms(params, name):
        """Those of the weights of this name, of each layer by itself."""
        leaves, _ = leaves_of(params)
        found = []
        for path, axes in expected.items():
            arrays = [np.asarray(leaves[(*path.split("/"), name) if path else (name,)], np.float32)]
            for axis in reversed(axes):
                arrays = [np.take(array, i, axis) for array in arrays for i in range(array.shape[axis])]
            found += [np.linalg.norm(array) for array in arrays]
        return found

    loss, constrained = loss_and_constrained(params)
    np.testing.assert_allclose(
        loss, sum(norms(params, "depthwise_kernel") + norms(params, "bias")), rtol=1e-5
    )
    np.testing.assert_allclose(norms(constrained, "pointwise_kernel"), 0.5, rtol=1e-2)


# --- Linen ---------------------------------------------------------------------------------------------------


def stack(axis):
    return {"variable_axes": {"params": axis}, "split_rngs": {"params": True}}


def cond_of_layers(self, x):
    return nn.cond(
        x.sum() > 0, lambda m, x: conv(name="conv")(x), lambda m, x: conv(name="conv")(-x), self, x
    )


def switch_of_layers(self, x):
    layers = [conv(name="a"), conv(name="b")]
    if self.is_mutable_collection("params"):
        for layer in layers:
            layer(x)
    branches = [lambda m, x, i=i: layers[i](x) for i in range(2)]
    return nn.switch(x.sum().astype(int), branches, self, x)


def loop_of_layer(self, x):
    def body(module, x):
        return conv(name="conv")(x)

    if self.is_mutable_collection("params"):
        return body(self, x)
    return nn.while_loop(lambda module, x: x.sum() < 0, body, self, x)


def with_signs(self, x):
    def forward(module, x):
        return nn.vjp(lambda m, x: m(x), module, x)

    def backward(vjp, cotangent):
        return vjp(cotangent)

    return nn.custom_vjp(lambda m, x: m(x), forward, backward)(conv(name="conv"), x)


def shared_scope(self, x):
    layer = conv()
    nn.share_scope(self, layer)
    return layer(x)


class Cell(nn.RNNCellBase):
    """A recurrent cell with a layer in it."""

    @nn.compact
    def __call__(self, carry, x):
        carry = carry + conv(name="conv")(x)
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 2


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return conv(name="conv")(x)


class Scoped(nn.Module):
    """A layer made in a method of its own, and a method that is not wrapped."""

    @nn.nowrap
    def scaled(self, x):
        return 2 * x

    @nn.compact_name_scope
    def block(self, x):
        return conv(name="conv")(x)

    def __call__(self, x):
        return self.block(self.scaled(x))


def cast(variables):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables)


SEQUENCE = jnp.zeros((2, 5, 8, N))
WRAPPED = {
    "Sequential": (nn.Sequential([conv(), nn.relu]), {"layers_0": ()}),
    "BatchApply": (module(lambda self, x: nn.BatchApply(conv(name="conv"))(x)), {"conv": ()}),
    "RNN": (nn.RNN(Cell()), {"cell/conv": ()}),
    "Bidirectional": (
        nn.Bidirectional(nn.RNN(Cell()), nn.RNN(Cell())),
        {"forward_rnn/cell/conv": (), "backward_rnn/cell/conv": ()},
    ),
    "remat": (nn.remat(Step)(), {"conv": ()}),
    "checkpoint": (nn.checkpoint(Step)(), {"conv": ()}),
    "jit": (nn.jit(Step)(), {"conv": ()}),
    "scan": (nn.scan(Step, **stack(0), length=N)(), {"conv": (0,)}),
    "scan, axis 1": (nn.scan(Step, **stack(1), length=N)(), {"conv": (1,)}),
    "scan, last axis": (nn.scan(Step, **stack(-1), length=N)(), {"conv": (-1,)}),
    "scan, one layer": (
        nn.scan(Step, variable_broadcast="params", split_rngs={"params": False}, length=N)(),
        {"conv": ()},
    ),
    "vmap": (nn.vmap(Step, **stack(1), in_axes=None, axis_size=N)(), {"conv": (1,)}),
    "vmap, one layer": (nn.vmap(Step, variable_axes={"params": None}, split_rngs={"params": False})(), {"conv": ()}),
    "vmap of scan of remat": (
        nn.vmap(nn.scan(nn.remat(Step), **stack(-1), length=N), **stack(0), in_axes=None, axis_size=N)(),
        {"conv": (0, -1)},
    ),
    "remat_scan": (nn.remat_scan(Remat, lengths=(N, N))(), {"conv": (0, 0)}),
    "map_variables": (nn.map_variables(Step, "params", cast, init=True)(), {"conv": ()}),
    "add_metadata_axis": (nn.add_metadata_axis(Step, {"params": 0}, {})(), {"conv": ()}),
    "vmap of add_metadata_axis": (
        nn.vmap(nn.add_metadata_axis(Step, {"params": 1}, {}), **stack(0), in_axes=None, axis_size=N)(),
        {"conv": (0,)},
    ),
    "fold_rngs": (nn.fold_rngs(Step)(), {"conv": ()}),
    "cond": (module(cond_of_layers), {"conv": ()}),
    "switch": (module(switch_of_layers), {"a": (), "b": ()}),
    "while_loop": (module(loop_of_layer), {"conv": ()}),
    "custom_vjp": (module(with_signs), {"conv": ()}),
    "vjp": (module(lambda self, x: nn.vjp(lambda m, x: m(x), conv(name="conv"), x)[0]), {"conv": ()}),
    "jvp": (
        module(lambda self, x: nn.jvp(lambda m, x: m(x), conv(name="conv"), (x,), (x,), {})[1]),
        {"conv": ()},
    ),
    "grad": (module(lambda self, x: nn.grad(lambda m, x: m(x).sum(), conv(name="conv"), x)), {"conv": ()}),
    "value_and_grad": (
        module(lambda self, x: nn.value_and_grad(lambda m, x: m(x).sum(), conv(name="conv"), x)),
        {"conv": ()},
    ),
    "named_call": (
        module(lambda self, x: nn.named_call(fsc.SeparableConv1D.__call__)(conv(name="conv"), x)),
        {"conv": ()},
    ),
    "share_scope": (module(shared_scope), {"": ()}),
    "nowrap, compact_name_scope": (Scoped(), {"block/conv": ()}),
    "WeightNorm": (
        nn.WeightNorm(conv(depthwise_constraint=None), variable_filter={"nothing"}),
        {"layer_instance": ()},
    ),
    "with_partitioning": (
        conv(pointwise_initializer=nn.with_partitioning(nn.initializers.ones, (None, None, "out"))),
        {"": ()},
    ),
    "with_logical_partitioning": (
        nn.scan(
            type(module(lambda self, x, _=None: (conv(name="conv")(x), None))),
            **stack(0), length=N, metadata_params={nn.PARTITION_NAME: "layers"},
        )(),
        {"conv": (0,)},
    ),
    "to_linen": (bridge.to_linen(fsc.nnx.SeparableConv1D, N, N, 3, **REGULARIZED), {"": ()}),
    "to_linen, no metadata": (
        bridge.to_linen(fsc.nnx.SeparableConv1D, N, N, 3, **REGULARIZED, metadata_fn=None),
        {"": ()},
    ),
    "called by init alone": (
        module(lambda self, x: conv(name="a")(x) if self.is_initializing() else x),
        {"a": ()},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), WRAPPED.values(), ids=WRAPPED.keys())
def test_layers_under_wrappers_of_linen(model, expected):
    x = SEQUENCE if isinstance(model, nn.RNN | nn.Bidirectional) else X
    params = filled(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    check(params, fsc.layer_configs(model, x), expected)


def test_every_wrapper_of_linen_is_tried():
    """A name that a newer Flax has is to be sorted: into `WRAPPED`, or as one that holds no module."""
    layers = ("activation", "attention", "dtypes", "fp8_ops", "initializers", "linear", "pooling")
    layers += ("stochastic", "summary")
    tried = {name.split(",")[0] for name in " ".join(WRAPPED).replace(" of ", " ").split()}
    names = {
        name
        for name, value in vars(nn).items()
        if callable(value)
        and getattr(value, "__module__", "").startswith("flax.linen.")
        and value.__module__.removeprefix("flax.linen.") not in layers
    }
    assert {"scan", "map_variables"} <= names
    assert names <= tried | TRIED_BELOW | NO_MODULE


TRIED_BELOW = {"SpectralNorm"}
NO_MODULE = {
    # modules, variables, and what a test of the layer itself does
    *("Module", "Variable", "apply", "init", "init_with_output", "compact", "merge_param"),
    *("disable_named_call", "enable_named_call", "override_named_call", "intercept_methods"),
    # layers
    *("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"),
    *("ConvLSTMCell", "GRUCell", "LSTMCell", "MGUCell", "OptimizedLSTMCell", "RNNCellBase", "SimpleCell"),
    # functions of arrays and specifications
    *("LogicallyPartitioned", "logical_to_mesh", "logical_to_mesh_axes", "logical_to_mesh_sharding"),
    "with_logical_constraint",
}


def scaled(variables):
    return jax.tree.map(lambda a: 2 * a, variables)


def hyper(self, x):
    """A layer whose weights another one makes."""
    layer = conv()
    weights = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    made = {name: nn.Dense(w.size, name=name)(jnp.ones(2)).reshape(w.shape) for name, w in weights.items()}
    return layer.apply({"params": made}, x)


def elsewhere(self, x):
    """A layer whose weights are stored under other names."""
    layer = conv()
    weights = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    stored = {name: self.param(f"my_{name}", nn.initializers.ones, w.shape) for name, w in weights.items()}
    return layer.apply({"params": stored}, x)


def two_configs(self, x):
    """Two layers of one set of weights that do not agree on what is attached to them."""
    layer = conv(name="conv")
    y = layer(x)
    return conv(depthwise_regularizer="l1").apply({"params": layer.variables["params"]}, y)


def normed(self, x, _=None):
    return nn.WeightNorm(conv())(x), None


def swapped(self, x):
    """The layer's parameters are in another collection."""

    def swap(variables):
        return {"params": variables.get("frozen", {}), "frozen": variables.get("params", {})}

    return nn.map_variables(lambda m, x: m(x), ["params", "frozen"], swap, swap, mutable=True)(
        conv(name="conv"), x
    )


COMPUTED = "does not compute with the `{}` that is stored"
REFUSED = {
    "WeightNorm": (
        nn.WeightNorm(conv()),
        "'layer_instance' has `depthwise_regularizer`, but " + COMPUTED.format("depthwise_kernel"),
    ),
    "WeightNorm, a constraint": (nn.WeightNorm(conv(depthwise_regularizer=None)), "has `pointwise_constraint`, but"),
    "WeightNorm, frozen": (nn.WeightNorm(conv(trainable=False)), "has `trainable=False`, but"),
    "WeightNorm in scan": (
        nn.scan(type(module(normed)), **stack(0), length=N)(),
        COMPUTED.format("depthwise_kernel"),
    ),
    "SpectralNorm": (
        module(lambda self, x: nn.SpectralNorm(conv())(x, update_stats=True)),
        COMPUTED.format("depthwise_kernel"),
    ),
    "map_variables": (nn.map_variables(Step, "params", scaled, init=True)(), "'conv' has `depthwise_regularizer`"),
    "weights that are made": (module(hyper), "must be stored as parameters of one layer, under their names"),
    "weights under other names": (module(elsewhere), "they come from .*'params/my_bias'"),
    "weights in another collection": (module(swapped), "they come from .*'frozen/conv/bias'"),
    "two configs": (module(two_configs), "'conv' are shared by layers that must agree"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(model, message):
    with pytest.raises(ValueError, match=message):
        fsc.layer_configs(model, X)


@pytest.mark.parametrize("wrapper", [nn.WeightNorm, nn.SpectralNorm])
def test_what_is_attached_to_other_weights_is_found(wrapper):
    """These compute kernels from what is stored, and take biases as they are."""
    arguments = {"update_stats": True} if wrapper is nn.SpectralNorm else {}
    layer = fsc.SeparableConv1D(N, 3, padding="same", bias_regularizer=norm)
    configs = fsc.layer_configs(module(lambda self, x: wrapper(layer)(x, **arguments)), X)
    assert [config.bias_regularizer for config in configs.values()] == [norm]


def test_the_call_is_named_that_a_model_takes():
    with pytest.raises(TypeError, match=r"what SeparableConv1D is called with: missing .*'x'"):
        fsc.layer_configs(conv())


def test_the_call_may_be_of_another_method():
    model = Scoped()
    assert list(fsc.layer_configs(model, X, method="block")) == ["block/conv"]
    assert list(fsc.layer_configs(model, X, method=Scoped.block)) == ["block/conv"]


# --- NNX -----------------------------------------------------------------------------------------------------


def nnx_conv(rngs, **arguments):
    return fsc.nnx.SeparableConv1D(N, N, 3, **(REGULARIZED | arguments), rngs=rngs)


def to_nnx(model):
    return lambda rngs: bridge.ToNNX(model, rngs=rngs).lazy_init(X)


def nnx_stack(axis, make=nnx_conv):
    def stacked(rngs):
        make_all = nnx.vmap(make, in_axes=(nnx.StateAxes({...: 0}),), out_axes=axis)
        return nnx.split_rngs(splits=N)(make_all)(rngs)

    return stacked


AXES = nnx.StateAxes({nnx.Param: 1, ...: 0})


class Calling(nnx.Module):
    """A model that calls its part as a function says."""

    def __init__(self, make, call, rngs):
        self.part = make(rngs)
        self.call = call

    def __call__(self, x):
        return self.call(self.part, x)


def scan_over(axis):
    scanned = nnx.scan(
        lambda x, layer: layer(x),
        in_axes=(nnx.Carry, nnx.StateAxes({nnx.Param: axis, ...: 0})),
        out_axes=nnx.Carry,
    )
    return lambda layers, x: scanned(x, layers)


def calling(make, call):
    return lambda rngs: Calling(make, call, rngs)


class InBridge(bridge.Module):
    """Layers of both kinds in a module of the bridge's own."""

    @bridge.compact
    def __call__(self, x):
        x = bridge.nnx_in_bridge_mdl(nnx_conv, name="a")(x)
        return bridge.linen_in_bridge_mdl(conv(), name="b")(x)


TWICE = nn.Sequential([conv(), bridge.to_linen(lambda rngs: nnx.Sequential(nnx_conv(rngs)))])
NNX = {
    "layer": (nnx_conv, False, {"": ()}),
    "Sequential": (lambda rngs: nnx.Sequential(nnx_conv(rngs), nnx.relu), False, {"layers/0": ()}),
    "List": (lambda rngs: nnx.List([nnx_conv(rngs), nnx.Linear(N, N, rngs=rngs)]), False, {"0": ()}),
    "Dict": (lambda rngs: nnx.Dict(b=nnx_conv(rngs), a=nnx_conv(rngs)), False, {"a": (), "b": ()}),
    "list and dict": (lambda rngs: [nnx_conv(rngs), {"a": nnx_conv(rngs)}], False, {"0": (), "1/a": ()}),
    "data": (calling(lambda rngs: nnx.data((nnx_conv(rngs),)), lambda part, x: part[0](x)), False, {"part/0": ()}),
    "clone": (lambda rngs: nnx.clone(nnx_conv(rngs)), False, {"": ()}),
    "vmap": (nnx_stack(0), False, {"": (0,)}),
    "vmap, called": (calling(nnx_stack(1), scan_over(1)), True, {"part": (1,)}),
    "vmap, called by vmap": (
        calling(nnx_stack(1), lambda part, x: nnx.vmap(lambda m, x: m(x), in_axes=(AXES, None))(part, x)),
        True, {"part": (1,)},
    ),
    "called": (calling(nnx_conv, lambda part, x: part(x)), True, {"part": ()}),
    "remat": (calling(nnx_conv, lambda part, x: nnx.remat(lambda m, x: m(x))(part, x)), True, {"part": ()}),
    "jit": (calling(nnx_conv, lambda part, x: nnx.jit(lambda m, x: m(x))(part, x)), True, {"part": ()}),
    "cond": (
        calling(nnx_conv, lambda part, x: nnx.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: -m(x), part, x)),
        True, {"part": ()},
    ),
    "grad": (
        calling(nnx_conv, lambda part, x: nnx.grad(lambda m, x: m(x).sum(), argnums=1)(part, x)), True, {"part": ()}
    ),
    "not called": (
        calling(lambda rngs: nnx.List([nnx_conv(rngs), nnx_conv(rngs)]), lambda part, x: part[1](x)),
        True, {"part/0": (), "part/1": ()},
    ),
    "ToNNX": (to_nnx(conv()), False, {"": ()}),
    "ToNNX, called": (to_nnx(conv()), True, {"": ()}),
    "ToNNX of Sequential": (to_nnx(TWICE), True, {"layers_0": (), "layers_1/layers/0": ()}),
    "ToNNX of scan": (to_nnx(nn.scan(Step, **stack(1), length=N)()), True, {"conv": (1,)}),
    "ToNNX beside a layer": (
        lambda rngs: nnx.List([bridge.ToNNX(nn.Dropout(0.5)), to_nnx(conv())(rngs), nnx_conv(rngs)]),
        False, {"1": (), "2": ()},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "called", "expected"), NNX.values(), ids=NNX.keys())
def test_layers_in_models_of_nnx(make, called, expected):
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    configs = fsc.layer_configs(model, X) if called else fsc.layer_configs(model)
    check(filled(nnx.state(model, nnx.Param)), configs, expected)


def test_layers_in_a_module_of_the_bridge():
    params = filled(jax.eval_shape(lambda: InBridge().init(0, X))["params"])
    check(params, fsc.layer_configs(InBridge(), X), {"a": (), "b": ()})


NNX_REFUSED = {
    "ToNNX of Sequential": (
        to_nnx(TWICE),
        r"with weights at \['layers_0', 'layers_1/layers/0'\], are known by a call only",
    ),
    "ToNNX of scan": (
        to_nnx(nn.scan(Step, **stack(1), length=N)()),
        r"with weights at \['conv'\], are known by a call only",
    ),
    "ToNNX without parameters": (lambda rngs: bridge.ToNNX(TWICE, rngs=rngs), "must have its parameters; got none"),
    "vmap": (nnx_stack(1), "more than one choice of axes"),
}  # fmt: skip
for name in sorted({"SpectralNorm", "WeightNorm"} & set(dir(nnx))):  # of newer Flax
    NNX_REFUSED[name] = (
        lambda rngs, name=name: getattr(nnx, name)(nnx_conv(rngs), rngs=rngs),
        COMPUTED.format("depthwise_kernel"),
    )


@pytest.mark.parametrize(("make", "message"), NNX_REFUSED.values(), ids=NNX_REFUSED.keys())
def test_refusals_of_models_of_nnx(make, message):
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        fsc.layer_configs(model)


def test_refusals_by_a_call_of_a_model_of_nnx():
    """A call tells more than the graph: what is computed, and what has no parameters yet."""
    scaling = calling(
        nnx_conv, lambda part, x: setattr(part, "bias", nnx.Param(2 * part.bias[...])) or part(x)
    )
    with pytest.raises(ValueError, match="'part' has `bias_regularizer`, but " + COMPUTED.format("bias")):
        fsc.layer_configs(scaling(nnx.Rngs(0)), X)
    with pytest.raises(ValueError, match="`model` must have its parameters: call `lazy_init`"):
        fsc.layer_configs(bridge.ToNNX(conv(), rngs=nnx.Rngs(0)), X)
    with pytest.raises(TypeError, match=r"what InBridge is called with: missing .*'x'"):
        fsc.layer_configs(InBridge())
