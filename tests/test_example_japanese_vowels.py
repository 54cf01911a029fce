"""examples/japanese_vowels.py: its data, its indifference to padding, its constraints, and runs that are killed."""

import os
import pathlib
import random
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

for package in ("orbax.checkpoint", "matplotlib", "rich"):
    pytest.importorskip(package, reason="needs pip install -e '.[examples]'")

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def module(name, folder=EXAMPLES):
    """A module of the example, which is a folder of programs and no package."""
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


vowels = module("japanese_vowels")
report = module("_vowels_report")


# The data.


@pytest.mark.parametrize(
    ("part", "counts", "longest"),
    [("train", [30] * 9, 26), ("test", [31, 35, 88, 44, 29, 24, 40, 50, 29], 29)],
)
def test_data_is_as_its_authors_describe_it(part, counts, longest):
    data = vowels.load(part)
    assert data.frames.shape == (sum(counts), 29, 12)
    assert data.frames.dtype == np.float32
    assert np.bincount(data.speakers).tolist() == counts
    assert (data.lengths.min(), data.lengths.max()) == (7, longest)
    assert np.array_equal(data.frames.any(axis=-1), data.real)


def test_data_begins_and_ends_as_its_source_does():
    train, test = vowels.load("train"), vowels.load("test")
    assert train.frames[0, :3, 0].tolist() == np.float32([1.860936, 1.891651, 1.939205]).tolist()
    assert train.frames[-1, train.lengths[-1] - 1, -1] == np.float32(0.173642)
    assert test.frames[0, :3, 0].tolist() == np.float32([1.635533, 1.547694, 1.602593]).tolist()
    assert test.frames[-1, test.lengths[-1] - 1, -1] == np.float32(0.224688)


def test_data_can_be_remade(tmp_path):
    """From text in the source's format that is written from the copy, the script makes the copy again."""
    make = module("make_japanese_vowels", EXAMPLES / "data")
    with np.load(make.COPY) as copy:
        copied = dict(copy)
    with zipfile.ZipFile(tmp_path / "aeon.whl", "w") as wheel:
        for part in ("train", "test"):
            utterances = np.split(copied[f"{part}_millionths"], np.cumsum(copied[f"{part}_lengths"])[:-1])
            text = "#about\n@classLabel true 1 2 3\n@data\n"
            for utterance, speaker in zip(utterances, copied[f"{part}_speakers"], strict=True):
                channels = (",".join(f"{value}E-6" for value in channel) for channel in utterance.T)
                text += f"{':'.join(channels)}:{speaker}\n"
            wheel.writestr(make.SOURCE.format(part.upper()), text)
    make.main([str(tmp_path / "aeon.whl"), "--to", str(tmp_path / "remade.npz")])
    with np.load(tmp_path / "remade.npz") as remade:
        assert remade.keys() == copied.keys()
        assert all(np.array_equal(remade[name], copied[name]) for name in copied)


def test_data_with_more_digits_is_refused():
    make = module("make_japanese_vowels", EXAMPLES / "data")
    assert (make.millionths("-7.74E-4"), make.millionths("1.5")) == (-774, 1_500_000)
    with pytest.raises(ValueError, match=r"'0\.1234567' has more than six decimals"):
        make.millionths("0.1234567")


# Padding.


@pytest.fixture(scope="module")
def params():
    inputs = (jnp.ones(each.shape, each.dtype) for each in vowels.INPUTS)
    return jax.jit(vowels.MODEL.init)(jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("padding", [1e6, np.nan])
@pytest.mark.parametrize("longest", [29, 40])
def test_padding_never_reaches_a_score(params, padding, longest):
    data = vowels.load("test")
    frames = np.full((len(data.speakers), longest, 12), padding, np.float32)
    frames[:, :29][data.real] = data.frames[data.real]
    scores = vowels.predict(params, data)
    padded = vowels.predict(params, data._replace(frames=frames))
    np.testing.assert_allclose(padded, scores, rtol=1e-5, atol=1e-5)
    alone = vowels.predict(params, data.pick([0])._replace(frames=data.frames[:1, : data.lengths[0]]))
    np.testing.assert_allclose(padded[:1], alone, rtol=1e-5, atol=1e-5)


def test_padding_never_reaches_a_gradient(params):
    data = vowels.load("train").pick(slice(0, 270, 10))
    spoilt = data._replace(frames=np.where(data.real[..., None], data.frames, 1e6))
    gradient = jax.jit(jax.grad(vowels.loss))
    gradients = [gradient(params, part, jax.random.key(0)) for part in (data, spoilt)]
    jax.tree.map(np.testing.assert_array_equal, *gradients)


# Runs.


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What the program's runs share: the library's place, and compiled functions."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}


def command(*arguments):
    return [sys.executable, "-u", "-W", "error", str(EXAMPLES / "japanese_vowels.py"), *map(str, arguments)]


THREE_EPOCHS = ("--epochs", 3, "--checkpoint-every", 1, "--out")


def unwrapped(text):
    """What was printed, wherever the lines were broken: that depends on the length of a path."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """The folder of a run, and what the run printed."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = subprocess.run(
        command(*THREE_EPOCHS, out), env=environment, capture_output=True, text=True, check=True
    )
    return out, done.stdout


