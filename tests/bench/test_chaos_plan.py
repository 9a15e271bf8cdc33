"""Blows follow from their seed and leave a run time to recover."""

from __future__ import annotations

import pytest

from bench.chaos_plan import HANG_TIMEOUT_S, make_strikes


def test_strikes_are_the_same_when_their_seed_is() -> None:
    """A run can be repeated by its seed, and another seed is another run."""
    assert make_strikes(7, 30.0, 3) == make_strikes(7, 30.0, 3)
    assert make_strikes(7, 30.0, 3) != make_strikes(8, 30.0, 3)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_strikes_are_of_all_kinds_and_end_before_the_run_does(workers: int) -> None:
    """Each hits workers that there are, mostly one; a pause is too short to be taken for a hang."""
    strikes = [strike for seed in range(20) for strike in make_strikes(seed, 30.0, workers)]
    assert {strike.blow for strike in strikes} == {"kill", "kill twice", "hang", "pause"}
    for strike in strikes:
        assert 0 < strike.at_s < 25
        assert set(strike.workers) <= set(range(1, workers + 1))
        assert strike.workers
        assert strike.blow != "pause" or 0 < strike.seconds < HANG_TIMEOUT_S / 2
    counts = [len(strike.workers) for strike in strikes]
    assert counts.count(1) > len(counts) / 2
    assert max(counts) == workers
