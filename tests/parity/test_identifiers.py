"""Every name means what Keras 3, and Keras 2 where it knows it, computes; and configs come and go between them.

Keras runs on TensorFlow here, so that slopes at zero, where a definition leaves a choice, are the reference's.
"""

import json

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras.src.activations import ALL_OBJECTS_DICT as ACTIVATIONS
from keras.src.constraints import ALL_OBJECTS_DICT as CONSTRAINTS
from keras.src.initializers import ALL_OBJECTS_DICT as INITIALIZERS
from keras.src.initializers.random_initializers import compute_fans
from keras.src.regularizers import ALL_OBJECTS_DICT as REGULARIZERS
from tf_keras.src.initializers import LOCAL as INITIALIZERS_2

from flax_sepconv import activations, constraints, initializers, regularizers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorflow|tf_keras|keras).*")

SHAPES = [(3, 4, 2), (1, 8, 5), (5,)]

# Keras 2 looks names up among the globals of a module; these are the ones that are meant.
ACTIVATIONS_2 = (
    *(
        "elu",
        "exponential",
        "gelu",
        "hard_sigmoid",
        "leaky_relu",
        "linear",
        "log_softmax",
        "mish",
        "relu",
        "relu6",
    ),
    *("selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh"),
)
CONSTRAINTS_2 = (
    *("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm", "max_norm", "min_max_norm", "non_neg", "unit_norm"),
    *("maxnorm", "nonneg", "unitnorm"),
)
REGULARIZERS_2 = ("L1", "L2", "L1L2", "OrthogonalRegularizer", "l1", "l2", "l1_l2", "orthogonal_regularizer")


def names(keras_3, keras_2):
    """Every name with each Keras that knows it, but for the base classes, which do nothing."""
    known = [(keras, name) for name in sorted(keras_3)] + [(tf_keras, name) for name in sorted(keras_2)]
    bases = ("initializer", "regularizer", "constraint")
    return [
        pytest.param(k, name, id=f"{k.__name__}-{name}") for k, name in known if name.lower() not in bases
    ]


def weights(*shape, seed=0):
    return 2 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_pullback(function, x):
    """What a function of Keras gives, and the gradient of a fixed linear function of that."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.convert_to_tensor(function(x))
        projected = tf.reduce_sum(y * weights(*y.shape, seed=1))
    return y.numpy(), tape.gradient(projected, x).numpy()


def assert_equals(ours, theirs, x):
    """Values and gradients agree."""
    y, gradient = value_and_pullback(theirs, x)

    @jax.jit
    def value_and_pullback_of_ours(x):
        value, pullback = jax.vjp(ours, x)
        return value, *pullback(jnp.asarray(weights(*y.shape, seed=1)))

    value, pulled = value_and_pullback_of_ours(x)
    np.testing.assert_allclose(value, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pulled, gradient, rtol=1e-5, atol=2e-6)


def assert_same_config(ours, theirs):
    """The same, but for floats that Keras rounds to float32."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same_config(ours[key], theirs[key])
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert type(ours) is type(theirs)
    else:
        assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))


# ---- Activations


@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 8, 6)])
@pytest.mark.parametrize(("framework", "name"), names(ACTIVATIONS.keys() - {"threshold"}, ACTIVATIONS_2))
def test_activations(framework, name, shape):
    x = weights(*shape)
    x.flat[::5] = 0  # a padded sequence meets a bias of zeros
    if name == "celu":
        x += x == 0  # TensorFlow's slope there is 2: both branches count
    if name == "sparsemax":
        x *= 100  # Keras up to 3.15 is right only where one entry wins: keras-team/keras#23425
    ours = activations.get(name, keras2=framework is tf_keras)
    theirs = framework.activations.get(name)
    assert_equals(ours, theirs, x)
    assert activations.get(theirs) is ours


LAYERS = [
    (keras, "ReLU", {}),
    (keras, "ReLU", {"max_value": 2.0, "negative_slope": 0.25, "threshold": 0.5}),
    (keras, "LeakyReLU", {}),
    (keras, "LeakyReLU", {"negative_slope": 0.125}),
    (keras, "ELU", {"alpha": 0.5}),
    (keras, "Softmax", {}),
    (keras, "Softmax", {"axis": (1, 2)}),
    (tf_keras, "ReLU", {"max_value": 2.0, "negative_slope": 0.25, "threshold": 0.5}),
    (tf_keras, "LeakyReLU", {"alpha": 0.125}),
    (tf_keras, "ThresholdedReLU", {"theta": 0.5}),
    (tf_keras, "ELU", {"alpha": 0.5}),
    (tf_keras, "Softmax", {"axis": 1}),
]


@pytest.mark.parametrize(("framework", "name", "arguments"), LAYERS)
def test_activation_layers(framework, name, arguments):
    layer = getattr(framework.layers, name)(**arguments)
    ours = activations.get(layer)
    assert_equals(ours, layer, weights(3, 4, 2))
    assert activations.get(framework.activations.serialize(layer)) == ours
    again = keras.activations.get(activations.serialize(layer))
    assert_equals(ours, again, weights(3, 4, 2))


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS_2) & set(dir(tf.nn))))
def test_functions_of_tensorflow_are_activations_too(name):
    function = getattr(tf.nn, name)
    assert activations.get(function) is activations.get(name)
    assert_equals(activations.get(function), function, weights(3, 4, 2))


