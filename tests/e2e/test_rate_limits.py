"""Limits of rates and of connections for each address: who is over one waits or is told so, alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.outcomes import assert_adds_up, options
from tests.e2e.raw_peer import RawPeer, Script, drive, numbers_by_sender
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from tests.e2e.gateway_process import GatewayProcess

OFTEN = options(metrics__interval_s=0.02)
BUSY = b"! busy too many connections from your address\n"


async def connect_from(host: str, port: int) -> LineClient:
    """A client that has said nothing, with this address of the machine."""
    return LineClient(*await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0)))


async def is_in(client: LineClient, name: str) -> bool:
    """Say a login; whether the gateway lets it in."""
    client.send(f"{name}\n{name}: in\n".encode())
    return await client.line() == f"from {name}: in\n".encode()


async def log_in_from(host: str, gateway: GatewayProcess, name: str) -> LineClient:
    """A client that the gateway knows under that name, with this address of the machine."""
    client = await connect_from(host, gateway.port)
    assert await is_in(client, name)
    return client


async def test_session_is_delayed_and_nothing_refused_when_it_sends_more_than_its_rate() -> None:
    """Everything arrives, in order and no faster than the rate; who sends less is not held back."""
    lines, per_s, burst, read_lines = 300, 200, 50, 16
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN),
        *options(
            limits__messages_per_s=per_s,
            limits__messages_burst=burst,
            limits__max_line_bytes=512,
            limits__max_read_bytes=read_lines * 64,
        ),
    ) as gateway:
        bob = await RawPeer.login(gateway.port, "bob")
        alice = await RawPeer.login(gateway.port, "alice")
        carol = await LineClient.login(gateway.port, "carol")
        script = Script(alice, "bob", line_bytes=64, total_bytes=lines * 64)
        began = time.monotonic()
        await drive(script.push, until=lambda: script.is_done)
        await gateway.wait_record("metrics", lambda record: record["sessions_held_back"] == 1)
        for _ in range(burst // 2):
            carol.send(b"carol: x\n")
            assert await carol.line() == b"from carol: x\n"
        bob.read()
        at_carols_end = bob.received.count(b"\n")
        await drive(bob.read, until=lambda: bob.received.count(b"\n") == lines)
        took_s = time.monotonic() - began
        await gateway.wait_record("metrics", lambda record: record["delivered"] == lines + burst // 2 + 3)
        assert_adds_up(gateway)
        records = gateway.found("metrics")
        alice.read()
        for peer in (alice, bob):
            peer.close()
        await carol.close()

    assert numbers_by_sender(bob.received) == {"alice": list(range(lines))}
    assert not alice.received
    assert took_s > (lines - burst - read_lines) / per_s
    assert at_carols_end < lines
    assert records[-1]["refused"] == 0
    assert max(record["sessions_held_back"] for record in records) == 1


async def test_connection_is_answered_busy_when_its_address_has_as_many_as_it_may() -> None:
    """The 65th is told so and closed, at once and each time; another address and a vacant place are free."""
    limit = 64
    async with running_gateway(
        "--loop", same_loop(), *OFTEN, *options(limits__limit_loopback="true")
    ) as gateway:
        clients = [await log_in_from("127.0.0.1", gateway, f"one{number}") for number in range(limit)]
        for _ in range(20):
            client = await connect_from("127.0.0.1", gateway.port)
            assert await client.rest() == BUSY
            await client.close()
        clients += [await log_in_from("127.0.0.2", gateway, f"two{number}") for number in range(limit)]
        client = await connect_from("127.0.0.2", gateway.port)
        assert await client.rest() == BUSY
        await client.close()
        await clients.pop(0).close()
        await gateway.wait_record("session.closed", lambda record: record["login"] == "one0")
        clients.append(await log_in_from("127.0.0.1", gateway, "again"))
        record = await gateway.wait_record(
            "metrics", lambda record: record["connections_closed"].get("busy") == 21
        )
        for client in clients:
            await client.close()
    assert "login_timeout" not in record["connections_closed"]


async def test_new_connections_are_delayed_when_their_address_brings_too_many() -> None:
    """All get in, no faster than the rate; one from another address does not wait with them."""
    count, per_s, burst = 12, 10, 3
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN),
        *options(
            limits__limit_loopback="true",
            limits__new_connections_per_s=per_s,
            limits__new_connections_burst=burst,
        ),
    ) as gateway:
        began = time.monotonic()
        clients = [await connect_from("127.0.0.1", gateway.port) for _ in range(count)]
        waiting = [
            asyncio.create_task(is_in(client, f"one{number}")) for number, client in enumerate(clients)
        ]
        clients.append(await log_in_from("127.0.0.2", gateway, "two"))
        others_in = sum(task.done() for task in waiting)
        assert all(await asyncio.gather(*waiting))
        took_s = time.monotonic() - began
        await gateway.wait_record("session.login", lambda record: record["login"] == f"one{count - 1}")
        logins = [record["login"] for record in gateway.found("session.login")]
        for client in clients:
            await client.close()
    assert others_in < count
    assert took_s > (count - burst - 1) / per_s
    assert [login for login in logins if login != "two"] == [f"one{number}" for number in range(count)]
