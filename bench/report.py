"""Medians, ratios, faults and the table of a benchmark; no processes, no clock."""

from __future__ import annotations

from statistics import median
from typing import Any

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
        values = [run[key] for run in valid if key in run]
        result[key] = any(values) if isinstance(values[0], bool) else round(median(values), 3)
    return result


def ratios(figures: Figures, baseline: Figures) -> Figures:
    """Each comparable figure divided by the baseline's; without those that either lacks or that are 0."""
    return {
        key: round(figures[key] / baseline[key], 3)
        for key in RATIO_KEYS
        if figures.get(key) and baseline.get(key)
    }


def table(results: list[Figures]) -> str:
    """Render one row for each scenario and server, in columns.

    Each result has `scenario`, `server`, `medians`, `ratio` (empty for the baseline), `faults` and `runs`.
    """
    heads = ["scenario", "server", *(head for head, _, _ in _COLUMNS), "x msg/s", "x p50", "x cpu", "remarks"]
    rows = [heads, *(_row(result) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(result: Figures) -> list[str]:
    figures, ratio = result["medians"], result["ratio"]
    cells = [text.format(figures[key]) if key in figures else "-" for _, key, text in _COLUMNS]
    by = [f"{ratio[key]:.2f}" if key in ratio else "" for key in ("delivered_per_s", "p50_us", "cpu_us")]
    remarks = [f"FAILED ({fault})" for fault in result["faults"]]
    limited = sum(bool(run.get("generator_limited")) for run in result["runs"])
    if limited:
        remarks.append(f"generator was the limit in {limited} of {len(result['runs'])}")
    return [result["scenario"], result["server"], *cells, *by, "; ".join(remarks)]


def _pad(column: int, cell: str, width: int) -> str:
    is_text = column < 2 or column == len(_COLUMNS) + 5
    return cell.ljust(width) if is_text else cell.rjust(width)
