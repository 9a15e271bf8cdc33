"""What workers say to each other, and how it is cut into frames on a Unix stream socket.

A frame is its length in four bytes (big-endian, without these) and one message in MessagePack. Frames are
bounded: a longer one, or one that is no message, is an error of the other process, which ends the link.
Knows nothing of sockets, sessions and who owns a login.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_FRAME_BYTES",
    "Answer",
    "Ask",
    "Carry",
    "Check",
    "Checked",
    "Claim",
    "Claimed",
    "Cut",
    "DirectoryMessage",
    "FrameError",
    "Frames",
    "Greet",
    "Message",
    "Outcomes",
    "Owns",
    "Ping",
    "Place",
    "Places",
    "Pong",
    "Release",
    "Report",
    "decoder_of",
    "encode_frame",
]

MAX_FRAME_BYTES = 4 * 1024 * 1024  # far above what senders of frames allow themselves
_LENGTH_BYTES = 4


class FrameError(Exception):
    """The other process sent what is no frame; the message says what."""


class _Struct(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """A message: an array of its tag and its fields, in order."""


# The directory of logins: who asks whom is told in `chat_gateway.directory`. A worker is named by its
# `wid`, a number that no other worker of this gateway ever has; 0 is nobody.


class Greet(_Struct, tag=1):
    """First on every link, both ways: who speaks."""

    wid: int


class Claim(_Struct, tag=2):
    """To the owner of a login: a client at `address` wants it, at the worker that asks."""

    id: int
    login: str
    address: str


class Claimed(_Struct, tag=3):
    """The answer to a `Claim`."""

    id: int
    is_granted: bool


class Release(_Struct, tag=4):
    """To the owner: the worker that says so has no session of this login, and does not want one any more."""

    login: str


class Check(_Struct, tag=5):
    """From the owner to the worker where a login lives: is its client still there?"""

    id: int
    login: str


class Checked(_Struct, tag=6):
    """The answer to a `Check`; gone also when the login does not live there any more."""

    id: int
    is_gone: bool


class Ask(_Struct, tag=7):
    """To the owner: where does this login live?"""

    id: int
    login: str


class Answer(_Struct, tag=8):
    """The answer to an `Ask`: the worker, 0 when nobody is logged in under that name."""

    id: int
    wid: int


class Place(_Struct):
    """Where a login lives now: `wid` is 0 for nowhere; `address` is its client's."""

    login: str
    wid: int
    address: str


class Places(_Struct, tag=9):
    """From an owner: first all its logins, the last part of which has `is_last`, then what changes."""

    places: list[Place]
    is_last: bool


class Report(_Struct, tag=10):
    """The answer to `Owns`: those of the owner's logins that live here, with their clients' addresses.

    The last of several has `is_last`.
    """

    term: int
    logins: list[tuple[str, str]]
    is_last: bool


class Owns(_Struct, tag=15):
    """From a worker that begins to own the logins of a slot: tell me which of them live at you.

    Of two terms of one slot the one with the higher `term` is the newer, then the one of the lower `wid`.
    """

    slot: int
    term: int


# Messages of users and what became of them.


class Cut(_Struct):
    """One encoded text, or several neighbouring ones, for all of the named logins."""

    names: list[str]
    payload: bytes  # whole lines, as recipients get them
    copies: int  # for each name: lines in `payload`


class Carry(_Struct, tag=11):
    """Copies of one batch of `sender`; answered by `Outcomes` with its id."""

    id: int
    sender: str
    is_fanout: bool
    cuts: list[Cut]


class Refused(_Struct):
    """Copies for one login that ended at the other worker."""

    name: str
    reason: str
    copies: int


class Returned(_Struct):
    """Copies for a login that does not live at the other worker any more."""

    name: str
    payload: bytes
    copies: int


class Part(_Struct):
    """What became of some copies of one `Carry`; `returns_credit` asks to hold its sender no longer."""

    id: int
    delivered: int
    refused: list[Refused]
    returned: list[Returned]
    returns_credit: bool


class Outcomes(_Struct, tag=12):
    """What became of copies, gathered over one turn of the loop."""

    delivered: list[int]  # ids of which all copies that had no outcome yet were delivered
    parts: list[Part]


class Ping(_Struct, tag=13):
    """Asks for a `Pong` with the same number, to measure the round trip."""

    number: int


class Pong(_Struct, tag=14):
    """The answer to a `Ping`."""

    number: int


DirectoryMessage: TypeAlias = (
    Owns | Report | Claim | Claimed | Release | Check | Checked | Ask | Answer | Places
)
Message: TypeAlias = Greet | DirectoryMessage | Carry | Outcomes | Ping | Pong

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct) -> bytes:
    """One message as a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decoder_of(kind: object) -> msgspec.msgpack.Decoder[object]:
    """Decodes bodies of frames into messages of this type, a union of structs."""
    return msgspec.msgpack.Decoder(kind)


class Frames:
    """Cuts a stream of bytes into messages; made for one connection.

    Args:
        decoder: for the messages that may come.
        max_frame_bytes: of the longest body.
    """

    __slots__ = ("_decoder", "_max_frame_bytes", "_rest")

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[object], max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self._decoder = decoder
        self._max_frame_bytes = max_frame_bytes
        self._rest = bytearray()  # an unfinished frame

    def feed(self, data: bytes) -> Iterable[object]:
        """The messages that are whole by now, in order.

        Raises:
            FrameError: the stream is none of frames; nothing after that can be trusted.
        """
        rest = self._rest
        size = len(data) - _LENGTH_BYTES
        if not rest and int.from_bytes(data[:_LENGTH_BYTES], "big") == size <= self._max_frame_bytes:
            return [self._decoded(data[_LENGTH_BYTES:])]  # one whole frame: by far the most frequent
        rest += data
        messages: list[object] = []
        begin, end = 0, len(rest)
        with memoryview(rest) as view:
            while end - begin >= _LENGTH_BYTES:
                size = int.from_bytes(view[begin : begin + _LENGTH_BYTES], "big")
                if size > self._max_frame_bytes:
                    raise FrameError(f"a frame of {size} bytes; at most {self._max_frame_bytes} are allowed")
                if end - begin - _LENGTH_BYTES < size:
                    break
                begin += _LENGTH_BYTES
                messages.append(self._decoded(view[begin : begin + size]))
                begin += size
        del rest[:begin]
        return messages

    def _decoded(self, body: bytes | memoryview) -> object:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame that is no message: {error}") from None
