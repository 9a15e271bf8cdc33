"""One run: a gateway of one or several workers with load generators on it; the costs of all its processes.

Everything runs in processes of its own on this machine, so figures also say how much of it others used.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.chaos_watch import ChaosWatch
from bench.kill import Kill, KillError, Victim
from bench.login import LoginError
from bench.logins import LoginOptions
from bench.machine import MachineWatch
from bench.options import LoadOptions
from bench.placement import LoginLog
from bench.report import faults
from bench.servers import Server, ServerError, gateway_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.report import Figures

_MAX_END_S = 60.0  # beyond the seconds of a load
_QUIET_S = 0.3  # for what the gateway has to do after the last login
_MIN_CPU_S = 0.1  # the kernel counts in steps of 0.01 s: below, the figure would be noise
_ALL_LOGINS = "log.flood_per_s=100000"  # so that the log tells of each one
_NOBODY = Kill(worker=1, clients=0)

Load = LoadOptions | LoginOptions


class GeneratorError(Exception):
    """A load generator could not do what it was to do."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A gateway and what is put on it; each load is made by a process of its own.

    `cross` is the share of conversations between workers; None where connections live where the kernel puts
    them. `settings` are the gateway's, as key=value. With `cross`, all conversations live at the first
    `within` workers, 0 for any, and `kill` has clients at one and may kill it.
    """

    workers: int
    loads: tuple[Load, ...]
    cross: float | None = None
    settings: tuple[str, ...] = ()
    within: int = 0
    kill: Kill | None = None

    def describe(self) -> str:
        """The same in short, for people."""
        said = ["1 worker" if self.workers == 1 else f"{self.workers} workers"]
        said += [] if self.cross is None else [f"{100 * self.cross:g} % between workers"]
        said += [f"none beyond worker {self.within}"] if self.within else []
        said += [self.kill.describe()] if self.kill else []
        return ", ".join(said)


def run_setup(setup: Setup) -> Figures:
    """Run it once; figures of a run that could not be made have only `error`.

    Besides those of the generators: `cpu_us`, processor time of all processes of the gateway for each message
    delivered, from the time when all connections were made, left out where there was too little of it;
    `kib_per_session` and `resident_kib_per_session`, growth of their memory for each idle connection, where
    there are any; those of the worker that is killed, see `Victim.figures`; `faults` in words, empty if there
    was none.
    """
    machine = MachineWatch()
    settings = (_ALL_LOGINS, *setup.settings) if setup.cross is not None else setup.settings
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = _run(setup, gateway_command(setup.workers, settings), Path(folder) / "logins.log")
    except (ServerError, GeneratorError, LoginError, KillError) as error:
        lines = str(error).strip().splitlines()  # what a server said may be long
        return {"error": " ".join(dict.fromkeys([lines[0], lines[-1]]))}
    figures |= machine.figures()
    figures["faults"] = "; ".join(faults(figures))
    return figures


def _run(setup: Setup, command: list[str], path: Path) -> Figures:
    watch = ChaosWatch(time.monotonic)
    with LoginLog(path, setup.within) as log:

        def feed(line: str) -> None:
            log.feed(line)
            if setup.kill:
                watch.feed(line)

        with Server(command, feed) as server, Victim(setup.kill or _NOBODY, watch, server.pid) as victim:
            victim.open(server.address, path)
            figures = _measure(server, _aimed(setup, server.address, path), victim.strike)
            figures |= victim.figures()
        figures["server_exit_status"] = server.exit_status
    return figures


def _aimed(setup: Setup, address: tuple[str, int], log: Path) -> list[Load]:
    """The loads with all they have to know of the gateway."""
    host, port = address
    loads: list[Load] = []
    for number, load in enumerate(setup.loads):
        if isinstance(load, LoadOptions):
            load = replace(load, tag=f"g{number}", hold=1)
            if setup.cross is not None:
                load = replace(load, log=str(log), cross=setup.cross)
        loads.append(replace(load, host=host, port=port))
    return loads


def _measure(server: Server, loads: Sequence[Load], on_begun: Callable[[float], None]) -> Figures:
    """Run the loads; `on_begun` is called once they have begun, with the time when they did."""
    idle = sum(load.idle for load in loads if isinstance(load, LoadOptions))
    before_kib = _settled_memory_kib(server) if idle else ()
    with contextlib.ExitStack() as stack:
        generators = [_start(stack, load) for load in loads]
        for generator in generators:
            _await_settled(generator)
        after_kib = _settled_memory_kib(server) if idle else ()
        time.sleep(_QUIET_S)
        cpu_s, begun_s = server.cpu_s(), time.monotonic()
        for generator in generators:
            _say_go(generator)
        on_begun(begun_s)
        figures = joined([_finish(one, load) for one, load in zip(generators, loads, strict=True)])
        cpu_s, took_s = server.cpu_s() - cpu_s, time.monotonic() - begun_s
    if cpu_s >= _MIN_CPU_S and figures["delivered"]:
        figures["cpu_us"] = round(cpu_s * 1e6 / figures["delivered"], 3)
    figures["server_cpu_share"] = round(cpu_s / took_s, 3)
    for name, before, after in zip(_MEMORIES, before_kib, after_kib, strict=False):
        figures[name] = round((after - before) / idle, 3)
    return figures


_MEMORIES = ("kib_per_session", "resident_kib_per_session")


def _settled_memory_kib(server: Server) -> tuple[int, int]:
    """Proportional, which also changes with who else runs the same programs, and resident, which does not."""
    return server.settled_pss_kib(), server.resident_bytes() // 1024


_SUMS = frozenset(
    {
        *("delivered_per_s", "offered_per_s", "delivered", "undelivered", "unsent", "reordered", "corrupt"),
        *("notices", "lost_connections"),
    }
)


def joined(parts: Sequence[Figures]) -> Figures:
    """Figures of several generators as of one: counts and rates in all, of the others the worst."""
    worst = {"fairness": min, "connect_per_s": min}
    return {
        key: (sum if key in _SUMS else worst.get(key, max))(part[key] for part in parts) for key in parts[0]
    }


def _start(stack: contextlib.ExitStack, load: Load) -> subprocess.Popen[str]:
    """Start a generator; ended with the stack whatever happens."""
    module = "bench.load" if isinstance(load, LoadOptions) else "bench.logins"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", module, *load.to_argv()], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def _await_settled(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != "settled\n":
        raise GeneratorError(process.communicate(timeout=_MAX_END_S)[1].strip() or "a load did not begin")


def _say_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _finish(process: subprocess.Popen[str], load: Load) -> Figures:
    """The figures that a generator prints at its end.

    Raises:
        GeneratorError: it failed; the text carries what it said.
    """
    try:
        out, err = process.communicate(timeout=load.seconds + _MAX_END_S)
    except subprocess.TimeoutExpired:
        raise GeneratorError("a load did not end") from None
    if process.returncode:
        raise GeneratorError(err.strip() or f"a load ended with {process.returncode}")
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures
