"""Shows what slow, dead and hostile peers cost their neighbours, and compares it with what is promised.

Each scenario is run A B A B: A without the bad peers, B with them. With `--elsewhere` the peers of A use a
gateway of their own on the same machine: they take as much processor time from the load, and what B is worse
by is what sharing a gateway with them costs. Where a goal is about the slowest of many times, a pair of runs
counts only if the machine's host took no processors away meanwhile, and is made again if it did.
`python -m bench.reliability --help` lists the options.

Exit status: 0 if no goal was missed, 1 if one was, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.promises import CAPACITY_LOAD, PROMISES, Promise, Scale, Trials
from bench.trial import Plan, run_trial
from bench.verdict import MISSED, UNKNOWN, is_stolen_from, judge, table

if TYPE_CHECKING:
    from bench.report import Figures
    from bench.verdict import Verdict

_SAID = (
    *("p99_us", "delivered_per_s", "growth_bytes", "server_cpu_share", "cpu_share"),
    *("others_cpu_share", "stolen_share"),
)
_MAX_TRIES = 3  # for each pair of runs that is asked for, on a machine whose host takes the processors away


def measure_capacity() -> float:
    """Messages a second when every session has one line under way; what a healthy load is a share of.

    Raises:
        SystemExit: it could not be measured.
    """
    figures = run_trial(Plan(healthy=CAPACITY_LOAD))
    if "error" in figures:
        raise SystemExit(f"the capacity could not be measured: {figures['error']}")
    _say("capacity", figures)
    return float(figures["delivered_per_s"])


def run_promise(promise: Promise, scale: Scale, runs: int, *, is_elsewhere: bool = False) -> dict[str, Any]:
    """Run both plans in turn, and judge; with `is_elsewhere` A has the bad peers at another gateway."""
    _log(f"{promise.name}: {promise.shows}")
    trials = promise.make(scale, None)
    if promise.asks:
        first = run_trial(trials.beside)
        _say("first", first)
        trials = promise.make(scale, None if "error" in first else first)
    if is_elsewhere and trials.alone is not None:
        trials = replace(trials, alone=replace(trials.beside, is_elsewhere=True))
    runs_a, runs_b = _run_in_turn(trials, runs)
    verdicts = [judge(goal, runs_a, runs_b) for goal in trials.goals]
    print(f"{promise.name}: {_described(trials)}\n{table(verdicts)}\n", flush=True)
    return {
        "promise": promise.name,
        "verdicts": [_as_json(verdict) for verdict in verdicts],
        "alone": runs_a,
        "beside": runs_b,
    }


def _run_in_turn(trials: Trials, runs: int) -> tuple[list[Figures], list[Figures]]:
    """Runs of A and of B: the first pairs in which the host left us alone, where a goal depends on it."""
    is_delicate = any(goal.is_tail for goal in trials.goals)
    quiet: list[list[Figures]] = []
    disturbed: list[list[Figures]] = []
    for number in range(1, runs * _MAX_TRIES + 1):
        pair = [_run(trials.alone, f"run {number}, alone")] if trials.alone is not None else []
        pair.append(_run(trials.beside, f"run {number}, beside"))
        is_disturbed = is_delicate and any(map(is_stolen_from, pair))
        (disturbed if is_disturbed else quiet).append(pair)
        if len(quiet) == runs:
            break
    if disturbed:
        _log(f"  the host took processors away in {len(disturbed)} of {len(quiet) + len(disturbed)} pairs")
    kept = (quiet + disturbed)[:runs]
    return [pair[0] for pair in kept if len(pair) > 1], [pair[-1] for pair in kept]


def _run(plan: Plan, what: str) -> Figures:
    figures = run_trial(plan)
    _say(what, figures)
    return figures


def _described(trials: Trials) -> str:
    healthy = trials.beside.healthy
    peers = [f"{one.kind} {one.options}" for one in trials.beside.peers]
    load = [f"{healthy.describe()}, {healthy.seconds:g} s"] if healthy else []
    return "; ".join([*load, *peers, *trials.beside.settings])


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)


def _say(what: str, figures: Figures) -> None:
    said = {key: figures[key] for key in _SAID if key in figures}
    _log(f"  {what}: " + (f"FAILED: {figures['error']}" if "error" in figures else json.dumps(said)))


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {promise.name:12} {promise.shows}" for promise in PROMISES)
    parser = argparse.ArgumentParser(
        "python -m bench.reliability",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"scenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [promise.name for promise in PROMISES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="only these")
    parser.add_argument("--quick", action="store_true", help="smaller, shorter, one run of each")
    parser.add_argument("--runs", type=int, help="runs of A and of B each (default 3, with --quick 1)")
    parser.add_argument("--seconds", type=float, help="how long loads last (default: the scenario's own)")
    parser.add_argument("--capacity", type=float, help="messages a second, instead of measuring it")
    parser.add_argument("--elsewhere", action="store_true", help="in A, the peers use another gateway")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.reliability`; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    runs = args.runs if args.runs is not None else 1 if args.quick else 3
    if runs < 1:
        parser.error("--runs is at least 1")
    if args.seconds is not None and not 1 <= args.seconds <= 300:
        parser.error("--seconds is from 1 to 300")
    scale = Scale(args.capacity or measure_capacity(), args.seconds, args.quick)
    results = [
        run_promise(promise, scale, runs, is_elsewhere=args.elsewhere)
        for promise in PROMISES
        if promise.name in args.only
    ]
    if args.json:
        machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        report = {"machine": machine, "runs": runs, "scale": asdict(scale), "results": results}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    words = [verdict["word"] for result in results for verdict in result["verdicts"]]
    print(", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))))
    return 1 if MISSED in words or UNKNOWN in words else 0


if __name__ == "__main__":
    sys.exit(main())
