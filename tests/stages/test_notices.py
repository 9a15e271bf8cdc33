"""Lines from the gateway itself: their form, their merging and their bound."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.message import Refusal
from stages.notices import MAX_NAMES, Notices, notice_line


@pytest.mark.parametrize(
    ("word", "reason", "name", "count", "line"),
    [
        ("unknown-recipient", Refusal.UNKNOWN, "carol", 1, b"! unknown-recipient carol: not logged in\n"),
        (
            "unknown-recipient",
            Refusal.UNKNOWN,
            "carol",
            3,
            b"! unknown-recipient carol: 3 messages, not logged in\n",
        ),
        ("refused", Refusal.BREAKER_OPEN, "bob", 312, b"! refused bob: 312 messages, breaker open\n"),
        ("refused", Refusal.FULL, "bob", 1, b"! refused bob: 1 message, full\n"),
        ("refused", Refusal.ERROR, "", 2, b"! refused 2 messages, error\n"),
        ("bad-line", "no colon", "", 1, b"! bad-line no colon\n"),
        ("bad-line", "no colon", "", 2, b"! bad-line 2 lines, no colon\n"),
    ],
)
def test_notices_say_word_name_count_and_reason_when_taken(
    word: str, reason: str, name: str, count: int, line: bytes
) -> None:
    """The exact bytes of each form, as the protocol has it."""
    notices = Notices()
    notices.add(word, reason, name=name, count=count)
    assert notices.take() == line


def test_notice_line_escapes_when_name_breaks_lines() -> None:
    """A name cannot forge a second line."""
    line = notice_line("unknown-recipient", "not_logged_in", name="a\nfrom bob: x\u202e")
    assert line == b"! unknown-recipient a\\x0afrom bob: x\\u202e: not logged in\n"


def test_notices_merge_when_of_one_kind() -> None:
    """A thousand refusals of one kind are one line with a count."""
    notices = Notices()
    for _ in range(1000):
        notices.add("refused", "full", name="bob", count=2)
    assert notices.take() == b"! refused bob: 2000 messages, full\n"


def test_notices_stay_apart_when_word_name_or_reason_differ() -> None:
    """Kinds are told apart and come in the order in which they first occurred."""
    notices = Notices()
    notices.add("refused", "full", name="bob")
    notices.add("refused", "gone", name="bob")
    notices.add("refused", "full", name="eve")
    notices.add("bad-line", "words")
    notices.add("refused", "full", name="bob")
    assert notices.take() == (
        b"! refused bob: 2 messages, full\n! refused bob: 1 message, gone\n"
        b"! refused eve: 1 message, full\n! bad-line words\n"
    )


def test_notices_are_empty_when_taken() -> None:
    """Taking begins anew."""
    notices = Notices()
    assert not notices
    notices.add("bad-line", "words")
    assert notices
    notices.take()
    assert not notices
    assert notices.take() == b""


def test_notices_leave_names_out_when_there_are_too_many() -> None:
    """Beyond `MAX_NAMES` kinds further names share one line, and known ones go on counting."""
    notices = Notices()
    for number in range(MAX_NAMES + 10):
        notices.add("unknown-recipient", "not_logged_in", name=f"n{number}")
    notices.add("unknown-recipient", "not_logged_in", name="n0")
    lines = notices.take().splitlines()
    assert len(lines) == MAX_NAMES + 1
    assert lines[0] == b"! unknown-recipient n0: 2 messages, not logged in"
    assert lines[-1] == b"! unknown-recipient 10 messages, not logged in"


def test_notices_count_lines_without_names_when_names_are_used_up() -> None:
    """A kind without a name is never dropped for want of room."""
    notices = Notices()
    for number in range(MAX_NAMES):
        notices.add("unknown-recipient", "not_logged_in", name=f"n{number}")
    notices.add("bad-line", "words", count=2)
    assert notices.take().endswith(b"\n! bad-line 2 lines, words\n")


def test_notices_keep_few_bytes_when_names_are_huge() -> None:
    """A name of 16 KiB, four times that as a Python string, costs no more than what is shown of it."""
    notices = Notices()
    name = "x" * 16000 + "\U0001f600"
    names = [chr(0x4E00 + number) + name for number in range(MAX_NAMES)]
    before = sys.getsizeof(name)
    kept: list[str] = []
    for one in names:
        notices.add("unknown-recipient", "not_logged_in", name=one)
        kept.extend(key[1] for key in notices._pending if key[1] not in kept)
    assert sum(map(sys.getsizeof, kept)) < before
    lines = notices.take().splitlines()
    assert len(lines) == MAX_NAMES
    assert lines[0] == "! unknown-recipient 一".encode() + b"x" * 63 + b"...: not logged in"


_KINDS = st.sampled_from([("refused", "full"), ("refused", "gone"), ("unknown-recipient", "not_logged_in")])


@given(st.lists(st.tuples(_KINDS, st.text(st.characters(), max_size=80), st.integers(1, 9)), max_size=120))
def test_notices_are_bounded_and_lose_no_count_when_names_are_hostile(
    added: list[tuple[tuple[str, str], str, int]],
) -> None:
    """Whatever names come: few lines, each of bounded length and a Notice, and the counts add up."""
    notices = Notices()
    for (word, reason), name, count in added:
        notices.add(word, reason, name=name, count=count)
    total = sum(notices._pending.values())
    data = notices.take()
    assert total == sum(count for _, _, count in added)
    assert data.endswith(b"\n") or not data
    lines = data.split(b"\n")[:-1]
    assert len(lines) <= MAX_NAMES + 3
    for line in lines:
        assert line.startswith((b"! refused ", b"! unknown-recipient "))
        assert len(line) < 750
        assert len(line.decode().splitlines()) == 1
