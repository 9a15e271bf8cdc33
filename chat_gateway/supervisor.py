"""Starts the workers of a gateway, replaces those that die, and ends all of them together.

It does little, so that it does not fail: nothing of the clients' traffic passes it. Knows nothing of signals
and exit statuses of its own process; who runs it is `supervised`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as chance
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.control_frames import Close, Drain
from chat_gateway.crew import Crew, WorkerHandle
from chat_gateway.gateway_metrics import GatewayMetrics
from chat_gateway.metrics import own_snapshot
from chat_gateway.restarts import Restarts
from chat_gateway.rolling import PATIENCE_S, Rolling
from chat_gateway.shares import share_of
from chat_gateway.worker_process import WorkerStart

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from chat_gateway.children import Launch
    from chat_gateway.config import Config
    from chat_gateway.control_frames import Beat, Snapshot
    from chat_gateway.logs import Log
    from chat_gateway.reload import Reload
    from chat_gateway.run_dir import RunDir

__all__ = ["Supervisor", "SupervisorReport"]

@dataclass(frozen=True, slots=True)
class SupervisorReport:
    """How the gateway ended."""

    undelivered: int  # copies without an outcome, as far as their workers could say
    took_s: float  # from the order to drain
    is_failure: bool  # something was lost, or the workers died too often


class Supervisor:
    """Made in its running loop; `serve` runs it from the start of the first worker to the end of the last.

    Args:
        config: the gateway's configuration.
        listening: for each place of a worker its listening sockets; closed when the gateway drains.
        run_dir: where its processes find each other.
        launch: starts worker processes.
        log: its own.
        reload: reads the configuration again.
        on_all_ready: called once every worker accepts for the first time.
        random: a number from 0.0 up to 1.0, for the jitter of restarts.
    """

    def __init__(
        self,
        config: Config,
        listening: Sequence[Sequence[socket.socket]],
        *,
        run_dir: RunDir,
        launch: Launch,
        log: Log,
        reload: Reload,
        on_all_ready: Callable[[], None],
        random: Callable[[], float] = chance.random,
    ) -> None:
        self.stop = asyncio.Event()  # set by whoever wants the gateway to end
        self._configs = [config] * len(listening)  # what the next worker in each place gets
        self._config = config
        self._listening = listening
        self._run_dir = run_dir
        self._log = log
        self._on_all_ready: Callable[[], None] | None = on_all_ready  # until it has been called
        self._loop = loop = asyncio.get_running_loop()
        settings = config.supervisor
        self.crew = Crew(
            len(listening), launch=launch, owner=self, settings=settings, clock=loop.time, log=log.logger
        )
        self._restarts = [Restarts(settings, clock=loop.time, random=random) for _ in listening]
        self._restart_timers: dict[int, asyncio.TimerHandle] = {}  # by their place
        self._timers: dict[str, asyncio.TimerHandle] = {}  # what is done again and again
        self._metrics = GatewayMetrics(clock=loop.time, own=lambda: own_snapshot(log))
        self._rolling = Rolling(self, reload, log.logger)
        self._is_failure = False

    async def serve(self) -> SupervisorReport:
        """Run the workers until `stop` is set, then end them; returns how that went."""
        self._look()
        self._schedule_report()
        rolling = self._loop.create_task(self._rolling.run())
        try:
            for slot in range(len(self._listening)):
                self._start_or_retry(slot)
            await self.stop.wait()
            for timer in self._restart_timers.values():
                timer.cancel()
            rolling.cancel()
            await asyncio.wait([rolling])
            return await self._drain()
        finally:
            rolling.cancel()
            for timer in (*self._timers.values(), *self._restart_timers.values()):
                timer.cancel()
            for worker in list(self.crew.workers.values()):  # only after an error of ours
                self.crew.kill(worker, "the supervisor fails")
            self._report()

    def reload(self) -> None:
        """Read the configuration again and replace the workers one by one; returns at once."""
        self._rolling.ask()

    def kill_all(self) -> None:
        """End every worker at once."""
        for worker in list(self.crew.workers.values()):
            self.crew.kill(worker, "interrupted")

    # Starting, and starting again. `start` and `use` are for `Rolling` too.

    @property
    def places(self) -> int:
        """How many workers there are when all are there."""
        return len(self._listening)

    def start(self, slot: int, config: Config) -> WorkerHandle:
        """Start a worker in this place.

        Raises:
            OSError: it cannot be started.
        """
        start = WorkerStart(
            slot=slot,
            wid=self.crew.next_wid(),
            slots=self.places,
            run_dir=str(self._run_dir.path),
            supervisor_socket=str(self._run_dir.supervisor_socket),
            config=share_of(config, self.places),
            listening=tuple(self._listening[slot]),
        )
        return self.crew.start(start)

    def use(self, slot: int, config: Config) -> None:
        """Give this configuration to whoever will be started in this place from now on."""
        self._configs[slot] = self._config = config

    def _start_or_retry(self, slot: int) -> None:
        self._restart_timers.pop(slot, None)
        try:
            self.start(slot, self._configs[slot])
        except OSError as error:
            self._replace(slot, "worker.not_started", error=error.strerror)

    def _replace(self, slot: int, event: str, **fields: object) -> None:
        """Say what has happened to the worker of a place, and have another one started there."""
        delay_s = self._restarts[slot].next_delay_s()
        restart_in_s = None if delay_s is None else round(delay_s, 3)
        self._log.logger.error(event, of=slot + 1, **fields, restart_in_s=restart_in_s)
        if delay_s is not None:
            self._restart_timers[slot] = self._loop.call_later(delay_s, self._start_or_retry, slot)
            return
        settings = self._config.supervisor
        self._log.logger.error(
            "gateway.gives_up",
            of=slot + 1,
            restarts=settings.max_restarts,
            window_s=settings.restart_window_s,
            hint="this worker dies again and again; the records before say how",
        )
        self._is_failure = True
        self.stop.set()

    # What the crew tells: `CrewOwner`.

    def on_ready(self, _worker: WorkerHandle) -> None:
        """See `CrewOwner`."""
        ready = {one.slot for one in self.crew.workers.values() if one.ready.is_set()}
        if self._on_all_ready is not None and len(ready) == self.places:
            self._on_all_ready()
            self._on_all_ready = None

    def on_ended(self, worker: WorkerHandle) -> None:
        """See `CrewOwner`."""
        is_asked = self.stop.is_set() or worker.is_leaving
        if is_asked and (worker.status == 0 or not worker.ready.is_set()):
            self._metrics.left(worker.wid)
            self._log.logger.info("worker.stopped", wid=worker.wid, of=worker.slot + 1)
            return
        self._metrics.lost(worker.wid)
        fields = {"wid": worker.wid, **_described(worker.status), "in_flight": worker.in_flight}
        if is_asked or self.crew.holder(worker.slot) is not None:
            self._log.logger.error("worker.lost", of=worker.slot + 1, **fields)
        else:
            self._replace(worker.slot, "worker.lost", **fields)

    def on_beat(self, worker: WorkerHandle, beat: Beat) -> None:
        """See `CrewOwner`."""
        self._metrics.beat(
            worker.wid, beat.accepted, beat.delivered, beat.stored, beat.refused, beat.in_flight
        )

    def on_snapshot(self, worker: WorkerHandle, snapshot: Snapshot) -> None:
        """See `CrewOwner`."""
        self._metrics.update(worker.wid, snapshot.numbers)

    def on_please_drain(self) -> None:
        """See `CrewOwner`."""
        self.stop.set()

    # Again and again.

    def _look(self) -> None:
        self.crew.look()
        self._timers["look"] = self._loop.call_later(self.crew.look_interval_s, self._look)

    def _schedule_report(self) -> None:
        interval_s = self._config.metrics.interval_s
        self._timers["report"] = self._loop.call_later(interval_s, self._on_report_due)

    def _on_report_due(self) -> None:
        self._schedule_report()
        self._report()

    def _report(self) -> None:
        self._log.flush_left_out()
        self._log.logger.info("metrics", **self._metrics.record())

    # The end.

    async def _drain(self) -> SupervisorReport:
        """Have all workers drain together, then close their connections and end."""
        began = self._loop.time()
        workers = list(self.crew.workers.values())
        self._log.logger.info(
            "gateway.draining", workers=len(workers), in_flight=sum(one.in_flight for one in workers)
        )
        # Ours are closed first: what a worker closes then is closed for good, and newcomers are refused.
        for listening in (one for sockets in self._listening for one in sockets):
            listening.close()
        timeout_s = self._config.shutdown.drain_timeout_s
        for worker in workers:
            if worker.has_said_hello:
                worker.send(Drain("shutdown", timeout_s))
            else:
                self.crew.dismiss(worker)
        try:
            async with asyncio.timeout(timeout_s + PATIENCE_S):
                await _each(worker.drained for worker in workers)
                for worker in workers:
                    worker.send(Close())
                await _each(worker.ended for worker in workers)
        except TimeoutError:
            await self._kill(workers)
        lost = [one for one in workers if one.status != 0 and one.ready.is_set()]
        return SupervisorReport(
            undelivered=sum(worker.in_flight for worker in workers),
            took_s=self._loop.time() - began,
            is_failure=self._is_failure or bool(lost),
        )

    async def _kill(self, workers: Sequence[WorkerHandle]) -> None:
        for worker in workers:
            self.crew.kill(worker, "did not drain in time")
        with contextlib.suppress(TimeoutError):  # the system may not be able to end one
            async with asyncio.timeout(PATIENCE_S):
                await _each(worker.ended for worker in workers)


async def _each(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _described(status: int) -> dict[str, object]:
    """How a process ended, in fields of a record."""
    return {"signal": signal.Signals(-status).name} if status < 0 else {"exit_status": status}
