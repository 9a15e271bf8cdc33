"""What lies below a connection, without sockets and without waiting: an event loop in virtual time, listening
sockets and transports that do what a test says.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import selectors
import socket
from typing import TYPE_CHECKING, Any, ParamSpec, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = [
    "FakeListening",
    "FakeSocket",
    "FakeTransport",
    "VirtualLoop",
    "passed",
    "turns",
    "virtual_time",
]

P = ParamSpec("P")


async def turns(count: int = 12) -> None:
    """Let the loop turn, in no time; by default more often than anything here needs."""
    for _ in range(count):
        await asyncio.sleep(0)


async def passed(seconds: float) -> None:
    """Let virtual time pass, and what falls due in it be done."""
    await asyncio.sleep(seconds)
    await turns()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting; serves fake sockets too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.transports: list[FakeTransport] = []  # made for accepted fake sockets
        self.peers_close_with_us = True  # of these: see `FakeTransport`
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds of virtual time."""
        return self.now

    def add_reader(  # type: ignore[override]  # of fake sockets only, without arguments
        self, fd: Any, callback: Callable[[], None]
    ) -> None:
        """Watch a fake listening socket."""
        assert isinstance(fd, FakeListening)
        fd.watch(self, callback)

    def remove_reader(self, fd: Any) -> bool:
        """Watch it no longer."""
        assert isinstance(fd, FakeListening)
        fd.unwatch()
        return True

    async def connect_accepted_socket(  # type: ignore[override]  # the part of the signature that is used
        self, protocol_factory: Callable[[], asyncio.BufferedProtocol], sock: FakeSocket
    ) -> None:
        """Make a fake transport, in a later turn as a real loop does, or fail as the socket says."""
        if sock.error_before_made is not None:
            raise sock.error_before_made
        transport = FakeTransport(self, protocol_factory(), sock)
        transport.closes_with_us = self.peers_close_with_us
        self.transports.append(transport)
        await asyncio.sleep(0)
        transport.make()
        if sock.error_after_made is not None:
            transport.close()
            raise sock.error_after_made


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "the test waits for something that will never come"
        if not ready and timeout:
            self._loop.now += timeout
        return ready


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in a `VirtualLoop`; what it leaves running is an error."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        problems: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: problems.append(context))
            runner.run(asyncio.wait_for(test(*args, **kwargs), 3600.0))
        assert not problems

    return run


# One connection for all fake sockets, open for as long as this process: its peer never goes.
_ALIVE = [end.detach() for end in socket.socketpair()]


class FakeSocket:
    """An accepted socket: takes options, knows where it was told to fail."""

    def __init__(
        self,
        *,
        prepare_error: Exception | None = None,
        error_before_made: Exception | None = None,
        error_after_made: Exception | None = None,
    ) -> None:
        self.prepare_error = prepare_error
        self.error_before_made = error_before_made
        self.error_after_made = error_after_made
        self.is_closed = False

    def setblocking(self, _flag: bool) -> None:
        """Fail here if told so: it is the first thing done to an accepted socket."""
        if self.prepare_error is not None:
            raise self.prepare_error

    def setsockopt(self, *_arguments: object) -> None:
        """Nothing to set."""

    def fileno(self) -> int:
        """Of a socket whose peer is there, also once a test has reset the transport above it."""
        return _ALIVE[0]

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True


class FakeListening:
    """A listening socket: `arrive` puts connections, or errors that accept shall raise, into its queue."""

    def __init__(self, port: int = 7000) -> None:
        self.queue: list[FakeSocket | OSError] = []
        self.shortage: int | None = None  # errno that every accept raises while it is set
        self.accepts = 0  # calls of accept
        self.is_closed = False
        self.name: tuple[Any, ...] = ("192.0.2.1", port)
        self._callback: Callable[[], None] | None = None
        self._loop: VirtualLoop | None = None

    @property
    def is_watched(self) -> bool:
        """The loop would call the listener if something arrived."""
        return self._callback is not None

    def arrive(self, *items: FakeSocket | OSError) -> None:
        """Let these wait to be accepted."""
        self.queue += items
        self._schedule()

    def watch(self, loop: VirtualLoop, callback: Callable[[], None]) -> None:
        """As `add_reader`: level-triggered."""
        self._loop, self._callback = loop, callback
        self._schedule()

    def unwatch(self) -> None:
        """As `remove_reader`."""
        self._callback = None

    def accept(self) -> tuple[FakeSocket, tuple[str, int]]:
        """The next of the queue."""
        self.accepts += 1
        if self.is_closed:
            raise OSError(errno.EBADF, "closed")
        if not self.queue:
            raise BlockingIOError
        if self.shortage is not None:
            raise OSError(self.shortage, "shortage")
        first = self.queue.pop(0)
        if isinstance(first, OSError):
            raise first
        return first, ("127.0.0.1", 40_000 + self.accepts)

    def getsockname(self) -> tuple[Any, ...]:
        """Its address."""
        return self.name

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True

    def _schedule(self) -> None:
        if self._loop is not None and self._callback is not None and self.queue:
            self._loop.call_soon(self._run, self._callback)

    def _run(self, callback: Callable[[], None]) -> None:
        if self._callback is callback and self.queue:
            callback()
            self._schedule()


