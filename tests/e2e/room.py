"""A gateway process and the clients of one test, ended together; on the event loop that the test runs on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.gateway_process import GatewayProcess

__all__ = ["Room", "lines_until", "open_room", "same_loop"]


class Room:
    """A gateway and its clients; made and ended by `open_room`, used in the test's task."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self._clients: list[LineClient] = []  # those that must be closed at the end

    async def connect(self) -> LineClient:
        """A client that has said nothing."""
        return self._kept(await LineClient.connect(self.gateway.port))

    async def login(self, name: str) -> LineClient:
        """A client that the gateway knows under that name."""
        return self._kept(await LineClient.login(self.gateway.port, name))

    async def answer(self, said: bytes, *, is_ended: bool = False) -> bytes:
        """All that a new connection gets for what it says, until the gateway closes it.

        `is_ended` closes its sending side behind what it says.
        """
        client = await self.connect()
        client.send(said)
        if is_ended:
            client.end()
        return await client.rest()

    async def logged_in(self, name: str) -> None:
        """Wait until the log says that this login has succeeded."""
        await self.gateway.wait_record("session.login", lambda record: record["login"] == name)

    async def logged_out(self, name: str) -> None:
        """Wait until the log says that this session has ended."""
        await self.gateway.wait_record("session.closed", lambda record: record["login"] == name)

    async def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            await client.close()

    def _kept(self, client: LineClient) -> LineClient:
        self._clients.append(client)
        return client


@contextlib.asynccontextmanager
async def open_room(*arguments: str) -> AsyncIterator[Room]:
    """A room with a gateway on the same kind of event loop as the test; `arguments` are for the gateway."""
    async with running_gateway("--loop", same_loop(), *arguments) as gateway:
        room = Room(gateway)
        try:
            yield room
        finally:
            await room.close()


def same_loop() -> str:
    """What the running event loop is called in the gateway's configuration."""
    return "uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio"


async def lines_until(client: LineClient, mark: bytes) -> bytes:
    """What a client gets before the line `mark`."""
    received: list[bytes] = []
    while (line := await client.line()) != mark:
        assert line, f"closed after {received}"
        received.append(line)
    return b"".join(received)
