"""A gateway of several workers and its clients: at which worker each of them is, and what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Self

import pytest

from tests.e2e.gateway_process import WAIT_S, LineClient, running_gateway
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

__all__ = [
    "FAREWELL",
    "FREELY",
    "SOON",
    "Guest",
    "Places",
    "Stream",
    "assert_accounted",
    "each_loop_once",
    "log_in",
    "notices",
    "numbers_by_sender",
    "replaced",
    "several",
    "spread",
    "streaming",
    "worker_pid",
]

FAREWELL = b"! shutdown the gateway stops\n"
# Being refused slows nobody down.
FREELY = ("--set", "limits.refused_per_s=1000000", "--set", "limits.refused_burst=1000000")
SOON = ("--set", "supervisor.worker_timeout_s=1", "--set", "supervisor.restart_base_delay_s=0.01")

_AT_ONCE = 50  # logins that are under way together
_LOOK_S = 0.005
_NUMBERED = re.compile(rb"from ([^:]+): (\d+)(?: x+)?")


def several(
    *arguments: str, workers: int = 2, base: Path | None = None
) -> contextlib.AbstractAsyncContextManager[GatewayProcess]:
    """A gateway on the event loop of the test; `base` is where its run directory is made."""
    environment = {"XDG_RUNTIME_DIR": str(base)} if base else None
    brief = ("--set", "outbox.linger_s=0.2", "--set", "metrics.interval_s=0.2")
    return running_gateway(
        "--loop", same_loop(), *brief, *arguments, workers=workers, environment=environment
    )


def each_loop_once(workers: int) -> None:
    """Spread the numbers of workers over the event loops: even ones on uvloop, odd ones on the other."""
    if (same_loop() == "uvloop") != (workers % 2 == 0):
        pytest.skip("on the other event loop")


def worker_pid(gateway: GatewayProcess, worker: int) -> int:
    """The process that last got ready in this place."""
    ready = [record for record in gateway.found("worker.ready") if record["worker"] == worker]
    pid: int = ready[-1]["pid"]
    return pid


async def replaced(gateway: GatewayProcess, worker: int) -> int:
    """Wait for a process in this place that is not the one which last got ready there; returns it."""
    known = {record["pid"] for record in gateway.found("worker.ready")}
    ready = await gateway.wait_record(
        "worker.ready", lambda record: record["worker"] == worker and record["pid"] not in known
    )
    pid: int = ready["pid"]
    return pid


def assert_accounted(gateway: GatewayProcess) -> dict[str, Any]:
    """Every metrics record of the gateway adds up; returns the last one."""
    records = gateway.found("metrics")
    for record in records:
        assert record["worker"] == "supervisor"
        ended = record["delivered"] + record["stored"] + record["refused"]
        assert record["accepted"] == ended + record["in_flight"], record
        assert record["in_flight"] >= 0
    assert not gateway.found("loop.error")
    return records[-1]


class Places:
    """Which worker has accepted which connection, as the log says; made once for a gateway."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._workers: dict[int, int] = {}  # by the client's port, until it is asked for
        self._seen = 0  # records of the log

    async def of(self, client: LineClient) -> int:
        """The worker of a new connection; asked for once."""
        port: int = client.writer.get_extra_info("sockname")[1]
        async with asyncio.timeout(WAIT_S):
            while True:
                self._look()
                if port in self._workers:
                    return self._workers.pop(port)
                await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        records = self._gateway.records
        for record in records[self._seen :]:
            if record["event"] == "connection.accepted":
                self._workers[record["port"]] = record["worker"]
        self._seen = len(records)