def test_run_reports(undisturbed):
    out, printed = undisturbed
    for words in (
        "epoch 3",
        "test accuracy",
        "parameters",
        "conv0/depthwise_kernel",
        "conv2/pointwise_kernel",
    ):
        assert words in printed
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_constraints_hold_and_would_not_by_themselves(undisturbed):
    with np.load(undisturbed[0] / "params.npz") as flat:
        constrained = traverse_util.unflatten_dict(dict(flat), sep="/")
    options = vowels.parse(["--epochs", "8", "--unconstrained"])
    train, test = vowels.standardized(vowels.load("train"), vowels.load("test").pick(slice(0, 9)))
    start, epoch = vowels.training(options, len(train.speakers))
    state = start()
    for _ in range(3):
        state = epoch(state, train, test)
    kernels = list(report.constrained_kernels(constrained, vowels.CONFIGS))
    free_kernels = report.constrained_kernels(state.params, vowels.CONFIGS)
    assert len(kernels) == 6
    for kernel, free in zip(kernels, free_kernels, strict=True):
        assert kernel.outside < 1e-5
        assert free.outside > 0.05, kernel.name


def test_killed_run_ends_at_the_same_bits(undisturbed, environment, tmp_path):
    run = command(*THREE_EPOCHS, tmp_path / "killed")
    process = subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True)
    while "checkpoint" not in process.stdout.readline():
        assert process.poll() is None
    delay = random.uniform(0, 1)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    resumed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert unwrapped(f"The run in {tmp_path / 'killed'}") in unwrapped(resumed)
    with np.load(tmp_path / "killed/params.npz") as ours, np.load(undisturbed[0] / "params.npz") as theirs:
        for name in theirs:
            assert ours[name].tobytes() == theirs[name].tobytes(), f"{name}, killed after {delay} s"


def test_finished_run_is_only_reported(undisturbed, environment):
    out, printed = undisturbed
    before = (out / "params.npz").read_bytes()
    again = subprocess.run(
        command(*THREE_EPOCHS, out), env=environment, capture_output=True, text=True, check=True
    )
    assert unwrapped("is finished: nothing to train.") in unwrapped(again.stdout)
    assert again.stdout.partition("kernel")[2].splitlines() == printed.partition("kernel")[2].splitlines()
    assert (out / "params.npz").read_bytes() == before


def test_other_options_are_refused_by_name(undisturbed):
    out, _ = undisturbed
    with pytest.raises(
        SystemExit, match=r"has a run with seed=0, not 1; epochs=3, not 4\. Choose another folder"
    ):
        vowels.main(["--seed", "1", "--short", "--out", str(out)])


def test_cross_validation_leaves_the_test_part_alone(monkeypatch, capsys):
    train = vowels.load("train")
    monkeypatch.setattr(vowels, "load", {"train": train}.__getitem__)
    vowels.main(["--cross-validate", "2", "--epochs", "1"])
    assert "mean" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["orbax.checkpoint", "matplotlib.figure"])
def test_missing_package_is_named_with_what_to_install(package, environment):
    hide = f"import runpy, sys; sys.modules[{package!r}] = None; sys.path.insert(0, {str(EXAMPLES)!r}); "
    code = f"{hide} runpy.run_module('japanese_vowels')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert package.split(".")[0] in done.stderr
    assert "pip install -e '.[examples]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--epochs", "0"], "at least 1"), (["--cross-validate", "4"], "invalid choice")],
)
def test_impossible_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        vowels.parse(arguments)
    assert message in capsys.readouterr().err
