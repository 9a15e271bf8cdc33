"""What the log of a gateway says in the course of a run: fed line by line, asked at the end; no clock."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report import Figures

_PEAKS = ("sessions_stalled", "in_flight", "buffered_bytes")
_SECOND_CHARS = len("2026-01-01T00:00:00")


class LogWatch:
    """Made for one run; fed by the thread that reads the gateway's output."""

    def __init__(self) -> None:
        # records of each event
        self.events: Counter[str] = Counter()
        # why sessions and connections ended, by reason
        self.closed: Counter[str] = Counter()
        # logins that were closed for not reading -> when, in seconds since the epoch
        self.slow_consumers: dict[str, float] = {}
        # the latest metrics record; empty before the first
        self.metrics: dict[str, Any] = {}
        # metrics records in which the sum over all outcomes did not hold
        self.unbalanced = 0
        # the highest value of some fields over all metrics records
        self._peaks: Counter[str] = Counter()
        # lines in each second, by the time in the record
        self._lines: Counter[str] = Counter()
        # records that the gateway said it had left out
        self.left_out = 0

    def feed(self, line: str) -> None:
        """Take one line; what is no record is counted with those that have no event."""
        try:
            record = json.loads(line)
            event, second = record["event"], record["ts"][:_SECOND_CHARS]
        except (ValueError, KeyError, TypeError):
            self.events[""] += 1
            return
        self.events[event] += 1
        self._lines[second] += 1
        self.left_out += record.get("left_out", 0) + (record["count"] if event == "log.left_out" else 0)
        if event == "metrics":
            self._take_metrics(record)
        elif event in ("session.closed", "connection.closed"):
            self.closed[record["reason"]] += 1
            if record["reason"] == "slow_consumer":
                self.slow_consumers[record["login"]] = datetime.fromisoformat(record["ts"]).timestamp()

    def _take_metrics(self, record: dict[str, Any]) -> None:
        self.metrics = record
        ended = record["delivered"] + record["stored"] + record["refused"]
        self.unbalanced += record["accepted"] != ended + record["in_flight"]
        now = {name: record[name] for name in _PEAKS} | {
            "breakers_open": record["breakers"]["open"],
            "loop_lag_max_us": record["loop_lag_us"]["max"],
        }
        for name, value in now.items():
            self._peaks[name] = max(self._peaks[name], value)

    def evictions_after_s(self, since_epoch_s: float) -> Figures:
        """When the first and the last slow consumer was closed; left out if there was none."""
        times = [at_s - since_epoch_s for at_s in self.slow_consumers.values()]
        if not times:
            return {}
        return {"evicted_first_s": round(min(times), 2), "evicted_last_s": round(max(times), 2)}

    def figures(self) -> Figures:
        """Counts and peaks of the whole run, and where the last metrics record left the gauges."""
        last = self.metrics
        return {f"{name}_peak": value for name, value in self._peaks.items()} | {
            "log_lines_per_s_most": max(self._lines.values(), default=0),
            "log_left_out": self.left_out,
            "records_of_slow_consumers": len(self.slow_consumers),
            "breakers_opened": self.events["breaker.opened"],
            "unbalanced": self.unbalanced,
            "logins": last.get("logins", 0),
            "evictions": last.get("evictions", 0),
            "buffered_bytes_last": last.get("buffered_bytes", 0),
            "bad_lines": last.get("rejected_lines", {}).get("bad-line", 0),
        }
