"""The cost that reading one file may have: all readers of the file count in one object.

A step takes about a third of a microsecond on an idle machine, whatever it is spent on. Bytes are those held until the
file is read, except for the weights themselves: these are bounded by the file's size, since no two may overlap.

To load a model of 1,000 layers with Adam's moments (500 `SeparableConv1D`, 500 `BatchNormalization`) takes a seventh of
the steps and a tenth of the bytes; to write it takes a fifth of both.
"""


class Budget:
    """Counts the steps taken and the bytes held for one file, and stops at what no model needs."""

    STEPS, BYTES = 6_000_000, 256 * 2**20

    def __init__(self):
        self.steps = self.held = 0

    def step(self, count: int = 1) -> None:
        """Counts steps, before they are taken.

        Raises:
            ValueError: these are more than any model takes.
        """
        self.steps += count
        if self.steps > self.STEPS:
            raise ValueError("it is damaged or far larger than any model's: it would take too long to read.")

    def hold(self, size: int) -> None:
        """Counts bytes, before they are allocated.

        Raises:
            ValueError: these are more than any model takes.
        """
        self.held += size
        if self.held > self.BYTES:
            raise ValueError("it is damaged or far larger than any model's: it would take too much memory.")
