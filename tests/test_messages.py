"""What messages show, whatever came."""

import pytest

from flax_sepconv._messages import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("encoder/conv 1 é 層", "encoder/conv 1 é 層"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\tand a tab", r"two\nlines\tand a tab"),
        ("\u202eright to left\u200b", r"\u202eright to left\u200b"),
        ("half a pair \ud800", r"half a pair \ud800"),
    ],
)
def test_what_a_terminal_would_not_show_is_escaped(text, shown):
    assert printable(text) == shown
