"""Constraints project: into their set, changing nothing inside it, keeping shape and dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flax_sepconv import constraints
from flax_sepconv.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm

AXES = [0, -1, 1, (0, 1), (0, 1, 2), None]

# Away from 1e-7, which Keras adds to norms.
entries = st.floats(-8, 8, width=32).map(lambda x: x if abs(x) > 1e-2 else 0.0)
kernels = hnp.arrays(np.float32, (3, 4, 2), elements=entries)


def norms(w, axis):
    return np.sqrt(np.sum(np.square(np.asarray(w, float)), axis=axis, keepdims=True))


@given(kernels, st.sampled_from(AXES), st.floats(0.125, 4))
def test_max_norm(w, axis, bound):
    projected = np.asarray(MaxNorm(bound, axis)(w))
    before, after = norms(w, axis), norms(projected, axis)
    assert np.all(after <= bound * (1 + 1e-5))
    np.testing.assert_allclose(projected, w * np.minimum(1, bound / np.maximum(before, 1e-9)), rtol=1e-4)


@given(kernels, st.sampled_from(AXES))
def test_unit_norm(w, axis):
    projected = np.asarray(UnitNorm(axis)(w))
    before, after = norms(w, axis), norms(projected, axis)
    np.testing.assert_allclose(after[before > 0], 1, rtol=1e-4)
    assert np.all(after[before == 0] == 0)


@given(kernels, st.sampled_from(AXES), st.floats(0, 1), st.floats(1, 4), st.floats(0, 1))
def test_min_max_norm(w, axis, low, high, rate):
    before = norms(w, axis)
    after = norms(MinMaxNorm(low, high, rate, axis)(w), axis)
    expected = rate * np.clip(before, low, high) + (1 - rate) * before
    np.testing.assert_allclose(after[before > 0], expected[before > 0], rtol=1e-4)


@given(kernels)
def test_non_neg(w):
    np.testing.assert_array_equal(NonNeg()(w), np.maximum(w, 0))
    np.testing.assert_array_equal(NonNeg()(w), optax.projections.projection_non_negative(w))


CONSTRAINTS = [MaxNorm(), MaxNorm(1.0, None), NonNeg(), UnitNorm(), MinMaxNorm(0.5, 1.0), UnitNorm((0, 1))]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@given(w=kernels)
def test_projecting_twice_is_projecting_once(constraint, w):
    once = constraint(w)
    np.testing.assert_allclose(constraint(once), once, rtol=1e-5)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 8, 5)])
def test_shape_and_dtype_are_kept(constraint, dtype, shape):
    w = jax.random.normal(jax.random.key(0), shape, dtype)
    projected = constraint(w)
    assert (projected.shape, projected.dtype) == (shape, dtype)
    # Half precision is rounded once, at the end.
    exact = constraint(w.astype(jnp.float32))
    np.testing.assert_array_equal(projected, exact.astype(dtype))


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_zeros_stay_zeros(constraint):
    np.testing.assert_array_equal(constraint(jnp.zeros((3, 4, 2))), 0)


def test_norms_of_float16_do_not_overflow():
    w = jnp.full((4,), 300.0, jnp.float16)  # whose squares float16 cannot hold
    np.testing.assert_allclose(MaxNorm(2.0)(w), 1.0, rtol=1e-3)


@pytest.mark.parametrize("name", ["max_norm", "unit_norm", "min_max_norm"])
def test_the_default_axis_of_a_pointwise_kernel_is_each_weight_by_itself(name):
    w = jnp.array([[[3.0, -4.0], [5.0, 0.25]]])
    default, filters = constraints.get(name), dataclasses.replace(constraints.get(name), axis=1)
    np.testing.assert_array_equal(
        default(w), jax.vmap(jax.vmap(jax.vmap(dataclasses.replace(default, axis=None))))(w)
    )
    np.testing.assert_allclose(filters(w)[..., 0], default(w[0, :, 0])[None], rtol=1e-6)


def test_biases_have_one_axis():
    np.testing.assert_allclose(MaxNorm(1.0)(np.array([3.0, 4.0], np.float32)), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("MaxNorm max_norm maxnorm", MaxNorm(2, 0)),
        ("NonNeg non_neg nonneg", NonNeg()),
        ("UnitNorm unit_norm unitnorm", UnitNorm(0)),
        ("MinMaxNorm min_max_norm", MinMaxNorm(0.0, 1.0, 1.0, 0)),
    ],
)
def test_names(names, expected):
    for name in names.split():
        assert constraints.get(name) == expected


def test_none_is_no_constraint():
    assert constraints.get(None) is None
    assert constraints.serialize(None) is None


def test_axes_are_written_as_lists():
    assert constraints.serialize(MaxNorm(2, [0, 1]))["config"] == {"max_value": 2, "axis": [0, 1]}
    assert MaxNorm(2, [np.int64(0), 1]) == MaxNorm(2, (0, 1))
    assert UnitNorm(np.int32(1)).axis == 1


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: MaxNorm("2"), TypeError, "`max_value` must be a number; got '2'."),
        (lambda: MaxNorm(float("inf")), ValueError, "`max_value` must be a finite number; got inf."),
        (lambda: MinMaxNorm(rate=True), TypeError, "`rate` must be a number; got True."),
        (lambda: MaxNorm(-1), ValueError, "`max_value` must be at least 0; got -1."),
        (lambda: MinMaxNorm(-0.5), ValueError, "`min_value` must be at least 0; got -0.5."),
        (lambda: MinMaxNorm(2, 1), ValueError, "`min_value` must be at most `max_value`; got 2 and 1."),
        (lambda: MinMaxNorm(rate=3), ValueError, "`rate` must be between 0 and 1; got 3."),
        (lambda: MinMaxNorm(rate=-0.1), ValueError, "`rate` must be between 0 and 1; got -0.1."),
        (
            lambda: constraints.get({"class_name": "MaxNorm", "config": {"max_value": -2}}, argument="part"),
            ValueError,
            "`part`: `max_value` must be at least 0; got -2.",
        ),
        (lambda: UnitNorm(0.5), TypeError, "`axis` must be an integer; got 0.5."),
        (lambda: UnitNorm(True), TypeError, "`axis` must be an integer; got True."),
        (lambda: UnitNorm("01"), TypeError, "`axis` must be an integer; got '01'."),
        (
            lambda: UnitNorm(3)(jnp.ones((2, 2, 2))),
            ValueError,
            "`axis` must be within an array of 3 axes; got 3.",
        ),
        (
            lambda: MaxNorm(2, (0, 1))(jnp.ones(2)),
            ValueError,
            r"`axis` must be within an array of 1 axes; got \(0, 1\).",
        ),
        (
            lambda: constraints.get("radial_constraint", argument="depthwise_constraint"),
            ValueError,
            "`depthwise_constraint` cannot be 'radial_constraint': it needs weights of rank 4",
        ),
        (
            lambda: constraints.get({"class_name": "RadialConstraint", "config": {}}, argument="part"),
            ValueError,
            "`part` cannot be 'RadialConstraint': it needs weights of rank 4",
        ),
        (
            lambda: constraints.get("Constraint", argument="part"),
            ValueError,
            "`part` cannot be 'Constraint': it is Keras's base class",
        ),
        (
            lambda: constraints.get({"class_name": "NonNeg", "config": {"axis": 0}}, argument="part"),
            ValueError,
            "`part`: 'NonNeg' has no argument 'axis'. It takes none.",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        make()
