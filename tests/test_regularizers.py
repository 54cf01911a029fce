"""Penalties equal their formulas, in single precision whatever comes, and names mean what the reference says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_sepconv import regularizers
from flax_sepconv.regularizers import L1, L1L2, L2, OrthogonalRegularizer

SHAPES = [(3, 4, 2), (1, 8, 5), (5,), ()]


def weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_equal_their_formulas(shape):
    w = weights(*shape)
    absolute, squares = np.abs(w.astype(float)).sum(), (w.astype(float) ** 2).sum()
    np.testing.assert_allclose(L1(0.3)(w), 0.3 * absolute, rtol=1e-6)
    np.testing.assert_allclose(L2(0.3)(w), 0.3 * squares, rtol=1e-6)
    np.testing.assert_allclose(L1L2(0.3, 0.2)(w), 0.3 * absolute + 0.2 * squares, rtol=1e-6)


def test_the_parts_of_l1l2_are_l1_and_l2():
    w = weights(3, 4, 2)
    assert L1L2(l1=0.5)(w) == L1(0.5)(w)
    assert L1L2(l2=0.5)(w) == L2(0.5)(w)
    # A factor of 0 leaves its term out, so it also silences what the term overflows to.
    assert L1L2()(jnp.full((3,), 1e30)) == 0


def test_gradients_are_those_of_the_formulas():
    w = jnp.array([-2.0, 0.0, 3.0])
    assert jax.grad(L1(0.5))(w).tolist() == [-0.5, 0.0, 0.5]
    assert jax.grad(L2(0.5))(w).tolist() == [-2.0, 0.0, 3.0]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("regularizer", [L1(1.0), L2(1.0), L1L2(0.5, 0.5)])
def test_half_precision_is_summed_in_float32(dtype, regularizer):
    penalty = regularizer(jnp.ones(100_000, dtype))  # more than float16 can hold, or bfloat16 count
    assert penalty.dtype == jnp.float32
    assert penalty == 100_000
    assert jax.grad(regularizer)(jnp.ones(3, dtype)).dtype == dtype


def test_orthogonal_is_the_mean_cosine():
    regularizer = OrthogonalRegularizer(2.0)
    assert regularizer(np.eye(3, 5, dtype=np.float32)) == 0
    np.testing.assert_allclose(regularizer(np.ones((4, 3), np.float32)), 2.0, rtol=1e-6)
    np.testing.assert_allclose(regularizer(np.array([[3.0, 0.0], [3.0, 4.0]], np.float32)), 1.2, rtol=1e-6)
    w = weights(3, 5)
    np.testing.assert_allclose(OrthogonalRegularizer(2.0, "columns")(w.T), regularizer(w), rtol=1e-6)
    assert jnp.isfinite(jax.grad(regularizer)(jnp.array([[0.0, 0.0], [1.0, 2.0]]))).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_refuses_what_is_no_matrix(shape):
    with pytest.raises(
        ValueError, match="`OrthogonalRegularizer` must be given a matrix; got an array of shape"
    ):
        OrthogonalRegularizer()(weights(*shape))
    with pytest.raises(ValueError, match="must be given at least two rows; got shape"):
        OrthogonalRegularizer()(weights(1, 5))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("L1 l1", L1(0.01)),
        ("L2 l2", L2(0.01)),
        ("L1L2 l1l2", L1L2(0.0, 0.0)),
        ("l1_l2", L1L2(0.01, 0.01)),
        ("OrthogonalRegularizer orthogonal_regularizer", OrthogonalRegularizer(0.01, "rows")),
    ],
)
def test_names(names, expected):
    for name in names.split():
        assert regularizers.get(name) == expected


def test_none_is_no_regularizer():
    assert regularizers.get(None) is None
    assert regularizers.serialize(None) is None


def test_the_function_l1_l2_has_the_references_defaults():
    assert regularizers.l1_l2() == L1L2(0.01, 0.01)
    assert regularizers.l1_l2(l2=0.5) == L1L2(0.01, 0.5)
    assert regularizers.get({"class_name": "l1_l2", "config": {"l1": 0.5}}) == L1L2(0.5, 0.01)


def test_factors_are_python_floats():
    factor = regularizers.serialize(L2(np.float32(0.5)))["config"]["l2"]
    assert (type(factor), factor) == (float, 0.5)
    assert type(L2(1).l2) is float
    assert L2(np.array(0.5)) == L2(jnp.array(0.5)) == L2(0.5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: L1(-1), ValueError, "`l1` must be at least 0; got -1."),
        (lambda: L2(float("inf")), ValueError, "`l2` must be a finite number; got inf."),
        (lambda: L1L2(l2=None), TypeError, "`l2` must be a number; got None."),
        (lambda: L2("0.1"), TypeError, "`l2` must be a number; got '0.1'."),
        (lambda: L2(False), TypeError, "`l2` must be a number; got False."),
        (lambda: L2([0.1]), TypeError, r"`l2` must be a number; got \[0.1\]."),
        (
            lambda: OrthogonalRegularizer(mode="row"),
            ValueError,
            "`mode` must be 'rows' or 'columns'; got 'row'.",
        ),
        (lambda: OrthogonalRegularizer(mode=2), TypeError, "`mode` must be 'rows' or 'columns'; got 2."),
        (
            lambda: regularizers.get("Regularizer", argument="part"),
            ValueError,
            "`part` cannot be 'Regularizer': it is Keras's base class",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        make()
