"""Frames between workers: what is encoded decodes to itself; nothing else gets through or costs memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.bus_frames import (
    MAX_FRAME_BYTES,
    Answer,
    Ask,
    Carry,
    Check,
    Checked,
    Claim,
    Claimed,
    Cut,
    FrameError,
    Frames,
    Greet,
    Message,
    Outcomes,
    Owns,
    Part,
    Ping,
    Place,
    Places,
    Pong,
    Refused,
    Release,
    Report,
    Returned,
    decoder_of,
    encode_frame,
)

if TYPE_CHECKING:
    import msgspec

DECODER = decoder_of(Message)

_NUMBERS = st.integers(0, 2**63)
_LOGINS = st.text(max_size=20)
_LINES = st.binary(max_size=40)
_CUTS = st.builds(Cut, st.lists(_LOGINS, max_size=3), _LINES, _NUMBERS)
_PLACES = st.builds(Place, _LOGINS, _NUMBERS, st.text(max_size=40))
_PARTS = st.builds(
    Part,
    _NUMBERS,
    _NUMBERS,
    st.lists(st.builds(Refused, _LOGINS, st.text(max_size=20), _NUMBERS), max_size=3),
    st.lists(st.builds(Returned, _LOGINS, _LINES, _NUMBERS), max_size=3),
    st.booleans(),
)
MESSAGES: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Greet, _NUMBERS),
    st.builds(Claim, _NUMBERS, _LOGINS, st.text(max_size=40)),
    st.builds(Claimed, _NUMBERS, st.booleans()),
    st.builds(Release, _LOGINS),
    st.builds(Check, _NUMBERS, _LOGINS),
    st.builds(Checked, _NUMBERS, st.booleans()),
    st.builds(Ask, _NUMBERS, _LOGINS),
    st.builds(Answer, _NUMBERS, _NUMBERS),
    st.builds(Places, st.lists(_PLACES, max_size=3), st.booleans()),
    st.builds(
        Report, _NUMBERS, st.lists(st.tuples(_LOGINS, st.text(max_size=40)), max_size=3), st.booleans()
    ),
    st.builds(Owns, _NUMBERS, _NUMBERS),
    st.builds(Carry, _NUMBERS, _LOGINS, st.booleans(), st.lists(_CUTS, max_size=3)),
    st.builds(Outcomes, st.lists(_NUMBERS, max_size=3), st.lists(_PARTS, max_size=2)),
    st.builds(Ping, _NUMBERS),
    st.builds(Pong, _NUMBERS),
)

SOME = [
    Greet(7),
    Carry(1, "ann", False, [Cut(["bob", "cät"], b"from ann: hi\n", 1), Cut(["dan"], b"", 0)]),
    Outcomes([1, 2], [Part(3, 4, [Refused("bob", "gone", 2)], [Returned("dan", b"from ann: x\n", 1)], True)]),
    Places([Place("ann", 2, "192.0.2.7")], True),
]
STREAM = b"".join(map(encode_frame, SOME))


def framed(body: bytes) -> bytes:
    """Whatever the body is."""
    return len(body).to_bytes(4, "big") + body


def fed(data: bytes) -> list[object]:
    """What new frames make of it."""
    return list(Frames(DECODER).feed(data))


def peak_bytes(frames: Frames, data: bytes) -> int:
    """The most memory that was taken beside what was there, whether or not it is refused."""
    tracemalloc.start()
    try:
        frames.feed(data)
    except FrameError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@given(st.lists(MESSAGES, max_size=6))
def test_frames_are_the_messages_when_several_come_in_one_read(messages: list[msgspec.Struct]) -> None:
    """Every kind of message, in order, with every value as it was."""
    assert fed(b"".join(map(encode_frame, messages))) == messages


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 1000), max_size=5))
def test_frames_are_the_messages_when_reads_cut_them_anywhere(
    messages: list[msgspec.Struct], cuts: list[int]
) -> None:
    """A read is no frame."""
    stream = b"".join(map(encode_frame, messages))
    ends = sorted(min(cut, len(stream)) for cut in cuts)
    frames = Frames(DECODER)
    pieces = [stream[i:j] for i, j in zip([0, *ends], [*ends, None], strict=True)]
    assert [message for piece in pieces for message in frames.feed(piece)] == messages


@pytest.mark.parametrize("end", range(len(STREAM) + 1))
def test_frames_give_what_is_whole_when_a_read_ends_at_this_byte(end: int) -> None:
    """At each byte of the length, of the body and between: not before it is whole, and no later."""
    frames = Frames(DECODER)
    whole = [at for at in range(1, 5) if len(b"".join(map(encode_frame, SOME[:at]))) <= end]
    assert list(frames.feed(STREAM[:end])) == SOME[: len(whole)]
    assert list(frames.feed(STREAM[end:])) == SOME[len(whole) :]


def test_frames_are_the_messages_when_they_come_byte_by_byte() -> None:
    """And nothing is left over."""
    frames = Frames(DECODER)
    assert [message for byte in STREAM for message in frames.feed(bytes([byte]))] == SOME
    assert frames.feed(b"") == []
    assert list(frames.feed(encode_frame(Ping(1)))) == [Ping(1)]


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_frame_is_refused_when_it_announces_more_than_is_allowed(size: int) -> None:
    """By its length alone, before a byte of it has come or memory is taken for it; both sizes are told."""
    frames = Frames(DECODER)
    with pytest.raises(FrameError) as refused:
        frames.feed(size.to_bytes(4, "big"))
    assert str(refused.value) == f"a frame of {size} bytes; at most 4194304 are allowed"
    assert peak_bytes(Frames(DECODER), size.to_bytes(4, "big")) < 10_000


def test_frame_is_taken_when_it_is_as_large_as_is_allowed() -> None:
    """A bound is what may be reached; one byte more is too much."""
    frame = encode_frame(Carry(1, "ann", False, [Cut(["bob"], b"x" * 100, 1)]))
    size = len(frame) - 4
    assert len(list(Frames(DECODER, size).feed(frame))) == 1
    with pytest.raises(FrameError, match=f"a frame of {size} bytes; at most {size - 1} are allowed"):
        Frames(DECODER, size - 1).feed(frame)


def test_frames_hold_what_has_come_when_the_rest_is_only_announced() -> None:
    """An announcement takes no memory, and a frame that has come whole leaves none behind."""
    frames = Frames(DECODER)
    assert peak_bytes(frames, MAX_FRAME_BYTES.to_bytes(4, "big") + b"\x99" * 100) < 10_000
    large = encode_frame(Carry(1, "ann", False, [Cut(["bob"], b"x" * 1_000_000, 1)]))
    frames = Frames(DECODER)
    tracemalloc.start()
    for begin in range(0, len(large), 65_536):
        frames.feed(large[begin : begin + 65_536])
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 100_000
    assert peak < 3 * len(large)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x93\x09\xdd\xff\xff\xff\xff", id="places"),
        pytest.param(b"\x93\x0c\xdd\x10\x00\x00\x00", id="outcomes"),
        pytest.param(b"\x95\x0b\x01\xdb\xff\xff\xff\xff", id="name"),
        pytest.param(b"\x95\x0b\x01\xa1a\xc2\x91\x93\x90\xc6\x7f\xff\xff\xff", id="payload"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x01", id="message"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map"),
    ],
)
def test_frame_is_refused_when_what_it_holds_announces_more_than_there_is(body: bytes) -> None:
    """A length inside a frame is believed no more than that of a frame: no memory is taken for it."""
    with pytest.raises(FrameError, match=r"^a frame that is no message: "):
        fed(framed(body))
    assert peak_bytes(Frames(DECODER), framed(body)) < 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x92\x63\x01", id="unknown tag"),
        pytest.param(b"\x92\x00\x01", id="tag 0"),
        pytest.param(b"\x92\xff\x01", id="negative tag"),
        pytest.param(b"\x92\xa1a\x01", id="tag is text"),
        pytest.param(b"\x91\x01", id="no field"),
        pytest.param(b"\x93\x01\x01\x01", id="a field too many"),
        pytest.param(b"\x92\x01\xc3", id="another type"),
        pytest.param(b"\x92\x01\x01\x01", id="bytes behind it"),
        pytest.param(b"\x92\x04\xa2\xc3\x28", id="no UTF-8"),
        pytest.param(b"\x92\x04\xa3\xed\xa0\x80", id="a lone surrogate"),
        pytest.param(b"\xc1", id="never used"),
        pytest.param(b"\x91" * 100_000, id="deep"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    ],
)
def test_frame_is_refused_when_it_is_no_message(body: bytes) -> None:
    """With the declared error alone, also behind messages that are in order; and so it stays."""
    frames = Frames(DECODER)
    with pytest.raises(FrameError, match=r"^a frame that is no message: "):
        frames.feed(encode_frame(Ping(1)) + framed(body))
    with pytest.raises(FrameError):
        frames.feed(encode_frame(Ping(2)))


@given(MESSAGES, st.data())
def test_frame_is_refused_when_its_message_ends_early(message: msgspec.Struct, data: st.DataObject) -> None:
    """Wherever that is."""
    body = encode_frame(message)[4:]
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(FrameError, match="truncated"):
        fed(framed(body[:end]))


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_frames_raise_nothing_but_their_error_when_bytes_are_anything(pieces: list[bytes]) -> None:
    """As they are, and with lengths that are right."""
    for stream in (pieces, [framed(piece) for piece in pieces]):
        frames = Frames(DECODER)
        with contextlib.suppress(FrameError):
            for piece in stream:
                frames.feed(piece)


@given(MESSAGES, st.data())
def test_frames_raise_nothing_but_their_error_when_a_byte_is_another_one(
    message: msgspec.Struct, data: st.DataObject
) -> None:
    """A frame that is nearly right is another message or none."""
    body = bytearray(encode_frame(message)[4:])
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        (found,) = fed(framed(bytes(body)))
        assert fed(encode_frame(cast("msgspec.Struct", found))) == [found]
