"""One of several workers, as a process: what the supervisor starts, and how it speaks with it.

It ends in order when the supervisor says so, drains by itself when the supervisor has gone, and ends at once
when it cannot be part of the gateway any more. Knows nothing of the other processes but their sockets.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chat_gateway.bus import Bus
from chat_gateway.control import ControlLink
from chat_gateway.control_frames import (
    TO_WORKER,
    Beat,
    Close,
    Drain,
    Drained,
    Hello,
    Members,
    PleaseDrain,
    Ready,
    Snapshot,
)
from chat_gateway.directory import Member
from chat_gateway.disconnect import Disconnect
from chat_gateway.process import (
    LOG_CLOSE_S,
    forget_start,
    log_loop_errors,
    loop_factory,
    open_dead_letters,
    open_process_log,
    prepare_files,
)
from chat_gateway.run_dir import LOG_LOCK
from chat_gateway.shutdown import Ending
from chat_gateway.worker import Worker

if TYPE_CHECKING:
    import socket
    from typing import Any

    from chat_gateway.config import Config
    from chat_gateway.disconnect import Reason
    from chat_gateway.logs import Log

__all__ = ["WorkerStart", "beat_interval_s", "letters_suffix", "prepare_process", "run_worker"]

_BEATS = 8  # in the time after which a worker that is not heard of is killed
_MAX_BEAT_S = 0.5  # the account of a worker that dies is at most this old

# Without a supervisor: how long a worker drains, how long it serves copies of the others once its own have
# their outcomes, and when it ends whatever is left.
_ORPHAN_DRAIN_S = 4.5
_ORPHAN_QUIET_S = 0.5
_ORPHAN_END_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What a worker process is given; passed on to it in a pickle, its sockets too."""

    slot: int  # its place, from 0
    wid: int  # its number, never used twice
    slots: int  # how many places there are
    run_dir: str  # where the sockets of the gateway's processes are
    supervisor_socket: str  # in it
    config: Config  # with this worker's share of the limits
    listening: tuple[socket.socket, ...]  # one for each address; the supervisor has them open too


def letters_suffix(slot: int) -> str:
    """Of the name of a worker's own file of dead letters; none that a rotated file has."""
    return f".w{slot + 1}"


def beat_interval_s(config: Config) -> float:
    """How often a worker says that it lives."""
    return min(config.supervisor.worker_timeout_s / _BEATS, _MAX_BEAT_S)


