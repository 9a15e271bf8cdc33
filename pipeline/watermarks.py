"""A high and a low mark that say when to pause and when to resume; knows nothing of what is measured."""

from __future__ import annotations

__all__ = ["Watermarks"]


class Watermarks:
    """Two marks with hysteresis: above after `high` was exceeded, until the level falls to `low`.

    Created by whoever measures a level (bytes, messages); no task, nothing to close. Ask `rise`
    after the level has grown and `fall` after it has shrunk: each says True once for each crossing.
    """

    __slots__ = ("high", "is_above", "low")

    def __init__(self, high: int, low: int) -> None:
        """Set the marks, in the unit of the levels; a level equal to `high` is not above it.

        Raises:
            ValueError: unless 0 <= low < high.
        """
        if not 0 <= low < high:
            raise ValueError(f"watermarks: need 0 <= low < high, not low={low} and high={high}")
        # A level greater than this one pauses.
        self.high = high
        # A level of this one or less resumes.
        self.low = low
        # True from the crossing of `high` until the return to `low`.
        self.is_above = False

    def rise(self, level: int) -> bool:
        """True exactly when this level crosses the high mark: pause now."""
        if self.is_above or level <= self.high:
            return False
        self.is_above = True
        return True

    def fall(self, level: int) -> bool:
        """True exactly when this level is back at the low mark after having been above: resume now."""
        if not self.is_above or level > self.low:
            return False
        self.is_above = False
        return True
