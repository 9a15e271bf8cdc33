"""Framing, parsing and encoding of the line protocol, held against a reference that goes line by line."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.line_codec import LineCodec, LineFramer, most_entries, most_tail_bytes
from stages.login_name import login_problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stages.message import Run

_MAX_LINE_BYTES = 40
_MAX_RECIPIENTS = 3


class Said(NamedTuple):
    """What a client has said in all."""

    messages: list[tuple[tuple[str, ...], str]]
    rejected: Counter[str]
    is_too_long: bool


# The reference: every rule of the protocol as plainly as it can be said.


def _reference(stream: bytes) -> Said:
    said = Said([], Counter(), False)
    *lines, unfinished = stream.split(b"\n")
    for line in [*lines, unfinished]:
        if len(line) > _MAX_LINE_BYTES:
            return said._replace(is_too_long=True)
        verdict = _reference_line(line.removesuffix(b"\r"))
        if isinstance(verdict, str):
            said.rejected[verdict] += 1
        elif verdict is not None:
            said.messages.append(verdict)
    return said


def _reference_line(line: bytes) -> tuple[tuple[str, ...], str] | str | None:
    """A message, the word for what is wrong with it, or None for an empty line."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "bad-text"
    if not text:
        return None
    if any(unicodedata.category(character) == "Cc" and character != "\t" for character in text):
        return "bad-text"
    if ":" not in text:
        return "bad-line"
    head, _, said = text.partition(":")
    recipients: list[str] = []
    for part in head.split(","):
        name = unicodedata.normalize("NFC", part.strip(" \t"))
        if name and name not in recipients:
            recipients.append(name)
    if not recipients:
        return "bad-line"
    if len(recipients) > _MAX_RECIPIENTS:
        return "too-many-recipients"
    return tuple(recipients), said.strip(" \t")


# The code under test, driven as a connection drives it.


def _hear(pieces: Iterable[bytes], codec: LineCodec | None = None) -> Said:
    codec = codec or LineCodec(_MAX_RECIPIENTS)
    framer = LineFramer(_MAX_LINE_BYTES)
    said = Said([], Counter(), False)
    for piece in pieces:
        block, is_too_long = framer.feed(piece)
        _add(said, codec, block)
        if is_too_long:
            return said._replace(is_too_long=True)
    block, is_too_long = framer.feed(framer.finish())
    assert not is_too_long
    _add(said, codec, block)
    return said


def _add(said: Said, codec: LineCodec, block: bytes) -> None:
    runs, rejected = codec.parse(block, block.count(b"\n"))
    said.messages.extend(_messages(runs))
    said.rejected.update(rejected)


def _messages(runs: list[Run]) -> list[tuple[tuple[str, ...], str]]:
    for run in runs:
        assert run.count == run.texts.count(b"\n") > 0
        assert run.texts.endswith(b"\n")
        assert run.recipients
    return [(message.recipients, message.text) for run in runs for message in run.messages()]


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


