"""Specification of bench.report."""

from __future__ import annotations

import pytest

from bench.report import Figures, faults, medians, ratios, table

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
