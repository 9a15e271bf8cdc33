"""Counts of durations in log-linear buckets: cheap to record, mergeable, quantiles at most 1/16 too high.

Sixteen buckets for each power of two, in microseconds; two histograms add up bucket by bucket, so
quantiles over several processes come from merged counts, never from averaged percentiles. The
bucket scheme is that of HdrHistogram (Gil Tene, 2012), without its auto-resizing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Histogram"]

_LARGEST_US = (1 << 36) - 1  # 19 hours; whatever is longer counts as this
_BUCKETS = ((36 - 4) << 4) + 16


class Histogram:
    """Durations of one kind; whoever measures creates it and records in the loop's thread."""

    __slots__ = ("counts", "max_us", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS  # how many values fell into each bucket
        self.total = 0  # how many values were recorded
        self.max_us = 0  # the largest value, exact

    def record(self, seconds: float, count: int = 1) -> None:
        """Count a duration in seconds, `count` times; a negative one counts as 0.

        A negative `count` takes back what was recorded before.
        """
        us = int(seconds * 1e6)
        if us > self.max_us:
            self.max_us = us
        if us > _LARGEST_US:
            us = _LARGEST_US
        if us < 16:
            self.counts[us if us > 0 else 0] += count
        else:
            exponent = us.bit_length()
            self.counts[((exponent - 4) << 4) + (us >> (exponent - 5) & 15)] += count
        self.total += count

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
        self.total += other.total
        self.max_us = max(self.max_us, other.max_us)

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
        histogram.max_us, *pairs = data
        for index, count in zip(pairs[::2], pairs[1::2], strict=True):
            histogram.counts[index] = count
            histogram.total += count
        return histogram

    def take(self) -> Self:
        """Hand out what was recorded so far and begin anew: one interval of a report."""
        taken = type(self)()
        taken.counts, self.counts = self.counts, taken.counts
        taken.total, self.total = self.total, 0
        taken.max_us, self.max_us = self.max_us, 0
        return taken


def _upper_edge_us(index: int) -> int:
    if index < 16:
        return index
    shift = (index >> 4) - 1
    return ((16 + (index & 15) + 1) << shift) - 1
