"""What messages show, whatever came."""

import functools

import pytest

from flax_sepconv._messages import printable, shown


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, "a", (2.5,), {"b": None}], "[1, 'a', (2.5,), {'b': None}]"),
        (10**6000, "an integer of 19932 bits"),
        ([[1] * 10**6] * 10**6, "[[1, 1, 1, "),
        (dict.fromkeys(range(10**4), "x" * 10**7), "{0: 'xxx"),
        (functools.reduce(lambda inner, _: [inner], range(10**5), []), "[[[[["),
    ],
    ids=["small", "integer", "list", "dict", "deep"],
)
def test_a_value_is_shown_in_a_line_however_large_it_is(value, text):
    assert shown(value).startswith(text)
    assert len(shown(value)) <= 100
