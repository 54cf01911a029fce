"""Sound files of every form: those in `data`, and what is made of these.

nested.keras ─► nested.folder           as Keras 3 writes it with `zipped=False`
             ─► nested.weights.h5       weights alone in Keras's own format, with nested.weights.h5.json
nested.h5    ─► nested.alone.h5         weights alone by the layers' names, with nested.alone.h5.json
"""

import atexit
import json
import pathlib
import shutil
import tempfile
import zipfile

import h5py

DATA = pathlib.Path(__file__).parent / "data"

_SAVED_MODEL = ["keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
_FOLDER = ["config.json", "metadata.json", "model.weights.h5"]


def inside(path):
    """The files that matter in a folder."""
    return _SAVED_MODEL if path.suffix == ".tf" else _FOLDER


def _made(folder):
    """Files of the other forms, made of those in `data`."""
    for path in sorted(DATA.glob("*/*")):
        stem = folder / f"{path.parent.name}-{path.stem}"
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(stem.with_name(f"{stem.name}.folder"))
                config = json.loads(archive.read("config.json"))
                config |= {"keras_version": json.loads(archive.read("metadata.json"))["keras_version"]}
                weights = stem.with_name(f"{stem.name}.weights.h5")
                weights.write_bytes(archive.read("model.weights.h5"))
            yield stem.with_name(f"{stem.name}.folder")
        elif path.suffix == ".h5":
            weights = stem.with_name(f"{stem.name}.alone.h5")
            with h5py.File(path) as whole, h5py.File(weights, "w") as alone:
                config = json.loads(whole.attrs["model_config"])
                for name in whole["model_weights"]:
                    whole.copy(f"model_weights/{name}", alone)
                for name, value in whole["model_weights"].attrs.items():
                    alone.attrs[name] = value
        else:
            continue
        weights.with_name(f"{weights.name}.json").write_text(json.dumps(config))
        yield weights


_folder = pathlib.Path(tempfile.mkdtemp(prefix="flax_sepconv-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

FILES = [
    *sorted(path for path in DATA.glob("*/*") if path.suffix in (".keras", ".h5", ".tf")),
    *_made(_folder),
]
