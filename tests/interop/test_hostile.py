"""Files built on purpose end in an error that names them, within the budget, and `save` loses nothing.

Each construction here once took seconds, gigabytes, or a model. What they cost is counted in the budget's steps and
bytes, which are the same on every machine.
"""

import functools
import io
import json
import os
import random
import re
import shutil
import socket
import stat
import struct
import zipfile

import numpy as np
import pytest

from flax_sepconv.interop import keras
from flax_sepconv.interop._files.budget import Budget
from tests.interop import fuzz, handmade
from tests.interop.handmade import Maker


def maker(**options):
    return Maker(random.Random(0), **options)


def separable(i=0, **config):
    return {
        "class_name": "SeparableConv1D",
        "config": {"name": f"s{i}", "filters": 2, "kernel_size": [3]} | config,
    }


def sequential(*layers, name="m"):
    return {"class_name": "Sequential", "config": {"name": name, "layers": layers}}


def archive(config, weights=None):
    """A `.keras` file of a config, text or not, and of the weights of one layer."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        file.writestr("model.weights.h5", weights or stored())
    return out.getvalue()


@functools.cache
def stored():
    m = maker()
    return m.hdf5(lambda: m.group({"layers": m.group({"separable_conv1d": weights(m, 0)})}))


def weights(m, i, *messages, **others):
    arrays = {str(j): at for j, at in enumerate(m.arrays(i))}
    return m.group({"vars": m.group(arrays | others, *messages)})


def hdf5(make, config):
    m = maker()
    return archive(config, m.hdf5(lambda: make(m)))


# ---- What costs more than it seems ----


def chain(m):
    at = m.group({})
    for _ in range(1000):
        at = m.group({"a": at, "b": at})
    return m.group({"layers": at})


def one_tree_for_all(m):
    many = m.group({f"{i:05}": 96 for i in range(1000)})
    table = bytes(m.data[many + 16 : many + 40])
    return m.group({f"{i:05}": m.header(table) for i in range(200)})


def one_continuation_for_all(m):
    block = m.put(m.message(0, b"") * 60_000)
    more = m.message(0x10, struct.pack("<QQ", block, 8 * 60_000))
    headers = [m.put(struct.pack("<BxHII4x", 1, 65_535, 1, len(more)) + more) for _ in range(100)]
    return m.group({f"{i:05}": at for i, at in enumerate(headers)})


def one_group_for_all(m):
    group = weights(m, 1)
    return m.group({"own": m.group({f"{i:05}": group for i in range(2_000)})})


def names_of_nobody(m):
    layers = {f"x{i}": weights(m, 1, m.attribute("name", ["a", "b"])) for i in range(3)}
    return m.group({"own": m.group(layers)})


OWN = {"class_name": "Own", "config": {f"k{i}": separable(i, use_bias=False) for i in range(300)}}
TEXTS = {
    "a string without an end": '"' + r"\"" * 200_000,
    "nested lists": "[" * 100_000,
    "lists": f'{{"class_name": "A", "config": [{"[]," * 400_000}0]}}',
    "quotes": '"' * 400_000,
    "a number of many digits": f'{{"class_name": "A", "config": [{"9" * 100_000}]}}',
    "a key again and again": f'{{"class_name": "A", "config": {{{"""{"b": {"c": {}}},""" * 100_000}}}}}',
    "sizes that are no numbers": json.dumps(sequential(separable(filters=float("nan")))),
    "half a pair": json.dumps(sequential(separable(activation="\ud800"))),
    "a size beyond all": json.dumps(sequential(separable(kernel_size=10**400))),
    "more layers than any": json.dumps(sequential(*map(separable, range(2_500)))),
    "long names, nested": json.dumps(
        functools.reduce(
            lambda inner, _: sequential(inner, name="y" * 250), range(80), sequential(*[separable()] * 3000)
        )
    ),
    "a window of no size": json.dumps(
        sequential(
            separable(
                depth_multiplier=2**24,
                kernel_size=2**24,
                depthwise_initializer={"class_name": "STFT", "config": {}},
            )
        )
    ),
    "texts for numbers": json.dumps(
        sequential(
            separable(
                depthwise_initializer={
                    "class_name": "Constant",
                    "config": {"value": ["a" * 200] + ["b"] * 200_000},
                }
            )
        )
    ),
}
BUILT = {name: lambda text=text: archive(text) for name, text in TEXTS.items()} | {
    "a chain of groups, each there twice": lambda: hdf5(chain, sequential(separable())),
    "a tree that all groups share": lambda: hdf5(one_tree_for_all, sequential(separable())),
    "a header that all objects share": lambda: hdf5(one_continuation_for_all, sequential(separable())),
    "a group by many names": lambda: hdf5(one_group_for_all, OWN),
    "layers by lists of names": lambda: hdf5(names_of_nobody, OWN),
}


@pytest.fixture
def budgets(monkeypatch):
    """The budgets of all files that are read."""
    made = []

    def remembered(self):
        made.append(self)
        self.steps = self.held = 0

    monkeypatch.setattr(Budget, "__init__", remembered)
    return made


@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_a_file_that_would_cost_much_is_refused_within_the_budget(build, tmp_path, budgets, monkeypatch):
    for limit in ("STEPS", "BYTES"):  # a tenth of it, so that a tenth of such a file will do
        monkeypatch.setattr(Budget, limit, getattr(Budget, limit) // 10)
    path = tmp_path / "m.keras"
    path.write_bytes(build())
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as refusal:
        keras.load(path)
    assert len(str(refusal.value)) < 2000
    assert str(refusal.value).isprintable()
    (budget,) = budgets
    assert budget.steps <= 1.5 * budget.STEPS  # it stops at the first step beyond, or at several together
    assert budget.held <= 1.5 * budget.BYTES


@pytest.mark.parametrize(
    "initializer",
    [
        {"class_name": "HeNormal", "config": {"input_axes": [0] * 10**5, "output_axes": [0]}},
        {"class_name": "__lambda__", "config": {"value": "x" * 10**6}},
        {"class_name": "x" * 10**6, "config": {}},
    ],
    ids=["axes", "code", "name"],
)
def test_a_large_initializer_costs_little(initializer, tmp_path, budgets):
    (tmp_path / "m.keras").write_bytes(archive(sequential(separable(depthwise_initializer=initializer))))
    ((config, _),) = keras.load(tmp_path / "m.keras").values()
    assert budgets[0].steps < 0.1 * Budget.STEPS
    assert len(repr(config)) < 1000
    with pytest.raises(ValueError, match="cannot draw others") as refusal:
        config.depthwise_initializer(None, (3, 2, 1))
    assert len(str(refusal.value)) < 1000


def test_layers_are_found_by_an_index(tmp_path, budgets):
    def named_layers(m):
        layers = {f"x{i}": weights(m, 1, m.attribute("name", f"s{i}")) for i in range(300)}
        return m.group({"own": m.group(layers)})

    (tmp_path / "m.keras").write_bytes(hdf5(named_layers, OWN))
    assert len(keras.load(tmp_path / "m.keras")) == 300
    assert budgets[0].steps < 0.1 * Budget.STEPS


@pytest.mark.parametrize("seed", range(80))
def test_a_file_with_a_lie_in_it_is_refused_or_loaded(seed, tmp_path):
    result = fuzz.outcome(handmade.case(random.Random(seed), tmp_path))
    assert not result.startswith("FAILED"), result


# ---- What `save` must not write over ----


def overlapping(where):
    """A file in which a kernel's values are where something else is."""

    def make(m):
        other = m.dataset(3, 2, 1)
        kernel = m.dataset(3, 2, 1)
        position = {
            "signature": 0,
            "root": 64,
            "header": other,
            "array": other_data(m, other),
            "tree": m.places[0],
        }
        arrays = {"0": moved(m, kernel, position[where]), "1": m.dataset(1, 2, 2), "2": m.dataset(2)}
        return m.group(
            {"layers": m.group({"separable_conv1d": m.group({"vars": m.group(arrays)})}), "other": other}
        )

    return hdf5(make, sequential(separable()))


