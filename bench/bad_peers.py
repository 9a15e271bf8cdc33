"""Runs one kind of bad peers as a process of its own: `python -m bench.bad_peers KIND OPTIONS`.

OPTIONS is a JSON object with the fields of that kind's options; `address` is needed. Prints "begun" once
the peers are connected, then, at the end, one JSON object of figures. It ends by itself.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.flood import FloodOptions, run_flood
from bench.hostile import BadLinesOptions, DripOptions, EndlessOptions, run_bad_lines, run_drip, run_endless
from bench.login import LoginError, raise_file_limit
from bench.stuck import StuckOptions, run_stuck
from bench.visitors import ProbeOptions, VisitOptions, run_probe, run_visits

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figures

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Figures]]] = {
    "stuck": (StuckOptions, run_stuck),
    "drip": (DripOptions, run_drip),
    "endless": (EndlessOptions, run_endless),
    "bad_lines": (BadLinesOptions, run_bad_lines),
    "visits": (VisitOptions, run_visits),
    "probe": (ProbeOptions, run_probe),
    "flood": (FloodOptions, run_flood),
}
"""Kind of bad peers -> its options, and what runs it: called with these and `on_begun`."""


def main(argv: list[str]) -> int:
    """Entry; status 1 if the peers could not do what they were to do."""
    kind, text = argv
    make_options, run = KINDS[kind]
    fields = json.loads(text)
    options = make_options(**fields | {"address": tuple(fields["address"])})
    raise_file_limit(0)
    gc.disable()  # nothing here makes cycles, and a collection would look like a slow server
    begun: list[tuple[float, float]] = []

    def on_begun() -> None:
        begun.append((time.perf_counter(), time.process_time()))
        print("begun", flush=True)

    try:
        figures = run(options, on_begun)
    except LoginError as error:
        print(f"bench.bad_peers {kind}: {error}", file=sys.stderr)
        return 1
    (since_s, cpu_since_s), *_ = begun or [(0.0, 0.0)]
    took_s = time.perf_counter() - since_s
    cpu_share = (time.process_time() - cpu_since_s) / took_s
    print(json.dumps(figures | {"took_s": round(took_s, 2), "cpu_share": round(cpu_share, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
