"""`convert --all` and `--into`: whole models to a safetensors file and back into a copy, none of them lost."""

import json
import zipfile

import h5py
import jax
import numpy as np
import pytest

from flax_sepconv import __main__ as cli
from flax_sepconv.interop import keras, safetensors
from tests.interop.test_cli import DATA


@pytest.mark.parametrize("path", DATA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_whole_models_there_and_back(path, tmp_path):
    variables, back = tmp_path / "model.safetensors", tmp_path / f"back{path.suffix}"
    assert cli.main(["convert", "--all", str(path), str(variables)]) == 0
    jax.tree.map(
        np.testing.assert_array_equal, safetensors.load_variables(variables), keras.load_variables(path)
    )
    assert cli.main(["convert", "--all", str(variables), str(back), "--into", str(path)]) == 0
    assert back.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("which", [[], ["--all"]])
@pytest.mark.parametrize("intermediate", [True, False])
def test_trained_weights_go_into_a_copy_of_the_model(which, intermediate, folder):
    before = (folder / "model.keras").read_bytes()
    trained = jax.tree.map(lambda value: value * 2, keras.load_variables("model.keras"))
    keras.save_variables("model.keras", trained, "trained.keras")
    given = "trained.keras"
    if intermediate:
        given = "trained.safetensors"
        assert cli.main(["convert", *which, "trained.keras", given]) == 0
    assert cli.main(["convert", *which, given, "out.keras", "--into", "model.keras"]) == 0
    assert (folder / "model.keras").read_bytes() == before
    jax.tree.map(
        np.testing.assert_array_equal,
        [params for _, params in keras.load("out.keras").values()],
        [params for _, params in keras.load("trained.keras").values()],
    )
    is_whole = (folder / "out.keras").read_bytes() == (folder / "trained.keras").read_bytes()
    assert is_whole == bool(which)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "model.keras", "layers.safetensors"], "layers.safetensors exists; --force replaces it"),
        (
            ["--all", "variables.safetensors", "model.keras", "--into", "model.keras", "--force"],
            "model.keras is what is read; give another name for the file to write",
        ),
        (
            ["--all", "variables.safetensors", "hard", "--into", "model.keras", "--force"],
            "hard is what is read; give another name for the file to write",
        ),
        (
            ["--all", "variables.safetensors", "out.safetensors"],
            "variables.safetensors holds variables already; pass --into MODEL to have them in Keras",
        ),
        (
            ["--all", "model.keras", "out.keras"],
            "out.keras would be a safetensors file; give it that ending, or pass --into MODEL for a copy of a Keras "
            "model",
        ),
        (
            ["variables.safetensors", "out.safetensors", "--into", "model.keras"],
            "out.safetensors would be a copy of model.keras; give it the ending of that",
        ),
        (
            ["--all", "layers.safetensors", "out.keras", "--into", "model.keras"],
            "layers.safetensors: it does not hold the variables of a model: it holds layers with their configs. `load` "
            "reads these; `convert` does without --all",
        ),
        (
            ["variables.safetensors", "out.keras", "--into", "model.keras"],
            "variables.safetensors: it does not hold layers of flax_sepconv: it has no configs. `load_variables` reads "
            "a model's variables; `convert` does with --all",
        ),
        (
            ["--all", "fewer.safetensors", "out.keras", "--into", "model.keras"],
            "model.keras: `variables` must have ['params']['dense']['kernel'], the 'kernel' of a Dense of the file; "
            "got no such array.",
        ),
        (["--all", "without.h5", "out"], "without.h5: no weights; nothing is written"),
    ],
)
def test_convert_all_says_why_nothing_is_written(arguments, message, folder, capsys):
    with h5py.File("without.h5", "w") as without:
        without.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": []}})
        without.create_group("model_weights")
    assert cli.main(["convert", "model.keras", "layers.safetensors"]) == 0
    assert cli.main(["convert", "--all", "model.keras", "variables.safetensors"]) == 0
    variables = safetensors.load_variables("variables.safetensors")
    del variables["params"]["dense"]
    safetensors.save_variables("fewer.safetensors", variables)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main(["convert", *arguments]) == 1
    assert capsys.readouterr().err == f"flax-sepconv: {message}\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_weights_alone_are_read_and_written_with_their_config(folder, capsys):
    with zipfile.ZipFile("model.keras") as archive:
        (folder / "model.json").write_bytes(archive.read("config.json"))
        (folder / "model.weights.h5").write_bytes(archive.read("model.weights.h5"))
    assert cli.main(["inspect", "model.weights.h5"]) == 1
    assert "weights alone" in capsys.readouterr().err
    config = ["--config", "model.json"]
    assert cli.main(["inspect", "model.weights.h5", *config]) == 0
    assert "8 layers, 3 of them SeparableConv1D, 141 parameters" in capsys.readouterr().out
    for which in ([], ["--all"]):
        assert cli.main(["convert", *which, "model.weights.h5", "it.safetensors", "--force", *config]) == 0
        back = ["it.safetensors", "back.weights.h5", "--force", "--into", "model.weights.h5"]
        assert cli.main(["convert", *which, *back, *config]) == 0
        assert (folder / "back.weights.h5").read_bytes() == (folder / "model.weights.h5").read_bytes()
