"""The benchmark times only what gives the right numbers, names what it leaves out, and writes what it promises."""

import dataclasses
import json
import os

import numpy as np
import pytest
from rich.console import Console

from bench import __main__ as command
from bench import dilation, layers, machine, peers, peers_jax, per_example, report, timing
from bench.problem import GRADIENTS, TOLERANCE, Problem
from bench.shapes import LAYERS, SHAPES, parse

GEOMETRIES = [
    "2,11,3,4,5,2",
    "2,11,3,4,4,2,2",
    "2,12,3,4,4,1,3,1,valid",
    "1,9,3,4,3,2,1,3,causal",
    "1,5,2,3,9,1,1,1,same",
]


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    monkeypatch.setattr(peers_jax, "COMPILES", 1)


@pytest.fixture
def scaled(monkeypatch):
    """Registers a peer that is off by a thousandth in one of its results."""

    def register(scaled_name):
        linen = peers.load("flax.linen")

        def build(problem):
            layer = linen.build(problem)

            def arrays(result):
                return {
                    name: a * np.float32(1.001) if name == scaled_name else a
                    for name, a in layer.arrays(result).items()
                }

            return dataclasses.replace(layer, arrays=arrays)

        peer = peers.Peer("scaled", build)
        monkeypatch.setattr(peers_jax, "scaled", lambda: peer, raising=False)
        monkeypatch.setitem(peers.REGISTRY, "scaled", ("flax", "bench.peers_jax", "scaled"))
        return peer

    return register


@pytest.mark.parametrize("text", GEOMETRIES)
def test_answer_and_flops_are_the_definition(text):
    shape = parse(text)
    problem = Problem.draw(shape)
    x = np.pad(problem.x.astype(np.float64), ((0, 0), shape.pads, (0, 0)))
    real = np.pad(np.ones(shape.length), shape.pads)
    wide, taps = [], 0
    for o in range(shape.output_length):
        window = o * shape.strides + np.arange(shape.kernel_size) * shape.dilation
        wide.append(
            np.einsum("nkc,kcm->ncm", x[:, window], problem.depthwise_kernel).reshape(shape.batch, -1)
        )
        taps += int(real[window].sum())
    expected = np.stack(wide, 1) @ problem.pointwise_kernel[0] + problem.bias
    np.testing.assert_allclose(problem.answer()["output"], np.maximum(expected, 0), atol=1e-12)
    pointwise = shape.output_length * shape.wide * shape.filters
    assert shape.flops("forward") == 2 * shape.batch * (taps * shape.wide + pointwise)
    assert shape.flops("gradient") == 3 * shape.flops("forward")


@pytest.mark.parametrize("text", GEOMETRIES[1:4])
@pytest.mark.parametrize("name", ["flax_sepconv", "lax", "flax.linen", "flax.nnx"])
def test_jax_peers_give_the_answer(name, text):
    problem = Problem.draw(parse(text))
    errors = layers.verify(peers.load(name).build(problem), problem.answer())
    assert set(errors) == {"output", *GRADIENTS}
    assert max(errors.values()) < TOLERANCE / 10


@pytest.mark.parametrize("name", ["output", "depthwise_kernel"])
def test_a_wrong_peer_is_found(scaled, name):
    problem = Problem.draw(parse(GEOMETRIES[0]))
    errors = layers.verify(scaled(name).build(problem), problem.answer())
    assert [key for key, error in errors.items() if error > TOLERANCE] == [name]


