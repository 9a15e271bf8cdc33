"""Shows what several workers cost beside one, and what they bring.

Each comparison runs A B A B, a gateway of its own for each run, and holds the medians to a goal. With
`--curve` it shows the throughput of 1, 2 and 4 workers instead, with as many load generators.
`python -m bench.workers --help` lists the options.

Exit status: 0 if no goal was missed, 1 if one was or a run was not valid, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.crew_run import Setup, run_setup
from bench.kill import Kill
from bench.logins import LoginOptions
from bench.options import LoadOptions
from bench.verdict import MISSED, UNKNOWN, Goal, judge, table

if TYPE_CHECKING:
    from bench.report import Figures

_MS = 1e-3  # for figures in microseconds
_SAID = (
    *("delivered_per_s", "p50_us", "p99_us", "max_us", "cpu_us", "kib_per_session", "cpu_share"),
    *("server_cpu_share", "ready_after_s", "clients_lost"),
)
_SOUND = Goal("lost, changed or refused", "faults", "==", "")
_IDLE = 10_000
_SPARE_FILES = 128  # of a generator, beside its connections
_WARM_UP = 0.2  # share of a load that is not counted, as bench.load has it
_KILL_AT = 0.25  # share of a load: what comes before it and is counted is short beside what comes after
_VICTIMS = 64
_CURVE = (1, 2, 4)
_CURVE_PAIRS = 128  # of all generators together


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two gateways under the same load, and the goals B is held to; `a` is None where nothing is compared."""

    name: str
    shows: str
    a: Setup | None
    b: Setup
    goals: tuple[Goal, ...]


def comparisons(*, is_quick: bool) -> list[Comparison]:
    """All of them; quick ones are shorter, and smaller where size takes time."""
    seconds = 1.0 if is_quick else 3.0
    bursts = LoadOptions(pairs=100, window=64, seconds=seconds)
    singly = LoadOptions(pairs=1000, rate_per_s=20_000, seconds=seconds)
    many = LoadOptions(pairs=6, fanout=100, window=16, seconds=seconds)
    fanout = (many, replace(many, pairs=4))  # one generator would be the limit of one worker
    ping = LoadOptions(pairs=1, window=1, seconds=seconds)
    logins = LoginOptions(rate_per_s=500 if is_quick else 2000, seconds=seconds)
    idle = LoadOptions(pairs=1, rate_per_s=10, idle=_idle_sessions(is_quick=is_quick), seconds=1.0)
    room = (f"limits.max_connections={2 * idle.connections}",)
    cpu = Goal("processor time for each message, us", "cpu_us", "<=", 1.5, is_ratio=True, is_timing=True)
    p50 = Goal("p50, ms", "p50_us", "<=", 1.5, is_ratio=True, is_timing=True, scale=_MS)
    memory = (
        Goal("proportional memory for each session, KiB", "kib_per_session", "<=", 3.5),
        Goal("resident memory for each session, KiB", "resident_kib_per_session", "<=", 3.5),
    )
    return [
        _with_one_worker("burst", "what a message costs when they come in runs", (bursts,), cpu),
        _with_one_worker("one-at-a-time", "what a message costs when each comes alone", (singly,), cpu),
        _with_one_worker("fanout", "what a copy costs of a message to 100", fanout, cpu),
        Comparison(
            "ping",
            "the time of one message from worker to worker, beside that within one",
            Setup(2, (ping,), cross=0.0),
            Setup(2, (ping,), cross=1.0),
            (p50, _SOUND),
        ),
        Comparison(
            "idle", "memory for silent sessions", None, Setup(2, (idle,), settings=room), (*memory, _SOUND)
        ),
        Comparison(
            "login",
            "the time from connecting to a message to oneself",
            Setup(1, (logins,)),
            Setup(2, (logins,)),
            (p50, _SOUND),
        ),
        _killed(6.0 if not is_quick else 3.0),
    ]


def _killed(seconds: float) -> Comparison:
    """A new worker takes half a second of one processor: the load is so short that p99 shows it.

    Of the 4.8 s that are counted a disturbance of 48 ms and more can.
    """
    load = LoadOptions(pairs=200, rate_per_s=2000, seconds=seconds)
    calm = Setup(2, (load,), cross=0.0, within=1, kill=Kill(worker=2, clients=_VICTIMS))
    at_s = _KILL_AT * seconds
    span = f"p99 of {(1 - _WARM_UP) * seconds:.3g} s, {seconds - at_s:.3g} s of them after the kill, ms"
    all_lost = ("clients_lost", _VICTIMS)
    return Comparison(
        "kill",
        "what clients of one worker notice when another one is killed",
        calm,
        replace(calm, kill=Kill(2, _VICTIMS, at_s)),
        (
            Goal(span, "p99_us", "<=", 1.2, is_ratio=True, is_timing=True, scale=_MS, needs=all_lost),
            Goal("from the kill to a new worker that serves, s", "ready_after_s", "<=", 2.0, is_timing=True),
            _SOUND,
        ),
    )


