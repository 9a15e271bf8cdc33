"""A budget for retries: at most a share of all attempts over a sliding window.

Without it, retries multiply the load on whatever is already failing. The window is a ring of time
buckets, so the memory is constant and no task or timer runs. Knows nothing of what is retried.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKETS = 10  # what is counted is forgotten after 90 to 100 % of the window: precise enough for a share


class RetryBudget:
    """Counts attempts and retries and says whether one more retry may be made.

    Created by whoever wants several policies or writers to share one budget; nobody closes it. All
    calls are synchronous and belong in the thread of one event loop.
    """

    __slots__ = (
        "_all_attempts",
        "_all_retries",
        "_attempts",
        "_bucket_s",
        "_clock",
        "_floor",
        "_newest",
        "_ratio",
        "_retries",
        "refused_total",
        "spent_total",
    )

    def __init__(
        self,
        ratio: float = 0.2,
        window_s: float = 10.0,
        floor: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with an empty window.

        Args:
            ratio: the share of all attempts in the window that may be retries, 0.0 to 1.0 (no limit).
            window_s: length of the window in seconds.
            floor: retries that are always allowed in a window, so that little traffic can retry too.
            clock: monotonic seconds.

        Raises:
            ValueError: an argument is out of its range.
        """
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"ratio must be between 0 and 1, not {ratio}")
        if not window_s > 0.0:
            raise ValueError(f"window_s must be positive, not {window_s}")
        if floor < 0:
            raise ValueError(f"floor must not be negative, not {floor}")
        self._ratio = ratio  # share of the attempts that may be retries
        self._floor = floor  # retries in a window that need no attempts to pay for them
        self._clock = clock  # monotonic seconds
        self._bucket_s = window_s / BUCKETS  # time that one bucket stands for
        self._newest = int(clock() // self._bucket_s)  # number of the newest bucket, counted from time zero
        self._attempts = [0] * BUCKETS  # attempts in each bucket, retries included
        self._retries = [0] * BUCKETS  # retries in each bucket
        self._all_attempts = 0  # sum of _attempts
        self._all_retries = 0  # sum of _retries
        self.spent_total = 0  # retries allowed since the beginning
        self.refused_total = 0  # retries refused since the beginning

    @property
    def attempts(self) -> int:
        """Attempts in the window: first attempts and retries."""
        self._forget_old()
        return self._all_attempts

    @property
    def retries(self) -> int:
        """Retries in the window."""
        self._forget_old()
        return self._all_retries

    def note_attempt(self, count: int = 1) -> None:
        """Count `count` first attempts, which pay for later retries."""
        self._forget_old()
        self._attempts[self._newest % BUCKETS] += count
        self._all_attempts += count

    def try_spend(self) -> bool:
        """Count one retry and return True if it may be made now, else return False."""
        self._forget_old()
        limit = max(self._floor, self._ratio * (self._all_attempts + 1))  # the retry is an attempt too
        if self._all_retries + 1 > limit:
            self.refused_total += 1
            return False
        bucket = self._newest % BUCKETS
        self._attempts[bucket] += 1
        self._retries[bucket] += 1
        self._all_attempts += 1
        self._all_retries += 1
        self.spent_total += 1
        return True

    def _forget_old(self) -> None:
        """Empty the buckets whose time has passed, at most all of them."""
        now = int(self._clock() // self._bucket_s)
        for number in range(self._newest + 1, min(now, self._newest + BUCKETS) + 1):
            bucket = number % BUCKETS
            self._all_attempts -= self._attempts[bucket]
            self._all_retries -= self._retries[bucket]
            self._attempts[bucket] = self._retries[bucket] = 0
        self._newest = max(now, self._newest)