_HEADS = st.sampled_from(
    [
        *([b"bob"] * 6),
        *(b"bob,eve", b" bob ,\teve", b"bob,,", b",", b"", b" ", b"\t", b"bob,bob", b"a,b,c", b"a,b,c,d"),
        *(b"bo b", b"b\x00b", b"\xff"),
        *(name.encode() for name in ("Zoe\u0308,Zo\u00eb", "\u00e9", "bob\u00a0")),
    ]
)
_COLONS = st.sampled_from([b": ", b": ", b": ", b":", b":  ", b":\t", b"", b" : ", b"::"])
_TEXTS = st.sampled_from(
    [
        *([b"hi"] * 4),
        *(b"", b" ", b"hi ", b"hi\t", b" hi", b"\thi", b"a\tb", b"a:b", b"bob: hi", b"from bob: x", b"! x"),
        *(b"\x00", b"\x0b", b"\x0c", b"\x1b[2J", b"\x1c", b"\x7f", b"\r", b"a\rb", "\u0085".encode()),
        *(text.encode() for text in ("\u009b", "\u00a0", "\u2028", "\u202e", "e\u0301 \U0001f600")),
        *(b"\xff", b"\xc3", b"\x85", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\xaf"),
        *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
        *("é".encode() * 20, b"x" * 34, b"x" * 35, b"x" * 36, b"x" * 60),
    ]
)
_ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r\r\n", b"\n\n", b"\n\r", b" \n"])
_LINES = st.builds(lambda *parts: b"".join(parts), _HEADS, _COLONS, _TEXTS, _ENDS)
_RUNS = st.builds(lambda line, times: line * times, _LINES, st.integers(1, 4))
_STREAMS = st.builds(
    lambda runs, last: b"".join(runs) + last,
    st.lists(_RUNS, max_size=8),
    _LINES | st.just(b"") | st.just(b"bob: hi"),
) | st.binary(max_size=120)
_CUTS = st.lists(st.integers(0, 2000), max_size=12)


@given(_STREAMS, _CUTS)
def test_codec_agrees_with_the_reference_when_bytes_are_split(stream: bytes, cuts: list[int]) -> None:
    """Any split into reads yields the same messages, rejections and verdict on the line length."""
    said = _hear(_cut(stream, cuts))
    assert said == _reference(stream)


@given(_STREAMS)
def test_codec_agrees_with_the_reference_when_bytes_come_one_by_one(stream: bytes) -> None:
    """The smallest reads there are."""
    assert _hear(bytes([byte]) for byte in stream) == _reference(stream)


@given(_STREAMS, _CUTS)
def test_codec_says_the_same_when_it_knows_the_recipients_already(stream: bytes, cuts: list[int]) -> None:
    """What earlier blocks left in the cache changes the speed and nothing else."""
    codec = LineCodec(_MAX_RECIPIENTS)
    _hear([stream], codec)
    assert _hear(_cut(stream, cuts), codec) == _reference(stream)


@given(
    st.sampled_from([b"bob", b"bob , eve", b" bob", "Zo\u00eb".encode()]),
    st.sampled_from([b": ", b":"]),
    st.lists(st.text("ab: \té\u0301\u2028", max_size=6), min_size=1, max_size=8),
)
def test_parse_is_equal_when_block_is_whole_or_in_lines(head: bytes, first: bytes, texts: list[str]) -> None:
    """A block to known recipients that is rewritten as a whole equals its lines one by one."""
    lines = [head + b": " + text.encode() + b"\n" for text in texts]
    lines[0] = head + first + texts[0].encode() + b"\n"
    codec = LineCodec(_MAX_RECIPIENTS)
    codec.parse(head + b":\n", 1)
    whole = _messages(codec.parse(b"".join(lines), len(lines))[0])
    assert whole == [_reference_line(line[:-1]) for line in lines]


class _NeverSplit(bytes):
    """A block that must not be taken apart into lines."""

    def split(self, *_: object) -> list[bytes]:
        raise AssertionError


@pytest.mark.parametrize("text", [b"hi", b"", "Привет".encode(), b"a b", b"a\tb", b"bob: x"])
def test_parse_rewrites_a_block_as_a_whole_when_it_is_plain_and_known(text: bytes) -> None:
    """The usual traffic is never looked at line by line."""
    codec = LineCodec(_MAX_RECIPIENTS)
    codec.parse(b"bob, eve:\n", 1)
    (run,), _ = codec.parse(_NeverSplit((b"bob, eve: " + text + b"\n") * 9), 9)
    assert (run.recipients, run.texts, run.count) == (("bob", "eve"), (text + b"\n") * 9, 9)


def test_parse_joins_neighbours_when_recipients_are_the_same() -> None:
    """Runs end where the recipients change, however these were written; rejected lines end no run."""
    runs, rejected = LineCodec(2).parse(b"bob:1\nbob ,:2\nx\n\nbob,bob: 3\nbob,eve:4\neve,bob:5\nbob:6\n", 8)
    assert [(run.recipients, run.texts) for run in runs] == [
        (("bob",), b"1\n2\n3\n"),
        (("bob", "eve"), b"4\n"),
        (("eve", "bob"), b"5\n"),
        (("bob",), b"6\n"),
    ]
    assert rejected == {"bad-line": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"bob: hello", (("bob",), "hello")),
        (b" bob\t, eve :\t hi:there: \t", (("bob", "eve"), "hi:there:")),
        (b"bob,eve,bob: x", (("bob", "eve"), "x")),
        ("Zoe\u0308, Zo\u00eb: x".encode(), (("Zo\u00eb",), "x")),
        (b"bob,,: x", (("bob",), "x")),
        (b",, ,: x", "bad-line"),
        (b": x", "bad-line"),
        (b"bob:", (("bob",), "")),
        (b"bob", "bad-line"),
        (b" ", "bad-line"),
        (b"", None),
        (b"\r", None),
        (b"bob: x\r", (("bob",), "x")),
        (b"bob: x\r\r", "bad-text"),
        (b"bob: a\rb", "bad-text"),
        (b"\rbob: x", "bad-text"),
        (b"a,b,c: x", (("a", "b", "c"), "x")),
        (b"a,b,c,a,b,c: x", (("a", "b", "c"), "x")),
        (b"a,b,c,d: x", "too-many-recipients"),
        ("bob: \u202ex\u2066".encode(), (("bob",), "\u202ex\u2066")),
        ("bob: a\u2028b".encode(), (("bob",), "a\u2028b")),
        ("bob: \u00a0x".encode(), (("bob",), "\u00a0x")),
        (b"bob: a\tb", (("bob",), "a\tb")),
        (b"! bob: x", (("! bob",), "x")),
        (b"bob: \xc0\xaf", "bad-text"),
        (b"bob: \xe0\x80\xaf", "bad-text"),
        (b"bob: \xed\xa0\x80", "bad-text"),
        (b"bob: \xf4\x90\x80\x80", "bad-text"),
        (b"bob: \x85", "bad-text"),
        (b"\xff: x", "bad-text"),
        ("bob: \u00c2\u0082".encode(), "bad-text"),
        ("bob: \u00c2\u00a9 \u0102".encode(), (("bob",), "\u00c2\u00a9 \u0102")),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_parse_keeps_the_protocol_when_lines_are_odd(
    line: bytes, expected: tuple[tuple[str, ...], str] | str | None, is_known: bool
) -> None:
    """Each row of the protocol's table that concerns a line, with a cold and a warm cache."""
    codec = LineCodec(3)
    if is_known:
        codec.parse(line + b"\n", 1)
    runs, rejected = codec.parse(line + b"\n", 1)
    if isinstance(expected, str):
        assert (runs, rejected) == ([], {expected: 1})
    else:
        assert _messages(runs) == ([] if expected is None else [expected])
        assert rejected == {}


@pytest.mark.parametrize("code", [*range(0xA1), 0xAD])
def test_parse_refuses_when_text_or_name_has_a_control_character(code: int) -> None:
    """C0 but tab and line feed, DEL and C1 are refused in text and names; what is next to them is not."""
    is_control = code < 0x20 or 0x7F <= code < 0xA0
    if chr(code) == "\n":
        return
    codec = LineCodec(9)
    for line in (f"bob: a{chr(code)}b", f"bob: {chr(code)}é", f"b{chr(code)}b: x"):
        _, rejected = codec.parse(line.encode() + b"\n", 1)
        if is_control and chr(code) != "\t":
            assert rejected == {"bad-text": 1}
        elif chr(code) != ":":
            assert rejected == {}


def test_parse_refuses_only_the_bad_lines_when_a_block_has_both() -> None:
    """One bad line does not taint its neighbours."""
    runs, rejected = LineCodec(3).parse(b"bob: 1\nbob: \xff\nbob: 2\nbob: \x07\nno\nbob: \xc3\xa9\n", 6)
    assert _messages(runs) == [(("bob",), "1"), (("bob",), "2"), (("bob",), "é")]
    assert rejected == {"bad-text": 2, "bad-line": 1}


# Encoding.

_LOGINS = st.text(min_size=1, max_size=20).filter(lambda name: login_problem(name) is None)
_PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20).map(str.strip)


