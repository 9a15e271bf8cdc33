"""Specification of bench.histogram."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import Histogram, bucket_of, top_of

values_ns = st.integers(0, 10**12)


@given(values_ns)
def test_bucket_contains_its_value_within_a_thirty_second(value_ns: int) -> None:
    """The top of a value's bucket is not below the value and at most 1/32 above it."""
    top = top_of(bucket_of(value_ns))
    assert value_ns <= top <= value_ns * (1 + 1 / 32)


@given(values_ns, values_ns)
def test_bucket_never_falls_when_the_value_grows(one: int, other: int) -> None:
    """Buckets are in the order of their values."""
    low, high = sorted((one, other))
    assert bucket_of(low) <= bucket_of(high)


@given(st.lists(values_ns, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.99, 0.999, 1.0]))
def test_quantile_is_not_below_the_true_one(values: list[int], q: float) -> None:
    """A quantile is at or at most 1/32 above the value found by sorting."""
    histogram = Histogram()
    for value in values:
        histogram.add(value / 1e9)
    exact_us = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)] / 1e3
    assert exact_us - 0.002 <= histogram.quantile_us(q) <= exact_us * (1 + 1 / 32) + 0.002


def test_quantile_weighs_a_value_added_with_a_count() -> None:
    """Ninety-nine of one value and one of another put p99 on the first, p100 on the second."""
    histogram = Histogram()
    histogram.add(10e-6, 99)
    histogram.add(5e-3)
    assert histogram.count == 100
    assert round(histogram.quantile_us(0.5)) == round(histogram.quantile_us(0.99)) == 10
    assert histogram.quantile_us(1.0) == histogram.max_s * 1e6 == 5000.0


def test_quantile_is_zero_when_empty_or_negative() -> None:
    """Nothing to count, or a clock that seems to run backwards, gives 0 and no error."""
    histogram = Histogram()
    assert histogram.quantile_us(0.5) == 0.0
    histogram.add(-1e-9)
    assert (histogram.count, histogram.quantile_us(0.5)) == (1, 0.0)
