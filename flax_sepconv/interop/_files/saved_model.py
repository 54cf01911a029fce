"""Reads a SavedModel folder as Keras 2 writes it, without TensorFlow.

    keras_metadata.pb           for each layer its path of attributes and its config:
                                    root.layer_with_weights-1.layer_with_weights-0 ─► {"class_name": ..., ...}
    variables/variables.index   a sorted table of all weights:
                                    variables/5/.ATTRIBUTES/VARIABLE_VALUE ─► dtype, shape, shard, position, size
    variables/variables.data-*  the shards, with the values; and, under the key _CHECKPOINTABLE_OBJECT_GRAPH, the
                                graph of attributes, in which a path leads to a key

Everything except the shards is in the two formats that `wire` reads.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flax_sepconv._messages import shown
from flax_sepconv.interop._files import byte_source, description, untrusted_json, wire
from flax_sepconv.interop._files.budget import Budget
from flax_sepconv.interop._files.byte_source import Source
from flax_sepconv.interop._files.description import Settings
from flax_sepconv.interop._files.reading import Reading

_METADATA, _INDEX = "keras_metadata.pb", os.path.join("variables", "variables.index")
_NAME_LIMIT, _SHARD_LIMIT, _RANK_LIMIT = 1024, 1000, 8
_NODE_STEPS = 30
# TensorFlow's numbers for the floating dtypes.
_DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    14: np.dtype(jnp.bfloat16),
    19: np.dtype(np.float16),
}
_ROOT, _GRAPH = "root", b"_CHECKPOINTABLE_OBJECT_GRAPH"


class Variable:
    """A weight in a shard, with the same attributes as a dataset in an HDF5 file.

    Args:
        entry: its entry in the table.
        shard: opens a shard by its number.
        budget: what reading the files may cost.
    """

    def __init__(self, entry: bytes, shard: Callable[[int], Source], budget: Budget | None = None):
        budget = budget or Budget()
        fields = wire.fields(entry, budget, range(1, 8))
        if 7 in fields:
            raise ValueError("its weights are stored in slices, as those of models on several machines are.")
        dtype, number, self.position, size = (wire.number(fields, each) for each in (1, 3, 4, 5))
        dimensions = wire.fields(fields.get(2, [b""])[0], budget, {2}).get(2, [])
        if len(dimensions) > _RANK_LIMIT:
            raise ValueError(
                "it is damaged: one of its SeparableConv1D weights has more axes than any array."
            )
        self.shape = tuple(wire.number(wire.fields(each, budget, {1}), 1) for each in dimensions)
        if dtype not in _DTYPES:
            raise ValueError("one of its SeparableConv1D weights does not hold floating-point numbers.")
        self.dtype = _DTYPES[dtype].newbyteorder("<")
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.source: Source = shard(number)
        if size != self.nbytes or self.position + size > self.source.size:
            raise ValueError("it is cut off or damaged: the size or place of a weight is wrong.")

    def read(self) -> np.ndarray:
        """Reads its values, in the machine's byte order."""
        data = self.source.read(self.position, self.nbytes)
        return (
            np.frombuffer(data, self.dtype)
            .reshape(self.shape)
            .astype(self.dtype.newbyteorder("="), copy=False)
        )


def is_saved_model(folder: str) -> bool:
    """Returns whether this folder is a TensorFlow SavedModel."""
    return os.path.isfile(os.path.join(folder, "saved_model.pb"))


def read(
    folder: str, stack: contextlib.ExitStack, reading: Reading
) -> dict[str, tuple[Settings, dict[str, Variable]]]:
    """Reads the settings and the weights of each `SeparableConv1D`, by the layers' names joined with `/`.

    Args:
        folder: the SavedModel.
        stack: keeps its files open.
        reading: how they are read.

    Raises:
        ValueError: it was not written by Keras 2 in TF 2.5 or later, or is damaged.
    """
    if not os.path.isfile(os.path.join(folder, _METADATA)):
        raise ValueError(
            "it is a SavedModel without the configs of its layers (a `keras_metadata.pb`), as Keras 3's `export` "
            "and TF before 2.5 write. Save the model as a .keras or .h5 file."
        )
    budget = reading.budget
    names, separable, keras2 = _nodes(_whole(_open(folder, _METADATA, stack), budget), reading)
    if not separable:
        return {}
    index = wire.table(_open(folder, _INDEX, stack), budget)
    shards = wire.fields(index.get(b"", b""), budget, {1}).get(1, [1])[0]

    @functools.cache
    def shard(number: int) -> Source:
        if not isinstance(shards, int) or not 0 <= number < shards <= _SHARD_LIMIT:
            raise ValueError("it is damaged: it refers to a shard that it does not have.")
        return _open(folder, os.path.join("variables", f"variables.data-{number:05}-of-{shards:05}"), stack)

    @functools.cache
    def variable(key: bytes) -> Variable:
        return Variable(index.get(key, b""), shard, budget)

    graph = _Graph(index.get(_GRAPH, b""), shard, budget)
    layers, used = {}, description.Names()
    for path, entry in separable.items():
        name = used.unused("/".join(_names_along(path, names, budget)))
        try:
            settings = description.settings(entry, keras2, reading)
            variables = {
                weight.name: variable(graph.key(path, weight.name)) for weight in settings.config.weights(1)
            }
        except ValueError as error:
            reading.fail(name, str(error))
            continue
        _, channels, _ = (*variables["depthwise_kernel"].shape, 0, 0, 0)[:3]
        shapes = {weight.name: weight.shape for weight in settings.config.weights(channels)}
        if {leaf: variable.shape for leaf, variable in variables.items()} != shapes:
            reading.fail(name, f"its weights do not fit {settings.config}. The folder is damaged.")
        else:
            layers[name] = settings, variables
    return layers


