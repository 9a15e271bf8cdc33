"""How the load generator speaks to each kind of server: bytes in, bytes out; no sockets, no clock.

A line to several recipients names them all in the line protocol. Redis and NATS have subjects instead, so
the receivers of one line share the one of the first of them, and a line is published once: the cheapest
form that either has. Redis is asked not to confirm each publication, as the other two do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"lang":"bench","version":"0"}\r\n'
# First word of what a NATS server says about the connection itself -> the answer.
_NATS_ANSWERS = {b"PING": b"PONG\r\n", b"PONG": b"", b"INFO": b"", b"+OK": b""}


class Dialect(Protocol):
    """What a session of one kind of server writes and reads; stateless, shared by all sessions."""

    def sent(self, recipients: Sequence[str], text: bytes) -> bytes:
        """One message as its sender writes it."""
        ...

    def received(self, sender: str, recipients: Sequence[str], text: bytes) -> bytes:
        """One message as each of its recipients must get it."""
        ...

    def cut(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The whole frames that a stream begins with, ends included, and the rest."""
        ...

    def is_notice(self, frame: bytes) -> bool:
        """Whether the server complains with it."""
        ...

    def answer(self, frame: bytes) -> bytes | None:
        """What a frame about the connection itself must be answered with; None for all other frames."""
        ...


class Subscribed(Dialect, Protocol):
    """A dialect with subjects: a session listens to what it has subscribed to."""

    def login(self, subject: str) -> tuple[bytes, bytes]:
        """What a session writes first, and the frame that ends the answer; `subject` may be empty."""
        ...


class Line:
    """The gateway's line protocol."""

    def sent(self, recipients: Sequence[str], text: bytes) -> bytes:
        """One line that names all recipients."""
        return b"%s: %s\n" % (",".join(recipients).encode(), text)

    def received(self, sender: str, recipients: Sequence[str], text: bytes) -> bytes:
        """One line that names the sender."""
        return b"from %s: %s\n" % (sender.encode(), text)

    def cut(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Whole lines and the rest."""
        *lines, rest = data.split(b"\n")
        return [line + b"\n" for line in lines], rest

    def is_notice(self, frame: bytes) -> bool:
        """No line of a user begins like this."""
        return frame.startswith(b"! ")

    def answer(self, frame: bytes) -> bytes | None:
        """Nothing is about the connection."""
        return None


class Redis:
    """Publish and subscribe of Redis (RESP2): a session either listens or publishes."""

    def login(self, subject: str) -> tuple[bytes, bytes]:
        """A subscription, which is confirmed; who publishes asks for silence after one answer."""
        if not subject:
            return b"PING\r\nCLIENT REPLY OFF\r\n", b"+PONG\r\n"
        return _resp(b"SUBSCRIBE", subject.encode()), _resp(b"subscribe", subject.encode(), 1)

    def sent(self, recipients: Sequence[str], text: bytes) -> bytes:
        """One publication for all recipients."""
        return _resp(b"PUBLISH", recipients[0].encode(), text)

    def received(self, sender: str, recipients: Sequence[str], text: bytes) -> bytes:
        """A message says its subject, not its sender."""
        return _resp(b"message", recipients[0].encode(), text)

    def cut(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Whole values and the rest."""
        return _cut(data, _resp_end)

    def is_notice(self, frame: bytes) -> bool:
        """Errors begin with a minus sign."""
        return frame.startswith(b"-")

    def answer(self, frame: bytes) -> bytes | None:
        """Nothing is about the connection."""
        return None


class Nats:
    """The client protocol of NATS, without confirmations. The server asks now and then who is there."""

    def login(self, subject: str) -> tuple[bytes, bytes]:
        """A subscription, if any, is made once the question behind it is answered."""
        subscribe = f"SUB {subject} 1\r\n".encode() if subject else b""
        return _CONNECT + subscribe + b"PING\r\n", b"PONG\r\n"

    def sent(self, recipients: Sequence[str], text: bytes) -> bytes:
        """One publication for all recipients."""
        return b"PUB %s %d\r\n%s\r\n" % (recipients[0].encode(), len(text), text)

    def received(self, sender: str, recipients: Sequence[str], text: bytes) -> bytes:
        """A message says its subject and the number of the subscription, not its sender."""
        return b"MSG %s 1 %d\r\n%s\r\n" % (recipients[0].encode(), len(text), text)

    def cut(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Whole lines, messages with their text, and the rest."""
        return _cut(data, _nats_end)

    def is_notice(self, frame: bytes) -> bool:
        """Errors say so."""
        return frame.startswith(b"-ERR")

    def answer(self, frame: bytes) -> bytes | None:
        """The server's questions are answered, its news is passed over."""
        word = frame.split(maxsplit=1)[0].upper() if frame.strip() else b""
        return _NATS_ANSWERS.get(word)


LINE = Line()
SUBSCRIBED: dict[str, Subscribed] = {"redis": Redis(), "nats": Nats()}
DIALECTS: dict[str, Dialect] = {"line": LINE, **SUBSCRIBED}


def _resp(*parts: bytes | int) -> bytes:
    """An array of byte strings and numbers."""
    return b"*%d\r\n" % len(parts) + b"".join(
        b":%d\r\n" % part if isinstance(part, int) else b"$%d\r\n%s\r\n" % (len(part), part) for part in parts
    )


def _cut(data: bytes, end_of: Callable[[bytes, int], int]) -> tuple[list[bytes], bytes]:
    """Cut where `end_of` says that the frame at a position ends, or 0 if it is not whole."""
    frames, at = [], 0
    while at < len(data) and (end := end_of(data, at)):
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def _resp_end(data: bytes, at: int) -> int:
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return 0
    kind, number, end = data[at : at + 1], data[at + 1 : line_end], line_end + 2
    if kind == b"$" and number.isdigit():
        end += int(number) + 2
    elif kind == b"*" and number.isdigit():
        for _ in range(int(number)):
            end = _resp_end(data, end)
            if not end:
                return 0
    return end if end <= len(data) else 0


def _nats_end(data: bytes, at: int) -> int:
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return 0
    end = line_end + 2
    words = data[at:line_end].split()
    if words[:1] == [b"MSG"] and words[-1].isdigit():
        end += int(words[-1]) + 2
    return end if end <= len(data) else 0
