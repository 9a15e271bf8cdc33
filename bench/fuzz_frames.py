"""What fuzzing holds the frames of workers and supervisor against: garbage is refused by their error alone.

However a stream is split, it says the same up to where it is refused; what it says can be said again.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MODULES", "SEEDS", "check"]

MODULES = ("chat_gateway.bus_frames", "chat_gateway.control_frames")  # not imported before they are measured

_HEAD_BYTES = 4  # of each input: who listens and how, and where the stream is split
_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = 255  # the longest body that a seed can name in one byte
_IS_FRAMED = 0x10  # in the first byte: the lengths are right, each body stands behind its length in one byte


def _bodies(*bodies: bytes) -> bytes:
    return b"".join(bytes([len(body)]) + body for body in bodies)


def _frames(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(_LENGTH_BYTES, "big") + body for body in bodies)


# From workers: a greeting, copies, outcomes, places; from a worker and from the supervisor.
_GREET = b"\x92\x01\x07"
_CARRY = b"\x95\x0b\x01\xa3ann\xc2\x92\x93\x92\xa3bob\xa4c\xc3\xa4t\xc4\x06f: hi\n\x01\x93\x90\xc4\x00\x00"
_OUTCOMES = (
    b"\x93\x0c\x92\x01\xcd\x01\x00\x91\x95\x03\x04\x91\x93\xa3bob\xa4gone\x02\x91\x93\xa1d\xc4\x01\n\x01\xc3"
)
_PLACES = b"\x93\x09\x91\x93\xa3ann\x02\xa9192.0.2.7\xc3"
_BEAT = b"\x96\x03\x0a\x06\x01\x81\xa4gone\x02\xcf\xff\xff\xff\xff\xff\xff\xff\xff"
_SNAPSHOT = (
    b"\x92\x04\x82\xa1a\x92\x01\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xa1b\x81\xa1c\xd6\xff\x00\x00\x00\x01"
)
_MEMBERS = b"\x93\x0b\x02\x92\x93\x00\x01\xc3\x93\x01\x02\xc2"
_DRAIN = b"\x93\x0c\xa8shutdown\xcb\x40\x04\x00\x00\x00\x00\x00\x00"

SEEDS = (
    b"\x00\x05\x03\x01" + _frames(_GREET, _CARRY, _OUTCOMES),
    b"\x10\x00\x09\x30" + _bodies(_GREET, _CARRY, _OUTCOMES, _PLACES),
    b"\x11\x03\x00\x11" + _bodies(b"\x91\x02", _BEAT, _SNAPSHOT),
    b"\x12\x02\x07\x05" + _bodies(_MEMBERS, _DRAIN, b"\x91\x0d"),
    b"\x11\x01\x01\x01" + _bodies(b"\x92\x04\x81\xa1a" + b"\x91" * 40 + b"\x90"),
    b"\x00\x01\x02\x03" + _frames(_GREET) + b"\x00\x00\x01\x00" + b"x" * 256,
)


class _Said(NamedTuple):
    """What a stream has said, as far as it was not refused."""

    messages: list[str]  # in words, since no number is equal to one that is none
    is_refused: bool


def check(data: bytes) -> None:
    """Hold the frames against their properties on one input.

    Raises:
        AssertionError: one of them does not hold.
        Exception: another error than the declared one reached the caller.
    """
    head, stream = data[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\x01"), data[_HEAD_BYTES:]
    frames, control = (importlib.import_module(name) for name in MODULES)
    decoder = (frames.decoder_of(frames.Message), control.TO_SUPERVISOR, control.TO_WORKER)[
        head[0] % _IS_FRAMED % 3
    ]
    if head[0] & _IS_FRAMED:
        stream = _framed(stream)
    expected = _expected(decoder, stream)
    step = head[1] % 16 + 1
    ragged = [stream[i : i + step] for i in range(0, len(stream), step)]
    cuts = sorted(cut % (len(stream) + 1) for cut in head[2:])
    halves = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]
    for pieces in ([stream], ragged, halves):
        said = _said(frames, decoder, pieces)
        assert said.is_refused == expected.is_refused, "garbage was taken, or a message refused"
        if said.is_refused:  # what came in the same piece before it is lost
            assert said.messages == expected.messages[: len(said.messages)], "the split changed what was said"
        else:
            assert said.messages == expected.messages, "the split changed what was said"


def _framed(stream: bytes) -> bytes:
    """The same bodies with the lengths that frames have; the last one may be short of its length."""
    framed, begin = [], 0
    while begin < len(stream):
        size = stream[begin]
        framed += [size.to_bytes(_LENGTH_BYTES, "big"), stream[begin + 1 : begin + 1 + size]]
        begin += 1 + size
    return b"".join(framed)


def _expected(decoder: Any, stream: bytes) -> _Said:
    """What the stream says, found in the plainest way."""
    messages: list[str] = []
    begin = _LENGTH_BYTES
    while begin <= len(stream):
        size = int.from_bytes(stream[begin - _LENGTH_BYTES : begin], "big")
        body = stream[begin : begin + size]
        if size > _MAX_FRAME_BYTES:
            return _Said(messages, is_refused=True)
        if len(body) < size:
            break
        try:
            messages.append(repr(decoder.decode(body)))
        except Exception:  # whichever it is, it must have become the declared one
            return _Said(messages, is_refused=True)
        begin += size + _LENGTH_BYTES
    return _Said(messages, is_refused=False)


def _said(frames: Any, decoder: Any, pieces: Iterable[bytes]) -> _Said:
    found = frames.Frames(decoder, _MAX_FRAME_BYTES)
    messages: list[str] = []
    for piece in pieces:
        try:
            taken = list(found.feed(piece))
        except frames.FrameError:
            return _Said(messages, is_refused=True)
        messages += map(repr, taken)
        for message in taken:
            _say_again(frames, decoder, message)
    return _Said(messages, is_refused=False)


def _say_again(frames: Any, decoder: Any, message: Any) -> None:
    """What is said can be said on; but for the numbers of a worker, which are whatever it counts."""
    if type(message).__name__ == "Snapshot":
        return
    frame = frames.encode_frame(message)
    (again,) = frames.Frames(decoder).feed(frame)
    assert frames.encode_frame(again) == frame, "what was said is not what is said again"
