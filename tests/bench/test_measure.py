"""Specification of what bench.measure compares, without servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.measure import run_once, run_scenario_once
from bench.options import LoadOptions
from bench.scenarios import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figures

LOAD = LoadOptions(pairs=7, seconds=2.0)
BEFORE = LoadOptions(pairs=3, seconds=9.0)


def measuring(seen: list[LoadOptions], *answers: Figures) -> Callable[[str, LoadOptions], Figures]:
    """Gives the answers in turn and keeps the loads."""
    left = list(answers)

    def measure(_server: str, load: LoadOptions) -> Figures:
        seen.append(load)
        return left.pop(0)

    return measure


def figures(delivered_per_s: float, cpu_us: float, *, limited: bool = False) -> Figures:
    """Figures of a run as far as they are compared."""
    return {"delivered_per_s": delivered_per_s, "cpu_us": cpu_us, "generator_limited": limited}


def test_scenario_is_one_run_when_it_has_no_reference() -> None:
    """Nothing is compared, and nothing else is run."""
    seen: list[LoadOptions] = []
    found = run_scenario_once("gateway", LOAD, None, measuring(seen, figures(10, 2)))
    assert seen == [LOAD]
    assert "of_reference" not in found


def test_scenario_is_compared_with_its_reference_over_as_many_seconds() -> None:
    """The figures are those of the scenario's own load, the ratio is to the load before."""
    seen: list[LoadOptions] = []
    measure = measuring(seen, figures(10, 2), figures(20, 3))
    found = run_scenario_once("gateway", LOAD, Reference(BEFORE, "cpu_us", ""), measure)
    assert seen == [LoadOptions(pairs=3, seconds=2.0), LOAD]
    assert (found["delivered_per_s"], found["of_reference"]) == (20, 1.5)


def test_scenario_offers_a_multiple_of_what_the_reference_delivered() -> None:
    """Overload is twice what this server can do, not a number that fits one machine."""
    seen: list[LoadOptions] = []
    measure = measuring(seen, figures(1000, 2), figures(950, 2))
    reference = Reference(BEFORE, "delivered_per_s", "", offered=2.0)
    found = run_scenario_once("gateway", LOAD, reference, measure)
    assert seen[1].rate_per_s == 2000
    assert found["of_reference"] == 0.95


@pytest.mark.parametrize("limited", [(True, False), (False, True)], ids=["peak", "overload"])
def test_overload_is_void_when_the_generator_was_the_limit(limited: tuple[bool, bool]) -> None:
    """Neither a peak nor a goodput that the generator bounded says anything of the server."""
    before, load = (figures(1000, 2, limited=one) for one in limited)
    reference = Reference(BEFORE, "delivered_per_s", "", offered=2.0)
    found = run_scenario_once("gateway", LOAD, reference, measuring([], before, load))
    assert found["generator_limited"] is True
    assert "of_reference" not in found


def test_scenario_fails_when_its_reference_does() -> None:
    """What was lost in the load before is not forgotten."""
    faulty = figures(1000, 2) | {"undelivered": 3}
    found = run_scenario_once("gateway", LOAD, Reference(BEFORE, "cpu_us", ""), measuring([], faulty))
    assert found == {"error": "the load to compare with: undelivered: 3"}


def test_run_is_an_error_when_the_server_speaks_a_protocol_that_cannot_do_the_load() -> None:
    """Nothing is started, and the reason is told."""
    found = run_once("redis", LoadOptions(several=5))
    assert found == {"error": "not a load for redis: several and ragged need proto line"}
