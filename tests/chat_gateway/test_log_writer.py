"""The writer thread: whole lines in order, bounded, never in the way of whoever logs, never fatal."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from chat_gateway.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Far longer than anything here takes; only a broken writer waits for it.
PATIENCE_S = 20.0


class Pipe:
    """A pipe whose reading end the test holds."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self._writers: list[LogWriter] = []

    def open_writer(
        self,
        *,
        max_records: int = 100,
        max_bytes: int = 1_000_000,
        describe_dropped: Callable[[int], bytes] = lambda count: b"dropped %d\n" % count,
    ) -> LogWriter:
        """A writer to this pipe, whose line about dropped lines is easy to recognise."""
        writer = LogWriter(
            self.write_fd, max_records=max_records, max_bytes=max_bytes, describe_dropped=describe_dropped
        )
        self._writers.append(writer)
        return writer

    def fill(self) -> int:
        """Fill it to the brim, so that the next write blocks; the number of bytes it took."""
        os.set_blocking(self.write_fd, False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += os.write(self.write_fd, b"#" * 4096)
        os.set_blocking(self.write_fd, True)
        return count

    def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < count:
            assert select.select([self.read_fd], [], [], PATIENCE_S)[0], f"{len(data)} of {count} bytes came"
            data += os.read(self.read_fd, count - len(data))
        return data

    def read_all(self) -> bytes:
        """Everything up to the end of the stream."""
        os.close(self.write_fd)
        self.write_fd = -1
        data = b""
        while select.select([self.read_fd], [], [], PATIENCE_S)[0] and (part := os.read(self.read_fd, 65536)):
            data += part
        return data

    def close_reader(self) -> None:
        os.close(self.read_fd)
        self.read_fd = -1

    def close(self) -> None:
        """Close both ends, which frees a writer that is stuck, and see its thread end."""
        for fd in (self.read_fd, self.write_fd):
            if fd >= 0:
                os.close(fd)
        for writer in self._writers:
            writer.close(PATIENCE_S)
            assert not writer._thread.is_alive()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """An empty pipe; no thread of its writers outlives the test."""
    pipe = Pipe()
    yield pipe
    pipe.close()


def scripted_write(monkeypatch: pytest.MonkeyPatch, script: list[int | OSError]) -> list[bytes]:
    """Let `write` take so many bytes or fail, call by call, and then everything; what was asked of it."""
    asked: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        asked.append(data)
        step = script.pop(0) if script else len(data)
        if isinstance(step, OSError):
            raise step
        return step

    fake_os = SimpleNamespace(write=write, dup=os.dup, close=os.close)
    monkeypatch.setattr("chat_gateway.log_writer.os", fake_os)
    return asked


def test_writer_keeps_the_order_when_many_lines_are_offered(pipe: Pipe) -> None:
    """Lines come out whole and in the order they were offered."""
    writer = pipe.open_writer(max_records=1_000)
    lines = [b"line %d\n" % number for number in range(500)]
    assert all(writer.offer(line) for line in lines)
    assert writer.close(PATIENCE_S) == 0
    assert pipe.read_all() == b"".join(lines)
    assert (writer.written, writer.failed, writer.dropped, writer.queued) == (500, 0, 0, 0)


def test_writer_uses_one_write_for_each_line_when_all_is_well(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is one system call, so that lines of several processes do not mix."""
    asked = scripted_write(monkeypatch, [])
    writer = pipe.open_writer()
    for line in (b"one\n", b"two\n", b"three\n"):
        writer.offer(line)
    writer.close(PATIENCE_S)
    assert asked == [b"one\n", b"two\n", b"three\n"]


def test_writer_drops_the_newest_and_says_how_many_when_nobody_reads(pipe: Pipe) -> None:
    """A full queue refuses lines at once; when it is empty again, one line says how many."""
    filling = pipe.fill()
    writer = pipe.open_writer(max_records=8)
    lines = [b"line %d\n" % number for number in range(20)]
    accepted = [line for line in lines if writer.offer(line)]
    # One more than the queue holds if the thread has already taken the first.
    assert len(accepted) in (8, 9)
    expected = b"".join(accepted) + b"dropped %d\n" % (20 - len(accepted))
    pipe.read(filling)
    assert pipe.read(len(expected)) == expected
    assert writer.dropped == 20 - len(accepted)
    assert writer.close(PATIENCE_S) == 0
    assert writer.written == len(accepted) + 1
    assert pipe.read_all() == b""


def test_writer_reports_drops_before_the_next_line_when_half_of_the_queue_is_free(pipe: Pipe) -> None:
    """The line about dropped lines stands where they are missing, and not while the queue is nearly full."""
    filling = pipe.fill()
    writer = pipe.open_writer(max_bytes=100)
    first = b"a" * 39 + b"\n"
    assert writer.offer(first)
    assert not writer.offer(b"b" * 61)
    assert writer.offer(b"nearly full\n")  # together more than a half of the bytes: no report yet
    expected = first + b"nearly full\n" + b"dropped 1\n"
    pipe.read(filling)
    assert pipe.read(len(expected)) == expected
    writer.close(PATIENCE_S)


def test_writer_reports_drops_in_the_queue_when_the_thread_is_still_busy(pipe: Pipe) -> None:
    """With room again, the next accepted line comes after the line about those dropped before it."""
    filling = pipe.fill()
    writer = pipe.open_writer(max_bytes=100)
    assert writer.offer(b"first\n")
    assert not writer.offer(b"b" * 100)
    assert writer.offer(b"second\n")
    assert writer.queued == 3
    pipe.read(filling)
    assert pipe.read(23) == b"first\ndropped 1\nsecond\n"
    writer.close(PATIENCE_S)


def test_writer_drops_when_the_bytes_are_too_many(pipe: Pipe) -> None:
    """The queue is bounded in bytes too, with the line that is being written."""
    pipe.fill()
    writer = pipe.open_writer(max_bytes=100)
    assert writer.offer(b"x" * 60)
    assert not writer.offer(b"x" * 41)
    assert writer.offer(b"x" * 40)
    assert writer.dropped == 1


def test_writer_reports_drops_when_it_is_closed_before_it_could(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drops that no line has reported are the last line."""
    filling = pipe.fill()
    writer = pipe.open_writer(max_bytes=10)
    assert writer.offer(b"first\n")
    assert not writer.offer(b"second\n")
    thread_join = writer._thread.join

    def read_and_join(timeout_s: float) -> None:
        pipe.read(filling)  # only now, when the end is in the queue already
        thread_join(timeout_s)

    monkeypatch.setattr(writer._thread, "join", read_and_join)
    assert writer.close(PATIENCE_S) == 0
    monkeypatch.undo()
    assert pipe.read_all() == b"first\ndropped 1\n"


def test_close_returns_the_unwritten_number_when_the_reader_is_stuck(pipe: Pipe) -> None:
    """Closing gives up after its time, and says how many lines were not written."""
    pipe.fill()
    writer = pipe.open_writer()
    for _ in range(5):
        writer.offer(b"line\n")
    assert writer.close(0.0) == 5
    assert writer.close(0.0) == 5


def test_abandoned_writer_writes_no_queued_line_when_the_reader_comes_back(pipe: Pipe) -> None:
    """After closing gave up, at most the line already handed to the system still appears."""
    filling = pipe.fill()
    writer = pipe.open_writer()
    for number in range(5):
        writer.offer(b"line %d\n" % number)
    writer.close(0.0)
    pipe.read(filling)
    assert pipe.read_all() in (b"", b"line 0\n")


def test_writer_drops_and_counts_when_it_is_closed(pipe: Pipe) -> None:
    """A line offered after closing is counted as dropped."""
    writer = pipe.open_writer()
    writer.close(PATIENCE_S)
    assert not writer.offer(b"late\n")
    assert writer.dropped == 1
    assert pipe.read_all() == b""


def watch_poll(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that tells that the writer waits for room."""
    is_waiting = threading.Event()

    def poll() -> select.poll:
        is_waiting.set()
        return select.poll()

    fake_select = SimpleNamespace(poll=poll, POLLOUT=select.POLLOUT)
    monkeypatch.setattr("chat_gateway.log_writer.select", fake_select)
    return is_waiting


def test_writer_waits_for_room_when_the_descriptor_does_not_block(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full non-blocking pipe (a terminal shared with an event loop) loses nothing."""
    is_waiting = watch_poll(monkeypatch)
    filling = pipe.fill()
    os.set_blocking(pipe.write_fd, False)
    writer = pipe.open_writer()
    lines = [b"%d" % number * 50_000 + b"\n" for number in range(10)]
    for line in lines:
        writer.offer(line)
    assert is_waiting.wait(PATIENCE_S)
    pipe.read(filling)
    assert pipe.read(500_010) == b"".join(lines)
    assert writer.close(PATIENCE_S) == 0
    assert (writer.written, writer.failed) == (10, 0)


def test_writer_ends_when_it_is_abandoned_while_it_waits_for_room(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that polls a full pipe notices that it was given up."""
    monkeypatch.setattr("chat_gateway.log_writer._POLL_MS", 1)
    is_waiting = watch_poll(monkeypatch)
    pipe.fill()
    os.set_blocking(pipe.write_fd, False)
    writer = pipe.open_writer()
    writer.offer(b"line\n")
    assert is_waiting.wait(PATIENCE_S)
    assert writer.close(0.0) == 1
    writer._thread.join(PATIENCE_S)
    assert not writer._thread.is_alive()
    assert writer.written == 0


class BeatenWriter(LogWriter):
    """A writer whose thread sees unreported drops, and then another thread is faster to report them."""

    def _take_dropped(self) -> int:
        super()._take_dropped()
        return super()._take_dropped()


def test_writer_reports_no_drops_when_another_thread_just_did(pipe: Pipe) -> None:
    """Drops are reported once, and there is no report of none."""
    writer = BeatenWriter(
        pipe.write_fd, max_records=10, max_bytes=10, describe_dropped=lambda count: b"dropped %d\n" % count
    )
    assert not writer.offer(b"x" * 11)
    writer.close(PATIENCE_S)
    assert pipe.read_all() == b""


def test_writer_continues_a_line_when_a_write_was_partial(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system did not take is written before anything else."""
    asked = scripted_write(monkeypatch, [2, 1])
    writer = pipe.open_writer()
    writer.offer(b"hello\n")
    writer.offer(b"next\n")
    writer.close(PATIENCE_S)
    assert asked == [b"hello\n", b"llo\n", b"lo\n", b"next\n"]
    assert writer.written == 2


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_writer_counts_and_goes_on_when_the_system_refuses(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A line that cannot be written is counted, and the next one is tried."""
    asked = scripted_write(monkeypatch, [OSError(code, "refused")])
    writer = pipe.open_writer()
    writer.offer(b"lost\n")
    writer.offer(b"kept\n")
    assert writer.close(PATIENCE_S) == 0
    assert asked == [b"lost\n", b"kept\n"]
    assert (writer.written, writer.failed) == (1, 1)


def test_writer_begins_a_new_line_when_the_one_before_was_torn(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that failed half-way does not swallow the next one."""
    full = OSError(errno.ENOSPC, "full")
    asked = scripted_write(monkeypatch, [3, full, OSError(errno.ENOSPC, "full")])
    writer = pipe.open_writer()
    for line in (b"torn\n", b"lost\n", b"kept\n", b"plain\n"):
        writer.offer(line)
    writer.close(PATIENCE_S)
    assert asked == [b"torn\n", b"n\n", b"\nlost\n", b"\nkept\n", b"plain\n"]
    assert (writer.written, writer.failed) == (2, 2)


def test_writer_counts_failures_when_the_reader_has_gone(pipe: Pipe) -> None:
    """A broken pipe ends neither the thread nor the process."""
    pipe.close_reader()
    writer = pipe.open_writer()
    for _ in range(3):
        writer.offer(b"line\n")
    assert writer.close(PATIENCE_S) == 0
    assert (writer.written, writer.failed) == (0, 3)


def test_writer_counts_failures_when_there_is_no_descriptor() -> None:
    """A process that was started with a closed standard output runs, and its log counts failures."""
    writer = LogWriter(-1, max_records=10, describe_dropped=lambda count: b"")
    writer.offer(b"line\n")
    assert writer.close(PATIENCE_S) == 0
    assert writer.failed == 1


def test_writer_uses_its_own_descriptor_when_the_number_is_reused(pipe: Pipe) -> None:
    """Lines go to what was opened, even after the caller's number means something else."""
    writer = pipe.open_writer()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, pipe.write_fd)
    os.close(null)
    writer.offer(b"line\n")
    writer.close(PATIENCE_S)
    assert pipe.read_all() == b"line\n"


def test_writer_thread_is_a_daemon_when_it_runs(pipe: Pipe) -> None:
    """The thread does not keep the process alive."""
    writer = pipe.open_writer()
    assert writer._thread.daemon
    writer.close(PATIENCE_S)


def test_writer_holds_no_lock_when_it_is_stuck_in_a_write(pipe: Pipe) -> None:
    """Offering goes on from another thread while the writer is blocked."""
    pipe.fill()
    writer = pipe.open_writer()
    writer.offer(b"stuck\n")
    offered: list[bool] = []
    other = threading.Thread(target=lambda: offered.append(writer.offer(b"other\n")), daemon=True)
    other.start()
    other.join(PATIENCE_S)
    assert offered == [True]


def test_writer_loses_no_count_when_several_threads_offer(tmp_path: Path) -> None:
    """Every line offered by any thread is either written or counted in a line about dropped ones."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LogWriter(file.fileno(), max_records=5, describe_dropped=lambda count: b"%d\n" % count)

    def offer_many() -> None:
        for _ in range(1_000):
            writer.offer(b"1\n")

    threads = [threading.Thread(target=offer_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert writer.close(PATIENCE_S) == 0
    assert sum(int(line) for line in path.read_bytes().splitlines()) == 4_000


def test_writer_keeps_both_lines_when_one_is_offered_in_the_middle_of_another(pipe: Pipe) -> None:
    """A finaliser that logs in the middle of a call neither deadlocks nor loses its line."""
    offer: list[Callable[[bytes], bool]] = []

    def describe_and_log(count: int) -> bytes:
        offer[0](b"inner\n")
        return b"dropped %d\n" % count

    writer = pipe.open_writer(max_bytes=100, describe_dropped=describe_and_log)
    offer.append(writer.offer)
    writer.offer(b"x" * 200)
    writer.offer(b"outer\n")
    writer.close(PATIENCE_S)
    assert sorted(pipe.read_all().splitlines()) == [b"dropped 1", b"inner", b"outer"]


def test_writer_refuses_to_start_when_nothing_may_wait(pipe: Pipe) -> None:
    """A queue without room is a mistake of the configuration."""
    with pytest.raises(ValueError, match="max_records"):
        pipe.open_writer(max_records=0)
