"""Specification of bench.options and bench.scenarios."""

from __future__ import annotations

import pytest

from bench.options import LoadOptions, parse_options
from bench.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_options_survive_a_command_line(scenario: Scenario) -> None:
    """Options written as a command line and read again are the same."""
    for load in (scenario.load, scenario.quick):
        assert parse_options("load", "", load.to_argv()) == load


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--pairs", "0"], "pairs"),
        (["--window", "100000"], "window"),
        (["--seconds", "1e9"], "seconds"),
        (["--size", "2048-16"], "size"),
        (["--pairs", "1000", "--fanout", "100"], "connections"),
        (["--rate", "fast"], "--rate"),
        (["--proto", "irc"], "proto"),
        (["--proto", "nats", "--log", "log"], "log"),
    ],
)
def test_options_are_refused_with_a_reason_when_out_of_bounds(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load that would not be bounded ends with status 2 and the name of what is wrong."""
    with pytest.raises(SystemExit) as ended:
        parse_options("load", "", ["--port", "1", *argv])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_options_report_all_errors_when_several_are_wrong() -> None:
    """Every broken rule is named at once."""
    with pytest.raises(ValueError, match=r"pairs.*seconds"):
        LoadOptions(pairs=0, seconds=-1)


def test_scenarios_have_their_own_names_and_short_quick_loads() -> None:
    """Names are unique, and the quick loads of all servers together leave most of a minute for the rest."""
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    loads = [scenario.quick.seconds * (1 + (scenario.reference is not None)) for scenario in SCENARIOS]
    assert 2 * sum(loads) <= 25


def test_scenario_tells_both_loads_when_it_has_a_reference() -> None:
    """A rate that is found by the load before is told as what it is."""
    told = {scenario.name: scenario.describe(scenario.load) for scenario in SCENARIOS}
    assert told["overload"] == (
        "first 100 pairs, window 1024, 64 bytes, then 100 pairs, 2 x the rate of the first, 64 bytes"
    )
    assert told["connections"].endswith("then 4000 pairs, rate 10000/s, 64 bytes")
    assert told["ping"] == "1 pair, window 1, 64 bytes"