def test_encode_puts_the_prefix_before_each_text_when_there_are_many() -> None:
    """The exact bytes that a recipient gets."""
    assert LineCodec.prefix("Zoë") == "from Zoë: ".encode()
    assert LineCodec.encode(b"from a: ", b"hi\n") == b"from a: hi\n"
    assert LineCodec.encode(b"from a: ", b"hi\n\nyou\n") == b"from a: hi\nfrom a: \nfrom a: you\n"


@given(_LOGINS, st.lists(_PLAIN, min_size=1, max_size=6))
def test_encode_is_undone_when_its_lines_are_parsed(login: str, texts: list[str]) -> None:
    """What is encoded is itself in the protocol, with the head `from LOGIN`, and decodes to what was said."""
    encoded = LineCodec.encode(LineCodec.prefix(login), "".join(f"{text}\n" for text in texts).encode())
    runs, _ = LineCodec(9).parse(encoded, len(texts))
    head = unicodedata.normalize("NFC", f"from {login}")
    assert _messages(runs) == [((head,), text) for text in texts]


@given(_LOGINS, _STREAMS, st.booleans())
def test_encode_forges_no_line_when_a_user_says_anything(login: str, stream: bytes, is_known: bool) -> None:
    """Each message is one line that begins with its true sender: no Notice, no line end within it."""
    codec = LineCodec(_MAX_RECIPIENTS)
    block = stream + b"\n"
    if is_known:
        codec.parse(block, block.count(b"\n"))
    prefix = LineCodec.prefix(login)
    runs, _ = codec.parse(block, block.count(b"\n"))
    for run in runs:
        encoded = LineCodec.encode(prefix, run.texts)
        lines = encoded.split(b"\n")
        assert lines.pop() == b""
        assert len(lines) == run.count
        assert all(line.startswith(prefix) for line in lines)
        assert not encoded.startswith(b"! ")
        assert b"\n! " not in encoded
        assert b"\r" not in encoded


# Framing.


