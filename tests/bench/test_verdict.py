"""Specification of bench.verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.verdict import MET, MISSED, UNKNOWN, VOID, Goal, judge, table

if TYPE_CHECKING:
    from bench.report import Figures

P99 = Goal("p99, ms", "p99_us", "<=", 1.2, is_ratio=True, is_timing=True, scale=1e-3)
GROWTH = Goal("growth, MiB", "growth_bytes", "<=", 100)


def p99(*values: float, **more: object) -> list[Figures]:
    """Runs with these figures."""
    return [{"p99_us": value, **more} for value in values]


def test_ratio_compares_the_medians_when_one_run_is_an_outlier() -> None:
    """An outlier on either side does not decide."""
    verdict = judge(P99, p99(1000, 1000, 9000), p99(1100, 1100, 8000))
    assert (verdict.word, verdict.value, verdict.without, verdict.beside) == (MET, 1.1, 1000, 1100)
    assert judge(P99, p99(1000), p99(1201)).word == MISSED


def test_figure_is_the_worst_of_the_runs_when_it_is_no_ratio() -> None:
    """A promise that holds in most runs is none, in whichever direction it is held."""
    runs = [{"growth_bytes": 10}, {"growth_bytes": 101}, {"growth_bytes": 20}]
    assert (judge(GROWTH, [], runs).word, judge(GROWTH, [], runs).value) == (MISSED, 101)
    at_least = Goal("fairness", "fairness", ">=", 0.95)
    assert judge(at_least, [], [{"fairness": 1.0}, {"fairness": 0.9}]).value == 0.9
    nothing = Goal("lost", "lost", "==", 0)
    assert judge(nothing, [], [{"lost": 0}, {"lost": 2}, {"lost": 0}]).value == 2
    assert judge(nothing, [], [{"lost": 0}, {"lost": -1}]).word == MISSED


@pytest.mark.parametrize(
    "limited",
    [{"generator_limited": True}, {"cpu_share": 0.95}, {"stuck.cpu_share": 0.95}, {"others_cpu_share": 0.6}],
    ids=["flag", "load", "peers", "others"],
)
def test_timing_is_void_when_the_server_was_not_the_limit(limited: Figures) -> None:
    """Neither a good nor a bad ratio counts where a generator or somebody else's work decided it."""
    assert judge(P99, p99(1000, **limited), p99(1000, **limited)).word == VOID
    assert judge(P99, p99(1000, **limited), p99(9000, **limited)).word == VOID


def test_timing_counts_when_only_the_server_was_busy() -> None:
    """A busy server is what a benchmark is for, and so are peers that do all they can."""
    busy = {"server_cpu_share": 1.0, "flood.cpu_share": 1.0, "cpu_share": 0.5, "others_cpu_share": 0.1}
    assert judge(P99, p99(1000), p99(1300, **busy)).word == MISSED


@pytest.mark.parametrize(
    ("key", "stolen_share", "word"),
    [
        ("p99_us", 0.005, MET),
        ("p99_us", 0.006, VOID),
        ("probe.p99_us", 0.006, VOID),
        ("delivered_per_s", 0.006, MET),
        ("delivered_per_s", 0.3, VOID),
    ],
)
def test_tail_is_void_when_the_host_took_little_and_any_time_when_it_took_much(
    key: str, stolen_share: float, word: str
) -> None:
    """What lasts for 1 % of the time is the slowest hundredth; a throughput hardly notices it."""
    goal = Goal("a time", key, "<=", 1.2, is_ratio=True, is_timing=True)
    assert judge(goal, [{key: 10}], [{key: 10, "stolen_share": stolen_share}]).word == word
    assert judge(goal, [{key: 10, "stolen_share": stolen_share}], [{key: 10}]).word == word


def test_memory_counts_when_the_machine_was_busy() -> None:
    """Only times depend on who else is at work."""
    assert judge(GROWTH, [], [{"growth_bytes": 5, "others_cpu_share": 1.5}]).word == MET


def test_verdict_is_void_when_the_pressure_was_never_there() -> None:
    """A bound that nothing pushed against is not shown to hold, nor to be broken."""
    goal = Goal("growth", "growth_bytes", "<=", 100, needs=("buffered_bytes_peak", 80))
    assert judge(goal, [], [{"growth_bytes": 5, "buffered_bytes_peak": 79}]).word == VOID
    assert judge(goal, [], [{"growth_bytes": 5, "buffered_bytes_peak": 80}]).word == MET


def test_verdict_is_unknown_when_a_run_gave_no_figure() -> None:
    """A run that failed is never counted as a promise kept, and says why it failed."""
    verdict = judge(GROWTH, [], [{"growth_bytes": 5}, {"error": "the server did not start"}])
    assert (verdict.word, verdict.remark) == (UNKNOWN, "the server did not start")
    assert judge(P99, [], p99(1000)).word == UNKNOWN
    assert judge(GROWTH, [], []).word == UNKNOWN


def test_table_shows_each_figure_beside_its_goal_and_verdict() -> None:
    """Columns are aligned, figures scaled, ratios marked, and an empty text is shown as none."""
    lost = Goal("lost", "healthy_faults", "==", "")
    verdicts = [judge(P99, p99(1000), p99(1500)), judge(lost, [], [{"healthy_faults": ""}])]
    head, first, second = table(verdicts).splitlines()
    assert first.split() == ["p99,", "ms", "1", "1.50", "1.50", "x", "<=", "1.20", "x", "missed"]
    assert second.split() == ["lost", "-", "none", "none", "==", "none", "met"]
    assert head.index("goal") == first.index("<=") == second.index("==")
