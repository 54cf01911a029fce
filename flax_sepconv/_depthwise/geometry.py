"""The static numbers of a depthwise step, after its padding has become two amounts of zeros."""

from typing import NamedTuple

from flax_sepconv import _window


class Geometry(NamedTuple):
    """Window `o` reads input rows `o * strides + t * dilation - low` for `t < kernel_size`, zeros outside."""

    length: int
    kernel_size: int
    strides: int
    dilation: int
    low: int
    high: int

    @property
    def span(self) -> int:
        """Rows from the first that a window reads to the last, both included."""
        return _window.span(self.kernel_size, self.dilation)

    @property
    def output_length(self) -> int:
        """Number of windows."""
        return (self.low + self.length + self.high - self.span) // self.strides + 1

    @property
    def interior(self) -> tuple[int, int]:
        """The first window that lies wholly inside the input, and the first after it that does not."""
        first = min(max(0, -(-self.low // self.strides)), self.output_length)
        last = (self.length - self.span + self.low) // self.strides + 1
        return first, max(min(last, self.output_length), first)

    @property
    def is_inside(self) -> bool:
        """Whether no window reads a zero outside of the input."""
        return self.interior == (0, self.output_length)
