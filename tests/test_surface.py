"""What a person sees: signatures, help, completion, reprs and messages of the config and of both modules."""

import copy
import dataclasses
import functools
import inspect
import itertools
import pickle
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import flax_sepconv as fsc

Config = fsc.SeparableConv1DConfig


def by_config(*args, **kwargs):
    return Config(*args, **kwargs)


def by_linen(*args, **kwargs):
    return fsc.SeparableConv1D(*args, **kwargs)


def by_nnx(*args, **kwargs):
    return fsc.nnx.SeparableConv1D(2, *args, rngs=nnx.Rngs(0), **kwargs)


MAKERS = [by_config, by_linen, by_nnx]
CLASSES = [Config, fsc.SeparableConv1D, fsc.nnx.SeparableConv1D]

# ---- Signatures and help ----------------------------------------------------------------------------------


def parameters(cls):
    """Those of the constructor; the class itself has NNX's `(*args, **kwargs)`."""
    _, *found = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each for each in found}


def arguments(cls, *others):
    found = parameters(cls).values()
    return [(p.name, p.kind, p.default, p.annotation) for p in found if p.name not in ("decode", *others)]


def test_the_modules_take_the_arguments_of_the_config():
    config = arguments(Config)
    assert arguments(fsc.nnx.SeparableConv1D, "in_features", "rngs") == config
    linen = arguments(fsc.SeparableConv1D, "parent", "name")
    assert linen == [each for each in config if each[0] != "name"]
    for cls in CLASSES[1:]:
        assert parameters(cls)["decode"].kind is inspect.Parameter.KEYWORD_ONLY
    fields = [field.name for field in dataclasses.fields(Config)]
    assert fields == [name for name, *_ in config]


def described(cls):
    """The block `Args:` of a docstring, by argument."""
    lines = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0].splitlines()
    found, name = {}, None
    for line in lines:
        if not line.startswith("     "):
            name, _, line = line.strip().partition(": ")
        found.setdefault(name, []).append(line.strip())
    return found


@pytest.mark.parametrize("cls", CLASSES)
def test_help_describes_every_argument(cls):
    of_config = described(Config)
    assert list(of_config) == list(inspect.signature(Config).parameters)
    found = described(cls)
    assert set(found) >= set(parameters(cls)) - {"parent"}
    assert {name: found[name] for name in of_config} == of_config


def test_dir_shows_the_public_names_and_no_others():
    code = "import sys, flax_sepconv as fsc; print(*(n for n in dir(fsc) if not n.startswith('_'))); "
    code += "assert 'flax.nnx' not in sys.modules, 'flax.nnx takes long to import'"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == sorted(fsc.__all__)
    for name in fsc.__all__:
        assert getattr(fsc, name) is not None
    for name in fsc.interop.__all__:
        assert inspect.ismodule(getattr(fsc.interop, name))
    with pytest.raises(AttributeError, match="module 'flax_sepconv' has no attribute 'nothing'"):
        fsc.nothing  # noqa: B018


# ---- Unknown keywords -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("kernel_regularizer", "use `depthwise_regularizer` or `pointwise_regularizer`"),
        ("kernel_constraint", "use `depthwise_constraint` or `pointwise_constraint`"),
        ("kernel_initializer", "use `depthwise_initializer` or `pointwise_initializer`"),
        ("kernel_init", "use `depthwise_initializer` or `pointwise_initializer`"),
        ("bias_init", "Did you mean `bias_initializer`?"),
        ("actvation", "Did you mean `activation`?"),
        ("dilation", "Did you mean `dilation_rate`?"),
        ("features", "Did you mean `filters`?"),
        ("input_shape", "The number of channels is taken from the input"),
        ("xyz", "It has `"),
    ],
)
def test_unknown_keywords_are_refused_with_the_nearest_argument(make, keyword, advice):
    with pytest.raises(TypeError) as error:
        make(3, 3, **{keyword: None})
    name = "SeparableConv1DConfig" if make is by_config else "SeparableConv1D"
    assert str(error.value).startswith(f"{name} has no argument `{keyword}`. ")
    assert advice in str(error.value)


