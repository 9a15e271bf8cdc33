"""Specification of bench.report."""

from __future__ import annotations

import pytest

from bench.options import LoadOptions
from bench.report import Figures, compared, faults, medians, ratios, table
from bench.scenarios import Reference, Scenario

GOOD: Figures = {
    "delivered_per_s": 1000.0, "p50_us": 50.0, "p99_us": 90.0, "cpu_us": 2.0, "lost_connections": 0,
    "undelivered": 0, "reordered": 0, "corrupt": 0, "notices": 0, "server_exit_status": 0,
    "generator_limited": False,
}  # fmt: skip


def test_faults_are_none_when_nothing_was_lost() -> None:
    """A run without losses is valid."""
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    "key", ["lost_connections", "undelivered", "reordered", "corrupt", "notices", "server_exit_status"]
)
def test_faults_name_what_went_wrong(key: str) -> None:
    """Each kind of loss alone makes a run invalid, also when a double makes the count negative."""
    assert faults(GOOD | {key: 3}) == [f"{key.replace('_', ' ')}: 3"]
    assert faults(GOOD | {key: -1})


def test_faults_are_the_error_when_a_run_could_not_be_made() -> None:
    """A run without figures is a failure."""
    assert faults({"error": "the server did not start"}) == ["the server did not start"]


def test_medians_are_taken_for_each_figure_over_valid_runs() -> None:
    """An outlier does not move the figure, a run without figures is left out, a flag of any run stays."""
    runs = [GOOD | {"p50_us": 1e6}, {"error": "x"}, GOOD, GOOD | {"p50_us": 40.0, "generator_limited": True}]
    found = medians(runs)
    assert found["p50_us"] == 50.0
    assert found["generator_limited"] is True
    assert medians([{"error": "x"}]) == {}


def test_medians_use_the_runs_that_have_a_figure() -> None:
    """A figure that some runs could not measure is the median of the others."""
    without = {key: value for key, value in GOOD.items() if key != "cpu_us"}
    assert medians([GOOD, without, GOOD | {"cpu_us": 4.0}])["cpu_us"] == 3.0


def test_ratios_leave_out_what_either_side_lacks() -> None:
    """Figures are divided by the baseline's where both have one that is not 0."""
    assert ratios(GOOD, GOOD | {"delivered_per_s": 250.0, "p50_us": 0}) == {
        "delivered_per_s": 4.0, "p99_us": 1.0, "cpu_us": 1.0,
    }  # fmt: skip
    assert ratios({}, GOOD) == {}


def test_table_shows_figures_ratios_and_remarks_in_columns() -> None:
    """Rows are aligned, missing figures are dashes, and a limited or failed run says so."""
    limited = GOOD | {"generator_limited": True, "delivered_per_s": 1234567.0}
    ratio = {"delivered_per_s": 9.5, "cpu_us": 0.125}
    first = {"server": "gateway", "medians": limited, "ratio": ratio, "faults": [], "runs": [GOOD, limited]}
    second = {"server": "streams", "medians": {}, "ratio": {}, "faults": ["lost: 2"], "runs": [{}]}
    results = [{"scenario": "burst", **first}, {"scenario": "burst", **second}]
    head, rule, gateway, streams = table(results).splitlines()
    assert set(rule) == {"-"}
    assert gateway.split()[:6] == ["burst", "gateway", "1,234,567", "50", "90", "2.00"]
    assert gateway.split()[7:9] == ["9.50", "0.12"]
    assert gateway.endswith("  generator was the limit in 1 of 2")
    assert streams.split()[2:7] == ["-"] * 5
    assert streams.endswith("FAILED (lost: 2)")
    assert head.index("remarks") == gateway.index("generator") == streams.index("FAILED")


def test_medians_of_curves_are_taken_place_by_place() -> None:
    """A curve of several runs is where their middle is at each share."""
    runs: list[Figures] = [{"curve_us": [1.0, 9.0]}, {"curve_us": [2.0, 8.0]}, {"curve_us": [3.0, 1.0]}]
    assert medians(runs) == {"curve_us": [2.0, 8.0]}


def test_compared_sets_every_server_beside_the_baseline_and_the_gateway_beside_every_server() -> None:
    """One ratio is the server's to the baseline's, the other the gateway's to the server's."""
    load = LoadOptions()
    scenario = Scenario("burst", "", "much", load, load, Reference(load, "cpu_us", "{:.1f} x"))
    runs = {"gateway": [GOOD], "streams": [GOOD | {"cpu_us": 8.0}], "redis": [GOOD | {"cpu_us": 1.0}]}
    gateway, streams, redis = compared(scenario, runs, "gateway", "streams")
    assert [one["server"] for one in (gateway, streams, redis)] == list(runs)
    assert [one["ratio"].get("cpu_us") for one in (gateway, streams, redis)] == [0.25, None, 0.125]
    assert [one["gateway_ratio"].get("cpu_us") for one in (gateway, streams, redis)] == [None, 0.25, 2.0]
    assert gateway["says"] == "{:.1f} x"


def test_table_shows_what_the_gateway_is_beside_a_server_and_what_a_load_was_beside_its_reference() -> None:
    """The gateway's ratios stand in the other server's row, a comparison of two loads among the remarks."""
    row: Figures = {
        "scenario": "burst", "server": "redis",
        "ratio": {"delivered_per_s": 9.0, "p50_us": 0.5, "cpu_us": 0.1},
        "gateway_ratio": {"delivered_per_s": 0.75, "cpu_us": 1.5}, "faults": [], "runs": [GOOD],
        "medians": GOOD | {"of_reference": 1.183}, "says": "{:.2f} x 8",
    }  # fmt: skip
    head, _, line = table([row]).splitlines()
    assert line.split()[7:] == ["9.00", "0.50", "0.10", "0.75", "1.50", "1.18", "x", "8"]
    assert head.index("remarks") == line.index("1.18 x")
