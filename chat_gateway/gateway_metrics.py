"""One `metrics` record for a gateway of several workers, from the snapshots that they send.

Knows nothing of processes and how snapshots come: whoever watches the workers tells what has come and who has
gone. A worker that has gone keeps its place in the counters; what it had in flight is counted as refused
with reason `worker_lost`, so that accepted = delivered + stored + refused + in_flight in every record.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from chat_gateway.metrics_record import render
from pipeline.histogram import Histogram
from stages.message import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.metrics_record import Snapshot

__all__ = ["MERGING", "GatewayMetrics"]


class Span(Enum):
    """What a number covers, in the words of docs/metrics.md."""

    EVER = "ever"  # kept when its worker has gone
    NOW = "now"  # goes with its worker
    INTERVAL = "interval"  # gathered from the snapshots since the record before


@dataclass(frozen=True, slots=True)
class Row:
    """How the numbers of two workers become one."""

    span: Span
    merge: Callable[[Any, Any], Any]
    empty: Any  # changes nothing when it is merged; never changed itself


def _merged_durations(one: list[int], other: list[int]) -> list[int]:
    histogram = Histogram.from_data(one)
    histogram.merge(Histogram.from_data(other))
    return histogram.to_data()


COUNTER = Row(Span.EVER, operator.add, 0)
HIGHEST = Row(Span.EVER, max, 0)
GAUGE = Row(Span.NOW, operator.add, 0)
SUM = Row(Span.INTERVAL, operator.add, 0)
MOST = Row(Span.INTERVAL, max, 0)
DURATIONS = Row(Span.INTERVAL, _merged_durations, Histogram().to_data())

Table: TypeAlias = Mapping[str, "Row | Table"]

EACH: Final = "<name>"  # stands for every name that the table does not have

_BREAKERS: Final[Table] = {"closed": GAUGE, "open": GAUGE, "half_open": GAUGE}

# Every number of a snapshot, in its form and order; what is not here is left out of the gateway's record.
MERGING: Final[Table] = {
    "interval_s": SUM,
    "accepted": COUNTER,
    "delivered": COUNTER,
    "stored": COUNTER,
    "in_flight": GAUGE,
    "refused_by_reason": {EACH: COUNTER},
    "rejected_lines": {EACH: COUNTER},
    "buffered_bytes": GAUGE,
    "bytes_in": COUNTER,
    "bytes_out": COUNTER,
    "connections": GAUGE,
    "connections_accepted": COUNTER,
    "connections_closed": {EACH: COUNTER},
    "sessions": GAUGE,
    "sessions_stalled": GAUGE,
    "sessions_held_back": GAUGE,
    "logins": COUNTER,
    "logins_in_grace": GAUGE,
    "stages": {
        EACH: {
            "in": COUNTER,
            "out": COUNTER,
            "refused": COUNTER,
            "depth": GAUGE,
            "peak": HIGHEST,
            "capacity": GAUGE,
            "waiting": GAUGE,
            "busy_s": SUM,
            "send_wait_us": DURATIONS,
            "time_in_stage_us": DURATIONS,
        }
    },
    "outbox": {"pending_bytes": GAUGE, "peak_bytes": MOST, "paused": GAUGE, "parked_copies": GAUGE},
    "breakers": _BREAKERS,
    "retries": COUNTER,
    "retries_refused": COUNTER,
    "evictions": COUNTER,
    "bus": {
        "copies_out": COUNTER,
        "copies_in": COUNTER,
        "batches_out": COUNTER,
        "batches_in": COUNTER,
        "bytes_out": COUNTER,
        "bytes_in": COUNTER,
        "pending_bytes": GAUGE,
        "peak_bytes": MOST,
        "breakers": _BREAKERS,
        "held_logins": GAUGE,
        "places": GAUGE,
        "round_trip_us": DURATIONS,
    },
    "loop_lag_us": DURATIONS,
    "memory_bytes": GAUGE,
    "dead_letters": {"written": COUNTER, "lost": COUNTER},
    "log": {"written": COUNTER, "dropped": COUNTER, "left_out": COUNTER, "failed": COUNTER},
}


class GatewayMetrics:
    """Made by the supervisor, told of its workers and asked for records in its loop.

    What is told of a worker counts in the order in which it is told. A worker is named by its `wid`, a number
    that no other one ever has.

    Args:
        clock: seconds, monotonic.
        own: the part of a snapshot that the asking process adds: what it has logged, its memory.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, own: Callable[[], Snapshot] | None = None
    ) -> None:
        self._clock = clock
        self._own = own
        self._reported_at = clock()  # when the record before was made
        self._latest: dict[int, Snapshot] = {}  # of each worker that lives
        self._recent: Snapshot = {}  # intervals of all snapshots since the record before
        self._past: Snapshot = {}  # counters of all workers that have gone
        self._gone: set[int] = set()  # their numbers: what still comes of them is late
        self._restarts = 0  # workers that died

    def update(self, wid: int, snapshot: Snapshot) -> None:
        """A worker has sent its numbers."""
        if wid not in self._gone:
            self._latest[wid] = snapshot
            _merge(self._recent, snapshot, Span.INTERVAL)

    def beat(
        self,
        wid: int,
        accepted: int,
        delivered: int,
        stored: int,
        refused: Mapping[str, int],
        in_flight: int,
    ) -> None:
        """A worker has said how its copies stand, in between; `refused` is by reason."""
        if wid not in self._gone:
            self._latest[wid] = {
                **self._latest.get(wid, {}),
                "accepted": accepted,
                "delivered": delivered,
                "stored": stored,
                "in_flight": in_flight,
                "refused_by_reason": dict(refused),
            }

    def lost(self, wid: int) -> None:
        """A worker has died: nobody knows what became of what it had in flight."""
        if wid not in self._gone:
            self._restarts += 1
            self.left(wid)

    def left(self, wid: int) -> None:
        """A worker has ended because it was told to."""
        self._gone.add(wid)
        last = self._latest.pop(wid, {})
        _merge(self._past, last, Span.EVER)
        if in_flight := last.get("in_flight", 0):
            _merge(self._past, {"refused_by_reason": {Refusal.WORKER_LOST: in_flight}}, Span.EVER)

    def record(self) -> dict[str, Any]:
        """The fields of a record; begins the next interval."""
        now = self._clock()
        interval_s, self._reported_at = now - self._reported_at, now
        recent, self._recent = self._recent, {}
        total = _empty(MERGING)
        _merge(total, self._past, Span.EVER)
        for snapshot in (*self._latest.values(), self._own() if self._own else {}):
            _merge(total, snapshot, Span.EVER)
            _merge(total, snapshot, Span.NOW)
        _merge(total, recent, Span.INTERVAL)
        return {
            **render(total),
            "interval_s": round(interval_s, 3),
            "workers": {"live": len(self._latest), "restarts": self._restarts},
        }


def _merge(into: Snapshot, snapshot: Mapping[str, Any], span: Span, table: Table = MERGING) -> None:
    """Add those numbers of a snapshot that cover this span."""
    for name, value in snapshot.items():
        row = table.get(name) or table.get(EACH)
        if isinstance(row, Row):
            if row.span is span:
                into[name] = row.merge(into.get(name, row.empty), value)
        elif row is not None:
            _merge(into.setdefault(name, _empty(row)), value, span, row)


def _empty(table: Table) -> Snapshot:
    """A snapshot of nothing."""
    return {
        name: row.empty if isinstance(row, Row) else _empty(row)
        for name, row in table.items()
        if name != EACH
    }
