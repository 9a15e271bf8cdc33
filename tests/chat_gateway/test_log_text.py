"""What comes from peers and exceptions is safe to show, and short."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.log_text import describe_exception, peer_text
from tests.chat_gateway.log_tap import ANY_TEXT, is_clean, raises


def test_exception_names_its_causes_when_it_has_some() -> None:
    """Causes, contexts and members of a group are named, nearest first."""
    cause = KeyError("k")
    cause.__context__ = OSError("deep")
    group = ExceptionGroup("tasks", [ValueError("a"), TypeError("b")])
    group.__cause__ = cause
    assert describe_exception(group)["causes"] == [
        "ValueError: a",
        "TypeError: b",
        "KeyError: 'k'",
        "OSError: deep",
    ]


def test_exception_names_no_context_when_it_was_suppressed() -> None:
    """`raise … from None` is respected."""
    error = ValueError("x")
    error.__context__ = KeyError("k")
    assert "causes" in describe_exception(error)
    error.__suppress_context__ = True
    assert "causes" not in describe_exception(error)


def test_exception_is_shortened_when_it_is_long() -> None:
    """A deep recursion with a long message and a long chain of causes make a short record."""

    def recurse(depth: int) -> None:
        if not depth:
            raises("x" * 100_000)
        recurse(depth - 1)

    with pytest.raises(ValueError, match="x") as caught:
        recurse(100)
    first = caught.value
    error: BaseException = first
    for number in range(50):
        error.__cause__ = KeyError(number)
        error = error.__cause__
    described: dict[str, Any] = describe_exception(first)
    assert len(described["traceback"]) == 8
    assert described["traceback"][-1].endswith(" raises")
    assert described["message"] == "x" * 500 + "..."
    assert described["causes"] == [f"KeyError: {number}" for number in range(8)]


def test_exception_is_described_once_when_it_causes_itself() -> None:
    """A chain that bites its own tail has an end."""
    error, cause = ValueError("x"), KeyError("k")
    error.__cause__, cause.__cause__ = cause, error
    assert describe_exception(error)["causes"] == ["KeyError: 'k'"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"alice", "alice"),
        ("zoë", "zoë"),
        ("zoë".encode(), "zoë"),
        (b"", ""),
        (b"GET / HTTP/1.1\r\n", "GET / HTTP/1.1\\x0d\\x0a"),
        (b"\x16\x03\x01\xff", "\\x16\\x03\\x01\\xff"),
        ("\x7f\x85\u202e\u2028\U000e0001", "\\x7f\\u0085\\u202e\\u2028\\U000e0001"),
        ("a\\nb", "a\\\\nb"),
        ("\ud800", "\\xed\\xa0\\x80"),
        (b"x" * 64, "x" * 64),
        (b"x" * 65, "x" * 64 + "... (+1 bytes)"),
        ("é" * 40, "é" * 32 + "... (+16 bytes)"),
        ("x" + "é" * 40, "x" + "é" * 31 + "... (+18 bytes)"),
        ("xx" + "\U0001f600" * 20, "xx" + "\U0001f600" * 15 + "... (+20 bytes)"),
        (b"\x80" * 100, "\\x80" * 61 + "... (+39 bytes)"),
    ],
)
def test_peer_text_is_short_and_harmless_when_a_peer_sends_anything(data: bytes | str, expected: str) -> None:
    """What shows itself stays; the rest is escaped; the number of bytes that are missing is said."""
    assert peer_text(data) == expected


@given(st.binary() | ANY_TEXT, st.integers(0, 100))
def test_peer_text_is_clean_and_bounded_when_a_peer_sends_anything(data: bytes | str, limit: int) -> None:
    """No character of a peer acts on a terminal, and no peer makes a long line."""
    text = peer_text(data, limit)
    assert is_clean(text)
    assert len(text) <= 4 * limit + len("... (+1000000 bytes)")


@given(st.text(max_size=16), st.text(max_size=16))
def test_peer_text_differs_when_the_input_differs(one: str, other: str) -> None:
    """What a peer sent can be told from its text."""
    assert (peer_text(one) == peer_text(other)) == (one == other)
