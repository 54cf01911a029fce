"""Layers out of Keras's files, into them, and out of live Keras and back, against Keras itself.

Models of every form (`zoo`) in every format: written by the Keras 2 and Keras 3 that are installed, and by older
ones, whose files are in `data`.
"""

import contextlib
import json
import os
import pathlib
import zipfile

import h5py
import jax
import jax.numpy as jnp
import keras as keras3
import numpy as np
import pytest
import tf_keras

import flax_sepconv as fsc
from flax_sepconv.interop import keras
from flax_sepconv.interop._files import description, hdf5
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.reading import Reading
from tests.interop import zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(tensorflow|tf_keras|keras).*"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*__array__ implementation doesn't accept a copy keyword.*"),
]

DATA = pathlib.Path(__file__).parent / "data"
MODULES = {"keras3": keras3, "keras2": tf_keras}
# Keras 2 can write these to no .h5 file, or (`both_ways`, `written`) to none that it could read.
NO_H5 = {"both_ways", "written"}
MODELS = [name for name in zoo.models(keras3) if name not in ("opaque", "bfloat16", "float64")]
FORMS = [
    (version, name, suffix)
    for version in MODULES
    for name in (*MODELS, *(["causal"] if version == "keras2" else []))
    for suffix in (".keras", ".h5")
    if not (version == "keras2" and suffix == ".h5" and name in NO_H5)
    and not (
        version == "keras2" and name == "written"
    )  # see `test_layers_that_cannot_be_told_apart_are_refused`
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(version, name, suffix)` is the path of a file, the live model in it, and its layers by path."""
    folder, made = tmp_path_factory.mktemp("saved"), {}

    def get(version, name, suffix):
        if (version, name) not in made:
            MODULES[version].backend.clear_session()
            model = zoo.models(MODULES[version])[name]()
            made[version, name] = model, zoo.separable_layers(model)
        model, layers = made[version, name]
        path = folder / f"{version}-{name}{suffix}"
        if not path.exists():
            model.save(path)
        return path, model, layers

    return get


def loaded_by_keras(version, path):
    """The layers of a file as Keras itself loads them."""
    return zoo.separable_layers(MODULES[version].models.load_model(path, compile=False))


def apply(config, params, x):
    return np.asarray(fsc.separable_conv1d(params, jnp.asarray(x), config), "float64")


def tolerance(config):
    return 2e-2 if "16" in str(config.dtype or config.param_dtype) else 1e-5


def twin(path, layers):
    """A layer's path, or where it is shared and the file does not say so, that of its first place."""
    return path if path in layers else next(each for each in layers if each.endswith(path.rpartition("/")[2]))


@pytest.mark.parametrize(("version", "name", "suffix"), FORMS)
def test_a_loaded_layer_computes_what_keras_computes(saved, version, name, suffix):
    path, _, layers = saved(version, name, suffix)
    found = keras.load(path)
    if (name, suffix) == ("shared", ".h5"):  # what forgets that a layer is shared, for Keras itself too
        assert list(found) == list(loaded_by_keras(version, path)) != list(layers)
    else:
        assert list(found) == list(layers)
    for key, (config, params) in found.items():
        arrays = zoo.calls({"layer": layers[twin(key, layers)]})
        np.testing.assert_allclose(
            apply(config, params, arrays["layer:x"]), arrays["layer:y"], rtol=0, atol=tolerance(config)
        )
        live = layers[twin(key, layers)].get_weights()
        for value, expected in zip(params.values(), live, strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


# Keras 3 cannot load a class of one's own from an .h5 file, nor Keras 2 this model.
WRITABLE = [
    form for form in FORMS if form != ("keras3", "written", ".h5") and form[:2] != ("keras2", "shared")
]


@pytest.mark.parametrize(("version", "name", "suffix"), WRITABLE)
def test_a_written_file_loads_in_keras_with_the_new_weights_and_all_else_as_it_was(
    saved, tmp_path, version, name, suffix
):
    path, model, _ = saved(version, name, suffix)
    out = tmp_path / f"out{suffix}"
    generator = np.random.default_rng(1)
    new = {
        key: {
            leaf: jnp.asarray(generator.normal(size=value.shape), value.dtype)
            for leaf, value in params.items()
        }
        for key, (_, params) in keras.load(path).items()
    }
    keras.save(path, new, out)
    copy = MODULES[version].models.load_model(out, compile=name == "trained")
    layers = zoo.separable_layers(copy)
    assert {twin(key, layers) for key in new} == set(layers)
    for key, params in new.items():
        for value, expected in zip(layers[twin(key, layers)].get_weights(), params.values(), strict=True):
            np.testing.assert_array_equal(value, expected)
    separable = {id(weight) for layer in layers.values() for weight in layer.weights}
    pairs = zip(copy.weights, model.weights, strict=(name, suffix) != ("shared", ".h5"))
    others = [(ours, theirs) for ours, theirs in pairs if id(ours) not in separable]
    if (
        name == "trained"
    ):  # the optimizer is what Keras makes of the original file, which is not all of it for .h5
        original = MODULES[version].models.load_model(path)
        others += zip(variables(copy.optimizer), variables(original.optimizer), strict=True)
    for ours, theirs in others:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def variables(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


OLD = sorted(path for path in DATA.glob("*/*") if path.suffix in (".keras", ".h5", ".tf"))


@pytest.mark.parametrize("path", OLD, ids=[f"{path.parent.name}/{path.name}" for path in OLD])
def test_a_layer_in_an_older_file_computes_what_its_keras_computed(path):
    arrays = np.load(path.with_suffix(".npz"))
    found = keras.load(path)
    assert set(found) == {name.rpartition(":")[0] for name in arrays}
    for key, (config, params) in found.items():
        ours = apply(config, params, arrays[f"{key}:x"])
        np.testing.assert_allclose(ours, arrays[f"{key}:y"], rtol=0, atol=tolerance(config))


@pytest.mark.parametrize("path", [path for path in OLD if path.suffix == ".keras" and "keras-3" in str(path)])
def test_an_older_file_written_back_loads_in_todays_keras(path, tmp_path):
    out = tmp_path / path.name
    new = {
        key: {leaf: value + 1 for leaf, value in params.items()}
        for key, (_, params) in keras.load(path).items()
    }
    keras.save(path, new, out)
    zoo.models(keras3)  # registers the classes of its own
    layers = loaded_by_keras("keras3", out)
    assert layers
    for key, layer in layers.items():
        for value, expected in zip(layer.get_weights(), new[key].values(), strict=True):
            np.testing.assert_array_equal(value, expected)


# ---- What is in a file and what is not ----


def test_a_class_that_does_not_write_its_layers_is_noted_and_left_out(saved):
    path, *_ = saved("keras3", "opaque", ".keras")
    with pytest.warns(
        UserWarning, match=r"has weights like those of SeparableConv1D layers at \['hidden/vars'\]"
    ):
        assert keras.load(path) == {}


def test_layers_that_cannot_be_told_apart_are_refused(saved):
    # Keras 2 puts these two under their class's name, in an order that is not the config's to know.
    path, *_ = saved("keras2", "written", ".keras")
    with pytest.raises(
        ValueError, match=r"layer 'b0': its weights may be those in 'layers/separable_conv1d/vars' or"
    ):
        keras.load(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_bfloat16_keeps_its_dtype(saved, tmp_path, suffix):
    path, _, layers = saved("keras3", "bfloat16", suffix)
    new = {}
    for key, (config, params) in keras.load(path).items():
        assert config.dtype == config.param_dtype == jnp.bfloat16
        for value, expected in zip(params.values(), layers[key].get_weights(), strict=True):
            assert value.dtype == jnp.bfloat16
            np.testing.assert_array_equal(value, np.asarray(expected, jnp.bfloat16))
        new[key] = {leaf: value * 2 for leaf, value in params.items()}
    keras.save(path, new, tmp_path / "out")
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, new, {key: params for key, (_, params) in keras.load(tmp_path / "out").items()}
        )
    )


def test_float64_is_refused_rather_than_narrowed(saved):
    path, _, layers = saved("keras3", "float64", ".keras")
    with pytest.raises(ValueError, match=r"first/depthwise_kernel is float64, which needs jax.config.update"):
        keras.load(path)
    with jax.enable_x64(True):
        _, params = keras.load(path)["first"]
    np.testing.assert_array_equal(params["bias"], layers["first"].get_weights()[2])
    assert params["bias"].dtype == np.float64


@pytest.mark.parametrize(
    ("entry", "is_ours"),
    [
        ({"class_name": "SeparableConv1D"}, True),
        ({"class_name": "SeparableConvolution1D"}, True),
        ({"class_name": "keras.layers>SeparableConv1D"}, True),
        ({"class_name": "Keras>SeparableConv1D"}, True),
        ({"class_name": "SeparableConv1D", "module": "keras.src.layers", "registered_name": None}, True),
        ({"class_name": "SeparableConv1D", "module": "tf_keras.layers"}, True),
        ({"class_name": "SeparableConv1D", "registered_name": "SeparableConv1D"}, True),
        ({"class_name": "mine>SeparableConv1D"}, False),
        (
            {
                "class_name": "SeparableConv1D",
                "module": "mine.layers",
                "registered_name": "mine>SeparableConv1D",
            },
            False,
        ),
        ({"class_name": "SeparableConv1D", "module": None}, False),
        ({"class_name": "SeparableConv2D"}, False),
    ],
)
def test_only_keras_own_layer_counts(entry, is_ours):
    config = {"name": "s", "filters": 2, "kernel_size": [3]}
    model = {"class_name": "Sequential", "config": {"layers": [entry | {"config": config}]}}
    assert bool(description.tree(model, None, Reading.begun()).separable()) == is_ours


def test_a_sequential_of_keras_1_is_a_bare_list():
    layer = {
        "class_name": "SeparableConvolution1D",
        "config": {"name": "s", "filters": 2, "kernel_size": [3]},
    }
    (found,) = description.tree(
        {"class_name": "Sequential", "config": [layer]}, None, Reading.begun()
    ).separable()
    assert (found.path, found.settings.config.filters) == ("s", 2)


@pytest.mark.parametrize("entries", [{}, {"groups": 1}], ids=["plain", "with Keras 2's entries"])
@pytest.mark.parametrize(
    ("version", "keras2"),
    [
        ("1.2.2", True),
        ("2.1.6", True),
        ("2.2.4-tf", True),
        ("2.15.0", True),
        ("3.0.5", False),
        ("10.0", False),
    ],
)
def test_the_keras_that_wrote_a_file_says_what_hard_sigmoid_means(tmp_path, version, keras2, entries):
    config = {"name": "s", "filters": 2, "kernel_size": [3], "activation": "hard_sigmoid", "use_bias": False}
    entry = {"class_name": "SeparableConv1D", "config": config | entries}
    model = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": [entry]}})
    arrays = np.ones((3, 4, 1), "float32"), np.ones((1, 4, 2), "float32")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        for number, array in enumerate(arrays):
            file[f"layers/separable_conv1d/vars/{number}"] = array
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", model)
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs.update({"keras_version": version, "model_config": model})
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"s"]
        names = ["s/depthwise_kernel:0", "s/pointwise_kernel:0"]
        for name, array in zip(names, arrays, strict=True):
            weights[f"s/{name}"] = array
        weights["s"].attrs["weight_names"] = [name.encode() for name in names]
    for path in ("model.keras", "model.h5"):
        ((found, _),) = keras.load(tmp_path / path).values()
        expected = fsc.activations.hard_sigmoid_keras2 if keras2 else fsc.activations.hard_sigmoid
        assert found.activation is expected


@pytest.mark.parametrize(
    ("class_name", "snake"),
    [
        ("SeparableConv1D", "separable_conv1d"),
        ("TimeDistributed", "time_distributed"),
        ("LSTMCell", "lstm_cell"),
        ("MyNet2Block", "my_net2_block"),
        ("_Private", "__private"),
        ("ABCNet", "abc_net"),
    ],
)
def test_class_names_are_written_as_keras_writes_them(class_name, snake):
    from keras.src.utils.naming import to_snake_case
    from tf_keras.src.utils.generic_utils import to_snake_case as to_snake_case_2

    assert description.snake_case(class_name, keras2=False) == to_snake_case(class_name) == snake
    assert description.snake_case(class_name, keras2=True) == to_snake_case_2(class_name)


def test_lists_of_names_that_keras_splits_over_attributes(saved, tmp_path):
    path, *_ = saved("keras2", "nested", ".h5")
    expected = keras.load(path)
    copy = tmp_path / "split.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        for group, name in (
            (file["model_weights"], "layer_names"),
            (file["model_weights/inner"], "weight_names"),
        ):
            names = group.attrs.pop(name)
            for number, part in enumerate(np.array_split(names, 3)):
                group.attrs[f"{name}{number}"] = part
    assert {key: config for key, (config, _) in keras.load(copy).items()} == {
        key: config for key, (config, _) in expected.items()
    }


def test_a_group_of_many_names(tmp_path):
    # Enough for a B-tree of several levels.
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for i in range(3000):
            file.create_group(f"layer_{i}")
        file["layer_7/x"] = np.arange(6, dtype="float32").reshape(2, 3)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open(tmp_path / "many.h5", "rb"))
        root = hdf5.File(Source(opened), Budget(), stack).root
        assert set(root.names()) == {f"layer_{i}" for i in range(3000)}
        np.testing.assert_array_equal(root.get("layer_7/x").read(), np.arange(6).reshape(2, 3))


# ---- Writing ----


def test_a_file_may_be_written_over_itself_and_only_the_weights_change(saved, tmp_path):
    path, *_ = saved("keras3", "trained", ".keras")
    copy = tmp_path / "model.keras"
    copy.write_bytes(path.read_bytes())
    layers = keras.load(copy)
    keras.save(copy, {key: params for key, (_, params) in layers.items()}, copy)
    assert copy.read_bytes() == path.read_bytes()
    keras.save(copy, {"separable_conv1d": {k: v + 1 for k, v in layers["separable_conv1d"][1].items()}}, copy)
    assert len(copy.read_bytes()) == len(path.read_bytes())
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(copy) as after:
        assert after.testzip() is None
        assert [i.filename for i in before.infolist()] == [i.filename for i in after.infolist()]
        assert all(before.read(n) == after.read(n) for n in before.namelist() if n != "model.weights.h5")
    assert os.listdir(tmp_path) == ["model.keras"]


def test_a_crash_leaves_the_original_whole(saved, tmp_path, monkeypatch):
    path, *_ = saved("keras3", "sequential", ".h5")
    copy = tmp_path / "model.h5"
    copy.write_bytes(path.read_bytes())
    new = {key: {k: v + 1 for k, v in params.items()} for key, (_, params) in keras.load(copy).items()}

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        keras.save(copy, new, copy)
    assert copy.read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path) == ["model.h5"]


def test_a_link_stays_a_link(saved, tmp_path):
    path, *_ = saved("keras3", "sequential", ".h5")
    (tmp_path / "model.h5").write_bytes(path.read_bytes())
    (tmp_path / "link.h5").symlink_to(tmp_path / "model.h5")
    new = {"no_bias": {k: v + 1 for k, v in keras.load(path)["no_bias"][1].items()}}
    keras.save(path, new, tmp_path / "link.h5")
    assert (tmp_path / "link.h5").is_symlink()
    np.testing.assert_array_equal(
        keras.load(tmp_path / "model.h5")["no_bias"][1]["depthwise_kernel"],
        new["no_bias"]["depthwise_kernel"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {"third": p},
            r"`params` must have only layers of the file, which has 'first', 'second'; got 'third'",
        ),
        (lambda p: {"first": {}}, r"`params\['first'\]` must have 'depthwise_kernel', .*; got an empty dict"),
        (lambda p: {"first": p | {"scale": 1}}, r"`params\['first'\]` must have .*; got .*'scale'"),
        (
            lambda p: {"first": p | {"bias": jnp.zeros(3, "float16")}},
            r"\['bias'\]` must have the shape \(4,\)",
        ),
        (
            lambda p: {"first": p | {"bias": np.zeros(4)}},
            r"must have the shape \(4,\) and dtype float16; got .* float64",
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_and_nothing_is_written(saved, tmp_path, change, message):
    path, *_ = saved("keras3", "float16", ".keras")
    _, params = keras.load(path)["first"]
    with pytest.raises(ValueError, match=message):
        keras.save(path, change(params), tmp_path / "out.keras")
    assert os.listdir(tmp_path) == []


def test_params_that_are_no_dict_are_refused(saved, tmp_path):
    path, *_ = saved("keras3", "float16", ".keras")
    with pytest.raises(TypeError, match=r"`params` must be a dict of layers' parameters; got list"):
        keras.save(path, [], tmp_path / "out.keras")
    layers = keras.load(path)
    with pytest.raises(TypeError, match=r"got a tuple. .* pass `{name: params for name, \(_, params\) in"):
        keras.save(path, layers, tmp_path / "out.keras")
    keras.save(path, {name: params for name, (_, params) in layers.items()}, tmp_path / "out.keras")


def test_what_cannot_be_written_is_refused_by_name(saved, tmp_path):
    path, *_ = saved("keras3", "float16", ".keras")
    packed = tmp_path / "packed.keras"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    layers = keras.load(packed)  # reading it is no trouble
    with pytest.raises(ValueError, match=r"packed.keras: its weights are compressed, as Keras never does"):
        keras.save(packed, {"first": layers["first"][1]}, packed)
    with pytest.raises(ValueError, match=r"causal.tf: a folder cannot be written"):
        keras.save(DATA / "tf-2.15" / "causal.tf", {}, tmp_path / "out")


def test_an_archive_written_to_a_pipe_or_beyond_32_bits(saved, tmp_path, monkeypatch):
    # Checksums after the members, and sizes in the extra fields.
    path, *_ = saved("keras3", "float16", ".keras")

    class Pipe:
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush

    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    for name in ("pipe.keras", "zip64.keras"):
        with open(tmp_path / name, "wb") as file:
            out = Pipe(file) if name == "pipe.keras" else file
            with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
                for member in before.namelist():
                    after.writestr(member, before.read(member))
    monkeypatch.undo()
    for name in ("pipe.keras", "zip64.keras"):
        copy = tmp_path / name
        new = {key: {k: v + 1 for k, v in params.items()} for key, (_, params) in keras.load(copy).items()}
        keras.save(copy, new, copy)
        with zipfile.ZipFile(copy) as archive:
            assert archive.testzip() is None
        np.testing.assert_array_equal(keras.load(copy)["first"][1]["bias"], new["first"]["bias"])


# ---- Files that are none ----


def test_os_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        keras.load(tmp_path / "missing.keras")
    with pytest.raises(FileNotFoundError):
        keras.save(tmp_path / "missing.keras", {}, tmp_path / "out.keras")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is neither a .keras archive nor an HDF5 file"),
        (b"\x80\x04\x95", "it is neither a .keras archive nor an HDF5 file"),
        (b"PK\3\4", "it is cut off or damaged: it begins as a zip archive and does not end as one"),
        (b"\x89HDF\r\n\x1a\n", "it is cut off or damaged"),
        (b"\x89HDF\r\n\x1a\n\2" + bytes(100), "it is in a newer form of HDF5, which Keras does not write"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"model.keras: {message}"):
        keras.load(path)


def test_folders_and_devices_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="it is a folder, and neither a SavedModel nor one of Keras 3's"):
        keras.load(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="it is a SavedModel without the configs of its layers"):
        keras.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(ValueError, match="it is neither a file nor a folder"):
        keras.load(tmp_path / "pipe.h5")


