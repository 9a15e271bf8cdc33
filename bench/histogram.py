"""Latency histogram with a bounded number of buckets and quantiles that never flatter.

Knows nothing of sockets or servers. Values are seconds; buckets are log-linear in nanoseconds.
"""

from __future__ import annotations

import math
from collections import Counter

_STEPS_BITS = 5  # 32 steps an octave: a quantile is at most 1/32 above the true value
_STEPS = 1 << _STEPS_BITS


# Shares of the values at which a whole distribution is told: 0 to 0.999, close where it ends.
CURVE = tuple(1 - 10 ** (-step / 8) for step in range(25))


def bucket_of(value_ns: int) -> int:
    """Number of the bucket that holds a value; grows with the value and is exact below 64 ns."""
    shift = max(value_ns.bit_length() - _STEPS_BITS - 1, 0)
    return shift * _STEPS + (value_ns >> shift)


def top_of(bucket: int) -> int:
    """Largest value in nanoseconds that falls into a bucket."""
    shift = max(bucket // _STEPS - 1, 0)
    return ((bucket - shift * _STEPS + 1) << shift) - 1


class Histogram:
    """Counts of latencies; created and read by one load generator, in its only thread."""

    __slots__ = ("_buckets", "count", "max_s")

    def __init__(self) -> None:
        # bucket number -> how many values fell into it
        self._buckets: Counter[int] = Counter()
        # how many values were added in all
        self.count = 0
        # largest value seen, exact
        self.max_s = 0.0

    def add(self, value_s: float, count: int = 1) -> None:
        """Count `count` values of `value_s` seconds; a negative one (clock granularity) counts as 0."""
        value_ns = int(value_s * 1e9) if value_s > 0 else 0
        shift = max(value_ns.bit_length() - _STEPS_BITS - 1, 0)  # bucket_of, without the call
        self._buckets[shift * _STEPS + (value_ns >> shift)] += count
        self.count += count
        if value_s > self.max_s:
            self.max_s = value_s

    def quantile_us(self, q: float) -> float:
        """Microseconds that a share `q` of the values does not exceed, rounded up; 0 when empty."""
        needed = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= needed:
                return min(top_of(bucket) / 1e3, self.max_s * 1e6)
        return 0.0
