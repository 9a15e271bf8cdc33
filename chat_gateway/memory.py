"""Gives memory back to the system after a peak.

The allocator of the GNU C library keeps what was freed for the next time, most of it for ever. Its
`malloc_trim` hands it back, at some 0.1 ms for each MiB, while nothing else can be allocated: a thread of its
own would not spare the loop that time. So it is called rarely, and in the midst of a large fall too, for no
call to find much.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from stages.message import Ledger

__all__ = ["Memory", "system_trim"]

MIN_PEAK_BYTES = 16 << 20  # a smaller peak is not worth a call
FALLEN_SHARE = 0.75  # of the peak: it is over
CALM_S = 5.0  # for the rest to go too, and since a load in bursts would fetch its memory anew each time
# A fall that is not waited for, since one call for all of it might take too long: measured 15 ms for 128 MiB.
LARGE_FALL_BYTES = 128 << 20
LARGE_PAUSE_S = 1.0
# What was still in use at a call, up to a quarter of the peak, is waited for too, unless it is less.
MIN_REST_BYTES = 1 << 20


class Memory:
    """Made by a worker, asked in its loop.

    Args:
        ledger: counts the bytes of messages.
        log: told of each call, at debug level.
        trim: hands freed memory back; None where the C library cannot.
        resident_bytes: the resident memory of this process.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: FilteringBoundLogger,
        *,
        trim: Callable[[], object] | None,
        resident_bytes: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._trim = trim
        self._resident_bytes = resident_bytes
        self._clock = clock
        self._peak_bytes = 0  # most that was counted since the last call
        self._least_bytes = MIN_PEAK_BYTES  # smaller is not worth a call; less once, after one that was
        self._busy_at = clock()  # when so much of the peak had not fallen, last
        self._called_at = self._busy_at

    def look(self) -> None:
        """Several times a second: give back what a peak has left behind, once that is over."""
        counted_bytes = self._ledger.buffered_bytes
        now = self._clock()
        self._peak_bytes = max(self._peak_bytes, counted_bytes)
        fallen_bytes = self._peak_bytes - counted_bytes
        if fallen_bytes < self._peak_bytes * FALLEN_SHARE:
            self._busy_at = now
        if self._trim is not None and self._is_time(fallen_bytes, now):
            is_rest = self._peak_bytes < MIN_PEAK_BYTES
            self._least_bytes = MIN_PEAK_BYTES if is_rest else MIN_REST_BYTES
            self._peak_bytes = counted_bytes
            self._give_back(self._trim)

    def _is_time(self, fallen_bytes: int, now: float) -> bool:
        if fallen_bytes >= LARGE_FALL_BYTES and now - self._called_at >= LARGE_PAUSE_S:
            return True
        return self._peak_bytes >= self._least_bytes and now - self._busy_at >= CALM_S

    def _give_back(self, trim: Callable[[], object]) -> None:
        before_bytes, began = self._resident_bytes(), self._clock()
        trim()
        self._called_at = self._clock()
        self._log.debug(
            "memory.given_back",
            freed_bytes=before_bytes - self._resident_bytes(),
            took_s=round(self._called_at - began, 6),
        )


def system_trim() -> Callable[[], object] | None:
    """The C library's `malloc_trim`; None where it has none, as musl and macOS."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    malloc_trim.argtypes = [ctypes.c_size_t]
    return lambda: malloc_trim(0)