def test_subclasses_name_their_own_arguments():
    class Scaled(fsc.SeparableConv1D):
        scale: float = 1.0

    class Square(fsc.nnx.SeparableConv1D):
        def __init__(self, width, *, rngs):
            super().__init__(width, width, 3, rngs=rngs)

    assert Scaled(4, 3, scale=2.0).scale == 2
    with pytest.raises(TypeError, match=r"Scaled has no argument `scales`. Did you mean `scale`\?"):
        Scaled(4, 3, scales=2.0)
    assert Square(4, rngs=nnx.Rngs(0)).config.filters == 4


@pytest.mark.parametrize("part", ["regularizer", "constraint", "initializer"])
def test_a_set_entry_of_the_one_kernel_of_other_layers_warns(part):
    keras2 = {"filters": 3, "kernel_size": [3], "groups": 1, "kernel_initializer": "glorot_uniform"}
    keras2 |= {"kernel_regularizer": None, "kernel_constraint": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = Config.from_config(keras2)
    with pytest.warns(
        UserWarning, match=f"sets 'kernel_{part}', which a .* 'depthwise_{part}' or 'pointwise_{part}'"
    ):
        assert Config.from_config(keras2 | {f"kernel_{part}": {"class_name": "Own", "config": {}}}) == plain


# ---- Equality, hash and repr ------------------------------------------------------------------------------

VALUES = {
    "filters": [4, 5],
    "kernel_size": [3, 4],
    "strides": [1, 2],
    "padding": ["valid", "same", "causal"],
    "data_format": ["channels_last", "channels_first"],
    "dilation_rate": [1, 2],
    "depth_multiplier": [1, 2],
    "activation": [None, "relu", jax.nn.relu, fsc.activations.LeakyReLU(0.1), "exponential", lambda x: x],
    "use_bias": [True, False],
    "depthwise_initializer": [None, "glorot_uniform", "he_normal"],
    "pointwise_initializer": [None, "glorot_uniform", "he_normal"],
    "bias_initializer": [None, "zeros", "ones", nn.initializers.zeros],
    "depthwise_regularizer": [None, "l1", "l2", fsc.regularizers.L2(0.5), "l1_l2"],
    "pointwise_regularizer": [None, "l1", "l2"],
    "bias_regularizer": [None, "l1", "l2"],
    "activity_regularizer": [None, "l1", "l2"],
    "depthwise_constraint": [None, "max_norm", fsc.constraints.MaxNorm(2, axis=1), "non_neg"],
    "pointwise_constraint": [None, "max_norm", "non_neg"],
    "bias_constraint": [None, "max_norm", "non_neg"],
    "trainable": [True, False],
    "name": [None, "a", "b"],
    "dtype": [None, "float16", "bfloat16", "float32", "float64"],
    "param_dtype": ["float16", "bfloat16", "float32", "float64"],
    "preferred_element_type": [None, "float16", "bfloat16", "float32", "float64"],
    "precision": [None, "default", "highest", ("high", "highest")],
    "implementation": [None, "taps", "fourier", "lax"],
}


@pytest.mark.parametrize("argument", inspect.signature(Config).parameters)
def test_equality_hash_and_repr_agree(argument):
    required = {"filters": 7, "kernel_size": 5}
    configs = [Config(**required | {argument: value}) for value in VALUES[argument]]
    for one in configs:
        again = dataclasses.replace(one)
        assert again == one
        assert hash(again) == hash(one)
        assert repr(again) == repr(one)
        assert copy.deepcopy(one) == one
        assert {one: 1}[again] == 1
    for one, other in itertools.combinations(configs, 2):
        assert one != other
        assert repr(one) != repr(other)
        assert other not in {one: 1}


def test_a_repr_without_callables_makes_the_config_again():
    names = {"SeparableConv1DConfig": Config}
    for argument, values in VALUES.items():
        for value in values:
            if value is None or isinstance(value, str | int | tuple):
                config = Config(**{"filters": 7, "kernel_size": 5} | {argument: value})
                shown = eval(repr(config).replace("L1L2(", "fsc.regularizers.L1L2("), names | _objects())
                assert shown == config


def _objects():
    """What the reprs of Keras's objects are made with."""
    modules = (fsc.activations, fsc.initializers, fsc.regularizers, fsc.constraints)
    return {"fsc": fsc} | {name: getattr(module, name) for module in modules for name in dir(module)}


def test_a_dtype_of_float64_is_not_no_dtype():
    one, other = Config(8, 3, dtype="float64"), Config(8, 3)
    assert one != other
    assert repr(one) == "SeparableConv1DConfig(filters=8, kernel_size=3, dtype='float64')"
    assert len({one, other}) == 2


def test_configs_survive_pickling():
    config = Config(
        8, 3, activation="relu", dtype="bfloat16", precision="highest", depthwise_constraint="max_norm"
    )
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (fsc.SeparableConv1D(4, 3, name="a"), "SeparableConv1D(filters=4, kernel_size=3, name='a')"),
        (
            fsc.SeparableConv1D(4, (3,), padding="causal", decode=True, dtype=jnp.bfloat16),
            "SeparableConv1D(filters=4, kernel_size=3, padding='causal', dtype='bfloat16', decode=True)",
        ),
        (
            fsc.SeparableConv1D(4, 3, activation=jax.nn.relu, depthwise_regularizer=fsc.regularizers.L2(0.1)),
            "SeparableConv1D(filters=4, kernel_size=3, activation=jax.nn.relu, depthwise_regularizer=L2(l2=0.1))",
        ),
        (
            Config(4, 3, precision=lax.Precision.HIGH),
            "SeparableConv1DConfig(filters=4, kernel_size=3, precision='high')",
        ),
        (
            Config(4, 3, activation=fsc.activations.hard_sigmoid_keras2),
            "SeparableConv1DConfig(filters=4, kernel_size=3, activation=activations.hard_sigmoid_keras2)",
        ),
    ],
)
def test_a_repr_shows_what_differs_from_the_defaults(layer, shown):
    assert repr(layer) == shown