def test_the_whole_command(scaled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(machine, "limits", lambda: {"peak_gflops": 100.0, "bandwidth_gbs": {"1048576": 10.0}})
    for variable in ("KERAS_BACKEND", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # restored afterwards
    scaled("x")
    monkeypatch.setitem(peers.REGISTRY, "absent", ("no-such-package", "no_such_module", "peer"))
    run = ["--shape", "2,20,3,4,3", "--peers", "lax", "flax.linen", "scaled", "absent", "--malloc", "default"]
    run += ["--warm", "0"]
    assert command.main([*run, "--seconds", "0.1", "--out", str(tmp_path)]) == 0

    results = json.loads((tmp_path / "results.json").read_text())
    (entry,) = results["shapes"]
    assert set(entry["peers"]) == {"flax_sepconv", "lax", "flax.linen"}
    assert "wrong numbers" in entry["failed"]["scaled"]
    assert "pip install no-such-package" in results["missing"]["absent"]
    for mode in ("forward", "gradient"):
        (row,) = report.rows(results, mode)
        assert row.best == min(entry["peers"][name][mode]["median_ms"] for name in ("lax", "flax.linen"))
        assert row.ratio == row.best / row.ours
    assert entry["peers"]["lax"]["compile_s"] > 0
    assert (tmp_path / "ratios.png").read_bytes()[:4] == b"\x89PNG"
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("left out: absent: no_such_module is not installed", "scaled: wrong numbers", "times lax"):
        assert text in printed

    again = tmp_path / "again"
    assert command.main(["--redraw", str(tmp_path / "results.json"), "--out", str(again)]) == 0
    assert (again / "tables.txt").read_text() == (tmp_path / "tables.txt").read_text()


def test_turns_rotate_and_the_slow_sit_out(monkeypatch):
    monkeypatch.setattr(timing, "rest", lambda: None)
    monkeypatch.setattr(timing, "ROUNDS", 4)
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    order = []

    def call(name, seconds):
        def run():
            clock[0] += seconds
            if not order or order[-1] != name:
                order.append(name)

        return run

    rounds = timing.take_turns(
        {"a": call("a", 0.01), "b": call("b", 0.02), "slow": call("slow", 5.0)}, timing.Budget(7.0)
    )
    assert order == ["a", "b", "slow", "b", "a", "b", "a", "b"]
    assert [len(r) for r in rounds["slow"]] == [1, 0, 0, 0]
    assert [len(r) for r in rounds["a"]] == [4, 4, 4, 4]
    assert timing.summary(rounds["b"])["median_ms"] == pytest.approx(20)


def test_a_turn_counts_nothing_while_it_warms_up(monkeypatch):
    monkeypatch.setattr(timing, "rest", lambda: None)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call():  # takes half as long from the fifth on
        clock[0] += 1 / 64 if clock[0] < 4 / 64 else 1 / 128

    ((cold,),) = timing.take_turns({"": call}, timing.Budget(1.0)).values()
    clock[0] = 0.0
    ((warm,),) = timing.take_turns({"": call}, timing.Budget(1.0, warm=4 / 64)).values()
    assert (cold, warm) == ([1 / 64] * timing.FEWEST, [1 / 128] * timing.FEWEST)


def test_per_example_gradients_average_to_the_batch_gradient(monkeypatch):
    for name, value in (("BATCHES", (2,)), ("LENGTH", 16), ("WIDTH", 4)):
        monkeypatch.setattr(per_example, name, value)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    found = per_example.measure(["lax", "haiku"], timing.Budget(0.01), lambda *_: None)["peers"]
    assert set(found) == {"lax"}
    assert found["lax"]["2"]["largest_difference"] < 1e-5


def test_dilations_take_turns_with_one_another(capsys):
    wanted = [dataclasses.replace(parse(f"1,9,2,2,3,1,1,{d}"), suite="dilation") for d in (1, 3)]
    found = dilation.measure(
        wanted, [peers.load("flax_sepconv"), peers.load("lax")], timing.Budget(0.01), lambda *_: None
    )
    assert {mode: list(times) for mode, times in found["peers"]["lax"].items()} == {
        "forward": ["1", "3"],
        "gradient": ["1", "3"],
    }
    Console(width=150).print(report._dilation(found))
    table = capsys.readouterr().out
    assert "dilations in turns: 1, 9, 2→2, k3" in table
    medians = [found["peers"]["lax"]["forward"][d]["median_ms"] for d in ("1", "3")]
    assert f"{max(medians) / min(medians):.2f}" in table


def test_a_peer_that_is_wrong_takes_no_turn_among_dilations(scaled):
    wanted = [dataclasses.replace(parse("1,9,2,2,3"), suite="dilation")]
    found = dilation.measure(wanted, [scaled("x"), peers.load("lax")], timing.Budget(0.01), lambda *_: None)
    assert list(found["peers"]) == ["lax"]
    assert "wrong numbers" in found["failed"]["scaled"]


def test_shapes():
    assert len(LAYERS) >= 16
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert all(shape.source for shape in SHAPES)
    assert parse("8, 100, 3, 4, 5, 2, 1, 3, causal").describe() == "8, 100, 3→4, k5 m2 d3 causal"
    for wrong in ("1,2,3", "1,2,3,4,x", "1,2,3,4,5,1,1,1,full", "1,2,3,4,5,1,1,1,valid"):
        with pytest.raises(ValueError, match=r"shape|padding|empty"):
            parse(wrong)
