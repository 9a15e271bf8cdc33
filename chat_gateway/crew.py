"""The worker processes of a gateway, and what is known of each: where it is in its life, when it was heard.

Tells them of each other, and kills those that are not heard of in time. Whether one that has ended is
replaced, and when all are to end, is up to the supervisor.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from chat_gateway.control import ControlLink
from chat_gateway.control_frames import (
    TO_SUPERVISOR,
    Beat,
    Drained,
    Hello,
    Members,
    PleaseDrain,
    Ready,
    Snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec
    from structlog.typing import FilteringBoundLogger

    from chat_gateway.children import Child, Launch
    from chat_gateway.config_process import SupervisorConfig
    from chat_gateway.worker_process import WorkerStart

__all__ = ["Crew", "CrewOwner", "WorkerHandle"]

_LOOKS = 16  # in `worker_timeout_s`
_END_S = 3.0  # from the end of its link to its end: a worker closes its log at the very last


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker process as the supervisor knows it; made and kept by its crew."""

    slot: int
    wid: int
    heard_at: float  # when it gave its last sign of life
    due_at: float | None  # when it must have got further, or it is killed
    child: Child | None = None  # None only while it is being started
    link: ControlLink | None = None  # None before it has said hello, and after its link has ended
    in_flight: int = 0  # copies without an outcome, as it said last
    status: int = 0  # that it ended with, negative for a signal
    kill_reason: str = ""  # why it was killed, if it was
    is_leaving: bool = False  # another one has taken its place
    has_said_hello: bool = False
    has_exited: bool = False  # its process has; what it said last may not have been read yet
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # it accepts
    drained: asyncio.Event = field(default_factory=asyncio.Event)  # its copies have outcomes, or it has ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: msgspec.Struct) -> None:
        """Say something, if it can hear."""
        if self.link is not None:
            self.link.send(message)


class CrewOwner(Protocol):
    """What a crew tells of its workers."""

    def on_ready(self, worker: WorkerHandle) -> None:
        """It accepts connections."""

    def on_ended(self, worker: WorkerHandle) -> None:
        """Its process has ended, with `status`."""

    def on_beat(self, worker: WorkerHandle, beat: Beat) -> None:
        """It has sent its account."""

    def on_snapshot(self, worker: WorkerHandle, snapshot: Snapshot) -> None:
        """It has sent its numbers."""

    def on_please_drain(self) -> None:
        """Somebody wants the gateway to end, and told a worker so."""