def test_other_functions_of_keras_are_kept():
    # On Keras's JAX backend these are functions of JAX arrays; `keras.ops.gelu` is the approximate one.
    assert activations.get(keras.ops.gelu) is keras.ops.gelu


# ---- Regularizers


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("framework", "name"), names(REGULARIZERS, REGULARIZERS_2))
def test_regularizers(framework, name, shape):
    ours, theirs = regularizers.get(name), framework.regularizers.get(name)
    if isinstance(ours, regularizers.OrthogonalRegularizer):
        for each in (ours, theirs):
            with pytest.raises(ValueError, match=r"matrix|rank 2"):
                each(tf.constant(weights(*shape)) if each is theirs else weights(*shape))
        shape = (4, 6)
    x = weights(*shape)
    x.flat[::5] = 0  # biases start there
    if name.lower() == "l1l2":
        assert float(theirs(tf.constant(x))) == ours(x) == 0
    else:
        assert_equals(ours, theirs, x)


REGULARIZER_OBJECTS = [
    ("L1", {"l1": 0.5}),
    ("L2", {"l2": 0.25}),
    ("L1L2", {"l1": 0.5, "l2": 0.25}),
    ("OrthogonalRegularizer", {"factor": 0.5, "mode": "columns"}),
]


# ---- Constraints


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("framework", "name"), names(CONSTRAINTS, CONSTRAINTS_2))
def test_constraints(framework, name, shape):
    x = weights(*shape)
    ours, theirs = constraints.get(name), framework.constraints.get(name)
    np.testing.assert_allclose(ours(x), theirs(tf.constant(x)), rtol=1e-5)
    np.testing.assert_array_equal(ours(np.zeros_like(x)), theirs(tf.zeros(shape)))


CONSTRAINT_OBJECTS = [
    ("MaxNorm", {"max_value": 1.5, "axis": [0, 1]}),
    ("MaxNorm", {"max_value": 3, "axis": -1}),
    ("UnitNorm", {"axis": [0, 1, 2]}),
    ("UnitNorm", {"axis": None}),
    ("MinMaxNorm", {"min_value": 0.5, "max_value": 0.75, "rate": 0.25, "axis": 1}),
    ("NonNeg", {}),
]


@pytest.mark.parametrize(("name", "arguments"), CONSTRAINT_OBJECTS)
def test_constraints_with_arguments(name, arguments):
    x = weights(3, 4, 2)
    theirs = getattr(keras.constraints, name)(**arguments)
    np.testing.assert_allclose(constraints.get(theirs)(x), theirs(tf.constant(x)), rtol=1e-5)


# ---- Initializers


@pytest.mark.parametrize(("framework", "name"), names(INITIALIZERS, INITIALIZERS_2.ALL_OBJECTS))
def test_initializers(framework, name):
    """Equal where nothing is drawn, else equal in distribution: the same order statistics within their error."""
    # Keras 3 cannot make its `Constant` from the name, though it has a default.
    theirs = keras.initializers.Zeros() if name.lower() == "constant" else framework.initializers.get(name)
    ours = initializers.get(name)
    if isinstance(ours, initializers.Identity):
        np.testing.assert_array_equal(ours(None, (3, 4)), theirs((3, 4)))
        with pytest.raises(ValueError, match="2D"):
            theirs((3, 4, 2))
        return
    framework.utils.set_random_seed(0)
    # So many that the outermost quantiles of two draws differ by 0.12 of the spread with a chance of 1e-5.
    shape = (8, 1, 5) if isinstance(ours, initializers.STFT) else (3, 64, 128)
    values, expected = np.asarray(ours(jax.random.key(0), shape)), np.asarray(theirs(shape))
    assert values.shape == expected.shape
    if not hasattr(ours, "seed"):
        np.testing.assert_allclose(values, expected, atol=1e-6)
        return
    spread = expected.std()
    quantiles = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(
        np.quantile(values, quantiles), np.quantile(expected, quantiles), atol=0.12 * spread
    )
    np.testing.assert_allclose(values.std(), spread, rtol=0.05)


@pytest.mark.parametrize("shape", [*SHAPES, (6, 7), ()])
@pytest.mark.parametrize("axes", [{}, {"input_axes": [0], "output_axes": [-1]}, {"input_axes": [0]}])
def test_fans(shape, axes):
    if not axes or shape:
        assert initializers.HeUniform(**axes)._fans(shape) == compute_fans(shape, **axes)


