"""Runs the scenarios against the gateway and the baseline in turn and prints a table of medians.

`python -m bench --help` lists the options. Exit status: 0 if every run was valid, 1 if one lost a
connection or a message, changed an order or could not be made, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report
from bench.measure import run_once
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import BASELINE, GATEWAY

if TYPE_CHECKING:
    from bench.options import LoadOptions

_SERVERS = (GATEWAY, BASELINE)


def run_scenario(scenario: Scenario, load: LoadOptions, runs: int) -> list[report.Figures]:
    """Run the servers in turn, A B A B, and return a result for each, the gateway's first."""
    print(f"{scenario.name}: {scenario.shows}\n  {load.describe()}; goal: {scenario.goal}", file=sys.stderr)
    found: dict[str, list[report.Figures]] = {server: [] for server in _SERVERS}
    for turn in range(runs):
        for server in _SERVERS:
            figures = run_once(server, load)
            found[server].append(figures)
            _say(server, turn, figures)
    medians = {server: report.medians(figures) for server, figures in found.items()}
    return [
        {
            "scenario": scenario.name,
            "server": server,
            "goal": scenario.goal,
            "load": asdict(load),
            "medians": medians[server],
            "ratio": {} if server == BASELINE else report.ratios(medians[server], medians[BASELINE]),
            "faults": sorted({fault for run in found[server] for fault in report.faults(run)}),
            "runs": found[server],
        }
        for server in _SERVERS
    ]


def _say(server: str, turn: int, figures: report.Figures) -> None:
    wrong = report.faults(figures)
    text = "{delivered_per_s:,.0f} messages/s, p50 {p50_us:,.0f} us, p99 {p99_us:,.0f} us"
    said = "FAILED: " + "; ".join(wrong) if wrong else text.format(**figures)
    print(f"  run {turn + 1}, {server}: {said}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {s.name:14} {s.load.describe()}: {s.shows}" for s in SCENARIOS)
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"scenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON, - for standard output")
    parser.add_argument("--quick", action="store_true", help="one short run of each, under a minute in all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--runs", type=int, help="runs of each server (default 3, with --quick 1)")
    return parser


def _write_json(target: str, results: list[report.Figures], runs: int) -> None:
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    text = json.dumps({"machine": machine, "runs": runs, "results": results}, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench`; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    runs = args.runs if args.runs is not None else 1 if args.quick else 3
    if runs < 1:
        parser.error("--runs is at least 1")
    results = []
    for scenario in SCENARIOS:
        if scenario.name in args.only:
            results += run_scenario(scenario, scenario.quick if args.quick else scenario.load, runs)
    print(report.table(results), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        _write_json(args.json, results, runs)
    return 1 if any(result["faults"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
