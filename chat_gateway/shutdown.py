"""The orderly end of a worker: stop accepting, stop reading, drain front to back, flush, close.

Bounded by `shutdown.drain_timeout_s` in all, unless whoever ends it says otherwise. A writer that makes no
progress for `outbox.write_timeout_s` meanwhile is given up: its copies are refused with reason `shutdown`,
which is an outcome like any other and does not make the shutdown a failure.
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


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker is to end; made by whoever tells it to. The default is for a worker that is alone."""

    reason: Reason = Disconnect.SHUTDOWN  # that its clients are told
    timeout_s: float | None = None  # for all of it; None: `shutdown.drain_timeout_s`
    # Awaited once every copy of its own has an outcome, before its connections are closed: what others send
    # to them still arrives meanwhile. None: nobody else is there.
    settled: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a drain ended."""

    undelivered: int  # copies without an outcome when the time ran out
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
        async with asyncio.timeout(timeout_s):
            for listener in worker.listeners:
                # Who waits to be accepted by a worker that is replaced is left to its successor.
                await listener.aclose(takes_waiting=ending.reason is not Disconnect.RESTARTING)
            worker.connections.stop_reading(ending.reason)
            await worker.topology.drain()
            await _outcomes(worker, ending)
            await _close_all(worker, ending.reason)
    except TimeoutError:
        undelivered = worker.ledger.in_flight
    for connection in worker.connections.living():
        connection.abort(ending.reason)
    await asyncio.sleep(0)  # lets the transports tell that they are gone
    await asyncio.sleep(0)
    return DrainReport(undelivered, loop.time() - began)


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
    """Finds writers that make no progress while a worker drains; lives as long as that."""

    def __init__(self, worker: Worker, reason: Reason) -> None:
        self._connections = worker.connections
        self._patience_s = worker.config.outbox.write_timeout_s
        self._reason = reason
        self._loop = asyncio.get_running_loop()
        self._moved_at: dict[Connection, tuple[int, float]] = {}  # how much had left, and since when

    def give_up(self) -> None:
        """End those that have stood still for too long, with what waits for them."""
        now = self._loop.time()
        for connection in self._connections.living():
            if connection.outbox is None or connection.outbox.is_empty:
                continue
            left_bytes = connection.left_bytes
            was, since = self._moved_at.get(connection, (-1, now))
            if left_bytes > was:
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
