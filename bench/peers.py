"""Senders and receivers of a load: one non-blocking socket each, driven by the generator's one loop.

They know nothing of pacing. A lost connection is raised as ConnectionError and handled by the generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.protocols import LINE
from bench.schedule import Arrivals, BurstLog
from bench.wire import Expected, Mixture, Script

if TYPE_CHECKING:
    import socket

    from bench.protocols import Dialect

_READ_BYTES = 256 * 1024
_SEND_BYTES = 64 * 1024  # one call; a socket that takes more is served again in the same turn
_UNIFORM = Mixture()
_MAX_TAIL_BYTES = 1 << 16  # a server that never ends its line must not fill the generator's memory


def answer(sock: socket.socket, owed: bytes) -> bytes:
    """Send answers of a few bytes, and return what the kernel did not take: all or nothing of so little."""
    try:
        return owed[sock.send(owed) :]
    except BlockingIOError:
        return owed


def hear_idle(sock: socket.socket, buffer: ReadBuffer, dialect: Dialect) -> None:
    """Read what an idle session is told, and answer questions about its connection.

    Raises:
        ConnectionError: the server closed or reset the connection.
    """
    frames, _ = dialect.cut(bytes(buffer.read(sock)))
    if owed := b"".join(dialect.answer(frame) or b"" for frame in frames):
        answer(sock, owed)


class ReadBuffer:
    """One buffer that all reads of the process share; holds the bytes of the latest read only."""

    __slots__ = ("_bytes", "_view")

    def __init__(self) -> None:
        self._bytes = bytearray(_READ_BYTES)
        self._view = memoryview(self._bytes)

    def read(self, sock: socket.socket) -> memoryview:
        """Return what the socket holds, empty if nothing after all.

        Raises:
            ConnectionError: the server closed or reset the connection.
        """
        try:
            count = sock.recv_into(self._bytes)
        except BlockingIOError:
            return self._view[:0]
        if not count:
            raise ConnectionResetError("closed by the server")
        return self._view[:count]


class Sender:
    """The sending end of one conversation; created and closed by the generator."""

    __slots__ = (
        "_dialect", "_is_ragged", "_mixture", "_owed", "_script", "_sent_bytes", "_tail", "fanout",
        "further_log", "in_flight", "is_blocked", "log", "notices", "queued", "sock",
    )

    def __init__(
        self,
        sock: socket.socket,
        script: Script,
        fanout: int,
        dialect: Dialect = LINE,
        mixture: Mixture = _UNIFORM,
    ) -> None:
        self.sock = sock
        # takes apart what the server says to this end
        self._dialect = dialect
        # answers that wait until no message is half sent
        self._owed = b""
        # beginning of a frame that the server has not finished
        self._tail = b""
        # what is sent, line after line
        self._script = script
        # bytes of the script handed to the kernel so far
        self._sent_bytes = 0
        # receivers of every line
        self.fanout = fanout
        # which lines go to more receivers
        self._mixture = mixture
        # whether a write goes on into the line that is due next
        self._is_ragged = mixture.is_ragged
        # copies sent or queued and not yet received
        self.in_flight = 0
        # whether the kernel took less than was queued, so that a writable event is awaited
        self.is_blocked = False
        # when each burst was due
        self.log = BurstLog()
        # the same of the lines that go to more receivers alone
        self.further_log = BurstLog()
        # lines that the server sent to this end
        self.notices = 0
        # lines queued so far, sent or not
        self.queued = 0

    @property
    def resolved(self) -> int:
        """Copies that were received so far."""
        return self.due_copies - self.in_flight

    @property
    def due_copies(self) -> int:
        """Copies of all lines queued so far."""
        return self._mixture.copies(self.queued, self.fanout)

    def room(self, window: int) -> int:
        """Lines that may be sent before `window` lines are in flight."""
        return self._mixture.lines(self.resolved, self.fanout) + window - self.queued

    def queue(self, lines: int, due_s: float) -> None:
        """Send the next `lines` lines, or keep what the kernel does not take for later."""
        resolved, for_all = self.resolved, self._mixture.lines_for_all(self.queued)
        self.queued += lines
        self.in_flight = self.due_copies - resolved
        self.log.add(self.queued, due_s)
        if (end := self._mixture.lines_for_all(self.queued)) > for_all:
            self.further_log.add(end, due_s)
        if not self.is_blocked:
            self.flush()

    def flush(self) -> None:
        """Hand queued bytes to the kernel until it takes no more; sets `is_blocked`.

        Raises:
            ConnectionError: the server closed or reset the connection.
        """
        script, sent = self._script, self._sent_bytes
        target = script.offset_within(self.queued) if self._is_ragged else script.offset(self.queued)
        try:
            while sent < target:
                at = sent % script.period_bytes
                piece = min(target - sent, script.period_bytes, _SEND_BYTES)
                sent += self.sock.send(script.view[at : at + piece])
        except BlockingIOError:
            pass
        self._sent_bytes = sent
        self.is_blocked = sent < target
        self._answer()

    def _answer(self) -> None:
        if self._owed and not self.is_blocked:
            self._owed = answer(self.sock, self._owed)

    def end_ragged(self) -> bool:
        """End all further writes with a line; whether one was begun that must be queued to be finished."""
        self._is_ragged = False
        return self._sent_bytes > self._script.offset(self.queued)

    def drop_unsent(self) -> int:
        """Forget queued lines of which no byte was sent, and return how many they were."""
        resolved, begun = self.resolved, self._script.lines_begun(self._sent_bytes)
        dropped = self.queued - begun
        self.queued = begun
        self.in_flight = self.due_copies - resolved
        return dropped

    def on_readable(self, buffer: ReadBuffer) -> None:
        """Count what the server says to a sender, and answer questions about the connection."""
        frames, self._tail = self._dialect.cut(self._tail + bytes(buffer.read(self.sock)))
        answers = [self._dialect.answer(frame) for frame in frames]
        self.notices += answers.count(None)
        self._owed += b"".join(filter(None, answers))
        if len(self._tail) > _MAX_TAIL_BYTES:
            self._tail = b""
            self.notices += 1
        self._answer()


class Receiver:
    """One receiving end of a conversation; created and closed by the generator.

    `is_further`: it gets only the lines that go to more receivers.
    """

    __slots__ = ("arrivals", "expected", "sender", "sock")

    def __init__(
        self,
        sock: socket.socket,
        script: Script,
        sender: Sender,
        dialect: Dialect = LINE,
        *,
        is_further: bool = False,
    ) -> None:
        self.sock = sock
        # who sends to it
        self.sender = sender
        # checks and counts what arrives
        self.expected = Expected(script, dialect)
        # turns counts into latencies
        self.arrivals = Arrivals(sender.further_log if is_further else sender.log)

    def on_readable(self, buffer: ReadBuffer) -> int:
        """Read once and return how many copies that completed.

        Raises:
            ConnectionError: the server closed or reset the connection.
        """
        lines = self.expected.feed(buffer.read(self.sock))
        self.sender.in_flight -= lines
        if self.expected.owed:
            self.expected.owed = answer(self.sock, self.expected.owed)
        return lines
