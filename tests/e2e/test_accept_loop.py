"""The accept loop of a real process: short of files, at the limit of connections, and after both."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import WAIT_S, GatewayProcess, LineClient, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 1_000
HARD_LIMIT = 100
WATCHED_S = 2.5  # five pauses of the listener
WORKS_AGAIN_S = 3.0  # promised: a new client is served so soon after the load has stopped
MAX_CPU_SHARE = 0.20  # promised: of one core, while connections wait that cannot be accepted
MAX_PAUSES_PER_S = 2.0  # a pause is 500 ms
FEW_FILES = ("bash", "-c", f'ulimit -n {HARD_LIMIT}; exec "$@"', "bash")
LOWER_SOFT_LIMIT = ("bash", "-c", 'ulimit -Hn 300; ulimit -Sn 90; exec "$@"', "bash")


@pytest.fixture(autouse=True)
def _files_for_the_load() -> Iterator[None]:
    """The test itself opens more files than many systems allow by default."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Crowd:
    """Connections that are opened and held, whatever becomes of them; closed by whoever made it."""

    def __init__(self, port: int, count: int) -> None:
        self.sockets = [self._connect(port, f"guest{number}\n".encode()) for number in range(count)]

    def close(self) -> None:
        """All of them leave."""
        for sock in self.sockets:
            sock.close()

    @staticmethod
    def _connect(port: int, first_line: bytes) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock.send(first_line)
        return sock


def open_files_limit(gateway: GatewayProcess) -> tuple[int, int]:
    """The soft and the hard limit of open files of the process."""
    lines = Path(f"/proc/{gateway.process.pid}/limits").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    return int(soft), int(hard)


async def test_gateway_serves_a_new_client_when_a_thousand_connections_exhausted_its_files() -> None:
    """Short of files the gateway says so with a hint once a pause, stays idle, and recovers in 3 s."""
    async with running_gateway("--set", "limits.max_connections=5000", prefix=FEW_FILES) as gateway:
        crowd = Crowd(gateway.port, CONNECTIONS)
        try:
            await gateway.wait_record("listener.paused")
            began, cpu_before = time.monotonic(), gateway.cpu_s
            pauses_before = len(gateway.found("listener.paused"))
            await asyncio.sleep(WATCHED_S)
            watched_s = time.monotonic() - began
            cpu_share = (gateway.cpu_s - cpu_before) / watched_s
            pauses = len(gateway.found("listener.paused")) - pauses_before
        finally:
            crowd.close()
        async with asyncio.timeout(WORKS_AGAIN_S):
            client = await LineClient.login(gateway.port, "alice")
        await client.close()
        assert await gateway.stop() == 0

    assert cpu_share < MAX_CPU_SHARE
    assert 1 <= pauses <= watched_s * MAX_PAUSES_PER_S + 1
    for record in gateway.found("listener.paused"):
        assert record["errno"] == errno.EMFILE
        assert record["error"] == "too many open files"
        assert "ulimit -n" in record["hint"]
    (warning,) = gateway.found("limits.files")
    assert (warning["max_connections"], warning["open_files"]) == (5000, HARD_LIMIT)
    assert gateway.stderr == b""
