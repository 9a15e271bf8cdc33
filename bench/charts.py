"""Draws the results of a benchmark as one figure: processor time, throughput, and latency curves.

Needs matplotlib, which is not installed with the gateway but with its extra `charts`. Knows nothing of
servers and loads: what is drawn are the results that the table is made of, medians over the runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import TYPE_CHECKING, Any

from bench.histogram import CURVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.report import Figures

FILES = "comparison.png and comparison.svg"
MISSING = "--chart needs matplotlib, which is not installed: pip install 'chat-gateway[charts]'"

_COLORS = {"gateway": "#1f5fd0", "streams": "#8c8c8c", "redis": "#cf3a2c", "nats": "#2a9d62"}
_OTHER_COLOR = "#7a4fb5"
_CURVES_IN_ROW = 4
_WIDTH_IN, _BARS_HEIGHT_IN, _CURVES_HEIGHT_IN = 16.0, 3.6, 3.4
_DPI = 110
_GROUP_WIDTH = 0.8  # of the distance between two scenarios
_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999)
# key of a figure, title of its bars, unit
_BARS = (
    ("cpu_us", "Processor time of the server for each message delivered (less is better)", "µs"),
    ("delivered_per_s", "Messages delivered (more is better; at most what the load offers)", "1/s"),
)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def bars(results: Sequence[Figures], key: str) -> tuple[list[str], dict[str, list[float]]]:
    """Scenarios that have this figure, and for each server its value in each; NaN where it has none."""
    found = {(result["scenario"], result["server"]): result["medians"].get(key) for result in results}
    scenarios = list(dict.fromkeys(scenario for (scenario, _), value in found.items() if value))
    servers = dict.fromkeys(server for _, server in found)
    return scenarios, {
        server: [found.get((scenario, server)) or math.nan for scenario in scenarios] for server in servers
    }


def curves(results: Sequence[Figures]) -> dict[str, dict[str, list[float]]]:
    """For each scenario and server the latency in ms at each share of `bench.histogram.CURVE`."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if curve_us := result["medians"].get("curve_us"):
            found.setdefault(result["scenario"], {})[result["server"]] = [us / 1e3 for us in curve_us]
    return found


def share_to_x(share: float) -> float:
    """Place of a share of the messages on the axis: each step of 1 is a tenth of what lies beyond."""
    return -math.log10(1 - share)


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten around all values above 0, at least one apart, so that an axis shows two of them."""
    seen = [math.log10(value) for value in values if value > 0] or [0.0]
    low = math.floor(min(seen))
    return 10.0**low, 10.0 ** max(math.ceil(max(seen)), low + 1)


def draw(results: Sequence[Figures], folder: Path) -> list[Path]:
    """Write the figure into a folder, made if need be, and return its two files."""
    drawn = curves(results)
    rows = math.ceil(len(drawn) / _CURVES_IN_ROW)
    height_in = 2 * _BARS_HEIGHT_IN + rows * _CURVES_HEIGHT_IN
    figure = importlib.import_module("matplotlib.figure").Figure((_WIDTH_IN, height_in), layout="constrained")
    heights = [_BARS_HEIGHT_IN] * len(_BARS) + [_CURVES_HEIGHT_IN] * rows
    grid = figure.add_gridspec(len(heights), _CURVES_IN_ROW, height_ratios=heights)
    for row, (key, title, unit) in enumerate(_BARS):
        axes = figure.add_subplot(grid[row, :])
        _draw_bars(axes, *bars(results, key))
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit)
    for number, (scenario, series) in enumerate(drawn.items()):
        row, column = divmod(number, _CURVES_IN_ROW)
        _draw_curves(figure.add_subplot(grid[len(_BARS) + row, column]), scenario, series)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=12)
    return _save(figure, folder)


def _save(figure: Any, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / "comparison.png", folder / "comparison.svg"
    figure.savefig(png, dpi=_DPI)
    figure.savefig(svg, metadata={"Date": None})  # the same results, the same file
    return [png, svg]


def _draw_bars(axes: Any, scenarios: list[str], series: dict[str, list[float]]) -> None:
    width = _GROUP_WIDTH / max(len(series), 1)
    for number, (server, values) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * width
        places = [i + shift for i in range(len(scenarios))]
        axes.bar(places, values, width * 0.92, color=_COLORS.get(server, _OTHER_COLOR), label=server)
        for place, value in zip(places, values, strict=True):
            if not math.isnan(value):
                axes.annotate(
                    _short(value), (place, value), xytext=(0, 2), textcoords="offset points",
                    ha="center", va="bottom", fontsize=7,
                )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.01, y=0.12)
    axes.set_xticks(range(len(scenarios)), scenarios)
    _tidy(axes)


def _draw_curves(axes: Any, scenario: str, series: dict[str, list[float]]) -> None:
    places = [share_to_x(share) for share in CURVE]
    for server, values in series.items():
        axes.plot(places, values, color=_COLORS.get(server, _OTHER_COLOR), label=server, linewidth=1.8)
    axes.set_title(f"Latency: {scenario}, ms", loc="left", fontsize=11)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda _value, _: "")
    axes.set_ylim(*decades([value for values in series.values() for value in values]))
    axes.set_xticks([share_to_x(share) for share in _TICKS], [f"{100 * share:g} %" for share in _TICKS])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("messages that took no longer", fontsize=9)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    """A figure in at most four characters: 0.83, 12, 640, 12k, 1.2M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            value /= limit
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
