"""Fails when a message has become much dearer: `python -m bench.guard`, which takes about half a minute.

The gateway and the baseline, a plain server on asyncio's streams, run the same loads in turn. What is held to
a limit is the processor time for each message as a share of the baseline's in the same run, so that neither
the machine nor its other users matter much; the limits are far above what is measured today (see
`docs/performance.md`), since only a change of kind must fail here. Exit status: 0 if all hold, else 1.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import report
from bench.measure import run_once
from bench.scenarios import SCENARIOS
from bench.servers import BASELINE, GATEWAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import LoadOptions

# Scenario -> the most processor time for each message, as a share of the baseline's.
LIMITS = {"burst": 0.3, "fanout": 0.35, "one-at-a-time": 1.3}
_RUNS = 3
_SECONDS = 1.0


def guard(measure: Callable[[str, LoadOptions], report.Figures] = run_once) -> list[str]:
    """Run the guarded scenarios; returns what is wrong, a line each.

    `measure` gives the figures of one run.
    """
    wrong = []
    for scenario in SCENARIOS:
        if scenario.name not in LIMITS:
            continue
        load = replace(scenario.quick, seconds=_SECONDS)
        runs: dict[str, list[report.Figures]] = {GATEWAY: [], BASELINE: []}
        for _ in range(_RUNS):
            for server, found in runs.items():
                found.append(measure(server, load))
        ratio = report.ratios(*map(report.medians, runs.values())).get("cpu_us")
        limit = LIMITS[scenario.name]
        print(f"{scenario.name}: {ratio} of the baseline's processor time for each message, at most {limit}")
        faults = {fault for found in runs.values() for run in found for fault in report.faults(run)}
        wrong += [f"{scenario.name}: {fault}" for fault in sorted(faults)]
        if ratio is None or ratio > limit:
            wrong.append(f"{scenario.name}: {ratio} is not at most {limit}")
    return wrong


if __name__ == "__main__":
    problems = guard()
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(bool(problems))
