"""The commands a person types: what they print, what they write, and what they never overwrite."""

import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tomllib

import h5py
import jax
import numpy as np
import pytest

import flax_sepconv as fsc
from flax_sepconv import __main__ as cli
from flax_sepconv.interop import keras, safetensors
from tests.interop import fuzz
from tests.interop.conftest import CAUSAL, SEQUENTIAL
from tests.interop.test_safetensors import same

NESTED = fuzz.DATA / "keras-3.3.3" / "nested.keras"
BFLOAT16 = fuzz.DATA / "keras-3.3.3" / "bfloat16.keras"
DATA = sorted(path for path in fuzz.DATA.rglob("*") if path.suffix in (".keras", ".h5"))


def test_inspect_shows_a_table(capsys):
    assert cli.main(["inspect", str(SEQUENTIAL)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:11] == [
        "layer                     class                   parameters  dtype    weights",
        "------------------------  ----------------------  ----------  -------  -------",
        "input_layer               InputLayer                       0  -        -",
        "separable_conv1d          SeparableConv1D                 25  float32  depthwise_kernel (3, 3, 1), "
        "pointwise_kernel (1, 3, 4), bias (4,)",
        "    settings: activation relu",
        "    regularizers: depthwise L2(l2=0.01)",
        "    constraints: pointwise MaxNorm(max_value=2, axis=0)",
        "batch_normalization       BatchNormalization              16  float32  gamma (4,), beta (4,), "
        "moving_mean (4,), moving_variance (4,)",
        "no_bias                   SeparableConv1D                 72  float32  depthwise_kernel (4, 4, 2), "
        "pointwise_kernel (1, 8, 5)",
        "    settings: padding same, depth_multiplier 2, use_bias False",
        "dropout                   Dropout                          0  -        -",
    ]
    assert lines[-1] == f"{SEQUENTIAL}: 8 layers, 3 of them SeparableConv1D, 141 parameters"


@pytest.mark.parametrize("path", DATA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_inspect_has_every_layer_and_the_config_of_every_separable_one(path, capsys):
    assert cli.main(["inspect", "--json", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["layers"].keys() == keras.layers(path).keys()
    assert shown["parameters"] == sum(map(np.size, jax.tree.leaves(keras.load_variables(path))))
    for name, (config, _) in keras.load(path).items():
        assert shown["layers"][name]["config"] == json.loads(json.dumps(safetensors.entries(config)))


def test_inspect_shows_what_it_knows_of_a_saved_model(capsys):
    assert cli.main(["inspect", str(CAUSAL)]) == 0
    captured = capsys.readouterr()
    assert "settings: strides 2, padding causal" in captured.out
    assert captured.out.endswith("causal.tf: 1 SeparableConv1D layer, 25 parameters\n")
    assert "only SeparableConv1D layers are read" in captured.err


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
    assert cli.main(["convert", "--all", "model.keras", "model.safetensors"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "model.keras"]) == 0
    of_model = capsys.readouterr().out.splitlines()
    assert cli.main(["inspect", "layers.safetensors"]) == 0
    *table, _, summary = capsys.readouterr().out.splitlines()
    assert {" ".join(line.split()) for line in table[2:]} <= {" ".join(line.split()) for line in of_model}
    assert summary == "layers.safetensors: 3 SeparableConv1D layers, 119 parameters"
    assert cli.main(["inspect", "model.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert "batch_stats/mean (4,)" in printed
    assert printed.endswith("model.safetensors: 5 layers, 141 parameters\n")
    (folder / "layers.safetensors").write_bytes((folder / "layers.safetensors").read_bytes()[:-1])
    assert cli.main(["inspect", "layers.safetensors"]) == 1
    assert "layers.safetensors: it does not hold layers of flax_sepconv" in capsys.readouterr().err


def test_json_has_what_the_table_has(folder, capsys):
    assert cli.main(["inspect", "--json", "model.keras"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["file"], shown["parameters"]) == ("model.keras", 141)
    layer = shown["layers"]["no_bias"]
    assert (layer["class_name"], layer["config"]["depth_multiplier"]) == ("SeparableConv1D", 2)
    assert layer["parameters"]["depthwise_kernel"] == {"shape": [4, 4, 2], "dtype": "float32"}
    dense = shown["layers"]["dense"]
    assert (dense["class_name"], dense["config"]["units"]) == ("Dense", 2)
    assert cli.main(["convert", "--json", "model.keras", "out"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": "out",
        "parameters": 119,
        "layers": ["separable_conv1d", "no_bias", "separable_conv1d_1"],
    }
    assert cli.main(["convert", "--all", "--json", "model.keras", "variables"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["parameters"], len(shown["arrays"])) == (141, 14)
    assert "params/dense/kernel" in shown["arrays"]


@pytest.mark.parametrize("name", ["\x1b[2Jconv", "a\nb", "\u202econv", "層"])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("whole", [False, True])
def test_names_never_reach_the_terminal_raw_and_always_reach_it(
    name, arguments, whole, tmp_path, monkeypatch
):
    config = fsc.SeparableConv1DConfig(2, 1)
    path, params = str(tmp_path / "\x1b[2J.safetensors"), fsc.init_params(jax.random.key(0), 1, config)
    if whole:
        safetensors.save_variables(path, {"params": {name: params}})
    else:
        safetensors.save(path, {name: (config, params)})
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
