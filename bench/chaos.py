"""Workers that die and hang under load, self-checking: `python -m bench.chaos --seed 7 --seconds 60`.

Dozens of clients send to each other through a gateway with several workers, which are killed and stopped as a
plan says that follows from the seed; all come back at once and check that nothing is lost, doubled or
reordered beyond what they were told. Prints what it did; exit status 1 with what was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.chaos_account import ChaosAccount
from bench.chaos_client import ChaosClient
from bench.chaos_plan import HANG_TIMEOUT_S, WEIGHTS, make_strikes
from bench.chaos_report import print_summary
from bench.chaos_strikes import Killer, pids_of
from bench.chaos_verdict import count_as_broken, left_over, note_stops, wrong_deaths, wrong_ends
from bench.chaos_watch import ChaosWatch
from bench.servers import COMMANDS, GATEWAY, Server
from bench.stress_plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.chaos_plan import Strike


# Short, so that all of it is taken often within the run.
_SETTINGS = (
    f"supervisor.worker_timeout_s={HANG_TIMEOUT_S}",
    "supervisor.start_timeout_s=30",
    "supervisor.max_restarts=10000",
    "supervisor.restart_base_delay_s=0.02",
    "supervisor.restart_max_delay_s=0.2",
    "limits.refused_per_s=0",  # or who was refused a lot is read on for longer than a run may take
    "outbox.send_buffer_bytes=16384",
    "outbox.write_timeout_s=2",
    "outbox.reconnect_grace_s=1",
    "outbox.linger_s=1",
    "metrics.interval_s=0.5",
    "log.flood_per_s=100000",
)
# What may be under way to a connection that breaks: both kernel buffers, which are twice what was asked for
# and counted by the kernel with its own overhead, and one flush.
_WINDOW_BYTES = 131_072
_PROGRESS_S = 5.0  # between two lines about the progress
_QUIET_S = 1.5  # after the plan, before everybody leaves
_SETTLED_S = 3.0  # after everybody has left: grace, linger and some metrics records
_EXTRA_S = 90.0  # on top of the plan, or the run has hung
_MAX_TOLD = 40  # faults; what follows from the first ones is only counted
_GONE_S = 3.0  # after its end, until all processes of the gateway are gone


@dataclass(slots=True)
class _Run:
    """What takes part in one run."""

    account: ChaosAccount
    watch: ChaosWatch
    killer: Killer
    clients: list[ChaosClient]


def run(seed: int, seconds: float, workers: int, members: int) -> list[str]:
    """One run; returns what was wrong."""
    plan = make_plan(seed, seconds, members, WEIGHTS)
    account = ChaosAccount(frozenset(one.login for one in plan if one.manners == "steady"), _WINDOW_BYTES)
    begun_s = time.monotonic()

    def clock() -> float:
        return time.monotonic() - begun_s

    watch = ChaosWatch(clock)
    with tempfile.TemporaryDirectory(prefix="gw") as base:
        with Server(_command(workers, base), watch.feed) as server:
            begun_s = time.monotonic()
            killer = Killer(watch, server.pid, clock)
            clients = [ChaosClient(one, server.address, account, clock, seconds) for one in plan]
            everything = _Run(account, watch, killer, clients)
            supervisor_files = _open_files(server.pid)
            asyncio.run(_run_all(everything, make_strikes(seed, seconds, workers), workers, seconds, clock))
            time.sleep(_SETTLED_S)
            last: dict[str, Any] = dict(watch.metrics)
            files_more = _open_files(server.pid) - supervisor_files
            server.stop()
        faults = _left_behind(server.pid, Path(base))
    note_stops(account, watch, killer.stops)
    count_as_broken(account, watch)
    faults += account.close()
    faults += wrong_ends(account, watch) + wrong_deaths(watch)
    faults += left_over(watch, last, files_more, server.exit_status)
    print_summary(clients, account, watch, killer)
    return faults


def _command(workers: int, base: str) -> list[str]:
    settings = [word for setting in _SETTINGS for word in ("--set", setting)]
    return ["env", f"XDG_RUNTIME_DIR={base}", *COMMANDS[GATEWAY], "--workers", str(workers), *settings]


async def _run_all(
    run: _Run, strikes: Sequence[Strike], workers: int, seconds: float, clock: Callable[[], float]
) -> None:
    account = run.account
    progress_task = asyncio.create_task(_print_progress(run, clock))
    killer_task = asyncio.create_task(run.killer.run(strikes))
    try:
        async with asyncio.timeout(seconds + _EXTRA_S):
            await asyncio.gather(killer_task, *(client.run() for client in run.clients))
            for fault in await run.killer.recover(workers):
                account.fault(fault)
            await asyncio.sleep(_QUIET_S)
            await asyncio.gather(*(client.finish() for client in run.clients))
    except TimeoutError:
        account.fault(f"the clients were not done {_EXTRA_S} s after the end of their plan")
    except OSError as error:
        account.fault(f"a client could not connect: {error}")
    finally:
        for task in (progress_task, killer_task):
            task.cancel()
        await asyncio.wait([progress_task, killer_task])


async def _print_progress(run: _Run, clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        sessions = sum(one.is_in and one.ended_s is None for one in run.account.sessions)
        serving = sum(one.is_serving for one in list(run.watch.processes.values()))
        print(
            f"  {clock():5.1f} s: {run.killer.done.total()} blows, {serving} workers serve {sessions} "
            f"sessions, {run.account.received_total} messages received, {len(run.account.faults)} faults",
            flush=True,
        )


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # it has ended, which its exit status tells
        return 0


def _left_behind(session: int, base: Path) -> list[str]:
    """Processes and files of a gateway that has ended."""
    deadline_s = time.monotonic() + _GONE_S
    while (pids := pids_of(session)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    faults = [f"process {pid} is left at the end" for pid in pids]
    return faults + [f"{path.name} is left in the run directory" for path in base.iterdir()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once; 0 if all was well."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description="Workers that die under load.")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the plan (default: the time)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the plan")
    parser.add_argument("--workers", type=int, choices=(2, 3, 4), default=3, help="of the gateway")
    parser.add_argument("--clients", type=int, default=36, help="how many take part")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}: {options.clients} clients, {options.workers} workers, {options.seconds:g} s")
    sys.stdout.flush()
    faults = run(options.seed, options.seconds, options.workers, options.clients)
    for fault in faults[:_MAX_TOLD]:
        print(f"  FAULT: {fault}")
    again = f"python -m bench.chaos --seed {options.seed} --seconds {options.seconds:g}"
    again += f" --workers {options.workers} --clients {options.clients}"
    print(f"{len(faults)} faults; again with: {again}" if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
