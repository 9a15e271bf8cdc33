"""Specification of bench.charts: what is drawn, and the drawing itself where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import itertools
import math
from typing import TYPE_CHECKING

import pytest

from bench import __main__ as command
from bench import charts
from bench.histogram import CURVE

if TYPE_CHECKING:
    from pathlib import Path

    from bench.report import Figures


def result(scenario: str, server: str, **medians: object) -> Figures:
    """A result as far as a chart needs it."""
    return {"scenario": scenario, "server": server, "medians": medians}


FLAT_US = [1500.0] * len(CURVE)
RESULTS = [
    result("burst", "gateway", cpu_us=1.5, delivered_per_s=1000.0, curve_us=FLAT_US),
    result("burst", "streams", cpu_us=6.0, delivered_per_s=250.0, curve_us=FLAT_US),
    result("idle", "gateway", delivered_per_s=10.0),
    result("idle", "streams"),
]


def test_bars_are_in_the_order_of_the_results_with_gaps_where_a_figure_is_missing() -> None:
    """Each server has one place for each scenario, and a scenario that nobody has a figure for has none."""
    assert charts.bars(RESULTS, "cpu_us") == (["burst"], {"gateway": [1.5], "streams": [6.0]})
    scenarios, series = charts.bars(RESULTS, "delivered_per_s")
    assert scenarios == ["burst", "idle"]
    assert series["gateway"] == [1000.0, 10.0]
    assert series["streams"][0] == 250.0
    assert math.isnan(series["streams"][1])


def test_curves_are_in_ms_and_left_out_where_a_run_gave_none() -> None:
    """A server that could not be measured has no curve, and a scenario without any is not drawn."""
    assert charts.curves(RESULTS) == {"burst": dict.fromkeys(["gateway", "streams"], [1.5] * len(CURVE))}


def test_curve_goes_from_the_fastest_message_to_one_in_a_thousand_in_even_steps() -> None:
    """The axis gives the last tenth, hundredth and thousandth the same room."""
    places = [charts.share_to_x(share) for share in CURVE]
    assert places[0] == 0
    assert places[-1] == pytest.approx(3)
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert steps == pytest.approx([places[1]] * (len(places) - 1))


@pytest.mark.parametrize(
    ("values", "around"),
    [([0.2, 30.0], (0.1, 100.0)), ([2.0, 3.0], (1.0, 10.0)), ([1.0, 1.0], (1.0, 10.0)), ([], (1.0, 10.0))],
)
def test_decades_are_powers_of_ten_around_all_values(
    values: list[float], around: tuple[float, float]
) -> None:
    """An axis has at least two labels, also where nothing was measured."""
    assert charts.decades([*values, 0.0]) == pytest.approx(around)


def test_bench_ends_with_status_2_and_a_hint_before_any_run_when_matplotlib_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nobody waits for minutes to learn that nothing can be drawn."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        command.main(["--chart", str(tmp_path)])
    assert ended.value.code == 2
    assert "pip install 'chat-gateway[charts]'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("results", [RESULTS, RESULTS[2:]], ids=["all", "no curves"])
def test_draw_writes_both_files(results: list[Figures], tmp_path: Path) -> None:
    """A picture for documents and one that scales, in a folder that is made."""
    written = charts.draw(results, tmp_path / "new")
    assert [path.name for path in written] == ["comparison.png", "comparison.svg"]
    assert all(path.stat().st_size > 10_000 for path in written)
