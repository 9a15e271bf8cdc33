"""Copies whose recipient did not come back, as JSON lines in a file that is rotated by size.

Written by one thread behind a bounded queue, so that a slow or full disk costs letters, which are
counted, and nothing else. Only whole letters stay in the file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue
import threading
from typing import TYPE_CHECKING, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["MAX_QUEUED_BYTES", "DeadLetters"]

MAX_QUEUED_BYTES = 16 << 20  # a pause of the disk under many departures at once; further letters are lost
_LETTER_OVERHEAD_BYTES = 512  # what a queued letter takes beside its lines, so that empty ones count too
_CLOSE_S = 2.0  # a disk that hangs must not keep the gateway from ending
_MODE = 0o640  # private messages are in it


class _Letter(NamedTuple):
    ts: float
    to: str
    lines: bytes

    @property
    def cost_bytes(self) -> int:
        return len(self.lines) + _LETTER_OVERHEAD_BYTES


class DeadLetters:
    """Opened and closed by who runs the gateway; `add` is called in the loop, the rest is its own thread.

    Args:
        path: the file; older ones get `.1`, `.2` and so on.
        max_bytes: size at which a new file is begun; only a single longer letter makes one larger.
        keep: how many older files are kept.
        now: seconds since the epoch, for the records.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int, now: Callable[[], float]) -> None:
        self.written = 0  # entries, ever; counted by the thread
        self._failed = 0  # entries that the disk did not take; counted by the thread
        self._refused = 0  # entries that found no room in the queue; counted in the loop
        self._now = now
        self._file = _File(path, max_bytes, keep)
        self._queue: queue.SimpleQueue[_Letter | None] = queue.SimpleQueue()
        self._added_bytes = 0  # to the queue, ever; counted in the loop
        self._done_bytes = 0  # of these, written or lost; counted by the thread
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="dead letters", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Entries that the disk did not take or that found no room in the queue, ever."""
        return self._failed + self._refused

    def add(self, login: str, lines: bytes) -> None:
        """Write the encoded lines that `login` did not get, each ended by a line feed."""
        letter = _Letter(round(self._now(), 3), login, lines)
        queued_bytes = self._added_bytes - self._done_bytes
        if self._is_closed or queued_bytes + letter.cost_bytes > MAX_QUEUED_BYTES:
            self._refused += 1
            return
        self._added_bytes += letter.cost_bytes
        self._queue.put(letter)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write what is queued and close the file, for at most `timeout_s`. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (letter := self._queue.get()) is not None:
            try:
                self._file.append(_json_line(letter))
            except OSError:
                self._failed += 1
            else:
                self.written += 1
            self._done_bytes += letter.cost_bytes
        with contextlib.suppress(OSError):
            self._file.close()


def _json_line(letter: _Letter) -> bytes:
    # Not `splitlines`, which would also split at characters that may stand in a text.
    lines = letter.lines.decode().removesuffix("\n").split("\n")
    record = {"ts": letter.ts, "to": letter.to, "lines": lines}
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class _File:
    """Takes whole lines; opened by whoever makes it, used and closed by one thread.

    Not buffered, or a line that the disk did not take would be tried again behind the next ones, in parts.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd: int | None = self._open()  # None after it could not be opened anew

    def append(self, line: bytes) -> None:
        """Write a line, at the beginning of a new file when it does not fit.

        Raises:
            OSError: it is not written, nor is a part of it.
        """
        fd = self._current()
        size_bytes = os.fstat(fd).st_size
        if size_bytes and size_bytes + len(line) > self._max_bytes:
            self._rotate()
            fd, size_bytes = self._current(), 0
        if os.write(fd, line) < len(line):
            os.ftruncate(fd, size_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def _current(self) -> int:
        """The file under its path, opened anew after it was deleted, or moved away by somebody else."""
        if self._fd is not None and self._is_at_path(self._fd):
            return self._fd
        self.close()
        self._fd = self._open()
        return self._fd

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        """Make every file one older; the oldest goes."""
        if not self._keep:
            self._path.unlink()
            return
        files = [self._path, *(self._path.with_name(f"{self._path.name}.{n + 1}") for n in range(self._keep))]
        for newer, older in reversed(list(itertools.pairwise(files))):
            if newer.exists():
                newer.replace(older)
