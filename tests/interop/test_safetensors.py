"""Layers in safetensors files: there and back, nothing that `load` would refuse is written, nothing hostile read."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax as safetensors_flax
import safetensors.numpy as safetensors_numpy

import flax_sepconv as fsc
from flax_sepconv.interop import safetensors

CONFIGS = {
    "plain": fsc.SeparableConv1DConfig(4, 3),
    "with/slash": fsc.SeparableConv1DConfig(
        4, 3, use_bias=False, depthwise_constraint="max_norm", padding="causal"
    ),
    "half": fsc.SeparableConv1DConfig(4, 3, dtype="float16", param_dtype="float16"),
    "brain": fsc.SeparableConv1DConfig(4, 3, dtype="bfloat16", param_dtype="bfloat16"),
    "stored in half": fsc.SeparableConv1DConfig(4, 3, param_dtype="bfloat16"),
    "no policy of Keras's": fsc.SeparableConv1DConfig(4, 3, dtype="bfloat16", param_dtype="float16"),
    "keras 2": fsc.SeparableConv1DConfig(4, 3, activation=fsc.activations.hard_sigmoid_keras2),
    "": fsc.SeparableConv1DConfig(2, 1),
    "__metadata__": fsc.SeparableConv1DConfig(2, 1),
    "é 層 \x1b": fsc.SeparableConv1DConfig(2, 1),
}
LAYERS = {
    name: (config, fsc.init_params(jax.random.key(number), 5, config))
    for number, (name, config) in enumerate(CONFIGS.items())
}
PLAIN, PARAMS = LAYERS["plain"]


def same(ours, theirs):
    """Whether two mappings hold the same layers in the same order, dtypes included."""
    assert [(name, config) for name, (config, _) in ours.items()] == [
        (n, config) for n, (config, _) in theirs.items()
    ]
    ours, theirs = ({name: params for name, (_, params) in each.items()} for each in (ours, theirs))
    dtypes = (jax.tree.map(lambda value: value.dtype, each) for each in (ours, theirs))
    assert next(dtypes) == next(dtypes)
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_layers_go_to_a_file_and_back(tmp_path):
    safetensors.save(tmp_path / "layers.safetensors", LAYERS)
    assert same(safetensors.load(tmp_path / "layers.safetensors"), LAYERS)
    safetensors.save(tmp_path / "none.safetensors", {})
    assert safetensors.load(tmp_path / "none.safetensors") == {}


def test_equal_layers_are_equal_files(tmp_path):
    for name in "ab":
        safetensors.save(tmp_path / name, LAYERS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_package_reads_the_same(tmp_path):
    safetensors.save(tmp_path / "layers.safetensors", LAYERS)
    theirs = safetensors_flax.load_file(tmp_path / "layers.safetensors")
    for name, (_, params) in LAYERS.items():
        for leaf, value in params.items():
            assert theirs[f"{name}/{leaf}"].dtype == value.dtype
            np.testing.assert_array_equal(theirs[f"{name}/{leaf}"], value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("made", [np.asarray, jnp.asarray])
def test_every_dtype_is_kept_to_the_last_bit(dtype, made, tmp_path):
    with jax.enable_x64(dtype == "float64"):
        config = fsc.SeparableConv1DConfig(4, 3, param_dtype=dtype, dtype=dtype)
        params = fsc.init_params(jax.random.key(0), 5, config)
        given = {leaf: made(value) for leaf, value in params.items()}
        safetensors.save(tmp_path / "layers.safetensors", {"it": (config, given)})
        assert same(safetensors.load(tmp_path / "layers.safetensors"), {"it": (config, params)})


def test_float64_is_not_narrowed_unasked(tmp_path):
    config = fsc.SeparableConv1DConfig(4, 3)
    params = {leaf: np.zeros(weight.shape) for leaf, weight in PARAMS.items()}
    safetensors.save(tmp_path / "layers.safetensors", {"it": (config, params)})
    with pytest.raises(ValueError, match="it/depthwise_kernel is float64, which needs"):
        safetensors.load(tmp_path / "layers.safetensors")


def test_arrays_may_lie_in_memory_as_they_like(tmp_path):
    strided = {leaf: np.asfortranarray(np.repeat(value, 2, 0))[::2] for leaf, value in PARAMS.items()}
    safetensors.save(tmp_path / "layers.safetensors", {"plain": (PLAIN, strided)})
    assert same(safetensors.load(tmp_path / "layers.safetensors"), {"plain": LAYERS["plain"]})


def test_files_of_version_0_1_are_read(tmp_path):
    # Each layer had an entry of its own in the metadata, and Keras 2's hard_sigmoid Keras 2's entries.
    plain, hard = (
        fsc.SeparableConv1DConfig(4, 3, activation=each).get_config() for each in (None, "hard_sigmoid")
    )
    tensors = {f"{name}/{leaf}": np.asarray(value) for name in "ab" for leaf, value in PARAMS.items()}
    metadata = {"a": json.dumps(plain), "b": json.dumps(hard | {"groups": 1})}
    safetensors_numpy.save_file(tensors, tmp_path / "x", metadata)
    loaded = safetensors.load(tmp_path / "x")
    assert same(dict(sorted(loaded.items())), {"a": LAYERS["plain"], "b": (CONFIGS["keras 2"], PARAMS)})


def test_a_new_file_has_the_permissions_of_any_and_a_replaced_one_its_own(tmp_path):
    path, other = tmp_path / "layers.safetensors", tmp_path / "other"
    other.touch()
    safetensors.save(path, LAYERS)
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o640)
    safetensors.save(path, LAYERS)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (None, TypeError, "`layers` must be a dict of a config and parameters for each .*; got None"),
        (LAYERS["plain"], TypeError, "`layers` must be a dict"),
        (
            PARAMS,
            TypeError,
            r"`layers\['depthwise_kernel'\]` must be a pair \(config, params\).*; got an array",
        ),
        ({"a": PARAMS}, TypeError, r"`layers\['a'\]` must be a pair"),
        ({3: LAYERS["plain"]}, TypeError, "`layers` must have strings as names; got 3"),
        ({"\ud800": LAYERS["plain"]}, ValueError, r"`layers\['\\ud800'\]`: .*surrogates not allowed"),
        ({"a": (PARAMS, PLAIN)}, TypeError, r"`layers\['a'\]`: `config` must be a SeparableConv1DConfig"),
        (
            {"a": (PLAIN, {})},
            ValueError,
            r"`layers\['a'\]`: `params` must have 'depthwise_kernel'.*an empty dict",
        ),
        (
            {"a": (PLAIN, None)},
            TypeError,
            r"`layers\['a'\]`: `params` must be a dict of arrays; got NoneType",
        ),
        (
            {"a": (fsc.SeparableConv1DConfig(9, 3), PARAMS)},
            ValueError,
            r"`layers\['a'\]`: `params\['pointwise_kernel'\]` must have the shape \(1, 5, 9\)",
        ),
        (
            {"a": (PLAIN, PARAMS | {"bias": np.arange(4)})},
            TypeError,
            r"`layers\['a'\]`: `params\['bias'\]` must hold floating-point numbers; got int64",
        ),
        (
            {"a": (fsc.SeparableConv1DConfig(4, 3, activation=lambda y: y), PARAMS)},
            ValueError,
            r"`layers\['a'\]`: `activation`",
        ),
        (
            dict.fromkeys(map(str, range(safetensors._LAYER_LIMIT + 1)), LAYERS["plain"]),
            ValueError,
            f"`layers` must have at most {safetensors._LAYER_LIMIT} layers",
        ),
    ],
)
def test_what_load_would_not_give_is_not_written(layers, error, message, tmp_path):
    with pytest.raises(error, match=message):
        safetensors.save(tmp_path / "x", layers)
    assert not any(tmp_path.iterdir())


def test_the_error_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # an import of it fails
    for call in (lambda: safetensors.save(tmp_path / "x", {}), lambda: safetensors.load(tmp_path / "x")):
        with pytest.raises(ImportError, match=r'pip install "flax-sepconv\[safetensors\]"'):
            call()


def headed(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(configs, **tensors):
    """A file whose metadata describes `configs`, with tensors of a shape, a dtype and ones as their bytes."""
    header, data = {"__metadata__": {"flax_sepconv": json.dumps(configs)}}, b""
    for name, (dtype, shape, size) in tensors.items():
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        header[f"a/{name}"], data = entry, data + b"\1" * size
    return headed(header, data)


CONFIG = fsc.SeparableConv1DConfig(1, 1).get_config()
SOUND = {
    "depthwise_kernel": ("F32", [1, 1, 1], 4),
    "pointwise_kernel": ("F32", [1, 1, 1], 4),
    "bias": ("F32", [1], 4),
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 100,
        headed([]),
        headed({}),
        headed({"__metadata__": 3}),
        headed({"__metadata__": {"a": "{}"}}),
        headed({"__metadata__": {"flax_sepconv": "["}}),
        headed({"__metadata__": {"flax_sepconv": "[" * 100_000}}),
        described([]),
        described({"a": None}, **SOUND),
        described({"a": {"filters": 1}}, **SOUND),
        described({"a": CONFIG | {"filters": 10**30}}, **SOUND),
        described({"a": CONFIG}),
        described({"a": CONFIG | {"filters": 2}}, **SOUND),
        described({"a": CONFIG}, **SOUND | {"bias": ("I32", [1], 4)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("F8_E4M3", [1], 1)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("X", [1], 4)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("F32", [], 4)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("F32", [2], 4)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("F32", [-1], 4)}),
        described({"a": CONFIG}, **SOUND | {"bias": ("F32", [2**63, 2], 4)}),
        described({"a": CONFIG}, **SOUND)[:-1],
        described(dict.fromkeys(map(str, range(safetensors._LAYER_LIMIT + 1)), CONFIG), **SOUND),
    ],
)
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors: it does not hold layers of flax_sepconv"):
        safetensors.load(tmp_path / "x.safetensors")


def test_the_sound_file_among_the_damaged_ones_is_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(described({"a": CONFIG}, **SOUND))
    assert [*safetensors.load(tmp_path / "x.safetensors")] == ["a"]


def test_a_header_beyond_measure_is_not_read(tmp_path):
    # The package itself takes one of 50 MB, as a gigabyte of objects.
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write((50 * 10**6).to_bytes(8, "little") + b'{"a":')
        file.truncate(10**8)
    with pytest.raises(ValueError, match="its header has more than 16777216 bytes"):
        safetensors.load(tmp_path / "x.safetensors")
