"""Files that are either written whole or not at all."""

import pytest

from flax_sepconv.interop._files.atomic import replacing


@pytest.mark.parametrize("name", ["no folder/file", "a file/file", "a folder"])
def test_an_error_names_the_file_that_was_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    with pytest.raises(OSError, match=rf": '{name}'$") as caught, replacing(name):
        pass
    assert caught.value.filename == name
    assert {each.name for each in tmp_path.iterdir()} == {"a file", "a folder"}
