"""The numbers of a worker: one snapshot each interval and a last one at shutdown.

Reads what the other parts count anyway; only the lag of the event loop is measured here. Each snapshot is
logged as a `metrics` record and, where there are several workers, handed on to be added to those of the
others. Durations are in histograms that begin anew with each snapshot; counters go up for ever.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chat_gateway.bus_statistics import BREAKER_STATES
from chat_gateway.metrics_record import render
from pipeline.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.bus_statistics import BusStatistics
    from chat_gateway.logs import Log
    from chat_gateway.metrics_record import Snapshot
    from chat_gateway.worker import Worker
    from pipeline.stage import Stage, StageStatistics

__all__ = ["Metrics", "own_snapshot"]

_TICK_S = 0.1  # how often the lag of the loop is measured
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Bus(Protocol):
    """A worker's bus, as its metrics see it."""

    def statistics(self) -> BusStatistics:
        """What it counts, with its gauges brought up to date."""


class Metrics:
    """Made, started and stopped by a worker; its timers run in the worker's loop.

    Args:
        worker: whose numbers these are.
        on_snapshot: takes each snapshot where the gateway has several workers, and must not raise; this
            one's own records are then at debug level, since a record for all of them is made elsewhere.
    """

    def __init__(self, worker: Worker, on_snapshot: Callable[[Snapshot], None] | None = None) -> None:
        self.on_snapshot = on_snapshot  # None where this worker is the gateway
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._lag = Histogram()  # how late the loop ran our tick
        self._tick_due = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reported_at = 0.0  # when the record before was made
        self._before: dict[str, StageStatistics] = {}  # what it said of the stages
        try:  # kept open: when files run out, the record is still complete
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._statm = None

    def start(self) -> None:
        """Begin to measure and to report."""
        self._reported_at = time.monotonic()
        self._schedule_tick()
        self._schedule_report()

    def stop(self) -> None:
        """Write the last record and stop."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.report()
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None

    def report(self) -> None:
        """Write a record now."""
        self._worker.log.flush_left_out()
        snapshot = self.snapshot()
        logger = self._worker.log.logger
        if self.on_snapshot is None:
            logger.info("metrics", **render(snapshot))
        else:
            logger.debug("metrics", **render(snapshot))
            self.on_snapshot(snapshot)

    def record(self) -> dict[str, Any]:
        """The fields of a record; begins the next interval."""
        return render(self.snapshot())

    def snapshot(self) -> Snapshot:
        """All numbers as they are now; begins the next interval."""
        now = time.monotonic()
        interval_s = max(now - self._reported_at, 1e-9)
        self._reported_at = now
        return {
            "interval_s": interval_s,
            **self._copies(),
            **self._connections(),
            "stages": {stage.name: self._stage(stage) for stage in self._worker.topology.stages},
            "outbox": self._outboxes(),
            **self._ladder(),
            **self._bus(),
            "loop_lag_us": self._lag.take().to_data(),
            "memory_bytes": self.resident_bytes(),
            "dead_letters": self._dead_letters(),
            "log": _log_counts(self._worker.log),
        }

    def resident_bytes(self) -> int:
        """Resident memory of this process; 0 where /proc does not say."""
        if self._statm is None:
            return 0
        return int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE_BYTES

    def _copies(self) -> Snapshot:
        ledger = self._worker.ledger
        return {
            "accepted": ledger.accepted,
            "delivered": ledger.delivered,
            "stored": ledger.stored,
            "in_flight": ledger.in_flight,
            "refused_by_reason": dict(ledger.refused),
            "rejected_lines": dict(ledger.rejected),
            "buffered_bytes": ledger.buffered_bytes,
            "bytes_in": ledger.bytes_in,
            "bytes_out": ledger.bytes_out,
        }

    def _connections(self) -> Snapshot:
        connections = self._worker.connections
        return {
            "connections": len(connections),
            "connections_accepted": connections.accepted,
            "connections_closed": dict(connections.closed),
            "sessions": len(connections.hub),
            "sessions_stalled": connections.stalled_sessions,
            "sessions_held_back": connections.held_back,
            "logins": connections.logins,
            "logins_in_grace": len(connections.grace),
        }

    def _stage(self, stage: Stage[Any, Any]) -> Snapshot:
        now = stage.statistics()
        before = self._before.get(stage.name)
        self._before[stage.name] = now
        waits = stage.send_waits.take()
        sends = now.channel.sends - (before.channel.sends if before else 0)
        waits.record(0.0, max(sends - waits.total, 0))  # those that did not have to wait
        return {
            "in": now.channel.total_in,
            "out": now.channel.total_out,
            "refused": now.failed,
            "depth": now.channel.depth,
            "peak": now.channel.peak,
            "capacity": now.channel.capacity,
            "waiting": now.channel.waiting_senders,
            "busy_s": now.busy_s - (before.busy_s if before else 0.0),
            "send_wait_us": waits.to_data(),
            "time_in_stage_us": stage.time_in_stage.take().to_data(),
        }

    def _outboxes(self) -> Snapshot:
        """Of an outbox whose writer takes bytes nothing is pending beyond this turn of the loop."""
        ledger, outboxes = self._worker.ledger, self._worker.connections.unwritable
        most = max((outbox.pending_bytes for outbox in outboxes), default=0)
        peak, ledger.peak_outbox_bytes = max(ledger.peak_outbox_bytes, most), most
        return {
            "pending_bytes": sum(outbox.pending_bytes for outbox in outboxes),
            "peak_bytes": peak,
            "paused": len(outboxes),
            "parked_copies": sum(outbox.parked_copies for outbox in outboxes),
        }

    def _ladder(self) -> Snapshot:
        ladder = self._worker.ladder
        breakers = ladder.breakers()
        return {
            "breakers": {state: breakers[state] for state in BREAKER_STATES},
            "retries": ladder.retries,
            "retries_refused": ladder.budget.refused_total,
            "evictions": ladder.evictions,
        }

    def _bus(self) -> Snapshot:
        """Nothing where there is none, since this worker is the gateway."""
        bus: Bus | None = getattr(self._worker, "bus", None)
        return {} if bus is None else {"bus": bus.statistics().snapshot()}

    def _dead_letters(self) -> dict[str, int]:
        letters = self._worker.dead_letters
        return {
            "written": letters.written if letters else 0,
            "lost": letters.lost if letters else 0,
        }

    def _schedule_tick(self) -> None:
        self._tick_due = self._loop.time() + _TICK_S
        self._timers["tick"] = self._loop.call_at(self._tick_due, self._on_tick)

    def _on_tick(self) -> None:
        self._lag.record(self._loop.time() - self._tick_due)
        self._worker.connections.look_at_ceiling()
        self._worker.memory.look()
        self._worker.ladder.note_flushes(self._worker.ledger.flushes)
        self._schedule_tick()

    def _schedule_report(self) -> None:
        interval_s = self._worker.config.metrics.interval_s
        self._timers["report"] = self._loop.call_later(interval_s, self._on_report_due)

    def _on_report_due(self) -> None:
        self._schedule_report()
        self.report()


def own_snapshot(log: Log) -> Snapshot:
    """The part of a snapshot that a process without a worker has: its log, and its memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        pages = 0
    return {"memory_bytes": pages * _PAGE_BYTES, "log": _log_counts(log)}


def _log_counts(log: Log) -> dict[str, int]:
    statistics = log.statistics()
    return {
        "written": statistics.written,
        "dropped": statistics.dropped,
        "left_out": statistics.left_out,
        "failed": statistics.failed,
    }
