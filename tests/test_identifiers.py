"""What the four kinds of identifier share: each says the same thing in every way Keras allows, or says why not."""

import dataclasses
import functools
import json
import re

import flax
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flax_sepconv import activations, constraints, initializers, regularizers

MODULES = (activations, constraints, initializers, regularizers)

OBJECTS = [
    (activations, activations.LeakyReLU(0.1)),
    (activations, activations.ReLU(6, 0.5, 1)),
    (activations, activations.Softmax((1, 2))),
    (constraints, constraints.MaxNorm(3, (0, 1))),
    (constraints, constraints.MinMaxNorm(0.5, 2, 0.25, None)),
    (constraints, constraints.NonNeg()),
    (initializers, initializers.Constant([[1.0, 2.0]])),
    (initializers, initializers.GlorotUniform(seed=3)),
    (initializers, initializers.Identity(2)),
    (initializers, initializers.STFT("imag", None, None, True)),
    (initializers, initializers.VarianceScaling(2, "fan_out", "normal", 7, (0,), (1, 2))),
    (regularizers, regularizers.L1L2(0.5, 2)),
    (regularizers, regularizers.OrthogonalRegularizer(1, "columns")),
]


def keras_config(obj):
    """What Keras 2 writes for an object."""
    return {"class_name": type(obj).__name__, "config": obj.get_config()}


def custom(*arguments):
    return arguments[0]


@dataclasses.dataclass
class Unhashable:
    def __call__(self, *arguments):
        return arguments[0]


@pytest.mark.parametrize(("module", "obj"), OBJECTS, ids=repr)
def test_an_object_is_the_same_in_every_form(module, obj):
    written = module.serialize(obj)
    assert module.get(obj) is obj
    assert module.get(written) == obj
    assert module.get(json.loads(json.dumps(written))) == obj
    assert module.get(keras_config(obj)) == obj
    assert module.get(flax.core.freeze(written)) == obj
    assert module.serialize(written) == written
    assert hash(module.get(written)) == hash(obj)


@pytest.mark.parametrize(("module", "obj"), OBJECTS, ids=repr)
def test_an_object_is_immutable_and_its_repr_makes_it_again(module, obj):
    assert eval(repr(obj), vars(module)) == obj
    for field in dataclasses.fields(obj):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(obj, field.name, None)


def test_equal_values_of_different_classes_differ():
    assert initializers.HeNormal() == initializers.HeNormal()
    assert initializers.HeNormal() != initializers.GlorotNormal()
    assert regularizers.L1(0.5) != regularizers.L2(0.5)


@pytest.mark.parametrize("module", MODULES)
def test_callables_are_kept_and_cannot_be_written(module):
    for function in (custom, functools.partial(custom), jax.nn.standardize):
        assert module.get(function) is function
        with pytest.raises(ValueError, match=r"`part` is .*, which Keras 3 has no name for") as error:
            module.serialize(function, argument="part")
        assert "Use one that has a name, or pass the callable again" in str(error.value)


@pytest.mark.parametrize("module", MODULES)
def test_what_cannot_be_hashed_is_refused(module):
    with pytest.raises(
        TypeError, match=r"`part` must be hashable, as the layer's config is; got Unhashable\(\)"
    ):
        module.get(Unhashable(), argument="part")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("nothing", [3, 0.5, True, b"l2", ("l2",), np.ones(3)], ids=repr)
def test_what_is_no_identifier_is_refused(module, nothing):
    with pytest.raises(TypeError, match=r"`part` must be .*a name such as .*; got "):
        module.get(nothing, argument="part")


def test_classes_give_their_defaults():
    assert regularizers.get(regularizers.L2) == regularizers.L2()
    assert initializers.get(initializers.HeNormal) == initializers.HeNormal()
    assert constraints.get(constraints.MaxNorm) == constraints.MaxNorm()
    assert activations.get(activations.LeakyReLU) == activations.LeakyReLU(0.3)


@pytest.mark.parametrize("module", MODULES)
def test_a_class_without_defaults_is_refused(module):
    with pytest.raises(
        TypeError, match=r"`part` is <class .*partial'>, a class that cannot be made with its defaults"
    ):
        module.get(functools.partial, argument="part")
    with pytest.raises(TypeError, match=r"`part` is .*Regularizer'>, a class that cannot be made with its"):
        module.get(regularizers.Regularizer, argument="part")


