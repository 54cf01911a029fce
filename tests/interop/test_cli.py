"""The commands a person types, and the safetensors files that one of them writes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.flax as safetensors_flax

import flax_sepconv as fsc
from flax_sepconv import __main__ as cli
from flax_sepconv.interop import keras, safetensors
from tests.interop import fuzz

NESTED = fuzz.DATA / "keras-3.3.3" / "nested.keras"
SEQUENTIAL = fuzz.DATA / "keras-3.3.3" / "sequential.keras"
BFLOAT16 = fuzz.DATA / "keras-3.3.3" / "bfloat16.keras"
CAUSAL = fuzz.DATA / "tf-2.15" / "causal.tf"


def same(ours, theirs):
    """Whether two mappings of layers hold the same configs and arrays, dtypes included."""
    assert {name: config for name, (config, _) in ours.items()} == {
        n: config for n, (config, _) in theirs.items()
    }
    ours, theirs = ({name: params for name, (_, params) in each.items()} for each in (ours, theirs))
    ours_dtypes, theirs_dtypes = (jax.tree.map(lambda value: value.dtype, each) for each in (ours, theirs))
    assert ours_dtypes == theirs_dtypes
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


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


def test_the_commands_run_as_a_module():
    command = [sys.executable, "-m", "flax_sepconv"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "inspect" in helped
    assert "convert" in helped
    refused = subprocess.run([*command, "frobnicate", "x"], capture_output=True, text=True)
    assert refused.returncode == 2
    shown = subprocess.run([*command, "inspect", str(NESTED)], capture_output=True, text=True, check=True)
    assert "inner/innermost/deep_second" in shown.stdout


# ---- safetensors ----

CONFIGS = {
    "plain": fsc.SeparableConv1DConfig(4, 3),
    "with/slash": fsc.SeparableConv1DConfig(
        4, 3, use_bias=False, depthwise_constraint="max_norm", padding="causal"
    ),
    "half": fsc.SeparableConv1DConfig(4, 3, dtype="float16", param_dtype="float16"),
    "brain": fsc.SeparableConv1DConfig(4, 3, dtype="bfloat16", param_dtype="bfloat16"),
    "keras 2": fsc.SeparableConv1DConfig(4, 3, activation=fsc.activations.hard_sigmoid_keras2),
}
LAYERS = {
    name: (config, fsc.init_params(jax.random.key(number), 5, config))
    for number, (name, config) in enumerate(CONFIGS.items())
}


def test_layers_go_to_a_safetensors_file_and_back(tmp_path):
    safetensors.save(tmp_path / "layers.safetensors", LAYERS)
    assert same(safetensors.load(tmp_path / "layers.safetensors"), LAYERS)


def test_the_safetensors_package_reads_the_same(tmp_path):
    safetensors.save(tmp_path / "layers.safetensors", LAYERS)
    theirs = safetensors_flax.load_file(tmp_path / "layers.safetensors")
    for name, (_, params) in LAYERS.items():
        for leaf, value in params.items():
            assert theirs[f"{name}/{leaf}"].dtype == value.dtype
            np.testing.assert_array_equal(theirs[f"{name}/{leaf}"], value)


def test_float64_is_kept_or_refused(tmp_path):
    with jax.enable_x64(True):
        config = fsc.SeparableConv1DConfig(4, 3, param_dtype="float64", dtype="float64")
        params = fsc.init_params(jax.random.key(0), 5, config)
        safetensors.save(tmp_path / "layers.safetensors", {"it": (config, params)})
        assert same(safetensors.load(tmp_path / "layers.safetensors"), {"it": (config, params)})
    with pytest.raises(ValueError, match="it/depthwise_kernel is float64, which needs"):
        safetensors.load(tmp_path / "layers.safetensors")


def test_a_new_file_has_the_permissions_of_any_and_a_replaced_one_its_own(tmp_path):
    path, other = tmp_path / "layers.safetensors", tmp_path / "other"
    other.touch()
    safetensors.save(path, LAYERS)
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o640)
    safetensors.save(path, LAYERS)
    assert path.stat().st_mode & 0o777 == 0o640


def test_integers_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`plain/bias` must hold floating-point numbers; got int64"):
        safetensors.save(tmp_path / "x", {"plain": (CONFIGS["plain"], {"bias": np.arange(3)})})


def headed(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


PLAIN = json.dumps(CONFIGS["plain"].get_config())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 100,
        headed([]),
        headed({"__metadata__": 3}),
        headed({"__metadata__": {"a": "{}"}}),
        headed({"__metadata__": {"a": PLAIN}}),
        headed({"__metadata__": {"a": PLAIN}, "a/depthwise_kernel": 3}),
        headed(
            {
                "__metadata__": {"a": PLAIN},
                "a/depthwise_kernel": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]},
            }
        ),
        headed(
            {
                "__metadata__": {"a": PLAIN},
                "a/depthwise_kernel": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
            }
        ),
        headed(
            {
                "__metadata__": {"a": PLAIN},
                "a/depthwise_kernel": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]},
            },
            b"abcd",
        ),
    ],
)
def test_damaged_safetensors_files_are_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors: it does not hold layers of flax_sepconv"):
        safetensors.load(tmp_path / "x.safetensors")
