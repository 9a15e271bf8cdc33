"""A gateway without sockets: a real worker whose peers, listening sockets and log do what a test says.

Everything is made here and found through a `Worker`, so that a changed constructor is changed in one place.
"""

from __future__ import annotations

import asyncio
import functools
import random as chance
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from chat_gateway.ceiling import Ceiling
from chat_gateway.config_sources import load
from chat_gateway.connection import Connection
from chat_gateway.read_buffers import ReadBuffers
from chat_gateway.session import Session
from chat_gateway.worker import Worker
from stages.message import Ledger
from tests.chat_gateway.fake_net import (
    FakeListening,
    FakeSocket,
    FakeTransport,
    VirtualLoop,
    passed,
    turns,
    virtual_time,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from chat_gateway.bus import Bus
    from chat_gateway.config import Config
    from chat_gateway.logs import Log
    from chat_gateway.session import Reading
    from chat_gateway.shutdown import DrainReport
    from pipeline.permits import Permits
    from stages.outbox import Outbox

__all__ = [
    "PATIENT",
    "SMALL",
    "TEXT",
    "FakeGateway",
    "FakeListening",
    "FakeLog",
    "FakeSocket",
    "FakeTransport",
    "Peer",
    "Record",
    "VirtualLoop",
    "configured",
    "fake_session",
    "fill",
    "passed",
    "take",
    "turns",
    "virtual_time",
]

# An outbox that holds one text.
SMALL = (
    "outbox.max_outbox_bytes=1024",
    "outbox.high_watermark_bytes=512",
    "outbox.low_watermark_bytes=0",
    "outbox.send_buffer_bytes=2048",
)
# No writer counts as stuck while a test lets time pass, and nothing is kept for who has gone.
PATIENT = ("outbox.write_timeout_s=3000", "outbox.evict_after_s=3000", "outbox.reconnect_grace_s=0")
TEXT = b"x" * 1000


def configured(*sets: str) -> Config:
    """The default configuration with some keys set, as `--set` does."""
    return load(None, {}, list(sets), [])


def fake_session(
    reading: Reading, notify: Callable[..., None], *sets: str, random: Callable[[], float] = chance.random
) -> Session:
    """A session of its own: its connection is `reading`, what its outbox is told goes to `notify`."""
    config = configured(*sets)
    ledger = Ledger()
    ceiling = Ceiling(ledger, config.limits.max_buffered_bytes, [], ReadBuffers(1024))
    outbox = cast("Outbox", SimpleNamespace(notify=notify))
    return Session("alice", b"from alice: ", outbox, config.limits, ceiling, reading, random)


def take(session: Session, lines: int, nbytes: int = 0) -> int:
    """Have a session take so many lines of so many bytes in all, at least one each; the credit they cost."""
    return session.take(b"x" * (nbytes - lines) + b"\n" * lines, lines).cost_bytes


class Record(NamedTuple):
    """One log record."""

    level: str
    event: str
    fields: dict[str, Any]


class FakeLog:
    """Keeps records instead of writing them; stands for a `Log`."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed_with: float | None = None
        self.logger = SimpleNamespace(
            **{level: functools.partial(self._keep, level) for level in ("debug", "info", "warning", "error")}
        )

    def _keep(self, level: str, event: str, **fields: Any) -> None:
        self.records.append(Record(level, event, fields))

    def found(self, event: str) -> list[dict[str, Any]]:
        """The fields of every record of this event, in order."""
        return [record.fields for record in self.records if record.event == event]

    @property
    def errors(self) -> list[Record]:
        """Records that an operator must look at."""
        return [record for record in self.records if record.level == "error"]

    def flush_left_out(self) -> None:
        """Nothing is left out."""

    def statistics(self) -> SimpleNamespace:
        """As a log that has written everything."""
        return SimpleNamespace(written=len(self.records), failed=0, dropped=0, left_out=0, queued=0)

    def close(self, timeout_s: float) -> int:
        """Remember that it was closed."""
        self.closed_with = timeout_s
        return 0


class Peer:
    """The far end of a connection, and for assertions the near one."""

    def __init__(self, connection: Connection, transport: FakeTransport) -> None:
        self.connection = connection
        self.transport = transport

    def send(self, data: bytes) -> None:
        """Bytes reach the gateway."""
        self.transport.from_peer(data)

    def end(self) -> None:
        """Close the sending side only."""
        self.transport.end_from_peer()

    def reset(self) -> None:
        """Go away without a word."""
        self.transport.end_from_peer(is_reset=True)

    def stick(self) -> None:
        """Take nothing any more."""
        self.transport.is_stuck = True

    def unstick(self) -> None:
        """Take everything again."""
        self.transport.is_stuck = False
        self.transport.take_one()

    def take(self) -> bytes:
        """What was received since this was called last."""
        received = bytes(self.transport.received)
        self.transport.received.clear()
        return received

    @property
    def session(self) -> Session:
        """Of a peer that is logged in."""
        assert self.connection.session is not None
        return self.connection.session

    @property
    def is_read(self) -> bool:
        """The gateway reads it."""
        return self.transport.is_reading()


def fill(sender: Peer, name: str, count: int = 3) -> None:
    """Send texts to a stuck peer; with `SMALL` all but the first are parked at its outbox.

    They are read while the stages are at work with something else: else the first one would end the reading.
    """
    connections = cast("Any", sender.connection)._all
    topology, connections.input = connections.input, connections.input.input
    for _ in range(count):
        sender.send(name.encode() + b": " + TEXT + b"\n")
    connections.input = topology


class FakeGateway:
    """A worker whose peers are fakes; made in the running loop.

    Args:
        sets: keys of the configuration, as `--set` takes them.
        listening: fake listening sockets; peers can be connected without any.
        is_started: whether the stages run; without, blocks stay in the first channel.
        bus: the path to other workers.
    """

    def __init__(
        self,
        *sets: str,
        listening: Sequence[FakeListening] = (),
        is_started: bool = True,
        bus: Bus | None = None,
    ) -> None:
        self.log = FakeLog()
        self.loop = asyncio.get_running_loop()
        self.worker = Worker(
            configured(*sets),
            cast("Sequence[socket.socket]", listening),
            cast("Log", self.log),
            bus=bus,
        )
        self.connections = self.worker.connections
        self.tokens = self.connections.tokens
        self.ledger = self.worker.ledger
        self._next_port = 50_000
        if is_started:
            self.worker.topology.start()

    def connect(self, tokens: Permits | None = None, *, sock: Any = None, is_made: bool = True) -> Peer:
        """A new connection, with a token taken for it as a listener does."""
        tokens = tokens or self.tokens
        assert tokens.try_acquire()
        self._next_port += 1
        connection = Connection(self.connections, "127.0.0.1", self._next_port, tokens)
        peer = Peer(connection, FakeTransport(self.loop, connection, sock))
        if is_made:
            peer.transport.make()
        return peer

    def login(self, name: str, *, sock: Any = None) -> Peer:
        """A new connection that is logged in."""
        peer = self.connect(sock=sock)
        peer.send(f"{name}\n".encode())
        assert peer.session.login == name
        return peer

    async def stuck(self, name: str, sender: Peer) -> Peer:
        """A new session that takes nothing, and whose writer is paused already by what `sender` wrote."""
        peer = self.login(name)
        peer.stick()
        sender.send(f"{name}: first\n".encode())
        await turns()
        assert peer.connection.outbox is not None
        assert peer.connection.outbox.is_paused
        return peer

    async def drained(self) -> DrainReport:
        """Run the worker through its drain; for gateways made with is_started=False."""
        stop = asyncio.Event()
        stop.set()
        return await self.worker.serve(stop, lambda: None)

    async def close(self) -> None:
        """Reset whoever is left and stop."""
        for connection in self.connections.living():
            cast("Any", connection)._transport.abort()
        await turns()
        self.connections.close()
        await self.worker.ladder.aclose()
        await self.worker.topology.abort()