# ---- Hostile files ----


def weights_file(change):
    """A test's body: a `.keras` file whose weights file `change` has changed with h5py."""

    def made(saved, tmp_path, **kwargs):
        path, *_ = saved("keras3", "float16", ".keras")
        out = tmp_path / "hostile.keras"
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
            for name in before.namelist():
                content = before.read(name)
                if name == "model.weights.h5":
                    (tmp_path / "weights").write_bytes(content)
                    with h5py.File(tmp_path / "weights", "r+", **kwargs) as file:
                        change(file, file["layers/separable_conv1d/vars"])
                    content = (tmp_path / "weights").read_bytes()
                after.writestr(name, content)
        return out

    return made


def replaced(**kwargs):
    def change(file, group):
        del group["0"]
        group.create_dataset("0", **{"shape": (3, 3, 1)} | kwargs)

    return change


def external_link(file, group):
    del group["0"]
    group["0"] = h5py.ExternalLink("/etc/passwd", "/0")


def soft_link(file, group):
    del group["0"]
    group["0"] = h5py.SoftLink("/layers/separable_conv1d_1/vars/0")


def virtual(file, group):
    del group["0"]
    layout = h5py.VirtualLayout((3, 3, 1), "float16")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 3, 1))
    group.create_virtual_dataset("0", layout)