def other_data(m, header):
    return struct.unpack_from("<Q", m.data, layout_at(m, header))[0]


def moved(m, header, position):
    struct.pack_into("<Q", m.data, layout_at(m, header), position)
    return header


def layout_at(m, header):
    return m.data.index(struct.pack("<HHB", 8, 24, 0), header) + 10


def linked(m):
    layer = weights(m, 0)
    return m.group({"layers": m.group({"separable_conv1d": layer}), "other": m.group({"the same": layer})})


UNSAFE = {
    where: lambda where=where: overlapping(where) for where in ("signature", "root", "header", "array")
} | {"two names": lambda: hdf5(linked, sequential(separable()))}


@pytest.mark.parametrize("build", UNSAFE.values(), ids=UNSAFE)
def test_a_weight_that_is_something_else_too_is_not_written(build, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(data := build())
    new = {
        name: {leaf: value + 1 for leaf, value in params.items()}
        for name, (_, params) in keras.load(path).items()
    }
    with pytest.raises(
        ValueError, match=r"the depthwise_kernel of layer 's0' (overlaps with|has several names)"
    ):
        keras.save(path, new, path)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["m.keras"]


def test_a_checksum_is_only_written_over_a_checksum(tmp_path):
    path = tmp_path / "m.keras"
    data = bytearray(archive(sequential(separable())))
    at = data.rindex(b"PK\3\4", 0, data.index(b"\x89HDF")) + 14
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"'model.weights.h5' does not have the same checksum everywhere"):
        keras.save(path, {}, path)


