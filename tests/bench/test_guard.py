"""Specification of bench.guard: what has become much dearer fails, whatever the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.guard import LIMITS, guard
from bench.scenarios import SCENARIOS
from bench.servers import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import LoadOptions
    from bench.report import Figures


def measure(share: float, **more: float) -> Callable[[str, LoadOptions], Figures]:
    """A message costs the baseline 40 us, and the gateway that share of it."""
    return lambda server, _: {"cpu_us": 40.0 * (1.0 if server == BASELINE else share), **more}


def test_guard_knows_the_scenarios_that_it_limits() -> None:
    """A limit for a scenario that is no more would hold for ever."""
    assert set(LIMITS) <= {scenario.name for scenario in SCENARIOS}


@pytest.mark.parametrize(("share", "wrong"), [(0.29, 0), (0.31, 1), (0.36, 2), (1.31, 3)])
def test_guard_names_each_scenario_when_its_messages_are_too_dear(share: float, wrong: int) -> None:
    """One line for each scenario beyond its limit, none when all hold."""
    assert len(guard(measure(share))) == wrong


def test_guard_fails_when_a_run_was_faulty_or_could_not_be_made() -> None:
    """Nothing is taken for cheap because it did not work."""
    assert "lost connections: 1" in guard(measure(0.01, lost_connections=1))[0]
    assert len(guard(lambda *_: {"error": "it did not start"})) == 2 * len(LIMITS)
