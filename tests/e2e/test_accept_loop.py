"""The accept loop of a real process: short of files, at the limit of connections, and after both."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.gateway_process import GatewayProcess, LineClient, running_gateway
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = 1_000
HARD_LIMIT = 100
WATCHED_S = 2.5  # five pauses of the listener
WORKS_AGAIN_S = 3.0  # promised: a new client is served so soon after the load has stopped
MAX_CPU_SHARE = 0.20  # promised: of one core, while connections wait that cannot be accepted
MAX_PAUSES_PER_S = 2.0  # a pause is 500 ms
FEW_FILES = ("bash", "-c", f'ulimit -n {HARD_LIMIT}; exec "$@"', "bash")
LOWER_SOFT_LIMIT = ("bash", "-c", 'ulimit -Sn 90; ulimit -Hn 300; exec "$@"', "bash")


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


def is_of(login: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a record is about this login."""
    return lambda record: bool(record["login"] == login)


async def test_gateway_serves_a_new_client_when_a_thousand_connections_exhausted_its_files() -> None:
    """Short of files the gateway says so with a hint once a pause, stays idle, and recovers in 3 s."""
    async with running_gateway(
        *("--loop", same_loop(), "--set", "limits.max_connections=5000"), prefix=FEW_FILES
    ) as gateway:
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


async def test_gateway_raises_its_soft_limit_of_files_when_it_starts() -> None:
    """The process may open as many files as its hard limit allows, whatever its soft limit was."""
    async with running_gateway(
        "--loop", same_loop(), "--set", "limits.max_connections=200", prefix=LOWER_SOFT_LIMIT
    ) as gateway:
        assert open_files_limit(gateway) == (300, 300)
        crowd = Crowd(gateway.port, 150)  # more than the soft limit it was started with
        client = await LineClient.login(gateway.port, "alice")
        crowd.close()
        await client.close()
        assert await gateway.stop() == 0
    assert not gateway.found("limits.files")
    assert not gateway.found("listener.paused")


async def test_gateway_serves_a_waiting_client_when_a_connection_at_the_limit_ends() -> None:
    """With at_limit = "wait" a client beyond the limit waits, unanswered, until another one has left."""
    async with running_gateway(
        "--loop", same_loop(), "--set", "limits.max_connections=2", "--set", "metrics.interval_s=0.05"
    ) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        bob = await LineClient.login(gateway.port, "bob")
        carol = await LineClient.connect(gateway.port)
        carol.send(b"carol\ncarol: in\n")
        record = await gateway.wait_record("listener.at_limit")
        assert (record["max_connections"], record["at_limit"]) == (2, "wait")
        alice.send(b"carol: are you there?\n")
        assert await alice.line() == b"! unknown-recipient carol: not logged in\n"
        await bob.close()
        assert await carol.line() == b"from carol: in\n"
        await gateway.wait_record("metrics", lambda record: record["connections_accepted"] == 3)
        assert max(record["connections"] for record in gateway.found("metrics")) == 2
        assert len(gateway.found("listener.at_limit")) <= 2  # not once for each turn of the loop
        await alice.close()
        await carol.close()


async def test_gateway_answers_busy_when_it_is_at_the_limit_and_lets_in_when_tokens_are_back() -> None:
    """With at_limit = "busy" those beyond the limit are told so and closed; every token comes back."""
    rounds = 20  # a token that were lost in any of them would leave no room in the end
    async with running_gateway(
        "--loop", same_loop(), "--set", "limits.max_connections=2", "--set", "limits.at_limit=busy"
    ) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        for number in range(rounds):
            bob = await LineClient.login(gateway.port, f"bob{number}")
            turned_away = [await LineClient.connect(gateway.port) for _ in range(3)]
            for client in turned_away:
                client.send(b"carol\n")
                assert await client.rest() == b"! busy too many connections, try again later\n"
                await client.close()
            await bob.close()
            await gateway.wait_record("session.closed", is_of(f"bob{number}"))
        await alice.close()
        assert await gateway.stop() == 0
    last = gateway.found("metrics")[-1]
    assert last["connections_closed"]["busy"] == 3 * rounds
    assert last["logins"] == rounds + 1
