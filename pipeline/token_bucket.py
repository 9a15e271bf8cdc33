"""A rate limit that is computed when asked: no timer, no task; knows nothing of what is limited."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TokenBucket"]


class TokenBucket:
    """Tokens that come back at a steady rate, up to a bound.

    Created full by whoever limits something, one for each subject; there is nothing to close.
    `try_take` is for those who refuse what is too much, `take` for those who delay it.
    """

    __slots__ = ("_clock", "_filled_at", "_level", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float]) -> None:
        """Fill the bucket with `burst` tokens; `clock` returns seconds and is monotonic.

        Raises:
            ValueError: `rate_per_s` or `burst` is not a positive finite number.
        """
        for name, value in (("rate_per_s", rate_per_s), ("burst", burst)):
            if not 0 < value < inf:
                raise ValueError(f"token bucket: {name} must be positive and finite, not {value}")
        # Tokens that come back each second.
        self.rate_per_s = rate_per_s
        # The most tokens there can be at once.
        self.burst = burst
        # Where the time comes from, in seconds.
        self._clock = clock
        # Tokens at `_filled_at`; less than zero is a debt.
        self._level = float(burst)
        # The latest time that the level was computed for.
        self._filled_at = clock()

    @property
    def level(self) -> float:
        """Tokens there are now, at most `burst`; less than zero while a debt is being paid."""
        now = self._clock()
        # A clock that stands still or steps back brings nothing, and no time is ever counted twice.
        if now > self._filled_at:
            self._level = min(self.burst, self._level + (now - self._filled_at) * self.rate_per_s)
            self._filled_at = now
        return self._level

    def take(self, n: float = 1) -> float:
        """Take `n` tokens, also those that are not there yet.

        Returns:
            Seconds until the debt is paid; 0.0 when there is none. The caller waits that long
            before it goes on, and then need not ask again.

        Raises:
            ValueError: `n` is negative.
        """
        self._level = self._after(n)
        return max(0.0, -self._level / self.rate_per_s)

    def try_take(self, n: float = 1) -> bool:
        """Take `n` tokens if they are all there, else none; more than `burst` never are.

        Raises:
            ValueError: `n` is negative.
        """
        left = self._after(n)
        if left < 0:
            return False
        self._level = left
        return True

    def _after(self, n: float) -> float:
        """The level there would be without `n` tokens."""
        if n < 0:
            raise ValueError(f"token bucket: cannot take {n} tokens")
        return self.level - n
