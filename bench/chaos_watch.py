"""What the log of a gateway says of its worker processes, and of sessions on them; fed line by line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.log_watch import LogWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.stress_account import SentSession

__all__ = ["ChaosWatch", "WorkerProcess"]

_ERRORS = ("error", "critical")
_EXPECTED = ("worker.lost",)  # at that level
_MAX_ERRORS = 50


@dataclass(slots=True)
class WorkerProcess:
    """One worker process, from its start on; times in seconds from the beginning of the run."""

    worker: int  # its place, from 1
    wid: int
    pid: int
    started_s: float
    ready_s: float | None = None
    ended_s: float | None = None  # the supervisor noticed
    end: str = ""  # how it ended: a signal, an exit status, or "stopped" for in order
    kill_reason: str = ""  # why the supervisor killed it
    blow: str = ""  # what we did to end it
    struck_s: float = 0.0  # when

    @property
    def is_serving(self) -> bool:
        """It accepts, and nothing has ended it or is about to."""
        return self.ready_s is not None and self.ended_s is None and not self.blow


class ChaosWatch(LogWatch):
    """Made for one run; fed by the thread that reads the gateway's output, asked in the run's own.

    Args:
        clock: seconds from the beginning of the run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        # every worker process there was, in the order of their starts, by pid
        self.processes: dict[int, WorkerProcess] = {}
        # (login, port of the client) -> process of its session
        self.places: dict[tuple[str, int], int] = {}
        # (login, port of the client) -> why it ended
        self.reasons: dict[tuple[str, int], str] = {}
        # what had trouble -> how often its breaker opened
        self.opened: Counter[str] = Counter()
        # records that report an error which nothing here gives cause for
        self.errors: list[str] = []
        self._clock = clock
        self._by_wid: dict[int, WorkerProcess] = {}
        self._takes: dict[str, Callable[[dict[str, Any]], None]] = {
            "worker.started": self._on_started,
            "worker.ready": self._on_ready,
            "worker.killed": self._on_killed,
            "worker.lost": self._on_ended,
            "worker.stopped": self._on_ended,
            "session.login": self._on_login,
            "session.closed": self._on_closed,
            "breaker.opened": self._on_opened,
            "metrics": self._on_metrics,
        }

    def feed(self, line: str) -> None:
        """See `LogWatch`."""
        super().feed(line)
        try:
            record = json.loads(line)
            event = record["event"]
        except (ValueError, KeyError, TypeError):
            self._note_error(line)
            return
        if (take := self._takes.get(event)) is not None:
            take(record)
        if record.get("level") in _ERRORS and event not in _EXPECTED:
            self._note_error(line)

    def serving(self, worker: int) -> WorkerProcess | None:
        """The process that serves in this place."""
        newest = self.newest(worker)
        return newest if newest is not None and newest.is_serving else None

    def newest(self, worker: int) -> WorkerProcess | None:
        """The process that was started last in this place."""
        there = [one for one in list(self.processes.values()) if one.worker == worker]
        return there[-1] if there else None

    def process_of(self, session: SentSession) -> WorkerProcess | None:
        """Where this session was, as far as that was logged."""
        return self.processes.get(self.places.get((session.login, session.port), 0))

    def reason_of(self, session: SentSession) -> str | None:
        """Why this session ended, as far as that was logged."""
        return self.reasons.get((session.login, session.port))

    def _on_started(self, record: dict[str, Any]) -> None:
        process = WorkerProcess(record["of"], record["wid"], record["of_pid"], self._clock())
        self.processes[process.pid] = self._by_wid[process.wid] = process

    def _on_ready(self, record: dict[str, Any]) -> None:
        if (process := self.processes.get(record["pid"])) is not None:
            process.ready_s = self._clock()

    def _on_killed(self, record: dict[str, Any]) -> None:
        self._by_wid[record["wid"]].kill_reason = record["reason"]

    def _on_ended(self, record: dict[str, Any]) -> None:
        process = self._by_wid[record["wid"]]
        process.ended_s = self._clock()
        process.end = str(record.get("signal") or record.get("exit_status", "stopped"))

    def _on_login(self, record: dict[str, Any]) -> None:
        self.places[record["login"], record["port"]] = record["pid"]

    def _on_closed(self, record: dict[str, Any]) -> None:
        self.reasons[record["login"], record["port"]] = record["reason"]

    def _on_opened(self, record: dict[str, Any]) -> None:
        self.opened[record["login"]] += 1

    def _on_metrics(self, record: dict[str, Any]) -> None:
        if record.get("worker") != "supervisor":
            self._note_error(json.dumps(record)[:200])

    def _note_error(self, line: str) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(line)
