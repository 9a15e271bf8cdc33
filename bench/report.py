"""Medians, ratios, faults and the table of a benchmark; no processes, no clock."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.scenarios import Scenario

Figures = dict[str, Any]  # the load generator's JSON object with the server's costs added

RATIO_KEYS = ("delivered_per_s", "p50_us", "p99_us", "cpu_us", "kib_per_session")

# key of a figure -> what makes a run a failure when it is not 0
_FAULTS = {
    "lost_connections": "lost connections",
    "undelivered": "undelivered",
    "reordered": "reordered",
    "corrupt": "corrupt",
    "notices": "notices",
    "server_exit_status": "server exit status",
}

# heading of a column, key of the figure, format
_COLUMNS = (
    ("messages/s", "delivered_per_s", "{:,.0f}"),
    ("p50 us", "p50_us", "{:,.0f}"),
    ("p99 us", "p99_us", "{:,.0f}"),
    ("cpu us/msg", "cpu_us", "{:,.2f}"),
    ("KiB/session", "kib_per_session", "{:,.2f}"),
)


# heading of a column, which ratio of a result, key of the figure
_RATIOS = (
    ("x msg/s", "ratio", "delivered_per_s"),
    ("x p50", "ratio", "p50_us"),
    ("x cpu", "ratio", "cpu_us"),
    ("gw/it msg/s", "gateway_ratio", "delivered_per_s"),
    ("gw/it cpu", "gateway_ratio", "cpu_us"),
)
_RATIO_HEADS = [head for head, _, _ in _RATIOS]


def faults(figures: Figures) -> list[str]:
    """What went wrong in one run, in words; empty if it is valid."""
    if "error" in figures:
        return [str(figures["error"])]
    return [f"{text}: {figures[key]}" for key, text in _FAULTS.items() if figures.get(key)]


def medians(runs: list[Figures]) -> Figures:
    """The median of each figure over the runs that gave figures; a flag holds if it held in any run."""
    valid = [run for run in runs if "error" not in run]
    result: Figures = {}
    for key in valid[0] if valid else ():
        result[key] = _median([run[key] for run in valid if key in run])
    return result


def _median(values: list[Any]) -> Any:
    """Of numbers, and place by place of lists of them; of flags whether one holds."""
    if isinstance(values[0], list):
        return [_median(list(column)) for column in zip(*values, strict=True)]
    return any(values) if isinstance(values[0], bool) else round(median(values), 3)


def ratios(figures: Figures, baseline: Figures) -> Figures:
    """Each comparable figure divided by the baseline's; without those that either lacks or that are 0."""
    return {
        key: round(figures[key] / baseline[key], 3)
        for key in RATIO_KEYS
        if figures.get(key) and baseline.get(key)
    }


def compared(
    scenario: Scenario, runs: dict[str, list[Figures]], gateway: str, baseline: str
) -> list[Figures]:
    """A result for each server, from its runs: medians, beside the baseline's and beside the gateway's."""
    found = {server: medians(figures) for server, figures in runs.items()}
    return [
        {
            "scenario": scenario.name,
            "server": server,
            "goal": scenario.goal,
            "says": scenario.reference.says if scenario.reference else "",
            "medians": found[server],
            "ratio": {} if server == baseline else ratios(found[server], found[baseline]),
            "gateway_ratio": {} if server == gateway else ratios(found[gateway], found[server]),
            "faults": sorted({fault for run in runs[server] for fault in faults(run)}),
            "runs": runs[server],
        }
        for server in runs
    ]


def table(results: list[Figures]) -> str:
    """Render one row for each scenario and server, in columns.

    Each result has `scenario`, `server`, `medians`, `ratio` (to the baseline, empty for that), `faults` and
    `runs`, and may have `gateway_ratio` (the gateway's to this server's) and `says`, what a comparison with
    a load before means.
    """
    heads = ["scenario", "server", *(head for head, _, _ in _COLUMNS), *_RATIO_HEADS, "remarks"]
    rows = [heads, *(_row(result) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(result: Figures) -> list[str]:
    figures = result["medians"]
    cells = [text.format(figures[key]) if key in figures else "-" for _, key, text in _COLUMNS]
    found = [result.get(ratio, {}).get(key) for _, ratio, key in _RATIOS]
    by = ["" if value is None else f"{value:.2f}" for value in found]
    remarks = [f"FAILED ({fault})" for fault in result["faults"]]
    if "of_reference" in figures:
        remarks.append(result["says"].format(figures["of_reference"]))
    limited = sum(bool(run.get("generator_limited")) for run in result["runs"])
    if limited:
        remarks.append(f"generator was the limit in {limited} of {len(result['runs'])}")
    return [result["scenario"], result["server"], *cells, *by, "; ".join(remarks)]


def _pad(column: int, cell: str, width: int) -> str:
    is_text = column < 2 or column == 2 + len(_COLUMNS) + len(_RATIOS)
    return cell.ljust(width) if is_text else cell.rjust(width)
