"""The orderly end of a worker: stop accepting, stop reading, drain front to back, flush, close.

Bounded by `shutdown.drain_timeout_s` in all, unless whoever ends it says otherwise. A writer that makes no
progress for `outbox.write_timeout_s` meanwhile is given up: its copies are refused with reason `shutdown`,
which is an outcome like any other and does not make the shutdown a failure.

The last part of the time is kept for closing. Copies without an outcome by then are refused with the same
reason, and do make it a failure; their recipients are closed in order like everybody else, so that nobody
who reads is reset because another one is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.connection import Connection
from chat_gateway.disconnect import Disconnect
from pipeline.streams import Stream
from stages.message import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chat_gateway.disconnect import Reason
    from chat_gateway.worker import Worker

__all__ = ["DrainReport", "Ending", "drain"]

_LOOK_S = 0.02  # how often it is looked whether the last copies have their outcome
_ENDED_AT_ONCE = 256  # connections in one turn of the loop: some milliseconds
_CLOSING_SHARE = 0.25  # of the whole time, that is kept for closing, at most
_FLUSH_S = 0.5  # to say the last word; then peers have `outbox.linger_s` to close their side


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker is to end; made by whoever tells it to. The default is for a worker that is alone."""

    reason: Reason = Disconnect.SHUTDOWN  # that its clients are told
    timeout_s: float | None = None  # for all of it; None: `shutdown.drain_timeout_s`
    # Awaited once every copy of its own has an outcome, before its connections are closed: what others send
    # to them still arrives meanwhile. None: nobody else is there.
    settled: Callable[[], Awaitable[None]] | None = None
    # Told, before its connections are closed, that the time for outcomes is over, and how many copies have
    # none. None: nobody asks.
    on_late: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a drain ended."""

    # Copies without an outcome when the time for that ran out: its own, or those for its clients if more.
    undelivered: int
    took_s: float


async def drain(worker: Worker, ending: Ending | None = None) -> DrainReport:
    """Bring a worker to its end; see the module."""
    ending = ending or Ending()
    loop = asyncio.get_running_loop()
    began = loop.time()
    log = worker.log.logger
    event = "worker.draining" if ending.settled else "gateway.draining"
    log.info(event, sessions=len(worker.connections.hub), in_flight=worker.ledger.in_flight)
    timeout_s = worker.config.shutdown.drain_timeout_s if ending.timeout_s is None else ending.timeout_s
    undelivered = 0
    try:
        async with asyncio.timeout(timeout_s - _closing_s(worker, timeout_s)):
            for listener in worker.listeners:
                # Who waits to be accepted by a worker that is replaced is left to its successor.
                await listener.aclose(takes_waiting=ending.reason is not Disconnect.RESTARTING)
            worker.connections.stop_reading(ending.reason)
            await worker.topology.drain()
            await _outcomes(worker, ending)
    except TimeoutError:
        undelivered = _refuse_late(worker, ending)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(began + timeout_s):
            await _close_all(worker, ending.reason)
    for connection in worker.connections.living():
        connection.abort(ending.reason)
    await asyncio.sleep(0)  # lets the transports tell that they are gone
    await asyncio.sleep(0)
    return DrainReport(undelivered, loop.time() - began)


def _closing_s(worker: Worker, timeout_s: float) -> float:
    """How much of the time for everything is kept for closing."""
    return min(_FLUSH_S + worker.config.outbox.linger_s, _CLOSING_SHARE * timeout_s)


def _refuse_late(worker: Worker, ending: Ending) -> int:
    """The time for outcomes is over: refuse what still waits at outboxes; how many copies had no outcome.

    What a transport has taken already still goes out, before the last word.
    """
    outboxes = [one.outbox for one in worker.connections.living() if one.outbox is not None]
    late = [outbox for outbox in outboxes if outbox.waiting_copies]
    # Of what came from another worker only that one's ledger knows, and its time may be over a moment later.
    undelivered = max(worker.ledger.in_flight, sum(outbox.waiting_copies for outbox in late))
    if ending.on_late is not None:
        ending.on_late(undelivered)
    worker.connections.stop_reading(ending.reason)  # it may have been listeners that took so long
    for outbox in late:
        outbox.close(Refusal.SHUTDOWN)
    return undelivered


async def _outcomes(worker: Worker, ending: Ending) -> None:
    """Wait until every copy has its outcome, also those of others; give up writers that stand still."""
    stuck = _Stuck(worker, ending.reason)
    while worker.ledger.in_flight:
        stuck.give_up()
        await asyncio.sleep(_LOOK_S)
    if ending.settled is None:
        return
    waiting = asyncio.ensure_future(ending.settled())
    try:
        while not waiting.done():
            stuck.give_up()
            await asyncio.wait([waiting], timeout=_LOOK_S)
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


class _Stuck:
    """Finds writers that make no progress while a worker drains; lives as long as that.

    Progress is what the ladder takes for it: `min_progress_bytes` that left the machine within
    `write_timeout_s`, or an outbox that has emptied.
    """

    def __init__(self, worker: Worker, reason: Reason) -> None:
        self._connections = worker.connections
        self._patience_s = worker.config.outbox.write_timeout_s
        self._least_bytes = worker.config.outbox.min_progress_bytes
        self._reason = reason
        self._loop = asyncio.get_running_loop()
        self._moved_at: dict[Connection, tuple[int, float]] = {}  # how much had left then, and when

    def give_up(self) -> None:
        """End those that have stood still for too long, with what waits for them."""
        now = self._loop.time()
        for connection in self._connections.living():
            if connection.outbox is None or connection.outbox.is_empty:
                self._moved_at.pop(connection, None)
                continue
            left_bytes = connection.left_bytes
            was, since = self._moved_at.setdefault(connection, (left_bytes, now))
            if left_bytes - was >= self._least_bytes:
                self._moved_at[connection] = (left_bytes, now)
            elif now - since >= self._patience_s:
                connection.outbox.close(Refusal.SHUTDOWN)
                connection.abort(self._reason)


async def _close_all(worker: Worker, reason: Reason) -> None:
    """Close every connection in order, and wait until their peers have closed too."""
    living = worker.connections.living()
    for index, connection in enumerate(living, start=1):
        connection.end(reason)
        if index % _ENDED_AT_ONCE == 0:
            await asyncio.sleep(0)
    await Stream.of(living).map(Connection.wait_closed).buffer_unordered(_ENDED_AT_ONCE).collect()