def prepare_process() -> None:
    """Before the loop runs: what the terminal tells the whole group concerns the supervisor alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def run_worker(start: WorkerStart) -> None:
    """Be a worker until it ends; the target of a process, which ends with this."""
    status = 1
    try:
        status = await _WorkerProcess(start).run()
    finally:
        os._exit(status)  # all is closed: nothing of the interpreter is worth waiting for


class _WorkerProcess:
    """Made in the running loop of its process, of which it is all there is."""

    def __init__(self, start: WorkerStart) -> None:
        self._start = start
        self._config = start.config
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()  # it is to drain
        self._may_serve = asyncio.Event()  # the others know it, or it is to drain
        self._may_close = asyncio.Event()  # nobody has a copy for its clients any more
        self._ending = self._ending_for(Disconnect.SHUTDOWN)
        self._has_drained = False  # and said so
        self._is_orphan = False  # the supervisor has gone
        self._has_ended = False  # what happens to its links is no trouble any more
        self._main: asyncio.Task[int] | None = None
        self._worker: Worker | None = None
        self._bus: Bus | None = None
        self._link = ControlLink(TO_WORKER, self._on_message, self._on_lost)

    async def run(self) -> int:
        """From the start to the end; returns the exit status."""
        self._loop.add_signal_handler(signal.SIGTERM, self._link.send, PleaseDrain())
        log = open_process_log(self._config, self._start.slot + 1, Path(self._start.run_dir) / LOG_LOCK)
        self._log = log.logger
        log_loop_errors(self._log)
        self._main = self._loop.create_task(self._begin(log))
        try:
            return await self._main
        except asyncio.CancelledError:
            return 1  # by `_give_up`, which has said why
        except Exception as error:
            self._log.error("worker.failed", exc_info=error)
            return 1
        finally:
            log.close(LOG_CLOSE_S)

    async def _begin(self, log: Log) -> int:
        try:
            await self._loop.create_unix_connection(lambda: self._link, self._start.supervisor_socket)
        except OSError:
            return 1  # the supervisor has gone while this process began
        return await self._work(log)

    async def _work(self, log: Log) -> int:
        start, config = self._start, self._config
        prepare_files(config, self._log)
        letters = open_dead_letters(config, letters_suffix(start.slot))
        self._bus = bus = Bus(
            wid=start.wid,
            slot=start.slot,
            slots=start.slots,
            run_dir=start.run_dir,
            config=config,
            log=self._log,
            loop=self._loop,
            on_broken=self._on_broken,
        )
        bus.on_ready_to_grant = self._may_serve.set
        self._worker = worker = Worker(config, start.listening, log, letters, bus)
        worker.metrics.on_snapshot = self._on_snapshot
        try:
            await bus.start()
            forget_start()
            self._link.send(Hello(start.wid, os.getpid()))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self._beat()
            return await self._serve(worker)
        finally:
            self._has_ended = True
            await bus.aclose()
            if letters is not None:
                letters.close()
            await self._link.aclose()

    async def _serve(self, worker: Worker) -> int:
        await self._may_serve.wait()
        if self._stop.is_set():
            return 0  # before anybody could connect
        report = await worker.serve(self._stop, self._on_ready, lambda: self._ending)
        self._say_drained(report.undelivered)
        self._link.send_if_read(self._account(worker))
        return 1 if report.undelivered else 0

    # What it says to the supervisor.

    def _on_ready(self) -> None:
        assert self._worker is not None
        self._link.send(Ready())
        self._log.info(
            "worker.ready",
            listen=[listener.url for listener in self._worker.listeners],
            loop=loop_factory(self._config.runtime.loop)[1],
            max_connections=self._config.limits.max_connections,
        )

    def _beat(self) -> None:
        if not self._has_ended:
            assert self._worker is not None
            self._link.send_if_read(self._account(self._worker))
            self._loop.call_later(beat_interval_s(self._config), self._beat)

    def _account(self, worker: Worker) -> Beat:
        ledger = worker.ledger
        refused = {str(reason): copies for reason, copies in ledger.refused.items()}
        return Beat(ledger.accepted, ledger.delivered, ledger.stored, refused, ledger.in_flight)

    def _on_snapshot(self, numbers: dict[str, Any]) -> None:
        self._link.send_if_read(Snapshot(numbers))

    def _say_drained(self, in_flight: int) -> None:
        if not self._has_drained:
            self._has_drained = True
            assert self._worker is not None
            self._link.send(self._account(self._worker))  # what follows may not be heard any more
            self._link.send(Drained(in_flight))

    async def _settled(self) -> None:
        """Every copy of its own has an outcome; those of the others are waited for."""
        self._say_drained(0)
        if self._is_orphan:
            await asyncio.sleep(_ORPHAN_QUIET_S)
        else:
            await self._may_close.wait()

    # What it hears.

    def _on_message(self, _link: ControlLink, message: object) -> None:
        match message:
            case Members(members=members):
                assert self._bus is not None  # this worker has said hello
                self._bus.set_members([Member(*member) for member in members])
            case Drain(reason="restarting", deadline_s=deadline_s):
                self._drain(self._ending_for(Disconnect.RESTARTING, deadline_s))
            case Drain(deadline_s=deadline_s):
                self._drain(self._ending_for(Disconnect.SHUTDOWN, deadline_s))
            case Close():
                self._may_close.set()

    def _ending_for(self, reason: Reason, timeout_s: float | None = None) -> Ending:
        # Who is late says so before it closes: others, which were not, may be gone before it is.
        return Ending(reason, timeout_s, self._settled, self._say_drained)

    def _drain(self, ending: Ending) -> None:
        if not self._stop.is_set():
            self._ending = ending
            self._stop.set()
            self._may_serve.set()

    def _on_lost(self, _link: ControlLink, problem: str) -> None:
        """The supervisor has gone, so everybody drains, and nobody says when all have."""
        if self._has_ended:
            return
        self._log.error("supervisor.lost", reason=problem or "gone")
        self._is_orphan = True
        timeout_s = min(_ORPHAN_DRAIN_S, self._config.shutdown.drain_timeout_s)
        self._drain(self._ending_for(Disconnect.SHUTDOWN, timeout_s))
        self._loop.call_later(_ORPHAN_QUIET_S, self._may_close.set)  # if it is waiting already
        self._loop.call_later(_ORPHAN_END_S, self._give_up, "the supervisor has gone")

    def _on_broken(self, why: str) -> None:
        # Once all have drained, workers end and links with them.
        if not (self._has_drained or self._has_ended):
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        if not self._has_ended:
            self._log.error("worker.broken", reason=why)
            if self._main is not None:
                self._main.cancel()
