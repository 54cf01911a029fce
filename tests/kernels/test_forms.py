"""Every form computes the definition's contraction, whatever the sizes of its blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_sepconv._kernels import blocked, dispatch, kernel_gradient, pointwise, taps, xla_conv
from flax_sepconv._kernels.dispatch import Plan
from flax_sepconv._window import Window
from tests.reference import assert_close, contraction, windows

few = st.integers(1, 5)
BLOCKED = {"lanes": few, "most": few, "piece": few}
SIZES = {
    ("few", "output"): {},
    ("few", "input"): {},
    ("few", "kernel"): {"block": few},
    ("taps", "output"): {"rows": st.integers(0, 60)},
    ("taps", "input"): {"rows": st.integers(0, 60)},
    ("kernel_gradient", "kernel"): {"width": few, "block": few},
    ("blocked", "output"): BLOCKED,
    ("blocked", "input"): BLOCKED,
    ("in_place", "output"): {},
    ("in_place", "input"): {},
    ("in_place", "kernel"): {},
    ("fft", "output"): {"double": st.booleans()},
    ("fft", "input"): {"double": st.booleans()},
    ("fft", "kernel"): {},
    ("xla_conv", "output"): {},
    ("xla_conv", "input"): {},
    ("xla_conv", "kernel"): {},
}
AT_STRIDE_1 = [("few", "input"), ("blocked", "input")]


def arrays(window, seed, n=2, c=3, m=1):
    rng = np.random.default_rng(seed)
    shapes = {
        "input": (n, window.length, c),
        "kernel": (window.kernel_size, c, m),
        "output": (n, window.output_length, c, m),
    }
    return {slot: rng.normal(size=shape).astype("f") for slot, shape in shapes.items()}


@pytest.mark.parametrize(("form", "result"), SIZES)
@settings(max_examples=6)
@given(data=st.data())
def test_every_form_is_the_definition(form, result, data):
    window = data.draw(windows().filter(lambda w: w.strides == 1 or (form, result) not in AT_STRIDE_1))
    sizes = {name: data.draw(each, name) for name, each in SIZES[form, result].items()}
    n, m, seed = (data.draw(each) for each in (st.integers(1, 2), st.integers(1, 2), st.integers(0, 99)))
    slots = arrays(window, seed, n=n, m=m)
    slots.pop(result)
    compute = functools.partial(
        dispatch.contraction, Plan(form, sizes), result, window=window, precision="highest"
    )
    assert_close(jax.jit(compute)(*slots.values()), contraction(window, result, slots))


@pytest.mark.parametrize("parts", [0, 1, 4, 16])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_pointwise_gradient_is_one_sum_in_any_parts(batch, parts):
    rng = np.random.default_rng(batch)
    h, y = (jnp.asarray(rng.normal(size=(batch, 10, n)), "f") for n in (3, 5))
    gradient = pointwise.kernel_gradient(h, y, "highest", parts)
    assert_close(gradient, np.einsum("nor,nof->rf", *(np.asarray(each, np.float64) for each in (h, y))))


@pytest.mark.parametrize("form", [taps, blocked])
def test_what_is_not_finite_stays_within_windows(form):
    window = Window(100, 33, 1, 1, 32, 0)
    sizes = {"rows": 0} if form is taps else {"lanes": 4, "most": 8, "piece": 10}
    x, kernel = jnp.ones((1, 100, 4)), jnp.ones((33, 4))
    reached = np.zeros(100, bool)
    reached[50:83] = True
    y = form.output(x.at[0, 50].set(jnp.inf), kernel, window=window, **sizes)
    np.testing.assert_array_equal(~np.isfinite(y[0, :, 0]), reached)
    gradient = form.output(x.at[0, 49].set(jnp.nan), kernel, window=window.transposed(), **sizes)
    np.testing.assert_array_equal(~np.isfinite(gradient[0, :, 0]), reached[::-1])


SUMS = {
    "output": [
        lambda x, k, w: taps.output(x, k, window=w, rows=0),
        lambda x, k, w: blocked.output(x, k, window=w, lanes=8, most=96, piece=32),
    ],
    "kernel": [lambda x, g, w: kernel_gradient.kernel_gradient(x, g, window=w, width=20, block=16)],
}


@pytest.mark.parametrize("result", SUMS)
@pytest.mark.parametrize("size", [3, 31, 120])
def test_float32_errors_are_no_larger_than_the_grouped_convolutions(size, result):
    # With a tenth for chance: the errors of small sums are alike, and the others are 0.1 to 0.9 times its.
    window = Window(512, size, strides=1, dilation=1, low=size // 2, high=size - 1 - size // 2)
    slots = arrays(window, 0, c=16)
    slots.pop(result)
    exact = contraction(window, result, slots)
    flat = [array[..., 0] if array.shape[-1] == 1 else array for array in slots.values()]

    def error(array):
        return np.sqrt(np.mean((np.asarray(array).reshape(exact.shape) - exact) ** 2))

    name = "output" if result == "output" else "kernel_gradient"
    grouped = getattr(xla_conv, name)(*slots.values(), window=window, precision=None)
    for form in SUMS[result]:
        assert error(form(*flat, window)) <= 1.1 * error(grouped)
