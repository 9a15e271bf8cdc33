"""Messages between supervisor and worker: they arrive as they were, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.bus_frames import FrameError, Frames, Greet, encode_frame
from chat_gateway.control_frames import (
    TO_SUPERVISOR,
    TO_WORKER,
    Beat,
    Close,
    Drain,
    Drained,
    Hello,
    Members,
    PleaseDrain,
    Ready,
    Snapshot,
)

if TYPE_CHECKING:
    import msgspec

_NUMBERS = st.integers(0, 2**63)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FROM_WORKER: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Hello, _NUMBERS, _NUMBERS),
    st.builds(Ready),
    st.builds(
        Beat,
        _NUMBERS,
        _NUMBERS,
        _NUMBERS,
        st.dictionaries(st.text(max_size=10), _NUMBERS, max_size=3),
        _NUMBERS,
    ),
    st.builds(Snapshot, st.dictionaries(st.text(max_size=5), _VALUES, max_size=3)),
    st.builds(Drained, _NUMBERS),
    st.builds(PleaseDrain),
)
FROM_SUPERVISOR: st.SearchStrategy[msgspec.Struct] = st.one_of(
    st.builds(Members, _NUMBERS, st.lists(st.tuples(_NUMBERS, _NUMBERS, st.booleans()), max_size=4)),
    st.builds(Drain, st.sampled_from(["shutdown", "restarting"]), st.floats(0, 1e6)),
    st.builds(Close),
)
BOTH = [(TO_SUPERVISOR, FROM_WORKER), (TO_WORKER, FROM_SUPERVISOR)]
DECODERS = pytest.mark.parametrize("decoder", [TO_SUPERVISOR, TO_WORKER], ids=["supervisor", "worker"])


def framed(body: bytes) -> bytes:
    """Whatever the body is."""
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(("decoder", "messages"), BOTH, ids=["supervisor", "worker"])
@given(data=st.data())
def test_messages_arrive_as_they_were_when_reads_cut_them_anywhere(
    decoder: msgspec.msgpack.Decoder[object],
    messages: st.SearchStrategy[msgspec.Struct],
    data: st.DataObject,
) -> None:
    """Every kind of message, several in a row, with every value as it was."""
    said = data.draw(st.lists(messages, max_size=4))
    stream = b"".join(map(encode_frame, said))
    size = data.draw(st.integers(1, max(len(stream), 1)))
    frames = Frames(decoder)
    pieces = [stream[begin : begin + size] for begin in range(0, len(stream), size)]
    assert [message for piece in pieces for message in frames.feed(piece)] == said


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        pytest.param(TO_SUPERVISOR, Close(), id="what only the supervisor says"),
        pytest.param(TO_WORKER, Hello(1, 2), id="what only a worker says"),
        pytest.param(TO_WORKER, Greet(1), id="what workers say to each other"),
    ],
)
def test_message_is_refused_when_it_is_for_somebody_else(
    decoder: msgspec.msgpack.Decoder[object], message: msgspec.Struct
) -> None:
    """Its tag is unknown there."""
    with pytest.raises(FrameError, match=r"^a frame that is no message: Invalid value \d+"):
        Frames(decoder).feed(encode_frame(message))


@pytest.mark.parametrize(
    ("decoder", "body"),
    [
        pytest.param(TO_SUPERVISOR, b"\x92\x04\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", id="deep"),
        pytest.param(TO_SUPERVISOR, b"\x92\x04\x81\xa1a\xdd\xff\xff\xff\xff", id="long"),
        pytest.param(TO_SUPERVISOR, b"\x92\x04\x81\xa1a\x81\x80\xc0", id="a key that is none"),
        pytest.param(TO_SUPERVISOR, b"\x92\x04\x81\xa1a\xd7\xff" + b"\xff" * 8, id="a time that is none"),
        pytest.param(TO_SUPERVISOR, b"\x92\x04\x81\x01\xc0", id="a number for a key"),
        pytest.param(TO_WORKER, b"\x93\x0c\xa4soon\xca\x00\x00\x00\x00", id="an unknown reason"),
        pytest.param(TO_WORKER, b"\x93\x0b\x01\x91\x92\x00\x01", id="half a member"),
        pytest.param(TO_WORKER, b"\x93\x0b\x01\xdd\xff\xff\xff\xff", id="members"),
        pytest.param(TO_WORKER, b"\x90", id="nothing"),
    ],
)
def test_message_is_refused_when_its_values_are_none_that_it_can_have(
    decoder: msgspec.msgpack.Decoder[object], body: bytes
) -> None:
    """With the declared error alone."""
    with pytest.raises(FrameError, match=r"^a frame that is no message: "):
        Frames(decoder).feed(framed(body))


@DECODERS
@given(body=st.binary(max_size=60), tag=st.integers(0, 15))
def test_frames_raise_nothing_but_their_error_when_bytes_are_anything(
    decoder: msgspec.msgpack.Decoder[object], body: bytes, tag: int
) -> None:
    """Also when they begin as a message does."""
    for data in (body, framed(body), framed(b"\x92" + bytes([tag]) + body)):
        with contextlib.suppress(FrameError):
            Frames(decoder).feed(data)
