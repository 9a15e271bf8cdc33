"""Starts and stops the servers under test, each a process group of its own, and reads what they cost.

Linux only: processor time and memory come from /proc and cover all descendants of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READY_TIMEOUT_S = 20.0
_CONNECT_TIMEOUT_S = 1.0
_RETRY_S = 0.02
_STOP_TIMEOUT_S = 15.0  # above the gateway's own drain timeout
_KEPT_LINES = 20  # of the server's output, to explain a failure

GATEWAY = "gateway"
BASELINE = "streams"
_SERVE = "-m chat_gateway serve --listen line://127.0.0.1:0 --log-format json --workers"


def gateway_command(workers: int, settings: Iterable[str] = ()) -> list[str]:
    """Starts a gateway; `settings` are key=value."""
    changed = [argument for setting in settings for argument in ("--set", setting)]
    return [sys.executable, *_SERVE.split(), str(workers), *changed]


COMMANDS = {
    GATEWAY: gateway_command(1),
    BASELINE: [sys.executable, "-m", "bench.streams_server"],
}


class ServerError(Exception):
    """A server did not start; the text carries the end of its output."""


def parse_ready(line: str) -> tuple[str, int] | None:
    """Host and port from a `gateway.ready` record, or None if the line is anything else."""
    try:
        record = json.loads(line)
        if record["event"] != "gateway.ready":
            return None
        address = urlsplit(record["listen"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return (address.hostname or "127.0.0.1", address.port) if address.port else None


class Server:
    """One running server; a context manager that stops it. Its output is read by a thread of its own.

    Args:
        command: starts it.
        on_line: told each line of its output, in that thread.
        address: where it was told to listen, for one that does not say so when it is ready.
    """

    def __init__(
        self,
        command: list[str],
        on_line: Callable[[str], None] | None = None,
        *,
        address: tuple[str, int] | None = None,
    ) -> None:
        self._on_line = on_line
        # where it listens
        self.address = address or ("", 0)
        # whether it says itself where it listens
        self._is_told = address is None
        # exit status once stopped; negative if it had to be killed
        self.exit_status: int | None = None
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # hands the address from the reading thread to `__enter__`; None says that the output ended
        self._ready: queue.Queue[tuple[str, int] | None] = queue.Queue()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._drain, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        """Wait until the server listens.

        Raises:
            ServerError: it ended or said nothing for 20 s.
        """
        if self._hear_address() if self._is_told else self._reach_address():
            return self
        self.stop()
        raise ServerError("the server did not start:\n" + "".join(self._last_lines))

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _hear_address(self) -> bool:
        with contextlib.suppress(queue.Empty):
            address = self._ready.get(timeout=_READY_TIMEOUT_S)
            if address is not None:
                self.address = address
                return True
        return False

    def _reach_address(self) -> bool:
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(self.address, _CONNECT_TIMEOUT_S):
                return True
            time.sleep(_RETRY_S)
        return False

    def _drain(self, output: IO[str]) -> None:
        found = False
        for line in output:
            self._last_lines.append(line)
            if self._on_line is not None:
                self._on_line(line)
            if not found and (address := parse_ready(line)) is not None:
                found = True
                self._ready.put(address)
        self._ready.put(None)

    def stop(self) -> None:
        """Ask the server to end, kill its process group if it does not, and wait for it."""
        process = self._process
        if self.exit_status is not None:
            return
        process.terminate()
        try:
            self.exit_status = process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.exit_status = process.wait()
        self._reader.join(_STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process, whose number is also that of its session and of its process group."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Processor seconds, user and system, of the server and its descendants so far."""
        return sum(map(_cpu_s, _tree(self._process.pid)))

    def pss_kib(self) -> int:
        """Proportional memory of the server and its descendants in KiB; resident where that is not told."""
        return sum(map(_pss_kib, _tree(self._process.pid)))

    def resident_bytes(self) -> int:
        """Resident memory of the server and its descendants; cheaper to ask for than the proportional one."""
        return sum(map(_resident_bytes, _tree(self._process.pid)))

    def open_files(self) -> int:
        """Descriptors that the server and its descendants have open."""
        return sum(map(_open_files, _tree(self._process.pid)))

    def settled_pss_kib(self) -> int:
        """Proportional memory once it has stopped growing, for a figure before the load."""
        before = -1
        for _ in range(20):
            now = self.pss_kib()
            if now == before:
                break
            before = now
            time.sleep(0.1)
        return before


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # user, system, and both of children that ended


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return _resident_bytes(pid) // 1024
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
