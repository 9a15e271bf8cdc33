"""Copies whose recipient did not come back, as JSON lines in a file that is rotated by size.

Written by one thread behind a bounded queue, so that a slow or full disk costs letters, which are
counted, and nothing else.
"""

from __future__ import annotations

import queue
from logging import Formatter, LogRecord, makeLogRecord
from logging.handlers import QueueListener, RotatingFileHandler
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["DeadLetters"]

_MAX_QUEUED = 1000  # entries of at most one read each; further ones are lost and counted


class DeadLetters:
    """Opened and closed by a worker; `add` is called in its loop.

    Args:
        path: the file; older ones get `.1`, `.2` and so on.
        max_bytes: size at which a new file is begun.
        keep: how many older files are kept.
        now: seconds since the epoch, for the records.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int, now: Callable[[], float]) -> None:
        self.written = 0  # entries, ever
        self.lost = 0  # entries that the disk did not take or that found no room in the queue
        self._now = now
        self._handler = _File(path, max_bytes, keep, self)
        self._queue: queue.Queue[LogRecord] = queue.Queue(_MAX_QUEUED)
        self._listener = QueueListener(self._queue, self._handler)
        self._listener.start()

    def add(self, login: str, lines: bytes) -> None:
        """Write the encoded lines that `login` did not get."""
        letter = {"ts": round(self._now(), 3), "to": login, "lines": lines.decode().splitlines()}
        try:
            self._queue.put_nowait(makeLogRecord({"msg": orjson.dumps(letter).decode()}))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._listener.stop()
        self._handler.close()


class _File(RotatingFileHandler):
    """Counts instead of printing what went wrong."""

    def __init__(self, path: Path, max_bytes: int, keep: int, counts: DeadLetters) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
        self._counts = counts
        self._failed = False
        self.setFormatter(Formatter("%(message)s"))

    def emit(self, record: LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if self._failed:
            self._counts.lost += 1
        else:
            self._counts.written += 1

    def handleError(self, record: LogRecord) -> None:
        self._failed = True
