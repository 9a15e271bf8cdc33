"""Specification of bench.reliability: which runs count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import reliability
from bench.promises import Promise, Scale, Trials
from bench.reliability import run_promise
from bench.trial import Plan
from bench.verdict import MET, VOID, Goal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from bench.report import Figures

P99 = Goal("p99", "p99_us", "<=", 1.2, is_ratio=True, is_timing=True)
GROWTH = Goal("growth", "growth_bytes", "<=", 100)
ALONE, BESIDE = Plan(("alone",)), Plan(("beside",))
QUIET: Figures = {"p99_us": 1000, "growth_bytes": 1}
DISTURBED: Figures = {"p99_us": 9000, "growth_bytes": 1, "stolen_share": 0.1}


class Machine:
    """Stands in for `run_trial`: gives figures in turn and remembers the plans."""

    def __init__(self, figures: Iterator[Figures]) -> None:
        self.plans: list[Plan] = []
        self._figures = figures

    def run(self, plan: Plan) -> Figures:
        """See `bench.trial.run_trial`."""
        self.plans.append(plan)
        return next(self._figures)


def judged(
    monkeypatch: pytest.MonkeyPatch, goal: Goal, figures: list[Figures], runs: int
) -> tuple[Machine, dict[str, object]]:
    """Run a promise with this goal on a machine that gives these figures in turn."""
    machine = Machine(iter(figures))
    monkeypatch.setattr(reliability, "run_trial", machine.run)
    promise = Promise("one", "something", lambda _scale, _first: Trials(BESIDE, ALONE, (goal,)))
    return machine, run_promise(promise, Scale(1000.0), runs)


def test_pair_is_run_again_when_the_host_disturbed_either_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pairs that it left alone are judged, and runs stay in turn."""
    pairs = [DISTURBED, QUIET, QUIET, QUIET, QUIET, DISTURBED, QUIET, QUIET]
    machine, result = judged(monkeypatch, P99, pairs, 2)
    assert machine.plans == [ALONE, BESIDE] * 4
    assert result["alone"] == result["beside"] == [QUIET, QUIET]
    assert result["verdicts"][0]["word"] == MET  # type: ignore[index]


def test_verdict_is_void_when_the_host_never_left_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after three tries for each pair, keeps the quiet ones, and says that the others are none."""
    machine, result = judged(monkeypatch, P99, [QUIET, QUIET] + [DISTURBED] * 10, 2)
    assert len(machine.plans) == 12
    assert result["beside"] == [QUIET, DISTURBED]
    assert result["verdicts"][0]["word"] == VOID  # type: ignore[index]


def test_pair_counts_as_it_is_when_no_goal_is_about_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not depend on the host."""
    machine, result = judged(monkeypatch, GROWTH, [DISTURBED, DISTURBED], 1)
    assert (len(machine.plans), result["verdicts"][0]["word"]) == (2, MET)  # type: ignore[index]