# ---- From a config to a layer -----------------------------------------------------------------------------

CONFIGS = [
    Config(4, 3),
    Config(
        4, 3, padding="same", activation="relu", depthwise_regularizer="l2", dtype="bfloat16", name="conv"
    ),
    Config(4, 5, 2, "causal", "channels_first", depth_multiplier=2, use_bias=False, implementation="lax"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_layers_from_configs_and_keras_dicts(config):
    for given in (config, config.get_config()):
        computed = dataclasses.replace(config, implementation=None) if given is not config else config
        if computed.dtype is None and given is not config:
            assert fsc.SeparableConv1D.from_config(given).config == computed
        linen = fsc.SeparableConv1D.from_config(given, name="other", filters=6)
        assert linen.config == dataclasses.replace(computed, name="other", filters=6)
        layer = fsc.nnx.SeparableConv1D.from_config(2, given, rngs=nnx.Rngs(0), use_bias=False)
        assert layer.config == dataclasses.replace(computed, use_bias=False)
        assert not hasattr(layer, "bias")
    assert fsc.SeparableConv1D.from_config(config).name == config.name


def test_from_config_makes_subclasses_and_refuses_by_name():
    class Scaled(fsc.SeparableConv1D):
        scale: float = 1.0

    assert Scaled.from_config(CONFIGS[0], scale=2.0).scale == 2
    for make in (
        fsc.SeparableConv1D.from_config,
        functools.partial(fsc.nnx.SeparableConv1D.from_config, 2, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(
            TypeError, match=r"SeparableConv1D has no argument `stride`\. Did you mean `strides`\?"
        ):
            make(CONFIGS[0], stride=2)
        with pytest.raises(TypeError, match="`config` must be a SeparableConv1DConfig; got 3"):
            make(3)
        with pytest.raises(ValueError, match="`config` has an entry 'filter'"):
            make({"filter": 3, "kernel_size": 3})


def test_layers_with_names_from_configs_work_in_compact_and_setup():
    class Model(nn.Module):
        def setup(self):
            self.first = fsc.SeparableConv1D.from_config(CONFIGS[1])

        @nn.compact
        def __call__(self, x):
            return fsc.SeparableConv1D.from_config(CONFIGS[1], name="second")(self.first(x))

    params = Model().init(jax.random.key(0), np.ones((1, 9, 2)))["params"]
    assert sorted(params) == ["conv", "second"]


def test_a_stream_without_a_mutable_cache_says_what_to_do():
    layer = fsc.SeparableConv1D(4, 3, padding="causal", decode=True)
    x = jnp.ones((1, 6, 2))
    params = layer.init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"the collection 'cache' must be mutable.*mutable=\['cache'\]"):
        layer.apply({"params": params}, x)
