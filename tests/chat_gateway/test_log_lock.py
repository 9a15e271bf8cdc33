"""Whose turn it is to write: one at a time, nobody for ever, and each line on one of its own."""

from __future__ import annotations

import fcntl
import os
import select
from typing import TYPE_CHECKING

import pytest

from chat_gateway import log_lock
from chat_gateway.log_lock import PATIENCE_S, LogLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONG = b"x" * select.PIPE_BUF + b"\n"
SHORT = b"x\n"


def never() -> bool:
    """Nobody has given up."""
    return False


class Processes:
    """Locks on one file as several processes have them, and the time that waiting for them takes."""

    def __init__(self, path: Path, fd: int) -> None:
        self.fd = fd
        self.waited_s = 0.0
        self.on_wait: Callable[[], None] = lambda: None
        self._path = path
        self._pid = 100
        self._holders: dict[int, int] = {}  # byte of the file to the descriptor of who locked it

    def lockf(self, fd: int, command: int, length: int, start: int) -> None:
        """As the system does it for files of different processes."""
        assert length == 1
        if command == fcntl.LOCK_UN:
            if self._holders.get(start) == fd:
                del self._holders[start]
        elif self._holders.setdefault(start, fd) != fd:
            raise BlockingIOError

    def open(self) -> LogLock:
        """The lock of one more process."""
        lock = LogLock(self._path, sleep=self._sleep)
        self._pid += 1
        lock._pid = self._pid
        return lock

    def kill(self, lock: LogLock) -> None:
        """End its process."""
        lock.close()
        self._holders = {byte: fd for byte, fd in self._holders.items() if fd != lock._file}

    def acquired(self, lock: LogLock) -> float:
        """Have the turn; returns how long that took."""
        before_s = self.waited_s
        lock.acquire(self.fd, never)
        return self.waited_s - before_s

    def _sleep(self, seconds: float) -> None:
        self.waited_s += seconds
        assert self.waited_s < 100 * PATIENCE_S, "it waits for ever"
        self.on_wait()


@pytest.fixture(name="processes")
def fixture_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Processes whose common output takes everything."""
    fd = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    processes = Processes(tmp_path / "lock", fd)
    monkeypatch.setattr(fcntl, "lockf", processes.lockf)
    yield processes
    os.close(fd)


def test_lock_is_had_at_once_when_nobody_has_it(processes: Processes) -> None:
    """One after the other, whoever it is, waits for nothing."""
    one, other = processes.open(), processes.open()
    for lock in (one, other, other, one):
        assert processes.acquired(lock) == 0.0
        lock.release(is_cut=False)


def test_lock_is_had_at_once_when_the_process_writes_alone() -> None:
    """Without a file nothing is locked."""
    one, other = LogLock(None), LogLock(None)
    one.acquire(1, never)
    other.acquire(1, never)
    assert other.begin(SHORT) == SHORT


def test_lock_is_waited_for_when_another_process_has_it(processes: Processes) -> None:
    """And had once that one has written its line."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    processes.on_wait = lambda: one.release(is_cut=False)
    assert 0.0 < processes.acquired(other) < PATIENCE_S
    third = processes.open()
    processes.on_wait = lambda: other.release(is_cut=False)
    assert processes.acquired(third) > 0.0


def test_lock_is_free_when_its_holder_has_died(processes: Processes) -> None:
    """The system takes it back with all that the process had open."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    processes.kill(one)
    assert processes.acquired(other) == 0.0


def test_others_go_on_without_a_holder_that_does_nothing_although_it_could(processes: Processes) -> None:
    """It was stopped: it is waited for once, and then only for each other."""
    stopped, other, third = processes.open(), processes.open(), processes.open()
    processes.acquired(stopped)
    assert PATIENCE_S < processes.acquired(other) < 2 * PATIENCE_S
    processes.on_wait = lambda: other.release(is_cut=False)
    assert 0.0 < processes.acquired(third) < PATIENCE_S
    third.release(is_cut=False)
    assert processes.acquired(third) == 0.0


def test_others_wait_for_each_other_when_all_have_waited_for_a_holder_in_vain(processes: Processes) -> None:
    """The first of them to go on is a holder like any other."""
    stopped, first, second = processes.open(), processes.open(), processes.open()
    processes.acquired(stopped)

    def first_goes_on() -> None:
        if processes.waited_s > PATIENCE_S:
            processes.on_wait = lambda: None
            first._shared[log_lock._BYTE] = 1
            processes.acquired(first)

    processes.on_wait = first_goes_on
    assert processes.acquired(second) > 2 * PATIENCE_S
    assert (first._byte, second._byte) == (1, 2)


def test_holder_waits_for_its_turn_again_when_others_went_on_without_it(processes: Processes) -> None:
    """A process that is continued keeps to the same lock as all others."""
    stopped, other = processes.open(), processes.open()
    processes.acquired(stopped)
    stopped.begin(LONG)
    processes.acquired(other)
    other.begin(LONG)
    assert not stopped.go_on()
    processes.on_wait = lambda: other.release(is_cut=False)
    assert processes.acquired(stopped) > 0.0
    assert stopped.begin(LONG) == LONG
    assert stopped.go_on()


def test_lock_is_not_had_when_others_have_just_left_it_behind(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that was free because nobody goes by it any more is no turn."""
    late, other = processes.open(), processes.open()

    def leave_behind(*arguments: int) -> None:
        late._shared[log_lock._BYTE] = 1
        monkeypatch.setattr(fcntl, "lockf", processes.lockf)
        processes.lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", leave_behind)
    processes.acquired(late)
    assert late._byte == 1
    processes.on_wait = lambda: late.release(is_cut=False)
    assert processes.acquired(other) > 0.0