def _open(folder: str, name: str, stack: contextlib.ExitStack) -> Source:
    path = os.path.join(folder, name)
    try:
        return byte_source.opened(path, stack, folder)
    except FileNotFoundError:
        raise ValueError(f"it is a SavedModel without its {name!r}.") from None


def _whole(source: Source, budget: Budget) -> bytes:
    if source.size > wire.SIZE_LIMIT:
        raise ValueError(
            f"it has a file of {source.size} bytes, where no model needs more than {wire.SIZE_LIMIT}."
        )
    budget.hold(source.size)
    return source.read(0, source.size)


def _nodes(metadata: bytes, reading: Reading) -> tuple[dict[str, str], dict[str, Mapping], bool]:
    """Reads each layer's name and each `SeparableConv1D`'s entry, by their paths, and whether Keras 2 wrote them."""
    budget = reading.budget
    names, separable, keras2 = {}, {}, None
    for node in wire.fields(metadata, budget, {1}).get(1, []):
        budget.step(_NODE_STEPS)
        fields = wire.fields(node, budget, {3, 5})
        try:
            path, text = (fields.get(each, [b""])[0].decode() for each in (3, 5))
        except (AttributeError, UnicodeDecodeError):
            raise ValueError("its keras_metadata.pb is damaged.") from None
        entry = _without_tuples(untrusted_json.parse(text or "null", budget))
        if not isinstance(entry, dict):
            continue
        if path == _ROOT:
            keras2 = description.is_keras2(entry.get("keras_version"))
        names[path] = str(entry.get("name", path.rpartition(".")[2]))
        if max(len(path), len(names[path])) > _NAME_LIMIT:
            raise ValueError("its keras_metadata.pb is damaged: a name in it is longer than any.")
        if description.is_layer(entry) and description.is_separable(entry, reading):
            separable[path] = entry
    # The model's own entry has the version. Only Keras 2 has ever written this file.
    return names, separable, keras2 is not False


def _without_tuples(value: Any) -> Any:
    """Replaces each `{"class_name": "__tuple__", "items": [...]}`, which Keras writes for a tuple, by a list."""
    if isinstance(value, dict):
        if value.get("class_name") == "__tuple__":
            return _without_tuples(value.get("items"))
        return {key: _without_tuples(each) for key, each in value.items()}
    return [_without_tuples(each) for each in value] if isinstance(value, list) else value


def _names_along(path: str, names: Mapping[str, str], budget: Budget) -> Iterable[str]:
    """Yields the names of the layers along a path; what is not a layer has no name and is skipped."""
    steps = path.split(".")
    budget.step(len(steps) * (1 + len(path) // 256))
    for length in range(2, len(steps) + 1):
        on_the_way = ".".join(steps[:length])
        if on_the_way in names:
            yield names[on_the_way]


class _Graph:
    """The graph of attributes. It is stored as a tensor of one string: its length, a checksum, and the string.

    Args:
        entry: its entry in the table.
        shard: opens a shard by its number.
        budget: what reading the files may cost.
    """

    def __init__(self, entry: bytes, shard: Callable[[int], Source], budget: Budget):
        self._budget = budget
        fields = wire.fields(entry, budget, {3, 4, 5})
        number, position, size = (wire.number(fields, each) for each in (3, 4, 5))
        if size > wire.SIZE_LIMIT:
            raise ValueError("it is damaged: the graph of its objects is larger than any model's.")
        budget.hold(size)
        stored = shard(number).read(position, size)
        _, at = wire.varint(stored, 0)
        self._nodes = wire.fields(stored[at + 4 :], budget, {1}).get(1, [])
        self._read: dict[int, tuple[dict[bytes, int], Any]] = {}

    def key(self, path: str, weight: str) -> bytes:
        """Finds the table's key for a layer's weight."""
        at = 0
        steps = [*path.split(".")[1:], weight]
        self._budget.step(len(steps))
        for step in steps:
            at = self._node(at)[0].get(step.encode(), -1)
        key = self._node(at)[1]
        if not isinstance(key, bytes):
            raise ValueError(f"it is damaged: its {shown(path)} has no {weight!r}.")
        return key

    def _node(self, at: int) -> tuple[dict[bytes, int], Any]:
        """Reads which nodes a node's attributes lead to, and the key of its value."""
        if not 0 <= at < len(self._nodes):
            raise ValueError("it is damaged: the graph of its objects does not have all of them.")
        if at not in self._read:
            fields = wire.fields(self._nodes[at], self._budget, {1, 2})
            links = [wire.fields(each, self._budget, {1, 2}) for each in fields.get(1, [])]
            values = [wire.fields(each, self._budget, {3}) for each in fields.get(2, [])]
            targets = {link[2][0]: wire.number(link, 1) for link in links if 2 in link}
            self._read[at] = targets, next((value[3][0] for value in values if 3 in value), None)
        return self._read[at]
