"""Variables of whole models in safetensors files: there and back, from other writers, and nothing else."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax as safetensors_flax
import safetensors.numpy as safetensors_numpy

from flax_sepconv.interop import safetensors

VARIABLES = {
    "params": {
        "inner": {"dense": {"kernel": np.ones((2, 3), "float16"), "bias": np.zeros(3, "bfloat16")}},
        "é 層 \x1b": {"scale": np.float32(2)},
    },
    "batch_stats": {"norm": {"mean": np.arange(4, dtype="float32")[::2]}},
}


@pytest.mark.parametrize("nested", [True, False])
def test_variables_go_to_a_file_and_back(nested, tmp_path):
    path = tmp_path / "x.safetensors"
    flat = flax.traverse_util.flatten_dict(VARIABLES, sep="/")
    safetensors.save_variables(path, VARIABLES if nested else flat)
    loaded = safetensors.load_variables(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, VARIABLES)
    assert jax.tree.map(lambda value: value.dtype, loaded) == jax.tree.map(
        lambda value: value.dtype, VARIABLES
    )
    assert {name: value.shape for name, value in safetensors_flax.load_file(path).items()} == {
        name: np.shape(value) for name, value in flat.items()
    }


def test_variables_that_flax_users_write_with_the_package_are_read(tmp_path):
    arrays = jax.tree.map(jnp.asarray, flax.traverse_util.flatten_dict(VARIABLES, sep="/"))
    safetensors_flax.save_file(arrays, tmp_path / "x", {"format": "flax"})
    jax.tree.map(np.testing.assert_array_equal, safetensors.load_variables(tmp_path / "x"), VARIABLES)


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        (None, TypeError, "`variables` must be a dict of arrays by their names; got None"),
        ({"dense": {"kernel": np.ones(2)}}, ValueError, r"under 'params', .*; got \['dense/kernel'\]"),
        ({}, ValueError, r"under 'params', .*; got \[\]"),
        (
            {"params": {"steps": np.int32(3)}},
            TypeError,
            "`variables` 'params/steps' must hold floating-point numbers; got int32",
        ),
        (
            {"params": {"a": np.ones(2)}, "params/a": np.ones(2)},
            ValueError,
            "`variables` must hold 'params/a' once",
        ),
    ],
)
def test_what_are_no_variables_is_not_written(variables, error, message, tmp_path):
    with pytest.raises(error, match=message):
        safetensors.save_variables(tmp_path / "x.safetensors", variables)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"params/a": np.ones(2, "int32")}, None, "x: .* its tensor 'params/a' must hold floats; it is I32"),
        (
            {"params/a": np.float32([1]), "params/a/b": np.float32([1])},
            None,
            "'params/a/b' is below or above another",
        ),
        ({"params" + "/a" * 300: np.ones(2, "float32")}, None, "is nested deeper than any model's"),
        ({"dense/kernel": np.ones(2)}, None, "it has no tensor whose name begins with 'params/'"),
        (
            {"params/a": np.ones(2)},
            {"flax_sepconv": "{}"},
            "it holds layers with their configs. `load` reads",
        ),
        ({"params/a": np.ones(2)}, None, "params/a is float64, which needs"),
    ],
)
def test_files_of_something_else_are_refused(tensors, metadata, message, tmp_path):
    safetensors_numpy.save_file(tensors, tmp_path / "x", metadata)
    with pytest.raises(ValueError, match=message):
        safetensors.load_variables(tmp_path / "x")