def test_holder_is_waited_for_when_it_writes_line_after_line(processes: Processes) -> None:
    """A lock that is hard to get is none whose holder was stopped."""
    busy, other = processes.open(), processes.open()
    processes.acquired(busy)
    began_s = processes.waited_s

    def go_on() -> None:
        busy.begin(SHORT)
        if processes.waited_s - began_s > 5 * PATIENCE_S:
            busy.release(is_cut=False)

    processes.on_wait = go_on
    assert processes.acquired(other) > 5 * PATIENCE_S
    assert other._byte == busy._byte


def test_holder_is_waited_for_when_the_output_takes_nothing(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads slowly stops them all; that is no fault of the holder."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    monkeypatch.setattr(log_lock, "_would_take", lambda *_: False)
    began_s = processes.waited_s
    with pytest.raises(TimeoutError):
        other.acquire(processes.fd, lambda: processes.waited_s - began_s > 5 * PATIENCE_S)
    processes.on_wait = lambda: one.release(is_cut=False)
    processes.acquired(other)
    assert other._byte == one._byte


def test_room_is_what_the_output_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe takes nothing; one without a reader and none at all have an error at hand."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    assert log_lock._would_take(write_fd, 0)
    os.write(write_fd, b"x" * (1 << 20))  # as much as it takes
    assert not log_lock._would_take(write_fd, 0)
    os.close(read_fd)
    assert log_lock._would_take(write_fd, 0)
    os.close(write_fd)
    assert log_lock._would_take(-1, 0)


def test_lock_is_given_up_when_nobody_cares_any_more(processes: Processes) -> None:
    """A log that is closed does not wait for its turn."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    with pytest.raises(TimeoutError):
        other.acquire(processes.fd, lambda: True)
    other.release(is_cut=True)  # of a turn that it did not have
    assert one.begin(SHORT) == SHORT


def test_holder_gives_way_when_somebody_waits(processes: Processes) -> None:
    """Or a process with much to say would have the lock all the time; once, for each who waited."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    with pytest.raises(TimeoutError):
        other.acquire(processes.fd, lambda: True)
    one.release(is_cut=False)
    assert processes.acquired(one) > log_lock._MAX_PAUSE_S
    one.release(is_cut=False)
    assert processes.acquired(one) == 0.0


def test_line_begins_anew_when_the_one_before_has_no_end(processes: Processes) -> None:
    """A process that dies in the midst of a long line costs no other line; a short one is never cut."""
    for line, expected in ((LONG, b"\n" + SHORT), (SHORT, SHORT)):
        one, other = processes.open(), processes.open()
        processes.acquired(one)
        one.begin(line)
        processes.kill(one)
        processes.acquired(other)
        assert other.begin(SHORT) == expected
        other.release(is_cut=False)
        processes.acquired(other)
        assert other.begin(SHORT) == SHORT
        processes.kill(other)


def test_line_begins_anew_when_a_short_one_was_written_in_part(processes: Processes) -> None:
    """A terminal that does not block may take less than a line; its writer may die just then."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    one.begin(SHORT)
    assert one.go_on()
    processes.kill(one)
    processes.acquired(other)
    assert other.begin(SHORT) == b"\n" + SHORT


def test_line_begins_anew_when_another_process_has_failed_in_its_midst(processes: Processes) -> None:
    """What one process knows of a torn line, all know."""
    one, other = processes.open(), processes.open()
    processes.acquired(one)
    one.begin(LONG)
    one.release(is_cut=True)
    processes.acquired(other)
    assert other.begin(LONG) == b"\n" + LONG
    assert other.was_cut


def test_line_is_ended_when_others_did_not_wait_for_its_end(processes: Processes) -> None:
    """Others write on lines of their own, whatever the process that was stopped makes of its line later."""
    stopped, other = processes.open(), processes.open()
    processes.acquired(stopped)
    stopped.begin(LONG)
    assert stopped.go_on()
    processes.acquired(other)
    assert other.begin(SHORT) == b"\n" + SHORT
    other.release(is_cut=False)
    stopped.release(is_cut=True)  # says nothing of what is not its line any more
    processes.acquired(other)
    assert other.begin(SHORT) == SHORT


def test_turns_go_on_when_their_number_is_full(processes: Processes) -> None:
    """Thirty-two bits are some days of a busy log."""
    one = processes.open()
    one._shared[log_lock._TURN] = 0xFFFF_FFFF
    processes.acquired(one)
    one.begin(SHORT)
    assert one.go_on()
    assert one._shared[log_lock._TURN] == 0


def test_numbers_of_others_stay_when_one_more_process_begins(processes: Processes) -> None:
    """A worker that is started later changes nothing for those that are writing."""
    one = processes.open()
    processes.acquired(one)
    one.begin(LONG)
    other = processes.open()
    assert one.go_on()
    processes.acquired(other)
    assert other.begin(SHORT) == b"\n" + SHORT


def test_lock_raises_when_its_file_cannot_be_made(tmp_path: Path) -> None:
    """At the start, where somebody can still be told."""
    with pytest.raises(FileNotFoundError):
        LogLock(tmp_path / "missing" / "lock")
