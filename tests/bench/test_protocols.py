"""Specification of bench.protocols, with the checks of bench.wire on top of each dialect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.protocols import DIALECTS, SUBSCRIBED
from bench.wire import Expected, Script, payloads

TEXTS = payloads(64, 16, 90)
PROTOS = list(DIALECTS)
# What a server says about the connection itself, and what it wants to hear then.
NEWS = {b"PING\r\n": b"PONG\r\n", b"+OK\r\n": b"", b'INFO {"port":1}\r\n': b""}
COMPLAINTS = {"line": b"! busy\n", "redis": b"-ERR unknown\r\n", "nats": b"-ERR 'Stale Connection'\r\n"}


@pytest.mark.parametrize(
    ("proto", "sent", "received"),
    [
        ("line", b"r0,r1: hi you\n", b"from s0: hi you\n"),
        (
            "redis",
            b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nr0\r\n$6\r\nhi you\r\n",
            b"*3\r\n$7\r\nmessage\r\n$2\r\nr0\r\n$6\r\nhi you\r\n",
        ),
        ("nats", b"PUB r0 6\r\nhi you\r\n", b"MSG r0 1 6\r\nhi you\r\n"),
    ],
)
def test_dialect_writes_a_message_once_for_all_recipients(proto: str, sent: bytes, received: bytes) -> None:
    """The line protocol names all recipients; the others publish once to what all of them listen to."""
    dialect = DIALECTS[proto]
    assert dialect.sent(["r0", "r1"], b"hi you") == sent
    assert dialect.received("s0", ["r0", "r1"], b"hi you") == received


@pytest.mark.parametrize(
    ("proto", "subject", "hello_end", "proof"),
    [
        ("redis", "", b"CLIENT REPLY OFF\r\n", b"+PONG\r\n"),
        (
            "redis",
            "r0",
            b"*2\r\n$9\r\nSUBSCRIBE\r\n$2\r\nr0\r\n",
            b"*3\r\n$9\r\nsubscribe\r\n$2\r\nr0\r\n:1\r\n",
        ),
        ("nats", "", b"}\r\nPING\r\n", b"PONG\r\n"),
        ("nats", "r0", b"}\r\nSUB r0 1\r\nPING\r\n", b"PONG\r\n"),
    ],
)
def test_login_subscribes_when_there_is_a_subject(
    proto: str, subject: str, hello_end: bytes, proof: bytes
) -> None:
    """A session listens to its subject before it is taken for logged in; a publisher is told nothing more."""
    hello, wanted = SUBSCRIBED[proto].login(subject)
    assert hello.endswith(hello_end)
    assert wanted == proof
    assert SUBSCRIBED[proto].cut(wanted) == ([wanted], b"")


@given(proto=st.sampled_from(PROTOS), pieces=st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_cut_gives_the_same_frames_when_a_stream_is_split_anywhere(proto: str, pieces: list[int]) -> None:
    """Whole frames come out once each, in order, and what is not whole is kept."""
    dialect = DIALECTS[proto]
    frames = [dialect.received("s0", ["r0"], text) for text in TEXTS[:20]] + [COMPLAINTS[proto]]
    stream, found, rest, at = b"".join(frames), [], b"", 0
    for size in [*pieces, len(b"".join(frames))]:
        fresh, rest = dialect.cut(rest + stream[at : at + size])
        found += fresh
        at += size
    assert found == frames
    assert rest == b""


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_expected_finds_every_fault_in_each_dialect(proto: str, size: int) -> None:
    """A lost, a changed and a doubled message and a complaint are each counted, however reads are cut."""
    dialect = DIALECTS[proto]
    lines = [dialect.received("s0", ["r0"], text) for text in TEXTS]
    changed = lines[20].replace(b"x", b"y")
    stream = b"".join(
        [*lines[:10], *lines[11:20], changed, COMPLAINTS[proto], *lines[21:30], lines[29], *lines[30:]]
    )
    expected = Expected(Script(b"", lines, b""), dialect)
    done = sum(expected.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert done == len(lines) - 2 + 1
    assert (expected.corrupt, expected.notices) == (1, 1)
    assert expected.reordered == 3  # after the lost, after the changed, and the double
    assert expected.owed == b""


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("news", NEWS)
def test_expected_answers_a_nats_server_and_counts_no_fault_when_it_asks(news: bytes, size: int) -> None:
    """What is about the connection is no message and no fault, in the middle of a stream too."""
    dialect = DIALECTS["nats"]
    lines = [dialect.received("s0", ["r0"], text) for text in TEXTS]
    expected = Expected(Script(b"", lines, b""), dialect)
    stream = b"".join([*lines[:5], news, *lines[5:]])
    done = sum(expected.feed(stream[i : i + size]) for i in range(0, len(stream), size))
    assert done == len(lines)
    assert (expected.corrupt, expected.notices, expected.reordered) == (0, 0, 0)
    assert expected.owed == NEWS[news]


@pytest.mark.parametrize("proto", PROTOS)
@given(data=st.binary(max_size=200))
def test_cut_loses_no_byte_when_the_stream_is_garbage(proto: str, data: bytes) -> None:
    """Frames and rest are the stream, whatever it is."""
    frames, rest = DIALECTS[proto].cut(data)
    assert b"".join(frames) + rest == data
    for frame in frames:
        DIALECTS[proto].answer(frame)