class Crew:
    """Made by the supervisor; lives in its loop.

    Args:
        slots: how many workers there are when all are there.
        launch: starts their processes.
        owner: told what happens to them.
        settings: how long they may be silent.
        clock: monotonic seconds.
        log: the supervisor's.
    """

    def __init__(
        self,
        slots: int,
        *,
        launch: Launch,
        owner: CrewOwner,
        settings: SupervisorConfig,
        clock: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self.workers: dict[int, WorkerHandle] = {}  # those that live, by wid
        self.look_interval_s = settings.worker_timeout_s / _LOOKS
        self._slots = slots
        self._launch = launch
        self._owner = owner
        self._settings = settings
        self._clock = clock
        self._log = log
        self._looked_at = clock()
        self._epoch = 0  # of what was last said of the members
        self._last_wid = 0
        self._by_link: dict[ControlLink, WorkerHandle] = {}

    def next_wid(self) -> int:
        """A number that no worker has had."""
        self._last_wid += 1
        return self._last_wid

    def start(self, start: WorkerStart) -> WorkerHandle:
        """Start a worker process.

        Raises:
            OSError: it cannot be started.
        """
        now = self._clock()
        worker = WorkerHandle(start.slot, start.wid, now, now + self._settings.start_timeout_s)
        worker.child = self._launch(start, lambda status: self._on_exited(worker, status))
        self.workers[worker.wid] = worker
        self._log.info("worker.started", wid=worker.wid, of=worker.slot + 1, of_pid=worker.child.pid)
        return worker

    def holder(self, slot: int) -> WorkerHandle | None:
        """The worker that has this place, or is about to: the newest one that is not leaving."""
        there = [one for one in self.workers.values() if one.slot == slot and not one.is_leaving]
        return max(there, key=lambda one: one.wid, default=None)

    def leave(self, worker: WorkerHandle) -> None:
        """Tell everybody that this one is about to go."""
        worker.is_leaving = True
        self._announce()

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker at once that has not accepted anything yet."""
        worker.is_leaving = True
        assert worker.child is not None
        worker.child.kill()

    def kill(self, worker: WorkerHandle, reason: str) -> None:
        """End a worker at once."""
        if not worker.ended.is_set() and not worker.kill_reason:
            worker.kill_reason = reason
            assert worker.child is not None
            self._log.warning("worker.killed", wid=worker.wid, of=worker.slot + 1, reason=reason)
            worker.child.kill()

    def look(self) -> None:
        """Kill those that are overdue; to be called each `look_interval_s`."""
        now = self._clock()
        late_s = now - self._looked_at - self.look_interval_s
        self._looked_at = now
        for worker in list(self.workers.values()):
            if late_s > self.look_interval_s:  # we slept ourselves, which is not their fault
                worker.heard_at += late_s
                worker.due_at = worker.due_at and worker.due_at + late_s
            if worker.due_at is not None and now >= worker.due_at:
                self.kill(worker, "did not get on in time")
            elif worker.link is not None and now - worker.heard_at >= self._settings.worker_timeout_s:
                self.kill(worker, "no sign of life")

    def new_link(self) -> ControlLink:
        """The protocol of a worker that dials."""
        return ControlLink(TO_SUPERVISOR, self._on_message, self._on_link_lost)

    def _announce(self) -> None:
        """Tell all workers who they are, for the first time once there is one in each place."""
        there = [one for one in self.workers.values() if one.has_said_hello]
        if self._epoch == 0 and len({one.slot for one in there}) < self._slots:
            return
        if self._epoch == 0:
            due_at = self._clock() + self._settings.start_timeout_s
            for worker in there:
                worker.due_at = due_at
        self._epoch += 1
        members = [(one.slot, one.wid, one.is_leaving) for one in there]
        for worker in there:
            # One that has drained ends any moment: to write to a link that it has closed is an error, which
            # ends our side too, with what it said last and we have not read.
            if not worker.drained.is_set():
                worker.send(Members(self._epoch, members))

    # What workers say.

    def _on_message(self, link: ControlLink, message: object) -> None:
        worker = self._by_link.get(link)
        if worker is not None:
            worker.heard_at = self._clock()
            self._heard(worker, message)
        elif isinstance(message, Hello):
            self._on_hello(link, message)
        else:
            link.close()

    def _on_hello(self, link: ControlLink, hello: Hello) -> None:
        worker = self.workers.get(hello.wid)
        if worker is None or worker.child is None or worker.child.pid != hello.pid:
            link.close()
            return
        now = self._clock()
        self._by_link[link] = worker
        worker.link = link
        worker.has_said_hello = True
        worker.heard_at = now
        # How long it takes to get ready is up to it only once it knows the others.
        worker.due_at = now + self._settings.start_timeout_s if self._epoch else None
        self._announce()

    def _heard(self, worker: WorkerHandle, message: object) -> None:
        match message:
            case Ready():
                worker.due_at = None
                worker.ready.set()
                self._owner.on_ready(worker)
            case Beat(in_flight=in_flight):
                worker.in_flight = in_flight
                self._owner.on_beat(worker, message)
            case Snapshot():
                self._owner.on_snapshot(worker, message)
            case Drained(in_flight=in_flight):
                worker.in_flight = in_flight
                worker.drained.set()
            case PleaseDrain():
                self._owner.on_please_drain()

    def _on_link_lost(self, link: ControlLink, _problem: str) -> None:
        worker = self._by_link.pop(link, None)
        if worker is not None:
            worker.link = None
            worker.due_at = self._clock() + _END_S
            if worker.has_exited:
                self._end(worker)

    def _on_exited(self, worker: WorkerHandle, status: int) -> None:
        worker.has_exited = True
        worker.status = status
        if worker.link is None:
            self._end(worker)

    def _end(self, worker: WorkerHandle) -> None:
        """Its process has ended, and everything it said has been heard."""
        del self.workers[worker.wid]
        worker.drained.set()
        worker.ended.set()
        if worker.has_said_hello:
            self._announce()
        self._owner.on_ended(worker)
