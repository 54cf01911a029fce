"""Holds what readers of one file share: its budget, what the caller said, and why layers cannot be read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax_sepconv._messages import shown
from flax_sepconv.interop._custom_objects import CustomObjects
from flax_sepconv.interop._files.budget import Budget


@dataclasses.dataclass
class Reading:
    """One reading of a file.

    Attributes:
        budget: what it may cost.
        custom_objects: the meaning of names in the file, given by the caller.
        strict: whether a layer that cannot be read is an error.
        left_out: why layers are left out if it is not strict, by their paths.
    """

    budget: Budget
    custom_objects: CustomObjects
    strict: bool
    left_out: dict[str, str]

    @classmethod
    def begun(cls, custom_objects: Mapping[str, Any] | None = None, strict: bool = True) -> "Reading":
        """Returns a reading that has just begun."""
        return cls(Budget(), CustomObjects(custom_objects), strict, {})

    def fail(self, path: str, reason: str) -> None:
        """Notes a layer that cannot be read.

        Raises:
            ValueError: the reading is strict.
        """
        if self.strict:
            raise ValueError(f"layer {shown(path)}: {reason}")
        self.budget.hold(len(path) + len(reason))
        self.left_out.setdefault(path, reason)