@pytest.mark.parametrize("side", ["real", "imag"])
@pytest.mark.parametrize("window", [None, "hamming", "blackman", list(range(1, 9))], ids=str)
@pytest.mark.parametrize("scaling", [None, "density", "spectrum"])
@pytest.mark.parametrize("periodic", [False, True])
def test_stft(side, window, scaling, periodic):
    """To the rounding of Keras's phases, which it takes in float32."""
    theirs = keras.initializers.STFT(side, window, scaling, periodic)
    expected = theirs((8, 1, 5)).numpy()
    tolerance = 3e-6 * np.abs(expected).max()
    np.testing.assert_allclose(initializers.get(theirs)(None, (8, 1, 5)), expected, atol=tolerance)


def test_orthogonal_needs_two_axes():
    for init in (keras.initializers.Orthogonal(), tf_keras.initializers.Orthogonal()):
        with pytest.raises(ValueError, match="at least two-dimensional"):
            init((5,))
        with pytest.raises(ValueError, match="two or more axes"):
            initializers.get(init)(jax.random.key(0), (5,))


def test_a_seed_generator_is_refused():
    theirs = keras.initializers.HeNormal(seed=keras.random.SeedGenerator(3))
    with pytest.raises(ValueError, match="`seed` must be an integer or None; got a SeedGenerator"):
        initializers.get(theirs)
    with pytest.raises(ValueError, match="`seed` must be an integer or None; got a SeedGenerator"):
        initializers.HeNormal(seed=keras.random.SeedGenerator(3))


INITIALIZER_OBJECTS = [
    ("Zeros", {}),
    ("Constant", {"value": 0.5}),
    ("Constant", {"value": [1.0, 2.0]}),
    ("RandomNormal", {"mean": 1, "stddev": 0.5, "seed": 3}),
    ("RandomUniform", {"minval": 0.0, "maxval": 2.0}),
    ("TruncatedNormal", {"stddev": 0.5}),
    ("VarianceScaling", {"scale": 2.0, "mode": "fan_out", "distribution": "uniform"}),
    ("VarianceScaling", {"input_axes": [0, 1], "output_axes": [2]}),
    ("GlorotUniform", {"seed": 3}),
    ("HeNormal", {"input_axes": [0, 1], "output_axes": [2]}),
    ("Orthogonal", {"gain": 0.5, "seed": 1}),
    ("Identity", {}),
    ("STFT", {"side": "imag", "window": "hamming", "scaling": None, "periodic": True}),
]


# ---- Configs


OBJECTS = [
    (kind, module, name, arguments)
    for kind, module, objects in [
        ("regularizers", regularizers, REGULARIZER_OBJECTS),
        ("constraints", constraints, CONSTRAINT_OBJECTS),
        ("initializers", initializers, INITIALIZER_OBJECTS),
    ]
    for name, arguments in objects
]


@pytest.mark.parametrize(("kind", "module", "name", "arguments"), OBJECTS)
def test_objects_come_and_go(kind, module, name, arguments):
    theirs = getattr(getattr(keras, kind), name)(**arguments)
    written = getattr(keras, kind).serialize(theirs)
    ours = module.get(written)
    assert ours == module.get(theirs) == getattr(module, name)(**arguments)
    assert_same_config(module.serialize(ours), written)
    assert_same_config(module.serialize(theirs), written)
    again = getattr(keras, kind).deserialize(module.serialize(ours))
    assert_same_config(getattr(keras, kind).serialize(again), written)


@pytest.mark.parametrize(
    ("kind", "module", "name", "arguments"),
    [each for each in OBJECTS if each[2] != "STFT" and "input_axes" not in each[3]],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_come_from_keras_2(kind, module, name, arguments, legacy):
    theirs = getattr(getattr(tf_keras, kind), name)(**arguments)
    written = getattr(tf_keras, kind).serialize(theirs, use_legacy_format=legacy)
    ours = module.get(written)
    assert ours == module.get(theirs)
    assert_same_config(module.serialize(ours), module.serialize(getattr(module, name)(**arguments)))


MODULES = [
    ("activations", activations, {"threshold"}),
    ("regularizers", regularizers, {"Regularizer", "regularizer"}),
    ("constraints", constraints, {"Constraint", "constraint"}),
    # Keras 3 has a default for `Constant`, but cannot make it from the name.
    ("initializers", initializers, {"Initializer", "initializer", "Constant", "constant"}),
]


@pytest.mark.parametrize(("kind", "module", "unwritten"), MODULES)
def test_every_name_is_written_as_keras_writes_it(kind, module, unwritten):
    theirs = getattr(keras, kind)
    for name in getattr(keras.src, kind).ALL_OBJECTS_DICT.keys() - unwritten:
        assert_same_config(module.serialize(name), theirs.serialize(theirs.get(name)))


@pytest.mark.parametrize(("kind", "module"), [each[:2] for each in MODULES])
@pytest.mark.parametrize("framework", [keras, tf_keras])
def test_every_public_name_of_keras_is_here(framework, kind, module):
    public = {name for name in dir(getattr(framework, kind)) if not name.startswith("_")}
    assert {"get", "serialize"} <= public
    missing = public - set(dir(module)) - {"deserialize"}  # `get` does that
    assert missing <= {"RadialConstraint", "radial_constraint"}
