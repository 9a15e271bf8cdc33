"""Runs the scenarios against the gateway, a baseline and other servers in turn; prints a table of medians.

`python -m bench --help` lists the options. Exit status: 0 if every run of the gateway and of the baseline was
valid, 1 if one lost a connection or a message, changed an order or could not be made, 2 for a wrong command
line. What the other servers lose is remarked in the table only.
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

from bench import charts, report
from bench.measure import run_scenario_once
from bench.rivals import RIVALS, installed
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import BASELINE, GATEWAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.options import LoadOptions

_COLUMNS_HELP = """columns:
  x ...          the server's figure as a multiple of the baseline's
  gw/it ...      the gateway's figure as a multiple of this server's"""


def run_scenario(
    scenario: Scenario, load: LoadOptions, runs: int, servers: Sequence[str] = (GATEWAY, BASELINE)
) -> list[report.Figures]:
    """Run the servers in turn, A B A B, and return a result for each; `servers` begin with the gateway."""
    print(f"{scenario.name}: {scenario.shows}", file=sys.stderr)
    print(f"  {scenario.describe(load)}; goal: {scenario.goal}", file=sys.stderr)
    found: dict[str, list[report.Figures]] = {server: [] for server in servers}
    for turn in range(runs):
        for server in servers:
            figures = run_scenario_once(server, load, scenario.reference)
            found[server].append(figures)
            _say(server, turn, figures)
    return [result | {"load": asdict(load)} for result in report.compared(scenario, found, GATEWAY, BASELINE)]


def _say(server: str, turn: int, figures: report.Figures) -> None:
    wrong = report.faults(figures)
    text = "{delivered_per_s:,.0f} messages/s, p50 {p50_us:,.0f} us, p99 {p99_us:,.0f} us"
    said = "FAILED: " + "; ".join(wrong) if wrong else text.format(**figures)
    print(f"  run {turn + 1}, {server}: {said}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {s.name:14} {s.describe(s.load)}: {s.shows}" for s in SCENARIOS)
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"scenarios:\n{listed}\n\n{_COLUMNS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON, - for standard output")
    parser.add_argument("--chart", metavar="DIR", help=f"draw {charts.FILES} there; needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="one short run of each, under a minute in all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--runs", type=int, help="runs of each server (default 3, with --quick 1)")
    parser.add_argument(
        "--rivals",
        nargs="*",
        choices=list(RIVALS),
        metavar="NAME",
        help=f"other servers beside the baseline, of {', '.join(RIVALS)} "
        "(default all that are installed, with --quick none)",
    )
    return parser


def _servers(wanted: Sequence[str] | None, is_quick: bool) -> list[str]:
    """The gateway, the baseline, and the rivals that are wanted and installed; says which are left out."""
    if wanted is None:
        wanted = () if is_quick else tuple(RIVALS)
    found, missing = installed(wanted)
    for sentence in missing:
        print(sentence, file=sys.stderr)
    return [GATEWAY, BASELINE, *found]


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
    if args.chart and not charts.can_draw():
        parser.error(charts.MISSING)
    servers = _servers(args.rivals, args.quick)
    results = []
    for scenario in SCENARIOS:
        if scenario.name in args.only:
            load = scenario.quick if args.quick else scenario.load
            results += run_scenario(scenario, load, runs, servers)
    print(report.table(results), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        _write_json(args.json, results, runs)
    if args.chart:
        charts.draw(results, Path(args.chart))
    return 1 if any(result["faults"] for result in results if result["server"] in (GATEWAY, BASELINE)) else 0


if __name__ == "__main__":
    sys.exit(main())
