"""When messages are due and how late they were; no sockets, the clock is the caller's.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.histogram import Histogram


class OpenLoop:
    """A fixed total rate dealt out to senders in turn, whatever the server does.

    With `tick_s` what comes due within so long is handed out together, so that a high rate does not keep its
    caller busy; it is charged from the time it was due all the same.
    """

    __slots__ = ("_begun_s", "_interval_s", "_not_before_s", "_released", "_senders", "_tick_s")

    def __init__(self, rate_per_s: float, senders: int, begun_s: float, tick_s: float = 0.0) -> None:
        self._interval_s = 1.0 / rate_per_s
        self._senders = senders
        self._tick_s = tick_s
        # when the first message is due
        self._begun_s = begun_s
        # messages handed out so far
        self._released = 0
        # the end of the tick in which the last ones were
        self._not_before_s = begun_s

    def release(self, now_s: float) -> Iterator[tuple[int, int, float]]:
        """Yield (sender, messages, due time of the first of them) for all that is due and not yet released.

        After a delay a sender gets its messages as one burst, charged from the time its oldest was due.
        """
        if now_s < self._not_before_s:
            return
        first = self._released
        due = math.floor((now_s - self._begun_s) / self._interval_s) + 1
        fresh = max(due - first, 0)
        self._released += fresh
        self._not_before_s = now_s + self._tick_s
        for i in range(min(fresh, self._senders)):
            count = 1 + (fresh - 1 - i) // self._senders
            yield (first + i) % self._senders, count, self._begun_s + (first + i) * self._interval_s

    def next_due_s(self) -> float:
        """Time at which there will be something to release."""
        return max(self._begun_s + self._released * self._interval_s, self._not_before_s)


class BurstLog:
    """Due times of all messages of one sender, a pair of numbers for each burst; append only."""

    __slots__ = ("dues_s", "ends")

    def __init__(self) -> None:
        # messages sent up to and including each burst
        self.ends = array("q")
        # when the oldest message of each burst was due
        self.dues_s = array("d")

    def add(self, end: int, due_s: float) -> None:
        """Record that the messages up to number `end` were due at `due_s`."""
        self.ends.append(end)
        self.dues_s.append(due_s)


class Arrivals:
    """One receiver's place in its sender's log: turns counts of lines into latencies.

    Messages due before `since_s` are warm-up: they are followed, but not counted.
    """

    __slots__ = ("_burst", "_log", "arrived")

    def __init__(self, log: BurstLog) -> None:
        self._log = log
        # the burst that the next message belongs to
        self._burst = 0
        # messages that have arrived
        self.arrived = 0

    def arrive(self, lines: int, now_s: float, since_s: float, latencies: Histogram) -> None:
        """Charge the next `lines` messages with the time since they were due."""
        log, burst, arrived = self._log, self._burst, self.arrived
        until = arrived + lines
        while arrived < until and burst < len(log.ends):
            end = log.ends[burst]
            due_s = log.dues_s[burst]
            taken = min(until, end) - arrived
            if due_s >= since_s and taken > 0:
                latencies.add(now_s - due_s, taken)
            arrived += taken
            if arrived >= end:
                burst += 1
        self._burst, self.arrived = burst, until

    def charge_missing(self, now_s: float, since_s: float, latencies: Histogram) -> None:
        """Charge every message that never came with the wait until now, so that a stall is not flattered."""
        if self._log.ends:
            self.arrive(max(self._log.ends[-1] - self.arrived, 0), now_s, since_s, latencies)
