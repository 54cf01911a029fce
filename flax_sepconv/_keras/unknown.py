"""Initializers in files that this library does not have: they are kept as written, and refuse to draw."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from flax_sepconv._messages import shown

_LAMBDA = "__lambda__"


def names(identifier: Any) -> list[str]:
    """Lists the names under which Keras would look up an identifier or a class, the fullest first.

    Args:
        identifier: a name, or a config as Keras writes it.
    """
    if isinstance(identifier, Mapping):
        class_name, config = identifier.get("class_name"), identifier.get("config")
        # For an activation that is a lambda, Keras writes the inner dict only.
        if class_name == _LAMBDA or (class_name is None and "value" in identifier):
            return [_LAMBDA, "<lambda>"]
        written = [identifier.get("registered_name"), config if class_name == "function" else class_name]
    else:
        written = [identifier]
    full = [name for name in written if isinstance(name, str) and name != "function"]
    return [*dict.fromkeys([*full, *(name.rpartition(">")[2] for name in full)])]


@dataclass(frozen=True, repr=False)
class UnknownInitializer:
    """An initializer that cannot draw. The weights that it drew elsewhere are in the file.

    Attributes:
        text: its entry in the file, as JSON.
        reason: why it cannot draw, as a sentence.
    """

    text: str
    reason: str = field(compare=False)

    @classmethod
    def of(cls, entry: Any, reason: str) -> "UnknownInitializer":
        """Makes the initializer from an entry in a config."""
        return cls(json.dumps(entry, sort_keys=True, default=repr), reason)

    @property
    def entry(self) -> Any:
        """Its entry in the file."""
        return json.loads(self.text)

    def __call__(self, key: Any, shape: Any, dtype: Any = None) -> NoReturn:
        """Refuses to draw."""
        name = shown((names(self.entry) or [self.entry])[0])
        raise ValueError(
            f"the initializer {name} came with weights of Keras's and cannot draw others: {self.reason} Pass another "
            "one as this argument of the layer, or as `custom_objects` where the file is read."
        )

    def __repr__(self) -> str:
        return f"UnknownInitializer({shown(self.entry)})"
