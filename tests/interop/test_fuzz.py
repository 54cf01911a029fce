"""Damaged files are refused or loaded, and nothing else: `fuzz` in a short form."""

import contextlib
import pathlib
import random
import tempfile

import pyfive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_sepconv.interop._files import byte_source, hdf5
from flax_sepconv.interop._files.budget import Budget
from tests.interop import damage, fuzz

IDS = [f"{path.parent.name}/{path.name}" if fuzz.DATA in path.parents else path.name for path in fuzz.FILES]


@pytest.mark.parametrize("path", fuzz.FILES, ids=IDS)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_refused_or_loaded(path, seed):
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz.outcome(fuzz.case(path, random.Random(seed), pathlib.Path(folder)))
    assert not result.startswith("FAILED"), result


@pytest.mark.parametrize("path", [path for path in fuzz.FILES if path.is_file()][:6], ids=str)
def test_a_file_cut_off_anywhere_is_refused_or_loaded(path, tmp_path):
    data = path.read_bytes()
    for end in range(0, len(data), 997):
        (tmp_path / "cut").write_bytes(data[:end])
        assert fuzz.outcome(tmp_path / "cut") == "refused"


def test_what_says_it_is_large_is_refused(tmp_path):
    for seed in range(30):
        (tmp_path / "bomb.keras").write_bytes(damage.bombs(random.Random(seed)))
        assert fuzz.outcome(tmp_path / "bomb.keras") == "refused"


@pytest.mark.parametrize(
    "path", [path for path in fuzz.FILES if path.suffix == ".h5"], ids=lambda path: path.name
)
def test_another_reader_finds_the_same_arrays(path):
    with contextlib.ExitStack() as stack, pyfive.File(path) as theirs:
        ours = hdf5.File(byte_source.opened(path, stack), Budget(), stack).root
        names = []
        theirs.visititems(lambda name, each: names.append(name) if isinstance(each, pyfive.Dataset) else None)
        arrays = [f"{group.path}/{name}" for group in ours.walk() for name in group.names()]
        arrays = [name.removeprefix("/") for name in arrays if isinstance(ours.get(name), hdf5.Dataset)]
        assert {*arrays} == {*names}
        for name in names:
            array = ours.get(name)
            if array.is_float:  # bytes, since bfloat16 has no name in HDF5
                assert array.read().tobytes() == theirs[name][...].tobytes()