class FakeTransport(asyncio.Transport):
    """A transport, the kernel behind it and the peer's end of the line; see `Peer` for what a test does.

    Like the real ones it tells of a lost connection in a later turn, and only while it is read or closed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BufferedProtocol, sock: Any = None
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self.received = bytearray()  # what the peer got
        self.is_end_sent = False  # our side was shut down
        self.is_aborted = False
        self.is_lost = False  # connection_lost was called
        self.is_stuck = False  # the peer takes nothing
        self.closes_with_us = True  # the peer closes its side when we have closed ours
        self.write_error: Exception | None = None
        self.switch_error: Exception | None = None  # raised by the next pause or resume of reading
        self.write_eof_error: Exception | None = None
        self.switches: list[bool] = []  # every call of resume_reading (True) and pause_reading (False)
        self._loop = loop
        self._sock = sock or FakeSocket()
        self._inbox = bytearray()  # sent by the peer, not read
        self._peer_end: type[ConnectionResetError] | bool = False  # how the peer's stream ends
        self._outgoing = bytearray()  # written, not taken by the kernel
        self._is_read = True
        self._is_closing = False

    def make(self) -> None:
        """The connection is there."""
        self.protocol.connection_made(self)

    # What the peer does.

    def from_peer(self, data: bytes) -> None:
        """Bytes arrive; they are read at once, as libuv does, until reading is paused."""
        self._inbox += data
        self._pump()

    def read_anyway(self) -> None:
        """Read although it was told not to, as uvloop does when that was in `connection_made`."""
        self._is_read = True
        self._pump()

    def end_from_peer(self, *, is_reset: bool = False) -> None:
        """The peer ends its stream, or resets."""
        self._peer_end = ConnectionResetError if is_reset else True
        self._pump()

    def take_one(self) -> None:
        """The peer takes what the kernel holds, and is as stuck as before afterwards."""
        self.received += self._outgoing
        had_any = bool(self._outgoing)
        self._outgoing.clear()
        if self._is_closing:
            self._loop.call_soon(self._lose, None)
        elif had_any:
            self.protocol.resume_writing()

    @property
    def unread(self) -> int:
        """Bytes from the peer that were not read yet."""
        return len(self._inbox)

    # What the protocol sees.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket."""
        return self._sock if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It pauses at the first byte that the kernel does not take."""
        assert (high, low) == (0, 0)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken."""
        return len(self._outgoing)

    def is_reading(self) -> bool:
        """Reading is neither paused nor over."""
        return self._is_read and not self._is_closing

    def pause_reading(self) -> None:
        """As told."""
        assert self._is_read, "paused twice"
        self._fail_to_switch()
        self._is_read = False
        self.switches.append(False)

    def resume_reading(self) -> None:
        """As told; what came meanwhile is read in a later turn."""
        assert not self._is_read, "resumed twice"
        self._fail_to_switch()
        self._is_read = True
        self.switches.append(True)
        self._loop.call_soon(self._pump)

    def write(self, data: Any) -> None:
        """Take bytes as a real transport does."""
        if self.write_error is not None:
            raise self.write_error
        if self.is_end_sent:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._is_closing:
            return
        if not self.is_stuck:
            self.received += data
            return
        was_empty = not self._outgoing
        self._outgoing += data
        if was_empty:
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        """Shut our side down."""
        if self._is_closing or self.is_end_sent:
            return
        self.is_end_sent = True
        if self.write_eof_error is not None:
            raise self.write_eof_error
        if self.closes_with_us and not self.is_stuck:
            self._loop.call_soon(self.end_from_peer)

    def is_closing(self) -> bool:
        """Nothing that is written from now on will arrive."""
        return self._is_closing

    def close(self) -> None:
        """Close once everything written is out."""
        if not self._is_closing:
            self._is_closing = True
            if not self._outgoing:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """Close at once."""
        if not self.is_aborted:
            self.is_aborted = self._is_closing = True
            self._outgoing.clear()
            self._loop.call_soon(self._lose, None)

    def _fail_to_switch(self) -> None:
        error, self.switch_error = self.switch_error, None
        if error is not None:
            raise error

    def _pump(self) -> None:
        while self.is_reading() and (self._inbox or self._peer_end):
            if self._inbox:
                buffer = cast("memoryview", self.protocol.get_buffer(-1))
                count = min(len(buffer), len(self._inbox))
                buffer[:count] = self._inbox[:count]
                del self._inbox[:count]
                self.protocol.buffer_updated(count)
            else:
                end, self._peer_end = self._peer_end, False
                self._on_end(end)

    def _on_end(self, end: type[ConnectionResetError] | bool) -> None:
        if isinstance(end, type):
            self._is_closing = True
            self._loop.call_soon(self._lose, end())
        elif not self.protocol.eof_received():
            self.close()

    def _lose(self, error: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._is_closing = True
            self.protocol.connection_lost(error)
