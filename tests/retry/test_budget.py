"""The budget allows its share, forgets what is old, and stays small."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retry.budget import BUCKETS, RetryBudget


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def spend_all(budget: RetryBudget, most: int = 1_000) -> int:
    """Spend until the budget refuses; return how many retries it allowed."""
    return next((count for count in range(most) if not budget.try_spend()), most)


def test_try_spend_allows_the_floor_when_there_were_no_attempts() -> None:
    """With little traffic exactly `floor` retries are allowed in a window."""
    budget = RetryBudget(ratio=0.2, floor=10, clock=FakeClock())
    assert spend_all(budget) == 10


def test_try_spend_allows_the_share_of_all_attempts_when_traffic_is_high() -> None:
    """Retries reach `ratio` of first attempts and retries together, and no more."""
    budget = RetryBudget(ratio=0.5, floor=0, clock=FakeClock())
    budget.note_attempt(100)
    assert spend_all(budget) == 100
    assert (budget.retries, budget.attempts) == (100, 200)


def test_try_spend_refuses_every_retry_when_ratio_and_floor_are_zero() -> None:
    """A budget of nothing allows nothing."""
    budget = RetryBudget(ratio=0.0, floor=0, clock=FakeClock())
    budget.note_attempt(1_000)
    assert not budget.try_spend()


def test_note_attempt_counts_one_when_no_count_is_given() -> None:
    """One call is one first attempt, and no retry."""
    budget = RetryBudget(clock=FakeClock())
    budget.note_attempt()
    assert (budget.attempts, budget.retries) == (1, 0)


def test_totals_count_allowed_and_refused_when_the_budget_is_spent() -> None:
    """`spent_total` and `refused_total` tell how often the budget said yes and no."""
    budget = RetryBudget(ratio=0.0, floor=2, clock=FakeClock())
    answers = [budget.try_spend() for _ in range(5)]
    assert answers == [True, True, False, False, False]
    assert (budget.spent_total, budget.refused_total) == (2, 3)


def test_refused_retries_do_not_count_as_attempts_when_the_budget_is_spent() -> None:
    """A refused retry was not made, so it pays for nothing."""
    budget = RetryBudget(ratio=0.5, floor=0, clock=FakeClock())
    for _ in range(100):
        budget.try_spend()
    assert budget.attempts == 0


def test_window_keeps_counts_when_nine_tenths_of_it_have_passed() -> None:
    """What happened less than nine tenths of a window ago still counts."""
    clock = FakeClock(100.0)
    budget = RetryBudget(window_s=10.0, clock=clock)
    budget.note_attempt(5)
    budget.try_spend()
    clock.now_s = 109.0
    assert (budget.attempts, budget.retries) == (6, 1)


def test_window_forgets_counts_when_it_has_passed() -> None:
    """What happened a whole window ago no longer counts, but the totals remain."""
    clock = FakeClock(100.0)
    budget = RetryBudget(window_s=10.0, floor=1, ratio=0.0, clock=clock)
    budget.note_attempt(5)
    assert budget.try_spend()
    assert not budget.try_spend()
    clock.now_s = 110.0
    assert budget.try_spend()
    assert (budget.attempts, budget.retries, budget.spent_total) == (1, 1, 2)


@pytest.mark.parametrize("name", ["attempts", "retries"])
def test_counts_are_those_of_the_window_when_only_one_is_read(name: str) -> None:
    """Each count forgets what is old by itself."""
    clock = FakeClock()
    budget = RetryBudget(window_s=10.0, clock=clock)
    budget.try_spend()
    assert getattr(budget, name) == 1
    clock.now_s = 10.0
    assert getattr(budget, name) == 0


def test_window_is_empty_when_many_windows_passed_in_silence() -> None:
    """A long silence leaves nothing behind, whatever bucket it ends in."""
    clock = FakeClock()
    budget = RetryBudget(window_s=10.0, clock=clock)
    for second in range(10):
        clock.now_s = float(second)
        budget.note_attempt(second + 1)
        budget.try_spend()
    clock.now_s = 100_003.5
    assert (budget.attempts, budget.retries) == (0, 0)


@settings(deadline=None)
@given(
    ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
    floor=st.integers(0, 5),
    steps=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 30), st.integers(0, 8)), max_size=40),
)
def test_budget_agrees_with_a_list_of_events_when_time_and_traffic_vary(
    ratio: float, floor: int, steps: list[tuple[float, int, int]]
) -> None:
    """The ring gives the answers of a plain list of all events, cut at the oldest bucket."""
    clock = FakeClock()
    budget = RetryBudget(ratio=ratio, window_s=10.0, floor=floor, clock=clock)
    attempts: list[int] = []  # bucket numbers of all attempts
    retries: list[int] = []
    for elapsed_s, first_attempts, wanted in steps:
        clock.now_s += elapsed_s
        number = int(clock.now_s // 1.0)
        budget.note_attempt(first_attempts)
        attempts += [number] * first_attempts
        attempts = [n for n in attempts if n > number - BUCKETS]
        retries = [n for n in retries if n > number - BUCKETS]
        for _ in range(wanted):
            allowed = len(retries) + 1 <= max(floor, ratio * (len(attempts) + 1))
            assert budget.try_spend() == allowed
            if allowed:
                attempts.append(number)
                retries.append(number)
        assert (budget.attempts, budget.retries) == (len(attempts), len(retries))


def test_budget_stays_as_small_as_it_was_when_it_runs_for_long() -> None:
    """The memory does not depend on traffic or time."""
    clock = FakeClock()
    budget = RetryBudget(clock=clock)

    def size_bytes() -> int:
        return sum(sys.getsizeof(getattr(budget, name)) for name in ("_attempts", "_retries"))

    before = size_bytes()
    for _ in range(10_000):
        clock.now_s += 0.37
        budget.note_attempt(3)
        budget.try_spend()
    assert size_bytes() == before


@pytest.mark.parametrize(
    ("ratio", "window_s", "floor"),
    [(-0.1, 10.0, 1), (1.1, 10.0, 1), (float("nan"), 10.0, 1), (0.2, 0.0, 1), (0.2, -1.0, 1), (0.2, 1.0, -1)],
)
def test_budget_is_refused_when_an_argument_is_out_of_range(
    ratio: float, window_s: float, floor: int
) -> None:
    """Nonsense is refused when the budget is made, not when it is used."""
    with pytest.raises(ValueError, match="must"):
        RetryBudget(ratio=ratio, window_s=window_s, floor=floor)
