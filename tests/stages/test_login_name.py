"""What may be a login, and how names are compared and shown."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.login_name import MAX_LOGIN_BYTES, login_problem, normalised, peer_name

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    "name", ["a", "alice", "é", "Жанна", "李", "😀", "!", "a.b-c_d/e@f", "x" * 64, "é" * 32]
)
def test_login_problem_is_none_when_name_is_allowed(name: str) -> None:
    """Any printable name of one to 64 bytes is a login."""
    assert login_problem(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("x" * 65, "64 bytes"),
        ("é" * 33, "64 bytes"),
        ("a b", "white space"),
        (" a", "white space"),
        ("a\t", "white space"),
        ("a\u00a0b", "white space"),
        ("a\u3000b", "white space"),
        ("a\u2028b", "white space"),
        ("a\u2029b", "white space"),
        ("a,b", "','"),
        ("a:b", "':'"),
        ("a\ud800", "control"),
    ],
)
def test_login_problem_says_why_when_name_is_not_allowed(name: str, words: str) -> None:
    """Empty, too long in bytes, white space of any script, the two marks of the protocol, half characters."""
    assert words in (login_problem(name) or "")


@pytest.mark.parametrize("character", [*map(chr, range(0x20)), "\x7f", *map(chr, range(0x80, 0xA0)), *_BIDI])
def test_login_problem_refuses_when_a_character_controls_the_screen(character: str) -> None:
    """No C0, DEL, C1 or bidirectional control may stand in a login, wherever it stands."""
    assert login_problem(f"a{character}b")
    assert login_problem(character)


@given(st.text(max_size=80))
def test_login_problem_allows_no_name_that_could_forge_a_line(name: str) -> None:
    """An allowed login has no line end and no mark of the protocol, so its prefix is one unbroken head."""
    if login_problem(name) is None:
        assert name.splitlines() == [name]
        assert not set(name) & set(",: \t\n\r")
        assert 0 < len(name.encode()) <= MAX_LOGIN_BYTES


def test_normalised_is_equal_when_names_look_equal() -> None:
    """A letter with a mark is the same login whether it is one character or two."""
    assert normalised("Zoe\u0308") == normalised("Zo\u00eb") == "Zo\u00eb"
    assert normalised("\u212a") == "K"
    assert normalised("alice") == "alice"


@given(st.text(max_size=100))
def test_normalised_changes_nothing_when_done_twice(name: str) -> None:
    """Normalising is idempotent."""
    assert normalised(normalised(name)) == normalised(name)


def test_normalised_reaches_every_possible_login_when_it_leaves_long_names_alone() -> None:
    """Every name that normalises to an allowed login is short enough to be normalised.

    No character's decomposition is longer than 3 characters for each 2 of its bytes, so what becomes 64
    bytes has at most 96 characters.
    """
    ratios = (
        len(unicodedata.normalize("NFD", character)) / len(character.encode())
        for character in map(chr, range(sys.maxunicode + 1))
        if not "\ud800" <= character <= "\udfff" and unicodedata.is_normalized("NFC", character)
    )
    assert max(ratios) == 1.5
    longest = "\u03b9\u0308\u0301" * 32
    assert len(longest) == 96
    assert normalised(longest) == "\u0390" * 32
    assert login_problem(normalised(longest)) is None


def test_normalised_takes_linear_time_when_marks_are_piled_up() -> None:
    """Sorting the marks on one letter would be quadratic: 8,000 marks held the loop for 70 ms."""

    def seconds(marks: int) -> float:
        name = "a" + "\u0301" * marks + "\u0316" * marks
        best = 1e9
        for _ in range(3):
            began = time.thread_time()
            normalised(name)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(4000) < 10 * seconds(40)  # quadratic: 10,000 times


def test_peer_name_is_unchanged_when_it_is_printable() -> None:
    """What people can read is shown as it is."""
    assert peer_name("carol smith é 李") == "carol smith é 李"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\tb", "a\\x09b"),
        ("\n", "\\x0a"),
        ("\x85", "\\x85"),
        ("\u2028", "\\u2028"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_peer_name_escapes_when_it_could_change_the_screen(name: str, shown: str) -> None:
    """Control, bidirectional and unprintable characters are shown by their number."""
    assert peer_name(name) == shown


def test_peer_name_is_cut_when_it_is_longer_than_a_login() -> None:
    """64 characters are shown whole, the 65th becomes dots."""
    assert peer_name("x" * 64) == "x" * 64
    assert peer_name("x" * 65) == "x" * 64 + "..."


@given(st.text(st.characters(), max_size=100))
def test_peer_name_is_one_bounded_line_when_a_peer_sends_anything(name: str) -> None:
    """Whatever a peer sends, it can be encoded and breaks no line."""
    shown = peer_name(name)
    assert len(shown.encode()) <= 64 * 10 + 3
    assert len(shown.splitlines()) <= 1
