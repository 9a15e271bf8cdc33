"""All connections of one worker, and what they share: bounds, buffer, hub, pipeline, log.

Takes each connection from its listener and keeps it until it has ended **and** its last accepted copy
has an outcome; only then is its token given back, so that a client which fills its credit and leaves,
again and again, gains nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from chat_gateway.addresses import Addresses
from chat_gateway.ceiling import Ceiling
from chat_gateway.claims import Claims
from chat_gateway.connection import Connection
from chat_gateway.deadlines import Deadlines
from chat_gateway.disconnect import Disconnect
from chat_gateway.grace import Grace
from chat_gateway.hub import Hub
from chat_gateway.lifecycle import State
from chat_gateway.log_text import peer_text
from chat_gateway.read_buffers import ReadBuffers
from stages.message import Refusal
from stages.outbox import Outbox, OutboxSettings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from chat_gateway.bus import Bus
    from chat_gateway.config import Config
    from chat_gateway.dead_letters import DeadLetters
    from chat_gateway.disconnect import Reason
    from pipeline.permits import Permits
    from stages.flusher import Flusher
    from stages.ladder import Ladder
    from stages.message import Block, Ledger
    from stages.outbox import Entry
    from stages.route import Peer
    from stages.writer import Owner, Writer

__all__ = ["Connections", "Entrance", "outbox_settings"]


class Entrance(Protocol):
    """Where blocks go into the pipeline."""

    def offer(self, item: Block, weight: int, on_sent: Callable[[], None]) -> bool:
        """See `SendEnd.offer`."""


def outbox_settings(config: Config) -> OutboxSettings:
    """The bounds and policies of every outbox under this configuration."""
    return OutboxSettings(
        max_outbox_bytes=config.outbox.max_outbox_bytes,
        high_watermark_bytes=config.outbox.high_watermark_bytes,
        low_watermark_bytes=config.outbox.low_watermark_bytes,
        max_flush_bytes=config.outbox.send_buffer_bytes,
        direct=config.when_full.direct,
        fanout=config.when_full.fanout,
    )


class Connections:
    """Made and closed by a worker; lives in its loop.

    Args:
        config: the gateway's.
        pipeline_input: where blocks go.
        ledger: the worker's account of copies.
        flusher: flushes outboxes once a turn.
        ladder: what happens to writers that stand still.
        tokens: one for each connection, taken by the listener before it accepts.
        turned_away: tokens for those that are only told that the gateway is full.
        dead_letters: where copies are written whose recipient did not come back.
        log: bound to the worker.
        loop: the running one.
    """

    def __init__(
        self,
        config: Config,
        *,
        pipeline_input: Entrance,
        ledger: Ledger,
        flusher: Flusher,
        ladder: Ladder,
        tokens: Permits,
        turned_away: Permits,
        dead_letters: DeadLetters | None,
        log: FilteringBoundLogger,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.limits = config.limits
        self.input = pipeline_input
        self.ledger = ledger
        self.tokens = tokens
        self.turned_away = turned_away
        self.log = log
        self.loop = loop
        self.hub = Hub()
        self.claims = Claims(self.hub, loop)
        self.buffers = ReadBuffers(config.limits.max_read_bytes)
        self.ceiling = Ceiling(ledger, config.limits.max_buffered_bytes, self.hub, self.buffers)
        self.addresses = Addresses(config.limits)
        self.grace = Grace(config.outbox, self._on_expired, loop)
        self._dead_letters = dead_letters
        self.is_draining = False  # nothing is read any more
        self.end_reason = Disconnect.SHUTDOWN  # why, once it is so
        self.closed: Counter[str] = Counter()  # connections that ended, by reason
        self.accepted = 0  # connections ever
        self.logins = 0  # sessions ever
        self._outbox_settings = outbox_settings(config)
        self._flusher = flusher
        self._ladder = ladder
        self._connections: set[Connection] = set()
        self.unread: set[Connection] = set()  # those whose transport was told not to read just now
        self.unwritable: set[Outbox] = set()  # those whose transport takes nothing just now
        self._login_deadlines: Deadlines[Connection] = Deadlines(
            config.limits.login_timeout_s, lambda one: one.end(Disconnect.LOGIN_TIMEOUT), loop
        )
        self._linger_deadlines = Deadlines(config.outbox.linger_s, Connection.on_linger_due, loop)

    def __len__(self) -> int:
        return len(self._connections)

    # What other workers ask, by way of the bus: it is a `Neighbourhood`.

    def join(self, bus: Bus) -> None:
        """There are other workers: logins are asked of them, and the bus keeps the routes."""
        self.claims.others = bus
        self.hub.on_change = bus.on_local_change

    @property
    def routes(self) -> dict[str, Outbox | Peer]:
        """See `Neighbourhood`."""
        return self.hub.routes

    def find_here(self, login: str) -> Outbox | None:
        """See `Neighbourhood`."""
        return self.hub.find_here(login)

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """See `Neighbourhood`."""
        self.claims.check_holder(login, on_checked)

    def take_kept(self, login: str, address: str) -> list[Entry]:
        """See `Neighbourhood`."""
        return self.grace.take(login, address)

    # What a connection tells in the course of its life.

    def open_outbox(self, writer: Writer, owner: Owner) -> Outbox:
        """The outbox in front of a new connection."""
        return Outbox(writer, self._outbox_settings, self.ledger, self._flusher, self._ladder, owner)

    def add(self, connection: Connection) -> None:
        """It has a transport; its login is awaited."""
        self._connections.add(connection)
        self.accepted += 1
        self.log.info("connection.accepted", address=connection.address, port=connection.port)
        may_stay, delay_s = self.addresses.enter(connection.address)
        if self.is_draining:
            connection.end(self.end_reason)
        elif not may_stay:
            connection.end(Disconnect.BUSY, "too many connections from your address")
        elif connection.tokens is self.turned_away or self.ceiling.is_full:
            connection.end(Disconnect.BUSY)
        elif delay_s:
            connection.pause_for(delay_s)
            connection.read_from(self.buffers.least)
            self.loop.call_later(delay_s, self._await_login, connection)
        else:
            self._await_login(connection)

    def on_login(self, connection: Connection) -> None:
        """It has become a session."""
        self.logins += 1
        self._login_deadlines.stop(connection)
        assert connection.session is not None
        assert connection.outbox is not None
        self.grace.give(connection.session.login, connection.address, connection.outbox)
        self.log.info(
            "session.login",
            login=connection.session.login,
            address=connection.address,
            port=connection.port,
        )

    def on_refused_login(self, connection: Connection, data: bytes, reason: Reason) -> None:
        """Its first line was none that could be let in."""
        self.log.info(
            "session.refused",
            reason=reason.label,
            address=connection.address,
            port=connection.port,
            got=peer_text(data),
        )

    def on_saturated(self) -> None:
        """A connection waits for room in the first stage."""
        self.log.warning("stage.saturated", stage="parse", hint="raise stages.parse.capacity or add a worker")

    def on_ending(self, connection: Connection) -> None:
        """It is being closed in order, which must not take for ever."""
        self._login_deadlines.stop(connection)
        self._linger_deadlines.start(connection)

    def on_lost(self, connection: Connection) -> None:
        """Its transport is gone."""
        self.unread.discard(connection)
        if connection.outbox is not None:
            self.unwritable.discard(connection.outbox)
        self._login_deadlines.stop(connection)
        self._linger_deadlines.stop(connection)
        self.addresses.leave(connection.address)
        assert connection.reason is not None
        self.closed[connection.reason.label] += 1
        self.log.info(
            "session.closed" if connection.session else "connection.closed",
            reason=connection.reason.label,
            login=connection.session.login if connection.session else None,
            address=connection.address,
            port=connection.port,
        )

    def on_outbox_left(self, connection: Connection, outbox: Outbox) -> None:
        """Its transport is gone; what its outbox still has is kept for a moment, or refused."""
        session = connection.session
        if self.is_draining:
            outbox.close(Refusal.SHUTDOWN)
        elif session is None or connection.reason is Disconnect.SLOW_CONSUMER:
            outbox.close(Refusal.GONE)
        elif self.hub.holder(session.login) is not None:
            self.grace.refuse(session.login, outbox)  # its successor has got newer ones already
        else:
            self.grace.keep(session.login, connection.address, outbox)

    def settle(self, connection: Connection) -> None:
        """It has ended and nothing of it is in flight: give its token back."""
        self._connections.discard(connection)
        connection.tokens.release()

    def maybe_widen(self) -> None:
        """Let those who may read bring as much as usual, unless memory is full."""
        if not self.ceiling.is_full:
            self.buffers.widen()

    # What the worker asks. Metrics look only at those of whom there is something to say.

    @property
    def stalled_sessions(self) -> int:
        """Sessions that are not read just now because of where their messages go."""
        return sum(
            one.state == State.OPEN and one.session is not None and not one.session.may_read
            for one in self.unread
        )

    @property
    def held_back(self) -> int:
        """Connections that are not read just now for having said too much."""
        return sum(one.is_held_back for one in self.unread)

    def look_at_ceiling(self) -> None:
        """Now and then: once memory is not full any more, read from everybody again."""
        self.maybe_widen()
        if self.ceiling.has_held and not self.ceiling.is_full:
            self.ceiling.has_held = False
            for connection in self.living():
                connection.update_reading()

    def stop_reading(self, reason: Reason = Disconnect.SHUTDOWN) -> None:
        """Read nothing more from any of them, since they will be ended for this reason."""
        self.is_draining, self.end_reason = True, reason
        self.grace.end_all(Refusal.SHUTDOWN)
        for connection in self.living():
            connection.update_reading()

    def _await_login(self, connection: Connection) -> None:
        """It is read now, so its time to log in begins; a wait that we imposed is none of it."""
        if connection.state == State.LOGIN:
            connection.read_from(self.buffers.usual)
            self._login_deadlines.start(connection)

    def _on_expired(self, login: str, entries: list[Entry]) -> None:
        if self._dead_letters is not None:
            for payload, _, _ in entries:
                self._dead_letters.add(login, bytes(payload))

    def living(self) -> list[Connection]:
        """Those that still have a transport."""
        return [connection for connection in self._connections if connection.state < State.CLOSED]

    def close(self) -> None:
        """Cancel the timers."""
        self.grace.close()
        self._login_deadlines.close()
        self._linger_deadlines.close()
