"""Counts of durations in log-linear buckets: cheap to record, mergeable, quantiles at most 1/16 too high.

Sixteen buckets for each power of two, in microseconds; two histograms add up bucket by bucket, so
quantiles over several processes come from merged counts, never from averaged percentiles. The
bucket scheme is that of HdrHistogram (Gil Tene, 2012), without its auto-resizing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXACT_US", "Histogram"]

EXACT_US = 16
"""Each value below has a bucket of its own."""

_LARGEST_US = (1 << 36) - 1  # 19 hours; whatever is longer counts as this
_BUCKETS = ((36 - 4) << 4) + 16


class Histogram:
    """Durations of one kind; whoever measures creates it and records in the loop's thread.

    Who has a whole number of microseconds from 0 to below `EXACT_US` may count it in `counts` itself, which
    spares the call: `counts[us] += 1`.
    """

    __slots__ = ("_longest_us", "counts")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS  # how many values fell into each bucket
        self._longest_us = 0  # the largest value, if it is not below EXACT_US

    def record(self, seconds: float, count: int = 1) -> None:
        """Count a duration in seconds, `count` times; a negative one counts as 0.

        A negative `count` takes back what was recorded before.
        """
        us = int(seconds * 1e6)
        if us < EXACT_US:
            self.counts[us if us > 0 else 0] += count
            return
        if us > self._longest_us:
            self._longest_us = us
        if us > _LARGEST_US:
            us = _LARGEST_US
        exponent = us.bit_length()
        self.counts[((exponent - 4) << 4) + (us >> (exponent - 5) & 15)] += count

    @property
    def total(self) -> int:
        """How many values were recorded."""
        return sum(self.counts)

    @property
    def max_us(self) -> int:
        """The largest value, exact; 0 when empty."""
        return self._longest_us or max((us for us in range(EXACT_US) if self.counts[us]), default=0)

    def quantile_us(self, q: float) -> int:
        """The value in microseconds under which a share `q` (0 to 1) of the values lies; 0 when empty.

        The upper edge of the bucket is given, but never more than the largest value seen.
        """
        need = q * self.total
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= need:
                return min(_upper_edge_us(index), self.max_us)
        return 0

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other` to this one."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self._longest_us = max(self._longest_us, other._longest_us)

    def to_data(self) -> list[int]:
        """All of it for another process: the largest value, then index and count of each bucket in use."""
        data = [self.max_us]
        for index, count in enumerate(self.counts):
            if count:
                data += (index, count)
        return data

    @classmethod
    def from_data(cls, data: Sequence[int]) -> Self:
        """The histogram of which `to_data` made this.

        Raises:
            ValueError, IndexError: it is no such data.
        """
        histogram = cls()
        longest_us, *pairs = data
        if longest_us >= EXACT_US:
            histogram._longest_us = longest_us
        for index, count in zip(pairs[::2], pairs[1::2], strict=True):
            histogram.counts[index] = count
        return histogram

    def take(self) -> Self:
        """Hand out what was recorded so far and begin anew: one interval of a report."""
        taken = type(self)()
        taken.counts, self.counts = self.counts, taken.counts
        taken._longest_us, self._longest_us = self._longest_us, 0
        return taken


def _upper_edge_us(index: int) -> int:
    if index < EXACT_US:
        return index
    shift = (index >> 4) - 1
    return ((16 + (index & 15) + 1) << shift) - 1
