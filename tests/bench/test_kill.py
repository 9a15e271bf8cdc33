"""Specification of bench.kill; with a gateway it is in test_workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from bench.chaos_watch import ChaosWatch
from bench.kill import Kill, KillError, Victim, choose, is_child, is_lost

if TYPE_CHECKING:
    from collections.abc import Iterator


class Time:
    """A clock that goes on by sleeping only; a log that says more after a while."""

    def __init__(self) -> None:
        self.now_s = 10.0
        self.watch = ChaosWatch(lambda: self.now_s)
        # (when, record), in order
        self.later: list[tuple[float, dict[str, Any]]] = []

    def clock(self) -> float:
        """Seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass, and the log say what it says meanwhile."""
        end_s = self.now_s + seconds
        while self.later and self.later[0][0] <= end_s:
            self.now_s, record = self.later.pop(0)
            self.say(record)
        self.now_s = end_s

    def say(self, record: dict[str, Any]) -> None:
        """A line of the gateway's log."""
        self.watch.feed(json.dumps({"ts": "1970-01-01T00:00:00.000Z", "level": "info", **record}))


def started(worker: int, wid: int, pid: int) -> dict[str, Any]:
    """A worker process was started."""
    return {"event": "worker.started", "worker": "supervisor", "of": worker, "wid": wid, "of_pid": pid}


def ready(worker: int, wid: int, pid: int) -> dict[str, Any]:
    """It serves."""
    return {"event": "worker.ready", "worker": worker, "wid": wid, "pid": pid}


def lost(worker: int, wid: int) -> dict[str, Any]:
    """It was killed."""
    return {"event": "worker.lost", "of": worker, "wid": wid, "signal": "SIGKILL", "level": "error"}


@pytest.fixture(name="child")
def fixture_child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture(name="time")
def fixture_time(child: subprocess.Popen[bytes]) -> Time:
    """Two workers serve; the second one is the child."""
    time = Time()
    for worker, pid in ((1, 1), (2, child.pid)):
        time.say(started(worker, worker, pid))
        time.say(ready(worker, worker, pid))
    return time


def victim(time: Time, kill: Kill, gateway_pid: int) -> Victim:
    """Worker 2 of this process, or of another one, with no clients."""
    return Victim(kill, time.watch, gateway_pid, clock=time.clock, sleep=time.sleep)


def test_choice_is_the_process_that_serves_in_this_place(time: Time) -> None:
    """One that is not ready, or was replaced, is not it."""
    assert choose(time.watch, 1, lambda _: True).pid == 1
    time.say(lost(1, 1))
    time.say(started(1, 3, 7))
    with pytest.raises(KillError, match="worker 1 does not serve"):
        choose(time.watch, 1, lambda _: True)
    time.say(ready(1, 3, 7))
    assert choose(time.watch, 1, lambda _: True).pid == 7


def test_choice_is_refused_when_the_process_is_not_ours(time: Time) -> None:
    """Whatever the log says, a foreign process is left alone."""
    with pytest.raises(KillError, match="process 1 is no worker"):
        choose(time.watch, 1, lambda _: False)


def test_child_is_one_of_this_parent_that_lives(child: subprocess.Popen[bytes]) -> None:
    """Neither another parent's, nor one that is dead and not waited for, nor none at all."""
    assert is_child(child.pid, os.getpid())
    assert not is_child(child.pid, os.getppid())
    assert not is_child(os.getpid(), os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_child(child.pid, os.getpid())
    child.wait()
    assert not is_child(child.pid, os.getpid())


def test_strike_kills_the_worker_when_it_is_time(time: Time, child: subprocess.Popen[bytes]) -> None:
    """The time is counted from the beginning of the load."""
    victim(time, Kill(2, 0, 1.5), os.getpid()).strike(9.0)
    assert time.now_s == 10.5
    assert child.wait() == -signal.SIGKILL


def test_strike_waits_for_nothing_when_the_time_has_come(time: Time, child: subprocess.Popen[bytes]) -> None:
    """A load that began long ago is struck at once."""
    victim(time, Kill(2, 0, 1.5), os.getpid()).strike(1.0)
    assert time.now_s == 10.0
    assert child.wait() == -signal.SIGKILL


def test_strike_spares_a_process_when_the_gateway_did_not_start_it(
    time: Time, child: subprocess.Popen[bytes]
) -> None:
    """A number in a log is no proof of whose process it is."""
    with pytest.raises(KillError):
        victim(time, Kill(2, 0, 0.0), os.getppid()).strike(9.0)
    assert child.poll() is None


def test_worker_lives_on_when_no_time_is_given(time: Time, child: subprocess.Popen[bytes]) -> None:
    """There is nothing to wait for, and no figure of a new worker."""
    calm = victim(time, Kill(2, 0), os.getpid())
    calm.strike(9.0)
    assert calm.figures() == {}
    assert time.now_s == 10.0
    assert child.poll() is None


@pytest.mark.parametrize("waits_s", [0.0, 3.0], ids=["while the load runs", "after it"])
def test_figure_is_the_time_from_the_kill_to_a_new_worker_in_that_place(time: Time, waits_s: float) -> None:
    """That a worker is lost, that one is started, and that another one is ready does not end it."""
    one = victim(time, Kill(2, 0, 1.0), os.getpid())
    one.strike(10.0)
    time.later = [
        (11.1, lost(2, 2)),
        (11.2, started(2, 3, 8)),
        (12.0, ready(1, 1, 1)),
        (12.25, ready(2, 3, 8)),
    ]
    time.sleep(waits_s)
    assert one.figures() == {"ready_after_s": 1.25}


def test_figure_is_missing_when_no_new_worker_serves(time: Time) -> None:
    """It is waited for, but not for ever."""
    one = victim(time, Kill(2, 0, 1.0), os.getpid())
    one.strike(10.0)
    time.later = [(11.1, lost(2, 2)), (11.2, started(2, 3, 8))]
    assert one.figures() == {}
    assert 5 < time.now_s - 11 < 30


def test_connection_is_lost_when_the_server_has_closed_it_behind_what_it_said() -> None:
    """What was said before is passed over, and one that is open and silent is not lost."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert not is_lost(ours)
        theirs.sendall(b"x" * 10_000)
        assert not is_lost(ours)
        theirs.sendall(b"x")
        theirs.close()
        assert is_lost(ours)


def test_connection_is_lost_when_the_server_has_reset_it() -> None:
    """One who dies with something unread resets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.sendall(b"unread")
        theirs.close()
        assert is_lost(ours)


def test_description_says_when_it_is_killed() -> None:
    """The same clients, with and without a fate."""
    assert Kill(2, 64).describe() == "64 clients at worker 2"
    assert Kill(2, 64, 1.5).describe() == "64 clients at worker 2, killed after 1.5 s"
