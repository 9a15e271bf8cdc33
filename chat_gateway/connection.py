"""One transport to one peer: reads blocks of lines, pauses when it must, closes in order.

A Connection has no task, no queue and no timer of its own. It reads into a buffer that all
connections of a worker share, puts whole lines into the topology as one block, and looks at one
place (`update_reading`) whether it may read on. How it logs in is told in `login`, how it ends in
`closing`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from chat_gateway.closing import Closing
from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import CLAIMING, HELD_BACK, NO_ROOM, OPEN, TURN_OVER, State
from chat_gateway.login import Login
from chat_gateway.read_buffers import LITTLE_READS
from chat_gateway.sockets import has_peer_ended, is_broken, unsent_bytes
from stages.line_codec import LARGE_BYTES, LineFramer, line_count, pieces

if TYPE_CHECKING:
    from chat_gateway.connections import Connections
    from chat_gateway.disconnect import Reason
    from chat_gateway.read_buffers import ReadBuffer
    from chat_gateway.session import Session
    from pipeline.permits import Permits
    from stages.outbox import Outbox

__all__ = ["Connection"]


class Connection(asyncio.BufferedProtocol):
    """Made by a listener, ends when its transport does. Lives in the loop's callbacks."""

    __slots__ = (
        "_all",
        "_buffer",
        "_closed_waiter",
        "_closing",
        "_framer",
        "_little_reads",
        "_login",
        "_obstacles",
        "_transport",
        "address",
        "is_reading",
        "outbox",
        "port",
        "reason",
        "session",
        "state",
        "tokens",
    )

    def __init__(self, connections: Connections, address: str, port: int, tokens: Permits) -> None:
        self._all = connections
        self.address = address  # of the peer, for logs and limits
        self.port = port
        self.tokens = tokens  # where its token came from and goes back to
        self.state = State.NEW
        self.reason: Reason | None = None  # why it ends, once that is known
        self.session: Session | None = None
        self.outbox: Outbox | None = None
        self._framer = LineFramer(connections.limits.max_line_bytes)
        self._transport: asyncio.Transport | None = None
        self.is_reading = True  # as the transport was last told
        self._obstacles = 0  # what keeps this connection alone from reading: flags of `lifecycle`
        self._buffer = connections.buffers.usual  # what the next read may fill
        self._little_reads = 0  # how many more after it may bring only a little
        self._login: Login | None = Login(self, connections, self._framer)  # until it is logged in or ends
        self._closing: Closing | None = None  # from when it ends until its transport is gone
        self._closed_waiter: asyncio.Future[None] | None = None  # who waits for its end

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self.state = State.LOGIN
        try:
            self.outbox = self._all.open_outbox(self._transport, self)
            self._transport.set_write_buffer_limits(high=0, low=0)
            self._all.add(self)
        except Exception as error:
            self.on_own_error(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all connections share; what is in it is taken out before the next read."""
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes were read."""
        connections = self._all
        connections.ledger.bytes_in += nbytes
        buffer = self._buffer.view
        if self._little_reads:
            self._little_reads -= 1
        else:
            self._buffer = connections.buffers.usual
        try:
            self._on_data(buffer[:nbytes].tobytes())
        except Exception as error:
            self.on_own_error(error)
        if nbytes == len(buffer):  # there may be more, for another turn
            connections.maybe_widen()
            self.set_obstacle(TURN_OVER)
            connections.loop.call_soon(self._clear_obstacle, TURN_OVER)

    def eof_received(self) -> bool:
        """The peer has ended its stream. True keeps our side open until what is pending is out."""
        try:
            return self._on_eof()
        except Exception as error:
            self.on_own_error(error)
            return False

    def pause_writing(self) -> None:
        """The transport holds bytes that the kernel has not taken."""
        assert self.outbox is not None
        self._all.unwritable.add(self.outbox)
        self.outbox.pause()

    def resume_writing(self) -> None:
        """The transport has handed everything on."""
        assert self.outbox is not None
        self._all.unwritable.discard(self.outbox)
        self.outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone, in whatever way."""
        self._transport = self._closing = None
        if self.reason is None:
            self.reason = Disconnect.CLIENT_LOST if exc is not None else Disconnect.CLIENT_CLOSED
        self._give_login_up()
        if self.outbox is not None:
            self.outbox.on_empty = None
            self._all.on_outbox_left(self, self.outbox)
        self.state = State.CLOSED
        if self._closed_waiter is not None:
            self._closed_waiter.set_result(None)
        self._all.on_lost(self)
        if self.session is not None and self.session.unsettled_messages:
            self.session.is_leaving = True
        else:
            self._all.settle(self)

    # What the session calls.

    def update_reading(self) -> None:
        """Pause or resume the transport so that it fits everything that has a say in it. Never raises."""
        if self._transport is None or self._transport.is_closing():
            return
        may_read = self._may_read()
        if may_read == self.is_reading or self.state == State.LEAVING:
            return
        self.is_reading = may_read
        try:
            if may_read:
                self._all.unread.discard(self)
                self._transport.resume_reading()
            else:
                self._all.unread.add(self)
                self._transport.pause_reading()
        except Exception as error:  # not for whoever asked, which may be a stage in the midst of a batch
            self.on_own_error(error)

    def read_little(self) -> None:
        """Read only a few lines at once for a while: some reads pass before what they bring is refused."""
        self.read_from(self._all.buffers.little)
        self._little_reads = LITTLE_READS

    def read_from(self, buffer: ReadBuffer) -> None:
        """Read into this one the next time."""
        self._buffer = buffer
        self._little_reads = 0

    def pause_for(self, seconds: float) -> None:
        """Do not read for so long; more of the same meanwhile adds nothing."""
        if not self.is_held_back:
            self.set_obstacle(HELD_BACK)
            self._all.loop.call_later(seconds, self._on_pause_over)

    def on_settled(self) -> None:
        """All copies of this session have their outcome."""
        if self.state == State.LEAVING:
            self.end(self.reason or Disconnect.CLIENT_CLOSED)
        elif self.state == State.CLOSED:
            self._all.settle(self)

    def nudge(self) -> None:
        """Send the peer something: one that has died without a word answers with a reset."""
        if self.outbox is not None and self._all.limits.notices:
            self.outbox.notify("login-contested", "someone else asks for your name")

    def has_peer_ended(self) -> bool:
        """See `Reading`."""
        return self._transport is None or has_peer_ended(self._transport.get_extra_info("socket"))

    def end_if_gone(self) -> bool:
        """End it if its peer has gone, which it may not have noticed, and does not while it is not read."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        is_gone = is_broken if self.is_reading else has_peer_ended  # while it is read its end is, too
        if sock is None or not is_gone(sock):
            return False
        if self.session is not None and self.outbox is not None:
            self._all.claims.release(self.session)
            self._all.on_outbox_left(self, self.outbox)  # now, so that its successor gets what is left
        self.abort(Disconnect.CLIENT_LOST)
        return True

    # What its login calls, beside `end`.

    def open(self, session: Session) -> None:
        """It is logged in."""
        assert self.outbox is not None
        self._login = None
        self.session = session
        self.outbox.name = session.login
        self.state = State.OPEN
        self._all.on_login(self)

    def go_on(self, early: bytes, *, has_stream_ended: bool) -> None:
        """Go on with the lines, and the end of the stream, that came while its login was claimed."""
        if early and not self._all.is_draining:  # else it has been read too late
            self.take_lines(early, is_too_long=False)
        self._clear_obstacle(CLAIMING)
        if has_stream_ended and not self._on_eof():
            self.abort(Disconnect.CLIENT_CLOSED)

    # What the outbox calls.

    def unsent_bytes(self) -> int:
        """See `Owner`: what the transport and the kernel hold."""
        if self._transport is None:
            return 0
        sock = self._transport.get_extra_info("socket")
        return self._transport.get_write_buffer_size() + unsent_bytes(sock)

    def evict(self) -> None:
        """See `Owner`. The peer still gets what the transport holds, if it reads within `linger_s`."""
        if self._transport is None or self.state >= State.LINGERING:
            return
        try:
            self.end(Disconnect.SLOW_CONSUMER)
            if self._closing is not None:
                self._closing.go_on()  # now, since it will not empty
        except Exception as error:  # as in `update_reading`
            self.on_own_error(error)

    def fail(self) -> None:
        """See `Owner`."""
        self.reason = Disconnect.ERROR
        self.abort(Disconnect.ERROR)

    # What the worker calls.

    def end(self, reason: Reason, words: str = "") -> None:
        """Close in order: flush, say why, shut down the sending side, read on until the peer closes.

        `words` replace those that the last Notice says by default.
        """
        if self.state >= State.FLUSHING or self._transport is None:
            return
        assert self.outbox is not None
        has_ended = self.state == State.LEAVING
        self.state = State.FLUSHING
        self.reason = reason
        self._give_login_up()
        self._closing = Closing(self, self._all, self._transport, self.outbox)
        self._closing.begin(reason, words, has_peer_ended=has_ended)
        self.update_reading()

    def abort(self, reason: Reason) -> None:
        """Close at once; what is pending is refused."""
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.abort()

    def on_linger_due(self) -> None:
        """The time for an orderly close is over."""
        if self._closing is not None:
            self._closing.on_due()

    @property
    def left_bytes(self) -> int:
        """Bytes that have left the machine for this peer; an orderly close goes on as long as it grows."""
        return self.outbox.left_bytes if self.outbox is not None else 0

    async def wait_closed(self) -> None:
        """Wait until its transport is gone."""
        if self.state == State.CLOSED:
            return
        if self._closed_waiter is None:
            self._closed_waiter = self._all.loop.create_future()
        await asyncio.shield(self._closed_waiter)

    @property
    def is_held_back(self) -> bool:
        """Not read just now for having said too much."""
        return bool(self._obstacles & HELD_BACK)

    # Reading.

    def _may_read(self) -> bool:
        if self.state >= State.FLUSHING:
            return not self._obstacles & TURN_OVER  # to throw away, one read a turn
        if self._obstacles or self._all.is_draining:
            return False
        return self.session is None or self.session.may_read

    def _on_data(self, data: bytes) -> None:
        if self.state == OPEN:
            self.take_lines(*self._framer.feed(data))
        elif self._login is not None:
            if self.state == State.LOGIN and self.is_held_back and self._transport is not None:
                # uvloop begins to read after `connection_made`, even what paused there.
                self._login.keep(data)
                self._transport.pause_reading()
            else:
                self._login.take(data)
        elif self._closing is not None:
            self._buffer = self._all.buffers.unbounded
            self._closing.throw_away(len(data))

    def take_lines(self, block: bytes, is_too_long: bool) -> None:
        """Whole lines of a session, and whether a longer one than is allowed has begun behind them."""
        if len(block) > LARGE_BYTES:
            for piece, lines in pieces(block):
                self._push(piece, lines)
        elif block:
            self._push(block, line_count(block))
        if is_too_long:
            self.end(Disconnect.LINE_TOO_LONG)

    def _push(self, block: bytes, lines: int) -> None:
        session, connections = self.session, self._all
        assert session is not None
        taken = session.take(block, lines)
        try:
            is_in = connections.input.offer(taken, lines, self._on_room)
        except Exception:
            taken.discard(connections.ledger)
            raise
        if not is_in:
            connections.on_saturated()
            self.set_obstacle(NO_ROOM)
        elif not session.may_read:
            self.update_reading()

    def _on_pause_over(self) -> None:
        self._clear_obstacle(HELD_BACK)
        if self.session is not None and self._transport is not None:
            self.session.on_pause_over()

    def _on_room(self) -> None:
        self._clear_obstacle(NO_ROOM)

    def set_obstacle(self, obstacle: int) -> None:
        """Do not read until it is cleared: a flag of `lifecycle`."""
        self._obstacles |= obstacle
        self.update_reading()

    def _clear_obstacle(self, obstacle: int) -> None:
        self._obstacles &= ~obstacle
        self.update_reading()
        if self._login is not None:
            try:
                self._login.maybe_go_on()
            except Exception as error:
                self.on_own_error(error)

    def _on_eof(self) -> bool:
        if self._login is not None and self.state == State.CLAIMING:
            self._login.has_stream_ended = True
            return True
        if self.state in (State.LOGIN, State.OPEN):
            last = self._framer.finish()
            if last:
                self._on_data(last)
        if self.state == State.LOGIN:
            self.reason = Disconnect.CLIENT_CLOSED
            return False
        if self.state == State.OPEN:
            self.state = State.LEAVING
            assert self.session is not None
            self.session.is_leaving = True
            if not self.session.unsettled_messages:
                self.end(Disconnect.CLIENT_CLOSED)
            return True
        if self.state == State.FLUSHING and self._closing is not None:
            self._closing.on_peer_ended()
            return True
        return False

    def _give_login_up(self) -> None:
        """It has ended: its login is free, or not wanted any more."""
        if self._login is not None:
            self._login.give_up()
            self._login = None
        if self.session is not None:
            self._all.claims.release(self.session)

    def on_own_error(self, error: Exception) -> None:
        """A defect of ours: told, and only this connection pays for it."""
        self._all.log.error("connection.failed", address=self.address, port=self.port, exc_info=error)
        self.fail()
