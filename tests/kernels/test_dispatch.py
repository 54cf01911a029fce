"""Which form runs when: each boundary of the choice, from both sides."""

import pytest

from flax_sepconv._kernels import dispatch
from flax_sepconv._window import Window

CPU = dispatch.TUNINGS["cpu"]
GPU = dispatch.TUNINGS["cuda"]


def form(result, kernel_size, channels=64, platform="cpu", implementation=None, strides=1, length=4000):
    window = Window(length, kernel_size, strides, 1, kernel_size - 1, 0)
    return dispatch.plan(result, window, channels, platform, implementation).form


BOUNDARIES = [
    # contraction, sizes, taps from which it is another form, and both forms
    ("output", {}, CPU.few + 1, "few", "taps"),
    ("input", {}, CPU.few + 1, "few", "taps"),
    ("kernel", {}, CPU.few_kernel + 1, "few", "kernel_gradient"),
    ("output", {"strides": 2}, 2 * (CPU.few - 1) + 2, "few", "taps"),
    ("output", {"strides": 4}, 4 * (CPU.few - 1) + 2, "few", "taps"),
    ("output", {"channels": 1024}, CPU.blocked_from, "taps", "blocked"),
    ("input", {"channels": 1024}, CPU.blocked_from, "taps", "blocked"),
    ("output", {}, CPU.blocked_most + 1, "taps", "blocked"),
    ("output", {"channels": 256}, CPU.blocked_floats // 256, "taps", "blocked"),
    ("output", {"channels": 256}, CPU.fft_from, "blocked", "fft"),
    ("output", {"channels": 256, "strides": 2}, 2 * CPU.fft_from, "blocked", "fft"),
    ("input", {"channels": 256}, CPU.fft_from, "blocked", "fft"),
    ("output", {"channels": 4}, CPU.fft_unblocked_from, "taps", "fft"),
    ("input", {"channels": 256, "strides": 2}, CPU.fft_unblocked_from, "taps", "fft"),
    ("kernel", {}, CPU.fft_kernel_from, "kernel_gradient", "fft"),
    ("kernel", {"strides": 4}, CPU.fft_unblocked_from, "kernel_gradient", "fft"),
    ("output", {"platform": "cuda"}, GPU.fft_from, "in_place", "fft"),
    ("input", {"platform": "rocm", "strides": 2}, GPU.fft_from, "in_place", "fft"),
    ("kernel", {"platform": "cuda"}, GPU.fft_kernel_from, "in_place", "fft"),
]


@pytest.mark.parametrize(("result", "sizes", "taps", "below", "above"), BOUNDARIES)
def test_each_boundary(result, sizes, taps, below, above):
    assert (form(result, taps - 1, **sizes), form(result, taps, **sizes)) == (below, above)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", None])
@pytest.mark.parametrize("result", ["output", "input", "kernel"])
def test_a_name_is_heeded_on_every_platform(result, platform):
    assert form(result, 9, platform=platform, implementation="lax") == "xla_conv"
    assert form(result, 9, platform=platform, implementation="fourier") == "fft"
    assert form(result, 999, platform=platform, implementation="taps") in {
        "in_place",
        "blocked",
        "kernel_gradient",
        "taps",
    }


def test_in_float64_where_float32_would_lose_digits():
    window = Window(4000, 600, 1, 1, 0, 0)
    plans = {result: dispatch.plan(result, window, 64, "cpu") for result in ("output", "input", "kernel")}
    assert {result: bool(plan.sizes.get("double")) for result, plan in plans.items()} == {
        "output": True,
        "input": True,
        "kernel": False,
    }


def test_the_pointwise_gradient_is_in_parts_if_it_is_small():
    most = CPU.parts_most
    assert [dispatch.parts(n, "cpu") for n in (most, most + 1)] == [CPU.parts, 1]
    assert [dispatch.parts(most, platform) for platform in ("cuda", None)] == [0, 0]


def test_only_what_xla_shards_well_itself_is_left_to_it():
    plans = {
        (platform, size): dispatch.plan("output", Window(400, size, 1, 1, 0, 0), 64, platform)
        for platform in ("cpu", "cuda", None)
        for size in (3, 9, 31, 600)
    }
    left = {key for key, plan in plans.items() if not plan.is_local}
    assert left == {("cuda", 3), ("cuda", 9), ("cuda", 31), (None, 3), (None, 9), (None, 31), (None, 600)}


def test_where_nothing_was_measured_it_is_xlas_own():
    assert {form(result, 9, platform=None) for result in ("output", "input", "kernel")} == {"xla_conv"}


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("kernel_size", [5, 33])
def test_the_inputs_gradient_is_planned_as_the_output_that_it_is(kernel_size, padding):
    # An output without padding has one shift; the gradient of its input has as many as taps.
    window = Window.over(400, kernel_size=kernel_size, strides=1, padding=padding, dilation_rate=1)
    plan = dispatch.plan("input", window, 64, "cpu")
    assert plan == dispatch.plan("output", window.transposed(), 64, "cpu")
    assert (plan.form == "few") == (kernel_size <= CPU.few)


@pytest.mark.parametrize("result", ["output", "input"])
def test_a_padded_copy_has_the_rows_that_the_kernels_gradient_reads(result):
    window = Window(400, 31, 1, 1, 15, 15)
    sizes = dispatch.plan("kernel", window, 64, "cpu").sizes
    rows = dispatch.kernel_gradient.rows_read(window, **sizes)
    assert dispatch.plan(result, window, 64, "cpu").sizes == {"rows": rows}
