"""The orderly end of a worker: stop accepting, stop reading, drain front to back, flush, close.

Bounded by `shutdown.drain_timeout_s` in all. A writer that makes no progress for
`outbox.write_timeout_s` meanwhile is given up: its copies are refused with reason `shutdown`, which is an
outcome like any other and does not make the shutdown a failure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.connection import Connection
from chat_gateway.disconnect import Disconnect
from pipeline.streams import Stream
from stages.message import Refusal

if TYPE_CHECKING:
    from chat_gateway.worker import Worker

__all__ = ["DrainReport", "drain"]

_LOOK_S = 0.02  # how often it is looked whether the last copies have their outcome
_ENDED_AT_ONCE = 256  # connections in one turn of the loop: some milliseconds


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a drain ended."""

    undelivered: int  # copies without an outcome when the time ran out
    took_s: float


async def drain(worker: Worker) -> DrainReport:
    """Bring a worker to its end; see the module."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    log = worker.log.logger
    log.info("gateway.draining", sessions=len(worker.connections.hub), in_flight=worker.ledger.in_flight)
    undelivered = 0
    try:
        async with asyncio.timeout(worker.config.shutdown.drain_timeout_s):
            for listener in worker.listeners:
                await listener.aclose()
            worker.connections.stop_reading()
            await worker.topology.drain()
            await _outcomes(worker)
            await _close_all(worker)
    except TimeoutError:
        undelivered = worker.ledger.in_flight
    for connection in worker.connections.living():
        connection.abort(Disconnect.SHUTDOWN)
    await asyncio.sleep(0)  # lets the transports tell that they are gone
    await asyncio.sleep(0)
    return DrainReport(undelivered, loop.time() - began)


async def _outcomes(worker: Worker) -> None:
    """Wait until every copy has its outcome; give up writers that stand still."""
    loop = asyncio.get_running_loop()
    patience_s = worker.config.outbox.write_timeout_s
    moved_at: dict[Connection, tuple[int, float]] = {}
    while worker.ledger.in_flight:
        now = loop.time()
        for connection in worker.connections.living():
            if connection.outbox is None or connection.outbox.is_empty:
                continue
            left_bytes = connection.left_bytes
            was, since = moved_at.get(connection, (-1, now))
            if left_bytes > was:
                moved_at[connection] = (left_bytes, now)
            elif now - since >= patience_s:
                connection.outbox.close(Refusal.SHUTDOWN)
                connection.abort(Disconnect.SHUTDOWN)
        await asyncio.sleep(_LOOK_S)


async def _close_all(worker: Worker) -> None:
    """Close every connection in order, and wait until their peers have closed too."""
    living = worker.connections.living()
    for index, connection in enumerate(living, start=1):
        connection.end(Disconnect.SHUTDOWN)
        if index % _ENDED_AT_ONCE == 0:
            await asyncio.sleep(0)
    await Stream.of(living).map(Connection.wait_closed).buffer_unordered(_ENDED_AT_ONCE).collect()
