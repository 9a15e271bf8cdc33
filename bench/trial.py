"""One run: a gateway of its own, a healthy load or none, bad peers beside it or none; costs and records.

Everything runs in processes of its own on this machine, the gateway on a processor that the others leave to
it; figures also say how much of the machine others used.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench import memory, processors
from bench.log_watch import LogWatch
from bench.machine import MachineWatch
from bench.report import Figures, faults
from bench.servers import COMMANDS, GATEWAY, Server, ServerError

if TYPE_CHECKING:
    from bench.memory import Sample
    from bench.options import LoadOptions

_SAMPLE_S = 0.25
_SETTLE_S = 1.0  # for what a load left behind: a metrics record of it
_MAX_TRIAL_S = 600.0
_MAX_END_S = 60.0  # for a process that has said what it had to say


@dataclass(frozen=True, slots=True)
class Peers:
    """Bad peers of one kind: see `bench.bad_peers`."""

    kind: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does; `peers` begin when the healthy load does."""

    settings: tuple[str, ...] = ()  # of the gateway, as key=value
    healthy: LoadOptions | None = None
    peers: tuple[Peers, ...] = ()
    warm_up: tuple[Peers, ...] = ()  # before memory and files are first looked at
    watch_s: float = 0.0  # for how long memory is looked at afterwards
    is_elsewhere: bool = False  # the peers use a gateway of their own, so that only processors are shared


class PeerError(Exception):
    """A load or bad peers could not do what they were to do."""


def bounds(settings: tuple[str, ...]) -> memory.Bounds:
    """What `chat-gateway check` says about these settings."""
    command = [sys.executable, "-m", "chat_gateway", "check", *_set_arguments(settings)]
    return memory.parse_check(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run_trial(plan: Plan) -> Figures:
    """Run the plan once; figures of a run that could not be made have only `error`."""
    watch = LogWatch()
    command = COMMANDS[GATEWAY] + _set_arguments(
        ("metrics.interval_s=0.5", "log.flood_per_s=1000", *plan.settings)
    )
    dealt = processors.deal_out(processors.available())
    machine = MachineWatch()
    try:
        with processors.running_on(dealt.clients), contextlib.ExitStack() as stack:
            server = _open_gateway(stack, Server(command, watch.feed), dealt.server)
            other = _open_gateway(stack, Server(command), dealt.server) if plan.is_elsewhere else server
            figures = _Trial(plan, server, watch, other.address).run()
    except (ServerError, PeerError) as error:
        return {"error": str(error)}
    return figures | {
        **machine.figures(),
        "server_exit_status": server.exit_status,
        **watch.figures(),
        **watch.evictions_after_s(figures.get("stuck.begun_epoch_s", 0.0)),
    }


def _open_gateway(stack: contextlib.ExitStack, server: Server, where: frozenset[int]) -> Server:
    """Wait until it listens, on these processors: it was only just started, and what it starts follows."""
    os.sched_setaffinity(server.pid, where)
    return stack.enter_context(server)


class _Trial:
    """One run against a gateway that listens; made by `run_trial`."""

    def __init__(self, plan: Plan, server: Server, watch: LogWatch, peers_at: tuple[str, int]) -> None:
        self._plan = plan
        self._server = server
        self._watch = watch
        # the gateway that the bad peers use
        self._peers_at = peers_at
        self._samples: list[Sample] = []

    def run(self) -> Figures:
        plan, server = self._plan, self._server
        with contextlib.ExitStack() as stack:
            for peers in plan.warm_up:
                _finish(self._start(stack, peers), peers.kind)
            server.settled_pss_kib()
            before_bytes, files = server.resident_bytes(), server.open_files()
            healthy = self._start_healthy(stack)
            before_load = len(self._samples)
            cpu_s, begun_s = server.cpu_s(), time.monotonic()
            started = [(peers.kind, self._start(stack, peers)) for peers in plan.peers]
            figures = self._gather(healthy, started)
            figures["server_cpu_share"] = round((server.cpu_s() - cpu_s) / (time.monotonic() - begun_s), 3)
        under_load = self._samples[before_load:]
        self._watch_on(max(plan.watch_s, _SETTLE_S))
        return figures | self._costs(before_bytes, files, under_load)

    def _costs(self, before_bytes: int, files: int, under_load: list[Sample]) -> Figures:
        """Memory and files of the gateway, as they were before, during and after."""
        after = self._samples[len(under_load) :]
        peak = memory.peak_bytes(self._samples)
        last = self._watch.metrics
        return {
            "before_bytes": before_bytes,
            "growth_bytes": peak - before_bytes,
            "late_growth_bytes": memory.late_growth_bytes(under_load),
            "left_growth_bytes": self._samples[-1][1] - before_bytes,
            "fallen_share": memory.fallen_share(after, before_bytes, peak),
            "fallen_after_s": memory.fallen_after_s(after, before_bytes, peak),
            "left_files": self._server.open_files() - files,
            "left_sessions": last.get("sessions", 0),
            "left_connections": last.get("connections", 0),
            "left_in_flight": last.get("in_flight", 0),
        }

    def _start(self, stack: contextlib.ExitStack, peers: Peers) -> subprocess.Popen[str]:
        options = json.dumps({"address": self._peers_at, **peers.options})
        return _popen(stack, ["bench.bad_peers", peers.kind, options])

    def _start_healthy(self, stack: contextlib.ExitStack) -> subprocess.Popen[str] | None:
        """Start the healthy load and wait until it begins to send."""
        if self._plan.healthy is None:
            return None
        host, port = self._server.address
        process = _popen(stack, ["bench.load", *replace(self._plan.healthy, host=host, port=port).to_argv()])
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def _gather(
        self, healthy: subprocess.Popen[str] | None, peers: list[tuple[str, subprocess.Popen[str]]]
    ) -> Figures:
        """Wait for all of them, looking at memory meanwhile."""
        processes = [process for _, process in peers] + ([healthy] if healthy else [])
        deadline_s = time.monotonic() + _MAX_TRIAL_S
        while any(process.poll() is None for process in processes):
            self._sample()
            if time.monotonic() > deadline_s:
                raise PeerError("a load did not end")
        self._sample()
        figures: Figures = {}
        if healthy is not None:
            figures |= _finish(healthy, "load")
            figures["healthy_faults"] = "; ".join(faults(figures))
        for kind, process in peers:
            figures |= {f"{kind}.{key}": value for key, value in _finish(process, kind).items()}
        return figures

    def _watch_on(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self._sample()

    def _sample(self) -> None:
        self._samples.append((time.monotonic(), self._server.resident_bytes()))
        time.sleep(_SAMPLE_S)


def _set_arguments(settings: tuple[str, ...]) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


def _popen(stack: contextlib.ExitStack, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a module of ours; ended with the stack whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stack.enter_context(process)
    stack.callback(_kill, process)
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()


def _finish(process: subprocess.Popen[str], name: str) -> Figures:
    """The figures that a process prints at its end.

    Raises:
        PeerError: it failed; the text carries what it said.
    """
    out, err = process.communicate(timeout=_MAX_END_S)
    if process.returncode:
        raise PeerError(err.strip() or f"{name} ended with {process.returncode}")
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures
