"""A folder of models, for what the command line is given."""

import os
import shutil

import pytest

from tests.interop import fuzz

SEQUENTIAL = fuzz.DATA / "keras-3.3.3" / "sequential.keras"
CAUSAL = fuzz.DATA / "tf-2.15" / "causal.tf"


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
