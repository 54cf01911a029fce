"""Tracks which ranges of a file are taken and by what, and so where weights may be written."""

from typing import NamedTuple

from flax_sepconv.interop._files.budget import Budget


class _Range(NamedTuple):
    start: int
    end: int
    is_weight: bool
    what: str


class Regions:
    """The ranges of a file that hold something, by their positions in the whole file.

    Args:
        budget: what reading the file may cost.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self._ranges: list[_Range] = []

    def take(self, start: int, size: int, what: str, is_weight: bool = False) -> None:
        """Marks a range as taken.

        Args:
            start: its position.
            size: its length in bytes.
            what: what takes it, for messages.
            is_weight: whether weights are to be written there.
        """
        self.budget.step()
        self.budget.hold(100)
        if size > 0:
            self._ranges.append(_Range(start, start + size, is_weight, what))

    def check(self) -> None:
        """Refuses weights that overlap with anything else.

        Raises:
            ValueError: some do; the message names both.
        """
        self._ranges.sort()
        reach: dict[bool, _Range] = {}  # the weight, and the other range, that reach furthest so far
        for each in self._ranges:
            for earlier in reach.values():
                if each.start < earlier.end and (each.is_weight or earlier.is_weight):
                    weight, other = (each, earlier) if each.is_weight else (earlier, each)
                    raise ValueError(f"it is damaged: {weight.what} overlaps with {other.what}.")
            if each.is_weight not in reach or each.end > reach[each.is_weight].end:
                reach[each.is_weight] = each
