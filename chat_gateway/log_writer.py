"""The thread that writes log lines, behind a bounded queue.

Takes finished lines as bytes and hands each one to the operating system with one `write`, when no other
process of the gateway is in the midst of one. Whoever logs never waits: what does not fit is dropped and
counted. Must not know what is in a line.
"""

from __future__ import annotations

import os
import select
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from chat_gateway.log_lock import LogLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Room for the largest default queue of ordinary lines (some 300 bytes each) many times over, and still
# nothing that a worker would notice in its memory.
MAX_QUEUE_BYTES: Final = 16 * 1024 * 1024

# Only a thread that was given up looks at this: how long it may take to notice that.
_POLL_MS: Final = 1_000


class LogWriter:
    """Bounded queue of lines and the one thread that writes them.

    Created by `open_log`, closed by `Log.close`. `offer` may be called from every thread, also by a finaliser
    that interrupts another `offer`. A daemon thread of its own empties the queue and never holds the lock
    while it writes. Each counter is changed by one side only, so the other side reads it without the lock.
    """

    def __init__(
        self,
        fd: int,
        *,
        max_records: int,
        describe_dropped: Callable[[int], bytes],
        max_bytes: int = MAX_QUEUE_BYTES,
        lock_path: Path | None = None,
    ) -> None:
        """Duplicate the descriptor and start the thread.

        Args:
            fd: where to write; blocking or not. The caller may close it at any time.
            max_records: lines that may wait.
            describe_dropped: makes the line that says how many lines were dropped; called from both sides.
            max_bytes: bytes that may wait, together with the line being written.
            lock_path: file by which the processes that write to the same place keep their lines apart; None
                where this one is alone.

        Raises:
            ValueError: `max_records` is less than 1.
            OSError: the file cannot be made or read.
        """
        if max_records < 1:
            raise ValueError("max_records must be at least 1")
        # Whose turn it is to write; also, whether the line before has an end.
        self._output_lock = LogLock(lock_path)
        # Our own duplicate: a number that somebody closes and reuses for a socket must not receive log lines.
        self._fd = _duplicate(fd)
        # Lines that may wait.
        self._max_records = max_records
        # Bytes that may wait.
        self._max_bytes = max_bytes
        # Makes the line about dropped lines from their number.
        self._describe_dropped = describe_dropped
        # Lines on their way to the thread; None ends it.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # Guards what the offering side counts. Re-entrant: a finaliser may log in the middle of a call.
        self._lock = threading.RLock()
        # Lines refused because the queue was full or closed.
        self.dropped = 0
        # Part of `dropped` that a line has reported.
        self._dropped_told = 0
        # Lines and bytes that entered the queue (offering side).
        self._accepted = 0
        self._accepted_bytes = 0
        # Lines and bytes of those that the thread is done with, written or failed (thread's side).
        self._finished = 0
        self._finished_bytes = 0
        # Lines the operating system took, those about dropped lines included.
        self.written = 0
        # Lines the operating system refused: nobody reads, the disk is full.
        self.failed = 0
        # No more lines are taken.
        self._is_closed = False
        # `close` no longer waits: the thread ends as soon as it comes back from the operating system.
        self._is_abandoned = False
        # A daemon, so that one stuck in `write` does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Lines accepted and neither written nor failed."""
        return self._accepted - self._finished

    def offer(self, line: bytes) -> bool:
        """Queue a whole line, its end included; False when it was dropped."""
        with self._lock:
            if self._is_closed or not self._has_room(len(line), 1):
                self.dropped += 1
                return False
            # Half empty, not one place free: under lasting pressure every second line would be a report.
            if self.dropped != self._dropped_told and self._has_room(len(line), 2):
                self._accept(self._describe_dropped(self._take_dropped()))
            self._accept(line)
        return True

    def close(self, timeout_s: float) -> int:
        """Take no more lines, wait for the queued ones, and give up after `timeout_s`; may be called twice.

        Returns:
            Accepted lines that were still waiting when the time was over.
        """
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join(timeout_s)
        self._is_abandoned = True
        return self.queued

    def _has_room(self, line_bytes: int, share: int) -> bool:
        """Whether a line fits into the `share`-th part of the queue."""
        waiting_bytes = self._accepted_bytes - self._finished_bytes
        return (
            self._queue.qsize() * share < self._max_records
            and (waiting_bytes + line_bytes) * share <= self._max_bytes
        )

    def _accept(self, line: bytes) -> None:
        self._accepted += 1
        self._accepted_bytes += len(line)
        self._queue.put(line)

    def _take_dropped(self) -> int:
        """How many were dropped since the last line about it; the caller reports them."""
        with self._lock:
            count = self.dropped - self._dropped_told
            self._dropped_told = self.dropped
        return count

    def _run(self) -> None:
        """Body of the thread."""
        try:
            while (line := self._next_line()) is not None and not self._is_abandoned:
                self._write(line)
                self._finished_bytes += len(line)
                self._finished += 1
        finally:
            self._output_lock.close()
            if self._fd >= 0:
                os.close(self._fd)

    def _next_line(self) -> bytes | None:
        if self._queue.empty():
            self._maybe_tell_dropped()
        line = self._queue.get()
        if line is None:
            self._maybe_tell_dropped()
        return line

    def _maybe_tell_dropped(self) -> None:
        """Report drops that no later line would report, since nothing is logged any more."""
        if self.dropped != self._dropped_told and not self._is_abandoned:
            count = self._take_dropped()
            if count:  # none, if a line queued meanwhile reports them
                self._write(self._describe_dropped(count))

    def _write(self, line: bytes) -> None:
        """Write a line and count how it went; a partial write is continued."""
        lock = self._output_lock
        rest = whole = b""
        try:
            rest = whole = self._begin(line)
            while rest:
                rest = rest[self._write_some(rest) :]
                if rest and not lock.go_on():
                    rest = whole = self._begin(line)
        except OSError:
            self.failed += 1
            lock.release(is_cut=lock.was_cut or len(rest) != len(whole))
        else:
            self.written += 1
            lock.release(is_cut=False)

    def _begin(self, line: bytes) -> bytes:
        """What to write for this line, now that it may be written.

        Raises:
            TimeoutError: the thread was given up while it waited.
        """
        self._output_lock.acquire(self._fd, lambda: self._is_abandoned)
        return self._output_lock.begin(line)

    def _write_some(self, rest: bytes) -> int:
        """One `write`, after waiting for a descriptor that does not block.

        Raises:
            OSError: the operating system refused, or the thread was given up while it waited.
        """
        while True:
            try:
                return os.write(self._fd, rest)
            except BlockingIOError:
                if self._is_abandoned:
                    raise
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(_POLL_MS)


def _duplicate(fd: int) -> int:
    """A descriptor of our own, or -1, where every write fails, if the process was started without one."""
    try:
        return os.dup(fd)
    except OSError:
        return -1
