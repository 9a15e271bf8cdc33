"""A gateway process for one test, and a line client that asserts exact bytes; real sockets on port 0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["WAIT_S", "GatewayProcess", "LineClient", "running_gateway"]

WAIT_S = 30.0  # generous: for what takes milliseconds on an idle machine


class GatewayProcess:
    """One gateway as a child process, its log records gathered as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.records: list[dict[str, Any]] = []  # every log record so far
        self.log_lines: list[bytes] = []  # the same records as they were written
        self.stderr = b""  # complete once the process has ended
        self.port = 0
        self._news = asyncio.Condition()
        self._reader_task = asyncio.create_task(self._read_log())
        self._stderr_task = asyncio.create_task(self._read_stderr())

    @classmethod
    async def start(
        cls,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        workers: int = 1,
    ) -> Self:
        """Start `chat-gateway serve` on a free port of 127.0.0.1 and wait until it is ready.

        `prefix` is put before the command, for example to run it in a shell with other limits.
        """
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-m",
            "chat_gateway",
            "serve",
            "--listen",
            "line://127.0.0.1:0",
            "--workers",
            str(workers),
            "--log-format",
            "json",
            "--set",
            "log.flood_per_s=100000",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        gateway = cls(process)
        ready = await gateway.wait_record("gateway.ready")
        gateway.port = int(ready["listen"][0].rsplit(":", 1)[1])
        for number in range(1, workers + 1 if workers > 1 else 1):  # each writes its own records
            await gateway.wait_record("worker.ready", lambda one: one["worker"] == number)  # noqa: B023
        return gateway

    def found(self, event: str) -> list[dict[str, Any]]:
        """The records of this event so far."""
        return [record for record in self.records if record["event"] == event]

    async def wait_record(
        self, event: str, condition: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The first record of this event for which the condition holds, waiting for it."""

        def matching() -> list[dict[str, Any]]:
            return [record for record in self.found(event) if condition(record)]

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: matching() or self._reader_task.done())
        assert matching(), f"no {event} before the log ended; stderr: {self.stderr.decode()}"
        return matching()[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process."""
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait until it has ended and its log is complete; returns the exit status."""
        async with asyncio.timeout(WAIT_S):
            status = await self.process.wait()
            await asyncio.gather(self._reader_task, self._stderr_task)
        return status

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        """End it whatever it does, with its workers; for clean-up."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.wait()

    @property
    def resident_bytes(self) -> int:
        """Memory of the process now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_s(self) -> float:
        """Processor time it has used, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.log_lines.append(line)
            self.records.append(json.loads(line))
            async with self._news:
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self.stderr = await self.process.stderr.read()


@contextlib.asynccontextmanager
async def running_gateway(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    workers: int = 1,
) -> AsyncIterator[GatewayProcess]:
    """A gateway for the length of a block; ended whatever happens in it."""
    gateway = await GatewayProcess.start(
        *arguments, prefix=prefix, environment=environment, workers=workers
    )
    try:
        yield gateway
    finally:
        await gateway.kill()


class LineClient:
    """One connection that speaks the line protocol; a login is proved by a message to itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Open a connection and say nothing."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    @classmethod
    async def login(cls, port: int, name: str) -> Self:
        """Log in and wait until the gateway knows it."""
        client = await cls.connect(port)
        client.send(f"{name}\n{name}: in\n".encode())
        assert await client.line() == f"from {name}: in\n".encode()
        return client

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def line(self) -> bytes:
        """The next line with its end; empty at the end of the stream."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readline()

    async def rest(self) -> bytes:
        """Everything until the gateway closes."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()

    def end(self) -> None:
        """Close the sending side only."""
        self.writer.write_eof()

    async def close(self) -> None:
        """Close both sides."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
