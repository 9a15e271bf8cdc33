"""What a chaos run makes of the log: processes, sessions, and what is left over at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from bench.chaos_account import ChaosAccount
from bench.chaos_report import successor_times_s
from bench.chaos_strikes import Stop
from bench.chaos_verdict import count_as_broken, left_over, note_stops, wrong_deaths, wrong_ends
from bench.chaos_watch import ChaosWatch

if TYPE_CHECKING:
    from bench.stress_account import SentSession


class _Run:
    """Worker 1 was process 101, then 103; worker 2 is 102. Time goes on by a second with each record."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.watch = ChaosWatch(lambda: self.now_s)
        self.account = ChaosAccount(frozenset(), 1000)
        self.start(1, 1, 101)
        self.start(2, 2, 102)

    def log(self, event: str, pid: int = 100, level: str = "info", **fields: Any) -> None:
        """The gateway writes a record."""
        self.now_s += 1.0
        record = {"ts": "2026-01-01T00:00:00.000Z", "level": level, "event": event, "pid": pid, **fields}
        self.watch.feed(json.dumps(record))

    def start(self, worker: int, wid: int, pid: int) -> None:
        """A worker starts and gets ready."""
        self.log("worker.started", of=worker, wid=wid, of_pid=pid)
        self.log("worker.ready", pid, worker=worker)

    def lose(self, wid: int, worker: int, **how: Any) -> None:
        """A worker dies."""
        self.log("worker.lost", level="error", of=worker, wid=wid, **how)

    def strike(self, pid: int, blow: str) -> None:
        """We do it."""
        process = self.watch.processes[pid]
        process.blow, process.struck_s = blow, self.now_s

    def session(self, login: str, port: int, pid: int, reason: str | None, *, complete: bool) -> SentSession:
        """A session that has ended, and what is logged of it."""
        session = self.account.begin(login, self.now_s)
        session.port, session.is_in, session.is_complete = port, True, complete
        if pid:
            self.log("session.login", pid, login=login, port=port)
        if reason:
            self.log("session.closed", pid, login=login, port=port, reason=reason)
        session.ended_s = self.now_s
        return session


def test_watch_knows_who_serves() -> None:
    """From being ready until it is struck or lost; then the next one does."""
    run = _Run()
    assert run.watch.serving(1) is run.watch.processes[101]
    run.strike(101, "kill")
    assert run.watch.serving(1) is None
    run.lose(1, 1, signal="SIGKILL")
    run.log("worker.started", of=1, wid=3, of_pid=103)
    assert run.watch.newest(1) is run.watch.processes[103]
    assert run.watch.serving(1) is None
    run.log("worker.ready", 103, worker=1)
    assert run.watch.serving(1) is run.watch.processes[103]
    assert successor_times_s(run.watch, ("kill",)) == [3.0]
    assert successor_times_s(run.watch, ("hang",)) == []
    assert not run.watch.errors


def test_watch_notes_errors_and_what_is_no_record() -> None:
    """A lost worker is no such error, since we make them die."""
    run = _Run()
    run.log("stage.failed", level="error")
    run.watch.feed("Traceback (most recent call last):\n")
    assert len(run.watch.errors) == 2


@pytest.mark.parametrize(
    ("blow", "kill_reason", "end", "is_right"),
    [
        ("kill", "", {"signal": "SIGKILL"}, True),
        ("hang", "no sign of life", {"signal": "SIGKILL"}, True),
        ("", "", None, True),
        ("", "", {"signal": "SIGKILL"}, False),
        ("", "", {"exit_status": 1}, False),
        ("", "no sign of life", {"signal": "SIGKILL"}, False),
        ("kill", "", {"exit_status": 1}, False),
        ("hang", "", {"exit_status": 1}, False),
        ("kill", "no sign of life", {"signal": "SIGKILL"}, False),
    ],
)
def test_verdict_finds_a_death_without_cause(
    blow: str, kill_reason: str, end: dict[str, Any] | None, is_right: bool
) -> None:
    """Each worker ends as it was struck, or in order."""
    run = _Run()
    run.log("worker.stopped", of=2, wid=2)
    if blow:
        run.strike(101, blow)
    if kill_reason:
        run.log("worker.killed", level="warning", of=1, wid=1, reason=kill_reason)
    if end is None:
        run.log("worker.stopped", of=1, wid=1)
    else:
        run.lose(1, 1, **end)
    assert (wrong_deaths(run.watch) == []) == is_right


def test_verdict_finds_a_session_that_ended_without_cause() -> None:
    """Its client left or broke off, or its worker was made to die; nothing else is a cause."""
    run = _Run()
    run.session("left", 1, 102, "client_closed", complete=True)
    gone = run.session("gone", 2, 102, "client_lost", complete=False)
    run.account.vanished.add(gone.number)
    run.session("killed", 3, 101, None, complete=False)
    run.session("killed at once", 4, 0, None, complete=False)
    run.strike(101, "kill")
    run.lose(1, 1, signal="SIGKILL")
    assert wrong_ends(run.account, run.watch) == []
    run.session("cut off", 5, 102, "slow_consumer", complete=False)
    (fault,) = wrong_ends(run.account, run.watch)
    assert "cut off (session 4, port 5)" in fault


def test_verdict_takes_an_end_by_a_dead_worker_for_no_end_in_order() -> None:
    """Who leaves while its worker dies sees the end of the stream too; the log knows better."""
    run = _Run()
    left = run.session("left", 1, 101, "client_closed", complete=True)
    cut = run.session("cut", 2, 101, None, complete=True)
    run.strike(101, "kill")
    count_as_broken(run.account, run.watch)
    assert (left.is_complete, cut.is_complete) == (True, False)
    assert run.account.broken_s("cut") == [cut.ended_s]


def test_verdict_knows_who_was_at_a_worker_that_stood_still() -> None:
    """All its sessions are told to the account."""
    run = _Run()
    run.session("here", 1, 101, None, complete=True)
    run.session("there", 2, 102, None, complete=True)
    note_stops(run.account, run.watch, [Stop(101, 3.0, 4.0)])
    assert run.account.stood_still_s["here"] == [(3.0, 4.0)]
    assert not run.account.stood_still_s["there"]


def test_verdict_finds_what_is_left_over() -> None:
    """Gauges, a restart that nobody caused, files, and the exit status."""
    run = _Run()
    empty: dict[str, Any] = {
        **dict.fromkeys(("in_flight", "buffered_bytes", "sessions", "connections", "logins_in_grace"), 0),
        "outbox": {"parked_copies": 0, "pending_bytes": 0},
        "bus": {"pending_bytes": 0, "held_logins": 0, "places": 0},
        "workers": {"live": 2, "restarts": 0},
    }
    assert left_over(run.watch, empty, 0, 0) == []
    wrong = {**empty, "in_flight": 1, "bus": {**empty["bus"], "held_logins": 2}, "workers": {"restarts": 1}}
    faults = left_over(run.watch, wrong, 3, 1)
    assert [fault.split()[0] for fault in faults] == ["in_flight", "bus.held_logins", "1", "the", "the"]
    assert len(left_over(run.watch, {}, 0, 0)) == 11