def loop(file, group):
    group.parent["vars"]["loop"] = file["/"]
    group.parent["more"] = file["/layers"]


def overlap(file, group):
    other = file["layers/separable_conv1d_1"]
    del other["vars"]
    other["vars"] = group


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "it is in a newer form of HDF5|is a link to something else|no weights that fit"),
        (soft_link, "'layers/separable_conv1d/vars/0' is a link to something else, which Keras never writes"),
        (virtual, "is not stored in one piece|newer form"),
        (replaced(dtype="float16", external=[("/etc/passwd", 0, 18)]), "compressed or kept in another file"),
        (replaced(dtype="float16", compression="gzip"), "is compressed or kept in another file"),
        (replaced(dtype="float16", chunks=(1, 1, 1)), "is not stored in one piece"),
        (replaced(dtype="int32"), "does not hold floating-point numbers"),
        (replaced(dtype=h5py.string_dtype()), "does not hold floating-point numbers"),
        (replaced(dtype=h5py.ref_dtype), "does not hold floating-point numbers"),
        (replaced(dtype=np.dtype([("x", "f4")])), "does not hold floating-point numbers"),
        (replaced(dtype="complex64"), "does not hold floating-point numbers"),
        (
            replaced(dtype="float16", shape=(3, 2**40, 1), chunks=(1, 1024, 1)),
            "no weights that fit|in one piece",
        ),
        (loop, "no weights that fit"),
        (overlap, "no weights that fit|overlap"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_hostile_weights_are_refused(saved, tmp_path, change, message):
    path = weights_file(change)(saved, tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        keras.load(path)
    assert str(refusal.value).startswith(str(path))


def config_of(layers):
    return json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": layers}}).encode()


def separable(**config):
    return {"class_name": "SeparableConv1D", "config": {"name": "s", "filters": 4, "kernel_size": 3} | config}


CONFIGS = [
    (b"[" * 100_000, "nested deeper than any model's"),
    (b'{"a":' * 100_000, "nested deeper than any model's"),
    (b" " * (17 * 2**20), "more than any model's|no model's do"),
    (b"\xff\xfe", "not JSON"),
    (b"{}", "not one that Keras writes"),
    (b"[]", "not one that Keras writes"),
    (config_of([separable(name="a" * 300)]), "a name of more than 256 characters"),
    (config_of([separable(name=f"s{i}") for i in range(30_000)]), "far larger than any model's"),
    (config_of([separable(filters=0)]), "layer 's': `filters` must be at least 1; got 0"),
    (config_of([separable(filters=10**30)]), "layer 's'"),
    (config_of([separable(kernel_size=[10**18])]), "layer 's'"),
    (config_of([separable(depth_multiplier=2**62)]), "layer 's'"),
    (config_of([separable(filters=float("nan"))]), "layer 's': `filters` must be an integer; got nan"),
    (
        config_of([separable(padding="a" * 10**6)]),
        "layer 's': its config has a text of more than 256 characters",
    ),
    (
        config_of([separable(activation={"class_name": "__lambda__", "config": {"value": "4wEA"}})]),
        "layer 's'",
    ),
    (config_of([separable(depthwise_initializer={"class_name": "os>system", "config": {}})]), "layer 's'"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_hostile_configs_are_refused(saved, tmp_path, config, message):
    path, *_ = saved("keras3", "float16", ".keras")
    out = tmp_path / "hostile.keras"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        after.writestr("config.json", config)
        after.writestr("model.weights.h5", before.read("model.weights.h5"))
    with pytest.raises(ValueError, match=message) as refusal:
        keras.load(out)
    assert str(refusal.value).startswith(str(out))
    assert len(str(refusal.value)) < 2000


def test_code_in_a_file_is_never_run(tmp_path):
    # A Lambda layer of Keras holds marshalled code. Here it is only another layer.
    model = keras3.Sequential([keras3.Input((12, 3)), keras3.layers.SeparableConv1D(2, 3, name="s")])
    model.save(tmp_path / "model.keras")
    with (
        zipfile.ZipFile(tmp_path / "model.keras") as before,
        zipfile.ZipFile(tmp_path / "out.keras", "w") as after,
    ):
        config = json.loads(before.read("config.json"))
        function = {"class_name": "__lambda__", "config": {"value": "gARjb3MKc3lzdGVt", "defaults": None}}
        lambda_layer = {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"name": "l", "function": function},
        }
        config["config"]["layers"].append(lambda_layer | {"module": "os", "registered_name": "system"})
        after.writestr("config.json", json.dumps(config))
        after.writestr("model.weights.h5", before.read("model.weights.h5"))
    assert list(keras.load(tmp_path / "out.keras")) == ["s"]


# ---- Live layers ----

SETTINGS = {
    "plain": {},
    "all": dict(
        *({"strides": 2, "padding": "same", "depth_multiplier": 2, "activation": "relu", "name": "it"},),
        depthwise_initializer="orthogonal",
        depthwise_regularizer={"class_name": "L1L2", "config": {"l1": 0.5, "l2": 0.25}},
        pointwise_constraint="max_norm",
        activity_regularizer={"class_name": "L2", "config": {"l2": 0.0625}},  # Keras 2 rounds to float32
        trainable=False,
    ),
    "no bias": {"use_bias": False, "dilation_rate": 2},
    "first": {"data_format": "channels_first"},
    "hard_sigmoid": {"activation": "hard_sigmoid"},
    "mixed": {"dtype": "bfloat16", "param_dtype": "float32"},
    "float16": {"dtype": "float16", "param_dtype": "float16"},
}


@pytest.mark.parametrize("version", MODULES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_layer_goes_to_keras_and_back(version, settings):
    config = fsc.SeparableConv1DConfig(4, 3, **settings)
    if version == "keras2" and config.activation is fsc.activations.hard_sigmoid:
        config = fsc.SeparableConv1DConfig(4, 3, activation=fsc.activations.hard_sigmoid_keras2)
    params = fsc.init_params(jax.random.key(0), 5, config)
    layer = keras.to_layer(config, params, MODULES[version])
    back, same = keras.from_layer(layer)
    named = fsc.SeparableConv1DConfig(
        4, 3, **settings | {"name": layer.name, "activation": config.activation}
    )
    assert back == named
    assert {k: v.dtype for k, v in same.items()} == {k: v.dtype for k, v in params.items()}
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))


def test_keras_3_is_taken_where_none_is_named():
    config = fsc.SeparableConv1DConfig(4, 3)
    layer = keras.to_layer(config, fsc.init_params(jax.random.key(0), 5, config))
    assert isinstance(layer, keras3.layers.SeparableConv1D)


def test_causal_padding_goes_to_keras_2_only():
    config = fsc.SeparableConv1DConfig(4, 3, padding="causal")
    params = fsc.init_params(jax.random.key(0), 5, config)
    assert keras.from_layer(keras.to_layer(config, params, tf_keras))[0].padding == "causal"
    with pytest.raises(ValueError, match=r"`padding='causal'` is no padding of Keras 3's SeparableConv1D"):
        keras.to_layer(config, params, keras3)


def test_keras_2_has_another_hard_sigmoid():
    config = fsc.SeparableConv1DConfig(4, 3, activation="hard_sigmoid")
    params = fsc.init_params(jax.random.key(0), 5, config)
    with pytest.raises(
        ValueError, match="`activation` is Keras 3's hard_sigmoid, which Keras 2 does not have"
    ):
        keras.to_layer(config, params, tf_keras)


def test_what_is_no_built_layer_is_refused():
    with pytest.raises(TypeError, match="`layer` must be a SeparableConv1D of Keras's; got <Dense"):
        keras.from_layer(keras3.layers.Dense(1))
    with pytest.raises(ValueError, match="`layer` must be built"):
        keras.from_layer(keras3.layers.SeparableConv1D(1, 1))
    config = fsc.SeparableConv1DConfig(4, 3)
    with pytest.raises(ValueError, match=r"`params` must have .* got no 'depthwise_kernel'"):
        keras.to_layer(config, {"bias": np.zeros(4)})