class Guest:
    """A client whose worker is known; read by a task of its own until the gateway closes, then closed."""

    def __init__(self, client: LineClient, name: str, worker: int) -> None:
        self.client = client
        self.name = name
        self.worker = worker
        self.received = bytearray()  # since its login
        self._asked = 0  # times that it has asked whether all was heard
        self._reading_task = asyncio.create_task(self._read())

    @classmethod
    async def login(cls, gateway: GatewayProcess, places: Places, name: str) -> Self:
        """Log in and wait until the gateway knows it."""
        client = await LineClient.login(gateway.port, name)
        return cls(client, name, await places.of(client))

    @classmethod
    async def come(cls, gateway: GatewayProcess, places: Places, name: str) -> Self:
        """Ask for a login and see what comes of it."""
        client = await LineClient.connect(gateway.port)
        client.send(f"{name}\n".encode())
        return cls(client, name, await places.of(client))

    def send(self, text: str) -> None:
        """Send lines as they are."""
        self.client.send(text.encode())

    async def until(self, mark: bytes) -> None:
        """Wait until it has received this."""
        async with asyncio.timeout(WAIT_S):
            while mark not in self.received:
                assert not self._reading_task.done(), bytes(self.received[-200:])
                await asyncio.sleep(_LOOK_S)

    async def heard_out(self) -> None:
        """Wait until the gateway has accepted everything that this one has said so far."""
        self._asked += 1
        self.send(f"{self.name}: that was {self._asked}\n")
        await self.until(f"from {self.name}: that was {self._asked}\n".encode())

    async def ended(self) -> None:
        """Wait until the gateway has closed, in whatever way."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([self._reading_task])

    async def close(self) -> None:
        """Close both sides."""
        await self.client.close()
        await self.ended()

    async def _read(self) -> None:
        try:
            with contextlib.suppress(ConnectionError):  # a reset is an end like any other
                while data := await self.client.reader.read(65_536):
                    self.received += data
        finally:
            self.client.writer.close()


def numbers_by_sender(received: bytes | bytearray) -> dict[str, list[int]]:
    """The numbers of all lines that are numbered, in the order they came."""
    numbers: dict[str, list[int]] = {}
    for line in bytes(received).split(b"\n"):
        if (found := _NUMBERED.fullmatch(line)) is not None:
            numbers.setdefault(found[1].decode(), []).append(int(found[2]))
    return numbers


def notices(received: bytes | bytearray) -> bytes:
    """All lines that the gateway itself said."""
    return b"".join(line for line in bytes(received).splitlines(keepends=True) if line.startswith(b"! "))


async def log_in(gateway: GatewayProcess, places: Places, names: Iterable[str]) -> list[Guest]:
    """Log these in, some of them together."""
    permits = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> Guest:
        async with permits:
            return await Guest.login(gateway, places, name)

    return list(await asyncio.gather(*map(one, names)))


async def spread(
    gateway: GatewayProcess, places: Places, prefix: str, wanted: dict[int, int]
) -> dict[int, list[Guest]]:
    """Log clients in until each worker has so many, which the kernel decides; the others are closed."""
    found: dict[int, list[Guest]] = {worker: [] for worker in wanted}
    for number in range(60):
        guests = await log_in(gateway, places, (f"{prefix}{number}x{each}" for each in range(8)))
        for guest in guests:
            there = found.get(guest.worker, [])
            if len(there) < wanted.get(guest.worker, 0):
                there.append(guest)
            else:
                await guest.close()
        if all(len(found[worker]) == count for worker, count in wanted.items()):
            return found
    raise AssertionError("the kernel gives some worker nobody")


class Stream:
    """Numbered lines from a guest to a login, sent by a task of its own; see `streaming`."""

    def __init__(self, sender: Guest, to: str, chance: random.Random) -> None:
        self.sender = sender
        self.to = to
        self.sent = 0  # lines
        self._chance = chance
        self._is_over = False

    async def run(self) -> None:
        """Send until it is stopped: few at once, then many, as it comes."""
        writer = self.sender.client.writer
        while not self._is_over:
            self.say(self._chance.randint(1, 20))
            await writer.drain()
            await asyncio.sleep(self._chance.random() * 0.004)

    def say(self, lines: int) -> None:
        """Send so many lines more."""
        numbers = range(self.sent, self.sent + lines)
        self.sent += lines
        self.sender.send("".join(f"{self.to}: {number}\n" for number in numbers))

    def stop(self) -> None:
        """Begin nothing more."""
        self._is_over = True


@contextlib.asynccontextmanager
async def streaming(streams: Iterable[Stream]) -> AsyncIterator[None]:
    """All of them run for the length of a block, and have said everything at its end."""
    streams = list(streams)
    tasks = [asyncio.create_task(stream.run()) for stream in streams]
    try:
        yield
    finally:
        for stream in streams:
            stream.stop()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*tasks)
