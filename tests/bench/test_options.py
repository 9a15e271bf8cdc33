"""Specification of bench.options and bench.scenarios."""

from __future__ import annotations

import pytest

from bench.options import LoadOptions, parse_options
from bench.scenarios import SCENARIOS, Scenario
from bench.wire import payloads


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_options_survive_a_command_line(scenario: Scenario) -> None:
    """Options written as a command line and read again are the same."""
    loads = [scenario.load, scenario.quick]
    for load in loads + ([scenario.reference.load] if scenario.reference else []):
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
        (["--fanout", "5", "--several", "5"], "several is 0 or above fanout"),
        (["--several", "5", "--every", "33"], "every"),
        (["--several", "5", "--proto", "nats"], "several and ragged need proto line"),
        (["--ragged", "1", "--proto", "redis"], "several and ragged need proto line"),
        (["--several", "5", "--log", "log"], "no several with log"),
        (["--pairs", "4000", "--several", "7"], "connections"),
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
        "first 100 pairs, window 1024, 64 bytes, then 100 pairs, 2 x the rate of the first, 64 bytes, "
        "sent every 5 ms"
    )
    assert told["connections"].endswith("then 4000 pairs, rate 10000/s, 64 bytes")
    assert told["mixed"] == (
        "first 1000 pairs, rate 12000/s, 424 bytes, 4000 silent, then 1000 pairs, rate 10000/s, "
        "16-2048 bytes, 1 line in 20 to 5, writes end mid-line"
    )
    assert told["ping"] == "1 pair, window 1, 64 bytes"


def test_mixed_scenario_differs_from_its_reference_in_the_mixture_alone() -> None:
    """Both make as many copies a second, with as many bytes of text, on as many connections."""
    (scenario,) = [one for one in SCENARIOS if one.name == "mixed"]
    assert scenario.reference is not None
    load, plain = scenario.load, scenario.reference.load
    assert (load.pairs, load.connections) == (plain.pairs, plain.connections) == (1000, 6000)
    period = 80  # of lines, each with another size
    sizes = [len(text) for text in payloads(period, *load.size)]
    mixtures = [load.mixture(sender) for sender in range(load.pairs)]
    copies = sum(mixture.copies(period, load.fanout) for mixture in mixtures)
    assert copies / (load.pairs * period) == plain.rate_per_s / load.rate_per_s == 24 / 20
    sent_bytes = sum(
        sizes[(sender + line) % period] * (load.fanout + mixture.further * mixture.is_for_all(line))
        for sender, mixture in enumerate(mixtures)
        for line in range(period)
    )
    assert sent_bytes / copies == pytest.approx(plain.size[0], rel=0.01)
    assert plain.size[0] == plain.size[1]


@pytest.mark.parametrize("line", range(3))
def test_lines_to_several_are_spread_over_senders_when_all_begin_together(line: int) -> None:
    """Of 40 senders 2 send one of theirs to several, whichever line it is."""
    load = LoadOptions(several=5)
    assert sum(load.mixture(sender).is_for_all(line) for sender in range(40)) == 2
