"""Specification of bench.log_watch."""

from __future__ import annotations

import json
from typing import Any

from bench.log_watch import LogWatch

BALANCED: dict[str, Any] = {
    "accepted": 10, "delivered": 6, "stored": 1, "refused": 1, "in_flight": 2, "buffered_bytes": 512,
    "sessions_stalled": 3, "breakers": {"open": 1}, "loop_lag_us": {"max": 900}, "evictions": 0, "logins": 4,
    "rejected_lines": {"bad-line": 5},
}  # fmt: skip


def feed(watch: LogWatch, event: str, second: int = 0, **fields: Any) -> None:
    """One record at a second of the epoch's first minute."""
    record = {"ts": f"1970-01-01T00:00:{second:02d}.500Z", "event": event, **fields}
    watch.feed(json.dumps(record) + "\n")


def test_watch_keeps_the_peak_when_a_gauge_falls_again() -> None:
    """Peaks are of all metrics records, the last value is of the last one."""
    watch = LogWatch()
    feed(watch, "metrics", **BALANCED)
    feed(watch, "metrics", **BALANCED | {"sessions_stalled": 0, "buffered_bytes": 0})
    figures = watch.figures()
    assert (figures["sessions_stalled_peak"], figures["buffered_bytes_peak"]) == (3, 512)
    assert (figures["buffered_bytes_last"], figures["bad_lines"], figures["unbalanced"]) == (0, 5, 0)


def test_watch_counts_a_record_when_its_sum_does_not_hold() -> None:
    """One copy without an outcome is enough."""
    watch = LogWatch()
    feed(watch, "metrics", **BALANCED | {"accepted": 11})
    assert watch.figures()["unbalanced"] == 1


def test_watch_counts_lines_of_the_fullest_second_and_all_that_was_left_out() -> None:
    """Numbers left out are in the record that follows, or in a report of their own."""
    watch = LogWatch()
    for second in (1, 2, 2, 2, 3):
        feed(watch, "session.refused", second, reason="bad_login")
    feed(watch, "session.refused", 4, left_out=7)
    feed(watch, "log.left_out", 5, of="session.refused", count=30)
    figures = watch.figures()
    assert (figures["log_lines_per_s_most"], figures["log_left_out"]) == (3, 37)


def test_watch_tells_when_slow_consumers_were_closed_and_of_no_others() -> None:
    """Times count from the moment asked for; a login closed for another reason is none."""
    watch = LogWatch()
    assert watch.evictions_after_s(10.0) == {}
    feed(watch, "session.closed", 31, reason="slow_consumer", login="a")
    feed(watch, "session.closed", 34, reason="slow_consumer", login="b")
    feed(watch, "session.closed", 50, reason="client_closed", login="c")
    assert watch.evictions_after_s(10.0) == {"evicted_first_s": 21.5, "evicted_last_s": 24.5}
    assert watch.figures()["records_of_slow_consumers"] == 2
    assert watch.closed == {"slow_consumer": 2, "client_closed": 1}


def test_watch_goes_on_when_a_line_is_no_record() -> None:
    """Whatever else a process prints is counted without an event."""
    watch = LogWatch()
    for line in ("Traceback (most recent call last):\n", "[]\n", '{"event": "x"}\n'):
        watch.feed(line)
    assert watch.events == {"": 3}
