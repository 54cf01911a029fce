"""Holds what the caller says about the names in a file that are not Keras's own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_sepconv._keras.unknown import names
from flax_sepconv._messages import shown
from flax_sepconv.config import SeparableConv1DConfig


class Custom(NamedTuple):
    """An object that the caller passes, and its name."""

    name: str
    value: Any


class CustomObjects:
    """The meaning of names in a file, given by the caller.

    Args:
        given: callables by name, and `SeparableConv1DConfig` by the names of classes that are the layer.

    Raises:
        TypeError: `given` is not a mapping from strings.
    """

    def __init__(self, given: Mapping[str, Any] | None = None):
        given = {} if given is None else given
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                "`custom_objects` must be a dict from names in the file to what they stand for, such as "
                f"{{'my_tanh': my_tanh}}; got {shown(given)}."
            )
        self._layers = {name for name, value in given.items() if value is SeparableConv1DConfig}
        self._objects = {name: value for name, value in given.items() if name not in self._layers}

    def find(self, identifier: Any) -> Custom | None:
        """Finds what an identifier stands for, if the caller says so.

        Args:
            identifier: a name, or a Keras config.

        Returns:
            The caller's object. A class is instantiated with the entries in the file, as in Keras.

        Raises:
            ValueError: the class cannot be instantiated with these entries.
        """
        name = next((each for each in names(identifier) if each in self._objects), None)
        if name is None:
            return None
        value = self._objects[name]
        if isinstance(value, type) and isinstance(identifier, Mapping):
            entries = identifier.get("config")
            entries = dict(entries) if isinstance(entries, Mapping) else {}
            make: Any = getattr(value, "from_config", None)
            try:
                value = make(entries) if make else value(**entries)
            except (TypeError, ValueError) as error:
                raise ValueError(f"`custom_objects[{name!r}]` of {shown(entries)}: {error}") from None
        return Custom(name, value)

    def is_layer(self, entry: Mapping[str, Any]) -> bool:
        """Returns whether the caller says that the class of an entry is a `SeparableConv1D`."""
        return any(name in self._layers for name in names(entry)) if self._layers else False
