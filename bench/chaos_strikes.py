"""Kills and stops worker processes of a gateway as a plan says. Linux only: it looks into /proc."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from bench.chaos_plan import Strike
    from bench.chaos_watch import ChaosWatch, WorkerProcess

__all__ = ["Killer", "Stop", "is_in_session", "pids_of"]

_POLL_S = 0.01
_SUCCESSOR_S = 15.0  # until one must have been started
_RECOVERY_S = 30.0  # until every place must be taken again


@dataclass(slots=True)
class Stop:
    """A time in which a worker stood still."""

    pid: int
    begin_s: float
    end_s: float  # gone on, or killed


def is_in_session(pid: int, session: int) -> bool:
    """Whether this process lives and is one of that session: a number may have gone to another one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and int(fields[3]) == session


def pids_of(session: int) -> list[int]:
    """Processes of a session that live."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in found if is_in_session(pid, session)]


class Killer:
    """Made by the run; `run` strikes in one task, then `recover` waits until the gateway is whole again.

    Args:
        watch: knows the processes.
        session: that of the gateway: nothing else is ever struck.
        clock: seconds from the beginning of the run.
    """

    def __init__(self, watch: ChaosWatch, session: int, clock: Callable[[], float]) -> None:
        # blows that were struck
        self.done: Counter[str] = Counter()
        # and those left out, since nothing served in that place
        self.left_out = 0
        # workers that were made to stand still
        self.stops: list[Stop] = []
        self._watch = watch
        self._session = session
        self._clock = clock
        self._stopped: set[int] = set()  # processes that stand still now
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, strikes: Sequence[Strike]) -> None:
        """Strike each at its time."""
        try:
            for strike in strikes:
                await asyncio.sleep(max(strike.at_s - self._clock(), 0.0))
                for worker in strike.workers:
                    self._strike(strike, worker)
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            for pid in self._stopped:
                self._send(pid, signal.SIGCONT)

    async def recover(self, workers: int) -> list[str]:
        """Wait until every place is taken again and who was to die is dead; returns what was wrong."""

        def unfinished() -> list[str]:
            processes = list(self._watch.processes.values())
            dying = [f"{one} lives" for one in processes if one.blow and one.ended_s is None]
            places = range(1, workers + 1)
            return dying + [f"worker {each} does not serve" for each in places if not self._serves(each)]

        await self._until(lambda: not unfinished(), _RECOVERY_S)
        return [f"{_RECOVERY_S} s after the last blow {one}" for one in unfinished()]

    def _serves(self, worker: int) -> bool:
        return self._watch.serving(worker) is not None

    def _strike(self, strike: Strike, worker: int) -> None:
        process = self._watch.serving(worker)
        if process is None:
            self.left_out += 1
            return
        self.done[strike.blow] += 1
        if strike.blow == "pause":
            self._start(self._pause(process, strike.seconds))
        elif strike.blow == "hang":
            self._mark(process, strike.blow)
            self._start(self._hang(process))
        else:
            self._kill(process, strike.blow)
        if strike.blow == "kill twice":
            self._start(self._kill_successor(process, strike.seconds))

    def _start(self, blow: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(blow))

    def _kill(self, process: WorkerProcess, blow: str) -> None:
        self._mark(process, blow)
        self._send(process.pid, signal.SIGKILL)

    def _mark(self, process: WorkerProcess, blow: str) -> None:
        process.blow, process.struck_s = blow, self._clock()

    async def _pause(self, process: WorkerProcess, seconds: float) -> None:
        stop = self._stop(process)
        await asyncio.sleep(seconds)
        if process.blow != "hang":
            self._send(process.pid, signal.SIGCONT)
            self._stopped.discard(process.pid)
        stop.end_s = self._clock()

    async def _hang(self, process: WorkerProcess) -> None:
        stop = self._stop(process)
        await self._until(lambda: process.ended_s is not None, _RECOVERY_S)
        self._stopped.discard(process.pid)
        stop.end_s = self._clock()

    def _stop(self, process: WorkerProcess) -> Stop:
        stop = Stop(process.pid, self._clock(), float("inf"))
        self.stops.append(stop)
        self._stopped.add(process.pid)
        self._send(process.pid, signal.SIGSTOP)
        return stop

    async def _kill_successor(self, process: WorkerProcess, seconds: float) -> None:
        await self._until(lambda: self._watch.newest(process.worker) is not process, _SUCCESSOR_S)
        await asyncio.sleep(seconds)
        successor = self._watch.newest(process.worker)
        if successor is None or successor is process or successor.ended_s is not None or successor.blow:
            self.left_out += 1
        else:
            self._kill(successor, "kill twice")

    async def _until(self, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so, or for so long; it becomes so in the thread that reads the log."""
        deadline_s = self._clock() + seconds
        while not is_so() and self._clock() < deadline_s:  # noqa: ASYNC110 - an event is of one thread
            await asyncio.sleep(_POLL_S)

    def _send(self, pid: int, number: signal.Signals) -> None:
        if is_in_session(pid, self._session):
            os.kill(pid, number)
