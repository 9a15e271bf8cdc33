"""Clients that go and come back: what waited for them, what became of it, and whose login it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import WAIT_S, LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive, numbers_by_sender
from tests.e2e.room import lines_until, same_loop
from tests.e2e.workers import several

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

LINE_BYTES = 256
LINES = 1200  # more than the kernel's buffers hold for one that does not read
OFTEN = ("--set", "metrics.interval_s=0.1")
# All of that waits without holding a sender back, and fits into the grace.
ROOMY = (
    *("--set", "outbox.max_outbox_bytes=2000000", "--set", "outbox.high_watermark_bytes=1000000"),
    *("--set", "limits.max_inflight_bytes=4000000", "--set", "outbox.max_grace_bytes=1000000"),
)
# A recipient that is stuck is nobody's trouble before these tests are over.
PATIENT = ("--set", "outbox.write_timeout_s=600", "--set", "outbox.evict_after_s=600")
RETURNS = 50
LOGIN_S = 10.0  # ten times what it may take on a machine that is not busy
REFUSED = re.compile(rb"! refused bob: (\d+) messages, gone\n")


async def fill(gateway: GatewayProcess, *senders: RawPeer) -> None:
    """Send bob `LINES` numbered lines from all of these together, and wait until they wait for him."""
    lines = LINES // len(senders)
    scripts = [Script(peer, "bob", line_bytes=LINE_BYTES, total_bytes=lines * LINE_BYTES) for peer in senders]
    await drive(*(script.push for script in scripts), until=lambda: all(one.is_done for one in scripts))
    taken = sum(script.taken_bytes for script in scripts)
    await gateway.wait_record("metrics", lambda record: record["bytes_in"] >= taken)
    last = await next_metrics(gateway)
    assert last["in_flight"] > 100, "the kernel has swallowed nearly all of it"
    assert last["sessions_stalled"] == 0


async def next_metrics(gateway: GatewayProcess) -> dict[str, Any]:
    """A metrics record from now on."""
    seen = len(gateway.found("metrics"))
    await gateway.wait_record("metrics", lambda _: len(gateway.found("metrics")) > seen + 1)
    return gateway.found("metrics")[-1]


async def stop(gateway: GatewayProcess) -> dict[str, Any]:
    """Stop it in order; returns the last metrics record, which must add up and leave nothing in flight."""
    assert await gateway.stop() == 0
    last: dict[str, Any] = gateway.found("metrics")[-1]
    assert last["accepted"] == last["delivered"] + last["stored"] + last["refused"]
    assert last["in_flight"] == 0
    assert not gateway.found("loop.error")
    return last


async def test_recipient_gets_what_waited_when_it_returns_within_the_grace() -> None:
    """Copies that its first connection left come in order and ahead of newer ones, and none is refused."""
    async with running_gateway("--loop", same_loop(), *OFTEN, *ROOMY, *PATIENT) as gateway:
        bob = await RawPeer.login(gateway.port, "bob", receive_buffer_bytes=4096)
        alice = await RawPeer.login(gateway.port, "alice")
        await fill(gateway, alice)
        bob.close()
        away = await gateway.wait_record("metrics", lambda record: record["logins_in_grace"] == 1)

        again = await LineClient.connect(gateway.port)
        again.send(b"bob\nbob: in\n")
        waited = numbers_by_sender(await lines_until(again, b"from bob: in\n"))
        alice.push(b"bob: newer\n")
        assert await again.line() == b"from alice: newer\n"
        alice.read()
        assert not alice.received
        last = await stop(gateway)
        await again.close()
        alice.close()

    assert waited == {"alice": list(range(LINES - away["in_flight"], LINES))}
    assert last["refused"] == 0


async def only_refusal(sender: RawPeer) -> int:
    """The number of copies in the one Notice that this sender gets."""
    await drive(sender.read, until=lambda: b"\n" in sender.received)
    end = f"from {sender.name}: end\n".encode()
    sender.push(f"{sender.name}: end\n".encode())
    await drive(sender.read, until=lambda: sender.received.endswith(end))
    notice = REFUSED.fullmatch(sender.received.removesuffix(end))
    assert notice is not None, sender.received
    return int(notice[1])


async def test_senders_are_told_once_when_a_recipient_does_not_return(tmp_path: Path) -> None:
    """Each sender gets one Notice with the number of its copies, and each copy is a dead letter."""
    path = tmp_path / "letters.jsonl"
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN, *ROOMY, *PATIENT),
        *("--set", "outbox.reconnect_grace_s=0.5", "--set", f"dead_letters.path={path}"),
    ) as gateway:
        bob = await RawPeer.login(gateway.port, "bob", receive_buffer_bytes=4096)
        senders = [await RawPeer.login(gateway.port, name) for name in ("alice", "eve")]
        await fill(gateway, *senders)
        bob.close()
        refused = {sender.name: await only_refusal(sender) for sender in senders}
        last = await stop(gateway)
        for sender in senders:
            sender.close()

    letters = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert {letter["to"] for letter in letters} == {"bob"}
    lines = "".join(f"{line}\n" for letter in letters for line in letter["lines"])
    assert numbers_by_sender(lines.encode()) == {
        name: list(range(LINES // 2 - count, LINES // 2)) for name, count in refused.items()
    }
    assert last["refused_by_reason"] == {"gone": sum(refused.values())}
    assert last["dead_letters"] == {"written": len(letters), "lost": 0}


# A client that sends what it is told to, and does not end by itself.
CLIENT = """
import shutil, socket, sys, time
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
shutil.copyfileobj(sys.stdin.buffer.raw, sock.makefile("wb", 0))
time.sleep(60)
"""


@contextlib.asynccontextmanager
async def client_process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client in a process of its own, ended whatever happens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, str(port)), stdin=PIPE, stdout=DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def stall(gateway: GatewayProcess, client: asyncio.subprocess.Process) -> None:
    """Have a client log in as alice and write to bob until it is not read any more."""
    assert client.stdin is not None
    client.stdin.write(b"alice\n")
    while (await next_metrics(gateway))["sessions_stalled"] == 0:
        client.stdin.write((b"bob: " + b"x" * 250 + b"\n") * 64)


@pytest.mark.parametrize(
    "flood_bytes",
    [
        pytest.param(0, id="quiet"),
        pytest.param(16 << 20, id="flooding"),  # the end of its stream is behind what its kernel cannot send
    ],
)
async def test_login_is_free_at_once_when_its_client_died_while_it_was_not_read(flood_bytes: int) -> None:
    """Nobody reads alice while bob is stuck, so nobody sees her go; yet she gets her name when she is back.

    What is heard late of the old connection changes nothing for the new one.
    """
    async with running_gateway(
        *("--loop", same_loop(), "--set", "metrics.interval_s=0.02", *PATIENT),
        *("--set", "outbox.high_watermark_bytes=20000", "--set", "outbox.low_watermark_bytes=10000"),
    ) as gateway:
        bob = await RawPeer.login(gateway.port, "bob", receive_buffer_bytes=4096)
        async with client_process(gateway.port) as client:
            await stall(gateway, client)
            if flood_bytes:
                assert client.stdin is not None
                client.stdin.write(b"bob: flood\n" * (flood_bytes // 11))
                await asyncio.sleep(0.3)  # until no buffer on the way takes more
        began = time.monotonic()
        again = await LineClient.connect(gateway.port)
        again.send(b"alice\nalice: in\n")
        answer = await again.line()
        took_s = time.monotonic() - began
        if answer == b"from alice: in\n":
            closed = await gateway.wait_record("session.closed", lambda record: record["login"] == "alice")
            assert closed["reason"] == "client_lost"
            bob.push(b"alice: still there?\n")
            assert await again.line() == b"from bob: still there?\n"
            again.send(b"alice: yes\n")
            assert await again.line() == b"from alice: yes\n"
            assert len(gateway.found("session.closed")) == 1
        await again.close()
        bob.close()

    assert answer == b"from alice: in\n"
    assert took_s < LOGIN_S


def come_back(port: int, *, is_reset: bool) -> list[bytes]:
    """Log in as alice `RETURNS` times, each time right after the connection before was closed or reset."""
    answers = []
    for _ in range(RETURNS):
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
            sock.sendall(b"alice\nalice: in\n")
            answers.append(sock.recv(100))
            if is_reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return answers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("is_reset", "reason"), [(True, "client_lost"), (False, "client_closed")])
async def test_login_is_free_at_once_when_its_client_has_gone(
    is_reset: bool, reason: str, workers: int
) -> None:
    """Whoever is back before the gateway has noticed its end gets its name, at whichever worker it is."""
    async with several(workers=workers) as gateway:
        answers = await asyncio.to_thread(come_back, gateway.port, is_reset=is_reset)
        assert answers == [b"from alice: in\n"] * RETURNS
        # The last one too, which a stop would end for another reason.
        await gateway.wait_record("session.closed", lambda _: len(gateway.found("session.closed")) == RETURNS)
        last = await stop(gateway)

    assert {record["reason"] for record in gateway.found("session.closed")} == {reason}
    assert last["delivered"] == last["accepted"] == RETURNS