@pytest.mark.parametrize("extra", [b"", b"\nbob: y", b"\n\n"])
def test_framer_gives_the_lines_before_when_one_is_too_long(extra: bytes) -> None:
    """A line of exactly the limit passes, one byte more does not, and what came before it counts."""
    limit = LineFramer(6)
    assert limit.feed(b"a: 123\nb: 456\n") == (b"a: 123\nb: 456\n", False)
    assert limit.feed(b"a: 1\nb: 1234" + extra) == (b"a: 1\n", True)
    assert LineFramer(6).feed(b"a: 1\nb: 1\nb: 1234" + extra) == (b"a: 1\nb: 1\n", True)


@given(st.lists(st.sampled_from([b"\n", b"x" * 3, b"x" * 50, b"a\n" * 30, b"x" * 20]), max_size=12))
def test_framer_keeps_at_most_the_longest_line_when_more_comes(pieces: list[bytes]) -> None:
    """What goes beyond is dropped at once, however it comes; the tail takes no more than is said of it."""
    framer = LineFramer(40)
    for piece in pieces:
        _, is_too_long = framer.feed(piece)
        assert len(framer.tail) <= 40
        assert sys.getsizeof(framer.tail) <= most_tail_bytes(40)
        if is_too_long:
            break


_NAME_LISTS = st.lists(st.sampled_from(["a", "b", "c", "", " ", "a "]), min_size=1, max_size=6)
_ANY_LINES = st.one_of(
    _NAME_LISTS.map(lambda names: ",".join(names) + ":,"), st.sampled_from(["", ",", "x"])
)


@given(st.lists(_ANY_LINES, max_size=9))
def test_most_entries_is_never_less_than_there_are_when_parsed(lines: list[str]) -> None:
    """What is counted before a block is parsed covers every batch that can be made of it."""
    data = "".join(f"{line}\n" for line in lines).encode()
    count = data.count(b"\n")
    runs, _ = LineCodec(_MAX_RECIPIENTS).parse(data, count) if data else ([], {})
    assert sum(len(run.recipients) for run in runs) <= most_entries(data, count, _MAX_RECIPIENTS)


def test_most_entries_is_bounded_when_commas_are_many() -> None:
    """Neither recipients of one line beyond the limit count, nor more than can have a name."""
    assert most_entries(b"," * 1000 + b"\n", 1, 256) == 256
    assert most_entries(b"," * 9 + b"\n", 1, 256) == 4
    assert most_entries(b"bob: hello\n" * 9, 9, 256) == 9
    assert most_entries(b"\n" * 9, 9, 256) == 0


def test_framer_counts_the_carriage_return_when_a_line_is_measured() -> None:
    """The limit is on bytes as they were sent, so that it does not depend on how they were split."""
    assert LineFramer(3).feed(b"a:\r\n") == (b"a:\r\n", False)
    assert LineFramer(3).feed(b"a:1\r\n") == (b"", True)
    assert LineFramer(3).feed(b"a:1\r") == (b"", True)


def test_framer_keeps_the_unfinished_line_when_a_read_ends_within_it() -> None:
    """The tail is visible, is completed by later reads, and counts as a line at the end of the stream."""
    framer = LineFramer(100)
    assert framer.feed(b"ali") == (b"", False)
    assert framer.feed(b"ce") == (b"", False)
    assert framer.tail == b"alice"
    assert framer.feed(b"\nbob: h") == (b"alice\n", False)
    assert framer.tail == b"bob: h"
    assert framer.finish() == b"bob: h\n"
    assert framer.tail == b""
    assert framer.finish() == b""


def test_framer_holds_no_more_than_a_line_and_a_read_when_no_line_ends() -> None:
    """A peer that never ends its line is found out by the read that passes the limit."""
    framer = LineFramer(1000)
    reads = 0
    while not framer.feed(b"x" * 64)[1]:
        reads += 1
    assert reads == 1000 // 64
    assert len(framer.tail) <= 1000 + 64


# Cost.


def test_framer_appends_in_place_when_a_line_grows_read_by_read() -> None:
    """What was read of a line is not copied again at each read."""
    framer = LineFramer(1000)
    framer.feed(b"a")
    framer.feed(b"b")
    tail = framer.tail
    for _ in range(100):
        framer.feed(b"c")
        assert framer.tail is tail
    assert tail == b"ab" + b"c" * 100


def test_parse_still_knows_lists_when_the_cache_was_flooded() -> None:
    """A flood makes others' lists be looked at once more, and then they are known again."""
    codec = LineCodec(256)
    for number in range(40_000):
        codec.parse(b"%d: x\n" % number, 1)
    block = b"bob: hi\n" * 9
    codec.parse(block, 9)
    assert _messages(codec.parse(_NeverSplit(block), 9)[0]) == [(("bob",), "hi")] * 9