@pytest.mark.parametrize("module", MODULES)
def test_an_object_of_another_kind_is_refused(module):
    for other, obj in OBJECTS:
        if other is not module:
            with pytest.raises(ValueError, match=r"`part` must be .*; got "):
                module.get(obj, argument="part")


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        (regularizers, "l3", "Did you mean 'l2' or 'l1'?"),
        (regularizers, "L_2", "Did you mean 'l2' or 'l1_l2' or 'l1'?"),
        (constraints, "MaxNom", "Did you mean 'max_norm' or 'min_max_norm'?"),
        (initializers, "xavier", "Known names are 'constant',"),
        (initializers, "glorot", "Did you mean 'glorot_normal' or 'glorot_uniform'?"),
        (activations, "RELU", "Did you mean 'relu' or"),
        (activations, "sigmiod", "Did you mean 'sigmoid' or"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known(module, name, hint):
    with pytest.raises(ValueError, match=f"^`part` must be .*; got '{name}'.*{re.escape(hint)}"):
        module.get(name, argument="part")


REFUSED_CONFIGS = [
    ({}, TypeError, "a config must have a 'class_name' and a 'config'"),
    ({"class_name": 3, "config": {}}, TypeError, "a config must have a 'class_name' and a 'config'"),
    ({"class_name": "L2", "config": [0.1]}, TypeError, "a config must have a 'class_name' and a 'config'"),
    ({"class_name": "L2", "l2": 0.1}, ValueError, "got a config with the entry 'l2'"),
    (
        {"class_name": "L2", "config": {"l1": 0.1}},
        ValueError,
        "'L2' has no argument 'l1'. Did you mean 'l2'?",
    ),
    ({"class_name": "L2", "config": {"l2": "a lot"}}, TypeError, "`l2` must be a number; got 'a lot'."),
    ({"class_name": "L2", "config": {"l2": True}}, TypeError, "`l2` must be a number; got True."),
    ({"class_name": "L2", "config": {"l2": -0.5}}, ValueError, "`l2` must be at least 0; got -0.5."),
    ({"class_name": "L2", "config": {"l2": np.nan}}, ValueError, "`l2` must be a finite number; got nan."),
    ({"class_name": "L2", "config": {"l2": 10**400}}, ValueError, "`l2` must be a finite number; got 1000"),
    (
        {"class_name": "mine>L2", "config": {}},
        ValueError,
        "got 'mine>L2'. Known names are 'l1', 'l1_l2', 'l2', 'orthogonal_",
    ),
    ({"class_name": "L2", "config": {}, "registered_name": "mine>L2"}, ValueError, "the config of 'mine>L2'"),
    (
        {"class_name": "L2", "config": {}, "module": "mine"},
        ValueError,
        "the config of 'L2', which is not Keras's",
    ),
    ({"class_name": "L2", "config": {}, "module": None}, ValueError, "Pass the callable itself."),
    (
        {"class_name": "function", "config": "os.system"},
        ValueError,
        "got 'os.system'. Known names are 'l1', 'l1_l2', 'l2', 'orthogonal_",
    ),
    ({"class_name": "function", "config": {"x": 1}}, TypeError, "a config must have a 'class_name'"),
]


@pytest.mark.parametrize(("config", "kind", "message"), REFUSED_CONFIGS, ids=str)
def test_a_config_is_not_trusted(config, kind, message):
    with pytest.raises(kind, match=f"^`bias_regularizer`.*{re.escape(message)}"):
        regularizers.get(config, argument="bias_regularizer")


def test_keras_own_bookkeeping_is_left_out():
    extra = {"shared_object_id": 12, "build_config": {}, "compile_config": None}
    assert regularizers.get({"class_name": "L2", "config": {"l2": 0.5}} | extra) == regularizers.L2(0.5)


names = (
    st.sampled_from(["L2", "l1_l2", "MaxNorm", "Constant", "ReLU", "function", "relu", "STFT", ""])
    | st.text()
)
keys = names | st.sampled_from(["module", "class_name", "config", "registered_name", "seed", "value", "axis"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | names


def configs(entries):
    """Dicts that look like Keras's."""
    return st.fixed_dictionaries(
        {"class_name": names},
        optional={
            "config": st.dictionaries(keys, entries) | entries,
            "module": names,
            "registered_name": names,
        },
    )


anything = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | configs(inner), max_leaves=8
)


@given(st.sampled_from(MODULES), anything | configs(anything))
def test_anything_at_all_is_resolved_or_refused_by_name(module, identifier):
    try:
        resolved = module.get(identifier, argument="part")
    except (TypeError, ValueError) as error:
        assert str(error).startswith("`part`")  # noqa: PT017
    else:
        hash(resolved)
        assert identifier is None or callable(resolved)


class L2:
    """Stands for Keras's own class, told by its module."""

    __module__ = "keras.src.regularizers.regularizers"

    def get_config(self):
        return {"l2": 0.5}


def test_kerass_own_objects_are_told_by_their_module():
    assert regularizers.get(L2()) == regularizers.L2(0.5)
    assert regularizers.get(L2) == regularizers.L2()
    with pytest.raises(ValueError, match=r"`part` must be .*; got 'L2'"):
        constraints.get(L2(), argument="part")

    class Mine(L2):
        def __call__(self, w):
            return 0.0

    mine = Mine()
    assert regularizers.get(mine) is mine