def _with_one_worker(name: str, shows: str, loads: tuple[LoadOptions, ...], goal: Goal) -> Comparison:
    return Comparison(name, shows, Setup(1, loads), Setup(2, loads, cross=0.5), (goal, _SOUND))


def _idle_sessions(*, is_quick: bool) -> int:
    """As many as are wanted, or as this process may open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _IDLE // 5 if is_quick else _IDLE
    return wanted if hard == resource.RLIM_INFINITY else max(min(wanted, hard - _SPARE_FILES), 1)


def compare(comparison: Comparison, runs: int) -> dict[str, Any]:
    """Run both in turn, print the figures beside their goals, and return all of it."""
    a, b = comparison.a, comparison.b
    _log(f"{comparison.name}: {comparison.shows}")
    runs_a: list[Figures] = []
    runs_b: list[Figures] = []
    for number in range(1, runs + 1):
        if a is not None:
            runs_a.append(_run(a, f"run {number}"))
        runs_b.append(_run(b, f"run {number}"))
    verdicts = [judge(goal, runs_a, runs_b) for goal in comparison.goals]
    against = f"alone is {a.describe()}, beside is " if a else ""
    loads = " and ".join(load.describe() for load in b.loads)
    head = f"{comparison.name}: {loads}; {against}{b.describe()}"
    print(f"{head}\n{table(verdicts)}\n", flush=True)
    return {
        "comparison": comparison.name,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "a": {"setup": asdict(a) if a else None, "runs": runs_a},
        "b": {"setup": asdict(b), "runs": runs_b},
    }


def curve_setup(workers: int, seconds: float) -> Setup:
    """Bursts on so many workers, by as many generators; half of the conversations cross where they can."""
    load = LoadOptions(pairs=_CURVE_PAIRS // workers, window=64, seconds=seconds)
    return Setup(workers, (load,) * workers, cross=0.5 if workers > 1 else None)


def run_curve(times: int, seconds: float) -> list[dict[str, Any]]:
    """Run all points in turn, so many times, print the curve, and return it."""
    found: dict[int, list[Figures]] = {workers: [] for workers in _CURVE}
    for number in range(1, times + 1):
        for workers in _CURVE:
            found[workers].append(_run(curve_setup(workers, seconds), f"run {number}"))
    medians = {workers: report.medians(list(map(_numbers, runs))) for workers, runs in found.items()}
    results: list[dict[str, Any]] = [
        {
            "scenario": "burst",
            "server": "1 worker" if workers == 1 else f"{workers} workers",
            "medians": medians[workers],
            "ratio": report.ratios(medians[workers], medians[1]) if workers > 1 else {},
            "faults": sorted({fault for run in found[workers] for fault in report.faults(run)}),
            "runs": found[workers],
        }
        for workers in _CURVE
    ]
    print(report.table(results))
    others = max((run.get("others_cpu_share", 0.0) for runs in found.values() for run in runs), default=0.0)
    print(f"\n{curve_note(len(os.sched_getaffinity(0)))}\nOthers used up to {others:.2f} meanwhile.\n")
    return results


def _numbers(figures: Figures) -> Figures:
    return {key: value for key, value in figures.items() if key != "faults"}


def curve_note(cores: int) -> str:
    """What the curve can show on a machine of so many cores."""
    shown = [workers for workers in _CURVE if 2 * workers <= cores]
    few = f"up to {shown[-1]}" if shown else "none"
    return (
        f"Cores that may be used here: {cores}. N workers need N of them and their N generators as many:\n"
        f"figures of {few} can show what a worker more brings, those of more workers show nothing."
    )


def _run(setup: Setup, what: str) -> Figures:
    figures = run_setup(setup)
    said = {key: figures[key] for key in _SAID if key in figures}
    result = f"FAILED: {figures['error']}" if "error" in figures else json.dumps(said)
    _log(f"  {what}, {setup.describe()}: {result}")
    return figures


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser(names: list[str]) -> argparse.ArgumentParser:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m bench.workers", description=description)
    listed = ", ".join(names)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=listed)
    parser.add_argument("--quick", action="store_true", help="shorter, smaller, one run of each")
    parser.add_argument("--runs", type=int, help="runs of A and of B each (default 3, with --quick 1)")
    parser.add_argument("--curve", action="store_true", help="throughput of 1, 2 and 4 workers, nothing else")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.workers`; returns the exit status."""
    parser = _parser([comparison.name for comparison in comparisons(is_quick=True)])
    args = parser.parse_args(argv)
    runs = args.runs if args.runs is not None else 1 if args.quick else 3
    if runs < 1:
        parser.error("--runs is at least 1")
    if args.curve:
        results = run_curve(runs, 1.0 if args.quick else 5.0)
        has_failed = any(result["faults"] for result in results)
    else:
        chosen = [one for one in comparisons(is_quick=args.quick) if one.name in args.only]
        results = [compare(comparison, runs) for comparison in chosen]
        words = [verdict["word"] for result in results for verdict in result["verdicts"]]
        print(", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))))
        has_failed = MISSED in words or UNKNOWN in words
    if args.json:
        machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        text = json.dumps({"machine": machine, "runs": runs, "results": results}, indent=2)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
