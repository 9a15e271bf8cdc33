"""A supervisor without processes: workers that do what a test says, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from chat_gateway.bus_frames import Frames, encode_frame
from chat_gateway.control_frames import (
    TO_WORKER,
    Beat,
    Close,
    Drain,
    Drained,
    Hello,
    Members,
    Ready,
)
from chat_gateway.reload import Reload
from chat_gateway.supervisor import Supervisor
from tests.chat_gateway.fakes import FakeLog, configured

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from chat_gateway.config import Config
    from chat_gateway.control import ControlLink
    from chat_gateway.logs import Log
    from chat_gateway.run_dir import RunDir
    from chat_gateway.supervisor import SupervisorReport
    from chat_gateway.worker_process import WorkerStart

__all__ = ["FakeWorker", "World"]

BEAT_S = 0.5


class FakeWorker:
    """A worker process and its end of the link; obedient unless it is told otherwise."""

    def __init__(self, world: World, start: WorkerStart, on_ended: Callable[[int], None]) -> None:
        self.start = start
        self.pid = 1000 + start.wid
        self.heard: list[msgspec.Struct] = []  # from the supervisor
        self.is_killed = False
        self.is_alive = True
        self.is_hanging = False  # it says nothing, and dies only when it is killed
        self.gets_ready = True
        self.drains = True
        self.accepted = self.in_flight = 0  # copies, as its beats say
        self._world = world
        self._on_ended = on_ended
        self._frames = Frames(TO_WORKER)
        self._link: ControlLink | None = None
        self._loop = asyncio.get_running_loop()

    # What it does.

    def begin(self) -> None:
        """Dial and say hello; from here on it gives signs of life."""
        self._link = self._world.supervisor.crew.new_link()
        self._link.connection_made(cast("asyncio.BaseTransport", self))
        self.say(Hello(self.start.wid, self.pid))
        self._beat()

    def say(self, message: msgspec.Struct) -> None:
        """Send something, if it can."""
        if self._link is not None and not self.is_hanging:
            self._link.data_received(encode_frame(message))

    def account(self, accepted: int, in_flight: int) -> None:
        """Send a beat with these numbers of copies, the others delivered; so do all that follow."""
        self.accepted, self.in_flight = accepted, in_flight
        self.say(Beat(accepted, accepted - in_flight, 0, {}, in_flight))

    def end(self, status: int) -> None:
        """Its process ends; the link is noticed to be lost after that."""
        if self.is_alive:
            self.is_alive = False
            self._on_ended(status)
            self._loop.call_soon(self.lose_link)

    def lose_link(self) -> None:
        """The link ends."""
        link, self._link = self._link, None
        if link is not None:
            link.connection_lost(None)

    @property
    def members(self) -> list[tuple[int, int, bool]]:
        """As it was told last; empty when it was told nothing."""
        told = [message.members for message in self.heard if isinstance(message, Members)]
        return told[-1] if told else []

    def orders(self) -> list[str]:
        """What it was told to do, in order."""
        return [
            message.reason if isinstance(message, Drain) else "close"
            for message in self.heard
            if isinstance(message, Drain | Close)
        ]

    def _beat(self) -> None:
        if self.is_alive and self._link is not None:
            if not self.is_hanging:
                self.account(self.accepted, self.in_flight)
            self._loop.call_later(BEAT_S, self._beat)

    # `children.Child`.

    def kill(self) -> None:
        """SIGKILL."""
        self.is_killed = True
        self._loop.call_soon(self.end, -9)

    # The transport of the supervisor's end of the link.

    def write(self, data: bytes) -> None:
        """The supervisor says something."""
        for message in self._frames.feed(data):
            self.heard.append(cast("msgspec.Struct", message))
            if not self.is_hanging:
                self._loop.call_soon(self._obey, message)

    def close(self) -> None:
        """The supervisor ends the link."""
        self._loop.call_soon(self.lose_link)

    def _obey(self, message: object) -> None:
        if isinstance(message, Members) and self.gets_ready:
            self.gets_ready = False
            self.say(Ready())
        elif isinstance(message, Drain) and self.drains:
            self.say(Drained(0))
        elif isinstance(message, Close):
            self.end(0)


class World:
    """A supervisor, made in a virtual loop, and the workers it has started.

    Args:
        workers: how many places there are.
        sets: keys of the configuration, as `--set` takes them.
        begins: whether workers say hello by themselves.
    """

    def __init__(self, workers: int, *sets: str, begins: bool = True) -> None:
        self.log = FakeLog()
        self.workers: list[FakeWorker] = []  # every one ever started, by wid
        self.begins = begins
        self.launch_error: OSError | None = None
        self.prepare: Callable[[FakeWorker], None] = lambda _: None  # tells a new worker how to behave
        self.config = configured(*sets)
        self.next_config: Callable[[], Config] = lambda: self.config  # when it is read again
        self.listening = [[SimpleNamespace(is_closed=False)] for _ in range(workers)]
        for (one,) in self.listening:
            one.close = lambda one=one: setattr(one, "is_closed", True)
        self.ready = 0  # how often it was said that all are ready
        self.report: SupervisorReport | None = None
        log = cast("Log", self.log)
        run_dir = SimpleNamespace(path=Path("/run"), supervisor_socket=Path("/run/supervisor.sock"))
        self.supervisor = Supervisor(
            self.config,
            cast("Any", self.listening),
            run_dir=cast("RunDir", run_dir),
            launch=self._launch,
            log=log,
            reload=Reload(self.config, lambda: self.next_config(), log.logger),
            on_all_ready=self._on_all_ready,
            random=lambda: 0.5,
        )
        self.serving = asyncio.get_running_loop().create_task(self.supervisor.serve())

    def _launch(self, start: WorkerStart, on_ended: Callable[[int], None]) -> FakeWorker:
        if self.launch_error is not None:
            raise self.launch_error
        worker = FakeWorker(self, start, on_ended)
        self.workers.append(worker)
        self.prepare(worker)
        if self.begins:
            asyncio.get_running_loop().call_later(0.25, worker.begin)
        return worker

    def _on_all_ready(self) -> None:
        self.ready += 1

    def worker(self, wid: int) -> FakeWorker:
        """The worker with this number."""
        return next(worker for worker in self.workers if worker.start.wid == wid)

    @property
    def living(self) -> list[int]:
        """The numbers of the workers that live."""
        return [worker.start.wid for worker in self.workers if worker.is_alive]

    async def end(self) -> SupervisorReport:
        """Have the gateway end, and wait for it."""
        self.supervisor.stop.set()
        return await self.serving

