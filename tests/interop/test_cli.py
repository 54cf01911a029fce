"""The commands a person types: what they print, what they write, and what they never overwrite."""

import io
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tomllib

import h5py
import jax
import pytest

import flax_sepconv as fsc
from flax_sepconv import __main__ as cli
from flax_sepconv.interop import keras, safetensors
from tests.interop import fuzz
from tests.interop.test_safetensors import same

NESTED = fuzz.DATA / "keras-3.3.3" / "nested.keras"
SEQUENTIAL = fuzz.DATA / "keras-3.3.3" / "sequential.keras"
BFLOAT16 = fuzz.DATA / "keras-3.3.3" / "bfloat16.keras"
CAUSAL = fuzz.DATA / "tf-2.15" / "causal.tf"


def test_inspect_shows_a_table(capsys):
    assert cli.main(["inspect", str(SEQUENTIAL)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == [
        "layer               depthwise kernel  pointwise kernel  bias  parameters  dtype",
        "------------------  ----------------  ----------------  ----  ----------  -------",
        "separable_conv1d    (3, 3, 1)         (1, 3, 4)         (4,)          25  float32",
        "    settings: activation relu",
        "    regularizers: depthwise L2(l2=0.01)",
        "    constraints: pointwise MaxNorm(max_value=2, axis=0)",
        "no_bias             (4, 4, 2)         (1, 8, 5)         -             72  float32",
        "    settings: padding same, depth_multiplier 2, use_bias False",
        "separable_conv1d_1  (2, 5, 1)         (1, 5, 2)         (2,)          22  float32",
    ]
    assert lines[-1] == f"{SEQUENTIAL}: 3 SeparableConv1D layers, 119 parameters"


def test_inspect_says_what_is_not_there(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "missing.keras")]) == 1
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "damaged.keras").write_bytes(NESTED.read_bytes()[:1000])
    assert cli.main(["inspect", str(tmp_path / "damaged.keras")]) == 1
    assert "damaged.keras: it is cut off or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("path", [NESTED, BFLOAT16, CAUSAL], ids=lambda path: path.name)
def test_convert_writes_what_load_gives(path, tmp_path, capsys):
    out = tmp_path / "layers.safetensors"
    assert cli.main(["convert", str(path), str(out)]) == 0
    assert "SeparableConv1D layer" in capsys.readouterr().out
    assert same(safetensors.load(out), keras.load(path))
    assert cli.main(["convert", str(path), str(out)]) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert cli.main(["convert", "--force", str(path), str(out)]) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with models in it under several names."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SEQUENTIAL, "model.keras")
    os.symlink("model.keras", "symbolic")
    os.link("model.keras", "hard")
    shutil.copytree(CAUSAL, "saved")
    os.link("saved/saved_model.pb", "hard.pb")
    return tmp_path


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize(
    ("file", "out"),
    [
        ("model.keras", "model.keras"),
        ("model.keras", "./saved/../model.keras"),
        ("model.keras", "symbolic"),
        ("model.keras", "hard"),
        ("symbolic", "hard"),
        ("saved", "saved/keras_metadata.pb"),
        ("saved", "saved/variables/variables.index"),
        ("saved", "hard.pb"),
    ],
)
def test_convert_never_writes_over_what_it_reads(file, out, force, folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(["convert", file, out, *force]) == 1
    assert f"{out} is what is read; give another name for the file to write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "out", "message"),
    [
        ("without.h5", "out", "without.h5: no SeparableConv1D layers; nothing is written"),
        ("model.keras", "nowhere/out", "nowhere/out: No such file or directory"),
        ("model.keras", "model.keras/out", "model.keras/out: Not a directory"),
        (
            "model.keras",
            "saved",
            "saved is not a file that can be replaced; give another name for the file to write",
        ),
        ("missing.keras", "out", "missing.keras: No such file or directory"),
    ],
)
def test_convert_says_in_its_users_words_why_nothing_is_written(file, out, message, folder, capsys):
    with h5py.File("without.h5", "w") as without:
        without.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": []}})
        without.create_group("model_weights")
    before = sorted(folder.rglob("*"))
    assert cli.main(["convert", "--force", file, out]) == 1
    assert capsys.readouterr().err == f"flax-sepconv: {message}\n"
    assert sorted(folder.rglob("*")) == before


def test_inspect_reads_what_convert_wrote(folder, capsys):
    assert cli.main(["convert", "model.keras", "layers.safetensors"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "layers.safetensors"]) == 0
    converted = capsys.readouterr().out
    assert cli.main(["inspect", "model.keras"]) == 0
    assert capsys.readouterr().out.replace("model.keras", "layers.safetensors") == converted
    (folder / "layers.safetensors").write_bytes((folder / "layers.safetensors").read_bytes()[:-1])
    assert cli.main(["inspect", "layers.safetensors"]) == 1
    assert "layers.safetensors: it does not hold layers of flax_sepconv" in capsys.readouterr().err


def test_json_has_what_the_table_has(folder, capsys):
    assert cli.main(["inspect", "--json", "model.keras"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["file"], shown["parameters"]) == ("model.keras", 119)
    assert [*shown["layers"]] == ["separable_conv1d", "no_bias", "separable_conv1d_1"]
    layer = shown["layers"]["no_bias"]
    assert layer["config"]["depth_multiplier"] == 2
    assert layer["parameters"]["depthwise_kernel"] == {"shape": [4, 4, 2], "dtype": "float32"}
    assert cli.main(["convert", "--json", "model.keras", "out"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": "out",
        "parameters": 119,
        "layers": ["separable_conv1d", "no_bias", "separable_conv1d_1"],
    }


@pytest.mark.parametrize("name", ["\x1b[2Jconv", "a\nb", "\u202econv", "層"])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_names_never_reach_the_terminal_raw_and_always_reach_it(name, arguments, tmp_path, monkeypatch):
    config = fsc.SeparableConv1DConfig(2, 1)
    path = str(tmp_path / "\x1b[2J.safetensors")
    safetensors.save(path, {name: (config, fsc.init_params(jax.random.key(0), 1, config))})
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["inspect", path, *arguments]) == 0
    printed = terminal.buffer.getvalue().decode()
    assert "\x1b" not in printed
    assert "conv" not in name or "conv" in printed
    if arguments:
        assert [*json.loads(printed)["layers"]] == [name]
    else:
        assert name.encode("unicode_escape").decode() in printed.splitlines()[2]


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="the system has no such signal")
def test_a_closed_pipe_ends_the_command_as_it_ends_cat_and_grep():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "flax_sepconv", "inspect", str(NESTED)]
    with open(write, "w") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, "")


def test_without_a_command_there_is_help(capsys):
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "inspect" in captured.err
    for arguments, status, words in (
        (["--version"], 0, f"flax-sepconv {fsc.__version__}\n"),
        (["--help"], 0, "convert"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert words in (captured.err if status else captured.out)


def test_the_console_script_is_the_command():
    scripts = tomllib.loads((fuzz.DATA.parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["flax-sepconv"]) is cli.main