def test_a_member_of_another_name_than_its_header_has_is_refused(tmp_path):
    data = archive(sequential(separable())).replace(b"config.json", b"konfig.json", 1)
    (tmp_path / "m.keras").write_bytes(data)
    with pytest.raises(ValueError, match=r"'config\.json' has another name in the header before it"):
        keras.load(tmp_path / "m.keras")


@pytest.mark.parametrize("byte", [1, 2, 10], ids=["normalisation and order", "sign", "exponent"])
def test_numbers_that_are_not_ieee_are_refused(byte, tmp_path):
    data = bytearray(stored())
    data[data.index(bytes([0x11, 0x20, 31, 0, 4])) + byte] ^= 0x10
    (tmp_path / "m.keras").write_bytes(archive(sequential(separable()), bytes(data)))
    with pytest.raises(ValueError, match="does not hold floating-point numbers"):
        keras.load(tmp_path / "m.keras")


# ---- Paths and modes ----


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(archive(sequential(separable())))
    return path


def fifo(path):
    os.mkfifo(path)


def bound(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    "make",
    [fifo, bound, os.mkdir, lambda path: os.symlink(path, path)],
    ids=["fifo", "socket", "folder", "loop"],
)
def test_only_files_are_replaced(make, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("out")
    before = os.lstat("out")
    with pytest.raises(OSError, match="out") as caught:
        keras.save(model, {}, "out")
    assert caught.value.filename == "out"
    assert os.lstat("out").st_mode == before.st_mode
    assert sorted(os.listdir()) == ["m.keras", "out"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("make", [fifo, bound], ids=["fifo", "socket"])
@pytest.mark.parametrize("read", [keras.load, lambda path: keras.save(path, {}, "out")], ids=["load", "save"])
def test_only_files_are_read_and_nothing_is_waited_for(make, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("in")
    with pytest.raises(ValueError, match=r"^in: it is neither a file nor a folder"):
        read("in")


@pytest.mark.parametrize(
    ("original", "replaced", "mask", "expected"),
    [
        (0o644, 0o600, 0o022, 0o600),
        (0o600, 0o664, 0o022, 0o664),
        (0o600, 0o4755, 0o022, 0o755),
        (0o777, None, 0o077, 0o700),
        (0o6755, None, 0o022, 0o755),
        (0o600, None, 0o022, 0o600),
    ],
)
def test_permissions_are_those_of_what_is_replaced_or_else_of_the_original(
    model, tmp_path, monkeypatch, original, replaced, mask, expected
):
    out, modes = tmp_path / "out", []
    model.chmod(original)
    if replaced is not None:
        out.touch()
        out.chmod(replaced)
    copyfileobj = shutil.copyfileobj

    def watched(source, copy):
        modes.append(stat.S_IMODE(os.fstat(copy.fileno()).st_mode))
        copyfileobj(source, copy)

    monkeypatch.setattr(shutil, "copyfileobj", watched)
    before = os.umask(mask)
    try:
        keras.save(model, {}, out)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE(out.stat().st_mode) == expected


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_file_may_be_written_over_itself_by_another_name(link, model, tmp_path):
    link(model, tmp_path / "other")
    new = {
        name: {leaf: value + 1 for leaf, value in params.items()}
        for name, (_, params) in keras.load(model).items()
    }
    keras.save(model, new, tmp_path / "other")
    for _, params in keras.load(tmp_path / "other").values():
        np.testing.assert_array_equal(params["bias"], new["s0"]["bias"])


def test_what_fails_after_the_renaming_is_no_error(model, tmp_path, monkeypatch):
    def failing(path, *rest, opened=os.open, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", failing)
    keras.save(model, {}, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == model.read_bytes()


def test_links_of_a_saved_model_stay_within_its_folder(tmp_path):
    folder = tmp_path / "model"
    for name, data in maker().saved_model().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert list(keras.load(folder)) == ["l0", "l1"]
    shard = folder / "variables/variables.data-00000-of-00001"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"its 'variables/variables\.data-00000-of-00001' is a link to somewhere else"
    ):
        keras.load(folder)
