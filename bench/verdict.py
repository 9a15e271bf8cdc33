"""Compares figures of runs with goals and says met, missed or void; no processes, no clock.

A ratio compares the medians of both kinds of runs: A, without the bad peers, and B, with them. Every other
figure is the worst of the runs B, since a promise that holds in most runs is none.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.report import Figures

MET, MISSED, VOID, UNKNOWN = "met", "missed", "void", "not measured"

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip
_QUIET_SHARE = 0.25  # of one core: above, others on this machine decided about times
_STOLEN_SHARE = 0.005  # of one core, taken by the host: above, it decided about the slowest hundredth
_BUSY_SHARE = 0.9  # of one core: above, a generator had no time to spare


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and what it is held to.

    `is_ratio`: the figure in B divided by that in A. `is_timing`: void where a generator was the limit or the
    machine was not quiet, which for the slowest of many times means quieter. `unit` and `scale` say how it is
    shown. `needs` is a figure and the least it must reach in B, or the run did not show anything.
    """

    shows: str
    key: str
    compare: str
    limit: float | str
    is_ratio: bool = False
    is_timing: bool = False
    unit: str = ""
    scale: float = 1.0
    needs: tuple[str, float] | None = None

    @property
    def is_tail(self) -> bool:
        """It is a time that only one in a hundred, or fewer, are longer than."""
        return self.key.endswith(("p99_us", "p999_us"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one goal; `without` and `beside` are its medians in A and B, or None."""

    goal: Goal
    value: float | str | None
    without: float | str | None
    beside: float | str | None
    word: str
    remark: str = ""


def judge(goal: Goal, runs_a: Sequence[Figures], runs_b: Sequence[Figures]) -> Verdict:
    """Compare one figure with its goal."""
    values_a, values_b = _values(goal.key, runs_a), _values(goal.key, runs_b)
    without, beside = _middle(values_a), _middle(values_b)
    value = _ratio(beside, without) if goal.is_ratio else _worst(goal, values_b)
    if value is None or len(values_b) < len(runs_b):
        return Verdict(goal, value, without, beside, UNKNOWN, _first_error(runs_b))
    remark = void_reason(goal, [*(runs_a if goal.is_ratio else ()), *runs_b], runs_b)
    holds = _COMPARE[goal.compare](value, goal.limit)
    return Verdict(goal, value, without, beside, VOID if remark else MET if holds else MISSED, remark)


def void_reason(goal: Goal, runs: Sequence[Figures], runs_b: Sequence[Figures]) -> str:
    """Why the figure says nothing about the gateway; empty if it does."""
    if goal.needs is not None:
        key, least = goal.needs
        if any(run.get(key, 0) < least for run in runs_b):
            return f"{key} did not reach {least:g}"
    if not goal.is_timing:
        return ""
    limited = sum(_is_generator_limited(run) for run in runs)
    if 2 * limited >= len(runs):
        return f"a generator was the limit in {limited} of {len(runs)} runs"
    noisy = max(map(_others_share, runs), default=0.0)
    if noisy > _QUIET_SHARE:
        return f"others used {noisy:.2f} cores of this machine"
    stolen = sum(map(is_stolen_from, runs))
    return f"the host took processors away in {stolen} of {len(runs)} runs" if goal.is_tail and stolen else ""


def is_stolen_from(run: Figures) -> bool:
    """Whether its longest times are the host's, which took the processors away."""
    return bool(run.get("stolen_share", 0.0) > _STOLEN_SHARE)


def _others_share(run: Figures) -> float:
    return float(run.get("others_cpu_share", 0.0) + run.get("stolen_share", 0.0))


def _is_generator_limited(run: Figures) -> bool:
    shares = [value for key, value in run.items() if key.endswith("cpu_share") and key not in _NOT_GENERATORS]
    return bool(run.get("generator_limited")) or max(shares, default=0.0) > _BUSY_SHARE


_NOT_GENERATORS = frozenset({"server_cpu_share", "others_cpu_share", "flood.cpu_share", "visits.cpu_share"})
"""The server; and peers that are as fast as they can be, which is what they are for."""


def _values(key: str, runs: Sequence[Figures]) -> list[Any]:
    return [run[key] for run in runs if run.get(key) is not None]


def _middle(values: list[Any]) -> Any:
    if not values:
        return None
    return next(filter(None, values), "") if isinstance(values[0], str) else median(values)


def _worst(goal: Goal, values: list[Any]) -> Any:
    if not values:
        return None
    wrong = [value for value in values if not _COMPARE[goal.compare](value, goal.limit)]
    if wrong and goal.compare == "==":
        return wrong[0]
    return min(values) if goal.compare == ">=" else max(values)


def _ratio(beside: Any, without: Any) -> float | None:
    return round(beside / without, 3) if beside is not None and without else None


def _first_error(runs: Sequence[Figures]) -> str:
    return next((str(run["error"]) for run in runs if "error" in run), "")


def table(verdicts: Sequence[Verdict]) -> str:
    """Render one row for each goal: figures without and beside the bad peers, what is judged, the verdict."""
    heads = ("  figure", "alone", "beside", "measured", "goal", "")
    rows = [heads, *map(_row, verdicts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i in (0, 4, 5) else cell.rjust(width) for i, (cell, width) in
                  enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def _row(verdict: Verdict) -> tuple[str, ...]:
    goal = verdict.goal
    word = f"{verdict.word} ({verdict.remark})" if verdict.remark else verdict.word
    ratio = " x" if goal.is_ratio else ""
    limit = _shown(goal.limit, 1.0 if goal.is_ratio else goal.scale)
    return (
        f"  {goal.shows}" + (f", {goal.unit}" if goal.unit else ""),
        _shown(verdict.without, goal.scale),
        _shown(verdict.beside, goal.scale),
        _shown(verdict.value, 1.0 if goal.is_ratio else goal.scale) + ratio,
        f"{goal.compare} {limit}{ratio}",
        word,
    )


def _shown(value: float | str | None, scale: float) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value or "none"
    scaled = value * scale
    return f"{scaled:,.0f}" if float(scaled).is_integer() else f"{scaled:,.2f}"
