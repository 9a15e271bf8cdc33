"""What the gateway tells: structured records, one line each.

`open_log` puts structlog, the limit on floods and the writer thread together. A log call costs the event loop
a few microseconds, never waits, and never raises because of a value; no value can break out of its line.
An event is a constant name, everything that varies is a field. Must not know who logs what.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from chat_gateway.log_flood import LogFlood
from chat_gateway.log_lines import LineRenderer, form_for
from chat_gateway.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

# Events of the gateway itself: no peer can cause them.
NEVER_LIMITED: Final = frozenset(
    {
        *("gateway.ready", "gateway.draining", "gateway.stopped", "gateway.gives_up"),
        *("worker.started", "worker.ready", "worker.draining", "worker.stopped"),
        *("worker.killed", "worker.lost", "worker.not_started"),
        *("metrics", "log.dropped", "log.left_out"),
    }
)

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Lines since the log was opened."""

    written: int
    """Taken by the operating system."""
    failed: int
    """Refused by the operating system: nobody reads, the disk is full."""
    dropped: int
    """Not queued, since the queue was full or the log closed."""
    left_out: int
    """Not rendered, since there were too many of the kind."""
    queued: int
    """Waiting for the writer thread."""


class Log:
    """A log and everything behind it.

    Created by `open_log`; closed by whoever opened it, when nobody logs any more. Several can exist at once.
    """

    def __init__(self, logger: FilteringBoundLogger, writer: LogWriter, flood: LogFlood) -> None:
        # What the program logs with, and binds fields to.
        self.logger: Final = logger
        # Writes the lines.
        self._writer = writer
        # Counts what is left out.
        self._flood = flood

    def flush_left_out(self) -> None:
        """Report counts of left-out records that no later record has reported; for a timer to call."""
        self._flood.flush()

    def close(self, timeout_s: float) -> int:
        """Report what was left out, write what is queued, and give up after `timeout_s`; may be called twice.

        Blocks its caller. Records logged later are dropped and counted.

        Returns:
            Lines that were not written in time.
        """
        self._flood.flush(is_final=True)
        return self._writer.close(timeout_s)

    def statistics(self) -> LogStatistics:
        """What became of the records so far."""
        writer = self._writer
        return LogStatistics(
            writer.written, writer.failed, writer.dropped, self._flood.left_out, writer.queued
        )


def open_log(
    *,
    format: str,  # noqa: A002 - the name of the setting, and the function has no use for the builtin
    level: str,
    queue_records: int,
    flood_per_s: int,
    bind: Mapping[str, Any] | None = None,
    lock_path: Path | None = None,
    fd: int = 1,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    never_limited: frozenset[str] = NEVER_LIMITED,
) -> Log:
    """Open a log and start its writer thread.

    Args:
        format: `json`, `text`, or `auto`, which is text on a terminal and JSON elsewhere.
        level: the lowest level that is logged; one of `LEVELS`.
        queue_records: lines that may wait for the writer thread.
        flood_per_s: records a second with the same event, reason and address; ten times as many for an event.
        bind: fields of every record that say who is talking. Text leaves them out where nobody else does.
        lock_path: file by which the processes that write to this descriptor keep their lines apart; None
            where only this one writes there.
        fd: descriptor to write to; duplicated.
        clock: monotonic seconds, for the limit.
        now: seconds since the epoch, for `ts`.
        never_limited: events that the limit does not concern.

    Raises:
        ValueError: an unknown format or level, or a number below 1.
        OSError: the file for the lock cannot be made.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}")
    bind = bind or {}
    form = form_for(format, fd, unsaid=() if lock_path else tuple(bind))
    renderer = LineRenderer(form, bind=bind, now=now)

    def dropped_line(count: int) -> bytes:
        return renderer(None, "warning", {"event": "log.dropped", "count": count})

    def report(fields: dict[str, object]) -> None:
        writer.offer(renderer(None, "warning", {"event": "log.left_out", **fields}))

    flood = LogFlood(flood_per_s, clock=clock, never_limited=never_limited, report=report)
    writer = LogWriter(fd, max_records=queue_records, describe_dropped=dropped_line, lock_path=lock_path)
    lazy = structlog.wrap_logger(
        SimpleNamespace(**dict.fromkeys(LEVELS, writer.offer)),
        processors=[flood, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    # `bind` makes the real logger; the lazy one would make one for each call.
    return Log(cast("FilteringBoundLogger", lazy.bind()), writer, flood)
