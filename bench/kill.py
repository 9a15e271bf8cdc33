"""Clients at one worker of a gateway, and that worker killed while others are under load.

Linux only: it looks into /proc. Knows nothing of the load.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.placement import Places, open_placed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.chaos_watch import ChaosWatch, WorkerProcess
    from bench.report import Figures

__all__ = ["Kill", "KillError", "Victim", "choose", "is_child", "is_lost"]

_MAX_WAIT_S = 10.0  # for a new worker; it is to be there after a fifth of this
_LOOK_S = 0.01


class KillError(Exception):
    """There is no worker that could be killed."""


@dataclass(frozen=True, slots=True)
class Kill:
    """So many silent clients at a worker, from 1, and when it is killed.

    `at_s` is in seconds from the beginning of the load; None where it lives on.
    """

    worker: int
    clients: int
    at_s: float | None = None

    def describe(self) -> str:
        """The same in short, for people."""
        fate = "" if self.at_s is None else f", killed after {self.at_s:g} s"
        return f"{self.clients} clients at worker {self.worker}{fate}"


def is_child(pid: int, parent: int) -> bool:
    """Whether this process lives and was started by that one: a number may have gone to another process."""
    try:
        state, of, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state != "Z" and int(of) == parent


def choose(watch: ChaosWatch, worker: int, is_ours: Callable[[int], bool]) -> WorkerProcess:
    """The process that serves in this place, if it is one of ours.

    Raises:
        KillError: none serves there, or it is not ours.
    """
    process = watch.serving(worker)
    if process is None:
        raise KillError(f"worker {worker} does not serve, so it cannot be killed")
    if not is_ours(process.pid):
        raise KillError(f"process {process.pid} is no worker of this gateway")
    return process


def is_lost(sock: socket.socket) -> bool:
    """Whether the server has closed or reset this connection, which does not block."""
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class Victim:
    """A worker with its clients; made by a run, in its thread. A context manager, which closes the clients.

    Args:
        kill: which worker, and when.
        watch: knows the worker processes; fed with the gateway's log.
        gateway_pid: the process that starts the workers: nothing but its children is ever killed.
        clock: seconds; the same one that `watch` has.
    """

    def __init__(
        self,
        kill: Kill,
        watch: ChaosWatch,
        gateway_pid: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._kill = kill
        self._watch = watch
        self._gateway_pid = gateway_pid
        self._clock = clock
        self._sleep = sleep
        # the clients at this worker
        self._socks: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            sock.close()

    def open(self, address: tuple[str, int], log: Path) -> None:
        """Log the clients in where they belong.

        Raises:
            LoginError: one could not be logged in, or not at this worker.
        """
        wanted = [self._kill.worker] * self._kill.clients
        with select.epoll() as poll, Places(log) as places:
            self._socks = [sock for _, sock in open_placed(poll, address, "victim", wanted, places)]

    def strike(self, begun_s: float) -> None:
        """Wait until it is time, and kill the worker; nothing if it is to live on.

        Raises:
            KillError: see `choose`.
        """
        if self._kill.at_s is None:
            return
        self._sleep(max(begun_s + self._kill.at_s - self._clock(), 0.0))
        process = choose(self._watch, self._kill.worker, lambda pid: is_child(pid, self._gateway_pid))
        process.blow, process.struck_s = "kill", self._clock()
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.kill(process.pid, signal.SIGKILL)

    def figures(self) -> Figures:
        """`clients_lost`, where there are any, and `ready_after_s`, from the kill until another one served.

        Waits some time for that one; without it the figure is missing.
        """
        found: Figures = {}
        if self._kill.at_s is not None and (after_s := self._await_successor()) is not None:
            found["ready_after_s"] = round(after_s, 3)
        return found | ({"clients_lost": sum(map(is_lost, self._socks))} if self._socks else {})

    def _await_successor(self) -> float | None:
        deadline_s = self._clock() + _MAX_WAIT_S
        while (successor := self._watch.serving(self._kill.worker)) is None and self._clock() < deadline_s:
            self._sleep(_LOOK_S)
        if successor is None or successor.ready_s is None:
            return None
        return successor.ready_s - self._struck_s()

    def _struck_s(self) -> float:
        return max(process.struck_s for process in list(self._watch.processes.values()))
