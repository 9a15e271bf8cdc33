"""When a worker that died may be started again, and when it has died too often.

Knows nothing of processes; time and chance are its caller's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from retry.policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.config_process import SupervisorConfig

__all__ = ["Restarts"]


class Restarts:
    """The restarts of one place for a worker; made by the supervisor, used in its loop.

    Args:
        settings: how many in which time, and how far apart.
        clock: monotonic seconds.
        random: a number from 0.0 up to 1.0.
    """

    def __init__(
        self, settings: SupervisorConfig, *, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._policy = RetryPolicy(
            attempts=1, base_delay_s=settings.restart_base_delay_s, max_delay_s=settings.restart_max_delay_s
        )
        self._made_at: deque[float] = deque()  # those in the window

    def next_delay_s(self) -> float | None:
        """Seconds until the restart that is needed now; None when there have been too many."""
        now = self._clock()
        while self._made_at and now - self._made_at[0] >= self._settings.restart_window_s:
            self._made_at.popleft()
        before = len(self._made_at)
        if before >= self._settings.max_restarts:
            return None
        self._made_at.append(now)
        return self._policy.delay_s(before - 1, self._random) if before else 0.0
