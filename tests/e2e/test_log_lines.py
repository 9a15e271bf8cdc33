"""The lines of several processes in one log: whole, whatever becomes of the processes that write them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

WAIT_S = 30.0  # generous: for what takes a second on an idle machine

# Short records, and every tenth much longer than what a pipe takes as a whole.
_PROCESS = """if True:
    import sys
    from pathlib import Path
    from chat_gateway.logs import open_log
    worker, records, long_chars = map(int, sys.argv[1:4])
    log = open_log(
        format="json", level="info", queue_records=10_000, flood_per_s=1_000_000,
        bind={"worker": worker}, lock_path=Path(sys.argv[4]),
    )
    sys.stderr.write("ready\\n")
    sys.stdin.read()  # until all can begin
    for number in range(records):
        log.logger.info("x", number=number, filler="x" * (100 if number % 10 else long_chars))
    sys.exit(log.close(60))
"""


class CommonLog:
    """Processes that log into one pipe, and what has come out of it."""

    def __init__(self, lock_path: Path, *, processes: int, records: int, long_chars: int) -> None:
        self._lock_path = lock_path
        self._read_fd, write_fd = os.pipe()
        gate_read_fd, gate_fd = os.pipe()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", _PROCESS, str(one + 1), str(records), str(long_chars), str(lock_path)],
                stdin=gate_read_fd,
                stdout=write_fd,
                stderr=subprocess.PIPE,
            )
            for one in range(processes)
        ]
        os.close(write_fd)
        os.close(gate_read_fd)
        self._output = b""
        for process in self.processes:
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
        os.close(gate_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        os.close(self._read_fd)

    def holder_when_full(self) -> subprocess.Popen[bytes]:
        """The process that has the lock, once nobody can go on because nobody reads."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            for process in self.processes:
                if self._is_full() and _holder(self._lock_path) == process.pid:
                    return process
        raise AssertionError("the pipe is not full")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a process and see it stopped."""
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + WAIT_S
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1][0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def read(self, count: int) -> bool:
        """At most so many bytes more; False at the end."""
        assert select.select([self._read_fd], [], [], WAIT_S)[0], "nothing came"
        part = os.read(self._read_fd, count)
        self._output += part
        return bool(part)

    def is_silent(self, for_s: float) -> bool:
        """Nothing comes for so long."""
        return not select.select([self._read_fd], [], [], for_s)[0]

    def read_to_end(self) -> None:
        """All there is, until the last process has ended."""
        while self.read(1 << 16):
            pass
        for process in self.processes:
            process.wait(WAIT_S)

    def records(self) -> tuple[list[dict[str, Any]], int]:
        """What came in whole lines, in order, and how many lines were none."""
        *lines, rest = self._output.split(b"\n")
        whole = [record for record in map(_record, lines) if record is not None]
        return whole, len(lines) - len(whole) + bool(rest)

    def _is_full(self) -> bool:
        """As much as a pipe holds waits to be read."""
        readable, _, _ = select.select([self._read_fd], [], [], 0)
        return bool(readable) and _waiting_bytes(self._read_fd) >= 1 << 16


def _waiting_bytes(fd: int) -> int:
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _holder(lock_path: Path) -> int:
    """The process that has the lock, as the system says; 0 for none."""
    found = re.findall(rf"WRITE (\d+) [^ ]*:{lock_path.stat().st_ino} ", Path("/proc/locks").read_text())
    return int(found[0]) if found else 0


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record


def numbers(records: list[dict[str, Any]], worker: int) -> list[int]:
    """Those of the records of one process, in the order in which they came."""
    return [record["number"] for record in records if record["worker"] == worker]


def test_every_line_is_whole_when_four_processes_write_to_a_slow_reader(tmp_path: Path) -> None:
    """Long and short ones, none lost, those of each process in order, and nobody has to wait for long."""
    with CommonLog(tmp_path / "lock", processes=4, records=200, long_chars=20_000) as log:
        while log.read(8192):
            time.sleep(0.001)
        records, broken = log.records()
    assert broken == 0
    assert [numbers(records, worker) for worker in (1, 2, 3, 4)] == [list(range(200))] * 4
    pids = {(record["worker"], record["pid"]) for record in records}
    assert pids == {(one + 1, process.pid) for one, process in enumerate(log.processes)}
    changes = sum(one["pid"] != other["pid"] for one, other in pairwise(records))
    assert changes > 20  # of who writes; three when each goes on until it has nothing more to say


def test_other_lines_go_on_when_a_process_is_stopped_in_the_midst_of_its_own(tmp_path: Path) -> None:
    """What it had written is torn; it writes that line anew when it goes on, and nothing is lost."""
    with CommonLog(tmp_path / "lock", processes=3, records=30, long_chars=200_000) as log:
        stopped = log.holder_when_full()
        log.stop(stopped)
        others = [process for process in log.processes if process is not stopped]
        while not all(process.poll() == 0 for process in others):
            if not log.is_silent(0.01):
                log.read(1 << 16)
        stopped.send_signal(signal.SIGCONT)
        log.read_to_end()
        records, broken = log.records()
    assert broken == 1
    assert [numbers(records, worker) for worker in (1, 2, 3)] == [list(range(30))] * 3


def test_other_lines_are_whole_when_a_process_is_killed_in_the_midst_of_its_own(tmp_path: Path) -> None:
    """One line is torn, that of the process that died."""
    with CommonLog(tmp_path / "lock", processes=3, records=30, long_chars=200_000) as log:
        killed = log.holder_when_full()
        killed.kill()
        log.read_to_end()
        records, broken = log.records()
    assert broken == 1
    for worker, process in enumerate(log.processes, start=1):
        if process is not killed:
            assert numbers(records, worker) == list(range(30))
