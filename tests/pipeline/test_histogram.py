"""Buckets of durations: never too low, at most a sixteenth too high, and they add up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.histogram import Histogram

LARGEST_US = (1 << 36) - 1
microseconds = st.integers(0, LARGEST_US)
many_us = st.lists(microseconds, min_size=1, max_size=60)


def recorded(values_us: list[int]) -> Histogram:
    """A histogram of these values."""
    histogram = Histogram()
    for value_us in values_us:
        histogram.record((value_us + 0.5) / 1e6)  # a half, so that the way to seconds and back keeps it
    return histogram


@given(many_us, st.sampled_from([0.0, 0.25, 0.5, 0.99, 1.0]))
def test_histogram_quantile_is_close_when_values_are_recorded(values_us: list[int], q: float) -> None:
    """A quantile is not below the one found by sorting, and at most 1/16 above it."""
    exact_us = sorted(values_us)[max(math.ceil(q * len(values_us)) - 1, 0)]
    assert exact_us <= recorded(values_us).quantile_us(q) <= exact_us * 17 / 16


@given(microseconds)
def test_histogram_gives_maximum_exactly_when_asked_for_all(value_us: int) -> None:
    """The largest value is not rounded, so neither is the quantile of 1."""
    histogram = recorded([value_us, 0])
    assert histogram.max_us == histogram.quantile_us(1.0) == value_us


@given(many_us, many_us)
def test_histogram_equals_that_of_all_values_when_merged(one: list[int], other: list[int]) -> None:
    """Two histograms add up to the histogram of both."""
    merged = recorded(one)
    merged.merge(recorded(other))
    both = recorded(one + other)
    assert (merged.counts, merged.total, merged.max_us) == (both.counts, both.total, both.max_us)


@given(st.lists(microseconds, max_size=60))
def test_histogram_equals_itself_when_it_went_through_data(values_us: list[int]) -> None:
    """What another process makes of the data has the same counts, and so the same quantiles."""
    histogram = recorded(values_us)
    copy = Histogram.from_data(histogram.to_data())
    assert (copy.counts, copy.total, copy.max_us) == (histogram.counts, histogram.total, histogram.max_us)


def test_histogram_data_names_used_buckets_only_when_few_are() -> None:
    """A short list of numbers: the largest value, then pairs of bucket and count."""
    assert Histogram().to_data() == [0]
    assert recorded([5, 5, 70]).to_data() == [70, 5, 2, 49, 1]


@pytest.mark.parametrize("data", [[], [7, 1], [7, 1, 2, 3], [7, 1 << 20, 1]])
def test_histogram_refuses_data_when_it_is_none(data: list[int]) -> None:
    """Half a pair, an unknown bucket and nothing at all are errors."""
    with pytest.raises((ValueError, IndexError)):
        Histogram.from_data(data)


def test_histogram_is_empty_when_new_or_taken() -> None:
    """`take` hands out what there is and begins anew; an empty histogram's quantiles are 0."""
    histogram = recorded([5, 70])
    taken = histogram.take()
    assert (taken.total, taken.max_us, taken.quantile_us(0.5)) == (2, 70, 5)
    assert (histogram.total, histogram.max_us, histogram.quantile_us(0.99)) == (0, 0, 0)
    histogram.record(3e-6)
    assert (histogram.quantile_us(1.0), taken.total) == (3, 2)


def test_histogram_counts_value_as_often_as_told() -> None:
    """A count stands for that many equal values, a negative one takes them back."""
    histogram = Histogram()
    histogram.record(10.5e-6, 98)
    histogram.record(1.0, 2)
    assert (histogram.quantile_us(0.98), histogram.total) == (10, 100)
    assert histogram.quantile_us(0.99) >= 1_000_000
    histogram.record(1.0, -2)
    assert (histogram.quantile_us(0.99), histogram.total) == (10, 98)


def test_histogram_counts_zero_when_clock_ran_backwards() -> None:
    """A negative duration counts as 0."""
    histogram = Histogram()
    histogram.record(-5.0)
    assert (histogram.total, histogram.counts[0], histogram.max_us) == (1, 1, 0)


@pytest.mark.parametrize("days", [[2], [2, 2], [40, 3]])
def test_histogram_counts_in_last_bucket_when_value_is_huge(days: list[int]) -> None:
    """Whatever is longer than 19 hours falls into the last bucket, as often as it happens."""
    histogram = Histogram()
    for one in days:
        histogram.record(one * 86400.0)
    assert histogram.counts[-1] == histogram.total == len(days)
    assert histogram.quantile_us(0.5) == LARGEST_US
    assert histogram.max_us == days[0] * 86400 * 10**6
