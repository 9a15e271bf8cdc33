"""The rate limit without a timer, in virtual time."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.token_bucket import TokenBucket


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at 100 s."""
    return Clock()


def test_token_bucket_waits_not_when_there_is_enough(clock: Clock) -> None:
    """A new bucket gives its burst without a wait."""
    bucket = TokenBucket(2, 5, clock)
    assert bucket.level == 5
    assert [bucket.take(), bucket.take(4)] == [0.0, 0.0]
    assert bucket.level == 0


def test_token_bucket_returns_time_of_debt_when_there_is_not_enough(clock: Clock) -> None:
    """`take` goes into debt and says how long paying it takes, the debt of earlier takers included."""
    bucket = TokenBucket(2, 5, clock)
    assert bucket.take(6) == 0.5
    assert bucket.take(3) == 2.0
    assert bucket.level == -4
    clock.now += 2.0
    assert bucket.take(0) == 0.0


def test_token_bucket_fills_to_burst_when_time_passes(clock: Clock) -> None:
    """Tokens come back at the rate, and never more than the burst."""
    bucket = TokenBucket(2, 5, clock)
    bucket.take(5)
    clock.now += 1.5
    assert bucket.level == 3
    clock.now += 1000
    assert bucket.level == 5


def test_token_bucket_takes_nothing_when_it_refuses(clock: Clock) -> None:
    """`try_take` takes all or nothing, and never goes into debt."""
    bucket = TokenBucket(1, 3, clock)
    assert bucket.try_take(2)
    assert not bucket.try_take(2)
    assert bucket.level == 1
    assert bucket.try_take()
    assert not bucket.try_take()
    clock.now += 1
    assert bucket.try_take()


def test_token_bucket_refuses_always_when_more_than_burst_is_asked(clock: Clock) -> None:
    """What is more than the whole bucket is refused, however long one waits."""
    bucket = TokenBucket(1, 3, clock)
    clock.now += 1000
    assert not bucket.try_take(4)


def test_token_bucket_counts_no_time_twice_when_clock_steps_back(clock: Clock) -> None:
    """A clock that stands still or steps back brings no tokens, now or when it catches up."""
    bucket = TokenBucket(1, 10, clock)
    bucket.take(10)
    clock.now += 2
    assert [bucket.level, bucket.level] == [2, 2]
    clock.now -= 2
    assert bucket.level == 2
    clock.now += 2
    assert bucket.level == 2
    clock.now += 1
    assert bucket.level == 3


@pytest.mark.parametrize("value", [0, -1, inf, nan])
def test_token_bucket_refuses_when_rate_or_burst_is_not_positive(clock: Clock, value: float) -> None:
    """Rate and burst are positive finite numbers, and the error names the one that is not."""
    with pytest.raises(ValueError, match="rate_per_s"):
        TokenBucket(value, 1, clock)
    with pytest.raises(ValueError, match="burst"):
        TokenBucket(1, value, clock)


def test_token_bucket_refuses_when_count_is_negative(clock: Clock) -> None:
    """Nobody can put tokens in by taking a negative number."""
    bucket = TokenBucket(1, 1, clock)
    with pytest.raises(ValueError, match="-1"):
        bucket.take(-1)
    with pytest.raises(ValueError, match="-1"):
        bucket.try_take(-1)
    assert bucket.level == 1


@given(
    rate=st.integers(1, 50),
    burst=st.integers(1, 50),
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), st.booleans()), max_size=40),
)
def test_token_bucket_keeps_rate_when_takers_do_as_told(
    rate: int, burst: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Whatever is asked, no more than burst + rate × time is given to those who wait as they are told."""
    clock = Clock()
    start = clock.now
    bucket = TokenBucket(rate, burst, clock)
    given_out = 0
    for eighths_s, n, is_patient in steps:
        clock.now += eighths_s / 8
        if is_patient:
            clock.now += bucket.take(n)
            given_out += n
        elif bucket.try_take(n):
            given_out += n
        assert bucket.level <= burst
        assert given_out <= burst + rate * (clock.now - start) + 1e-6
        assert bucket.level >= -1e-6
