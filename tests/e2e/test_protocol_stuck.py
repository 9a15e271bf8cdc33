"""The rows of the line protocol's table about recipients that do not read, or leave before they have read.

Each test runs twice: with the client and the gateway on asyncio, and with both on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import WAIT_S
from tests.e2e.room import lines_until, open_room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.room import Room

# Little room for a recipient that does not read, a ladder of which the steps take no time, and senders
# that are not held back for having been refused.
SMALL_OUTBOXES = [
    f"--set=outbox.{key}_bytes={nbytes}"
    for key, nbytes in {"max_outbox": 131072, "high_watermark": 131071, "low_watermark": 16384}.items()
] + ["--set=metrics.interval_s=0.05", "--set=limits.refused_per_s=0"]
QUICK_BREAKER = ["--set=outbox.write_timeout_s=0.1", "--set=breaker.fail_max=1"]
STUCK_LINES = 400
STUCK_TEXT = b"x" * 4000
UNKNOWN = re.compile(rb"! unknown-recipient stuck: (?:(\d+) messages, )?not logged in\n")


@contextlib.asynccontextmanager
async def stuck_recipient(room: Room) -> AsyncIterator[socket.socket]:
    """A session called stuck that reads nothing and has little room in its kernel."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", room.gateway.port))
        await loop.sock_sendall(sock, b"stuck\n")
        await room.logged_in("stuck")
        yield sock


async def drained(sock: socket.socket, end: bytes | None) -> bytes:
    """What a recipient has not read so far, up to `end`; for None until it is closed."""
    received = b""
    async with asyncio.timeout(WAIT_S):
        while end is None or not received.endswith(end):
            data = await asyncio.get_running_loop().sock_recv(sock, 65536)
            if not data:
                assert end is None, f"closed after {received[-100:]!r}"
                break
            received += data
    return received


def refused_copies(notices: bytes, reason: bytes) -> int:
    """How many copies to `stuck` were refused for that reason; the Notices must say nothing else."""
    form = rb"! refused stuck: (1 message|(?:[2-9]|\d\d+) messages), " + reason + rb"\n"
    assert re.sub(form, b"", notices) == b""
    return sum(int(count.split()[0]) for count in re.findall(form, notices))


async def test_gateway_refuses_with_a_count_when_one_of_several_recipients_is_full() -> None:
    """The others get every line; the sender hears how many copies the full one did not get, and no more."""
    async with open_room(*SMALL_OUTBOXES) as room, stuck_recipient(room) as sock:
        alice, bob = [await room.login(name) for name in ("alice", "bob")]
        for _ in range(STUCK_LINES):  # in step with bob, whose own outbox shall not fill
            alice.send(b"bob, stuck: " + STUCK_TEXT + b"\n")
            assert await bob.line() == b"from alice: " + STUCK_TEXT + b"\n"
        alice.send(b"alice: end\n")
        notices = await lines_until(alice, b"from alice: end\n")
        alice.send(b"stuck: end\n")
        delivered = await drained(sock, b"from alice: end\n")
    assert 0 < refused_copies(notices, b"full") == STUCK_LINES - (delivered.count(b"\n") - 1)


async def test_gateway_refuses_with_a_count_when_a_breaker_is_open() -> None:
    """Who writes to someone that does not read is stalled, then told how much was refused, and runs on."""
    async with open_room(*SMALL_OUTBOXES, *QUICK_BREAKER) as room, stuck_recipient(room) as sock:
        alice = await room.login("alice")
        alice.send((b"stuck: " + STUCK_TEXT + b"\n") * STUCK_LINES + b"alice: end\n")
        notices = await lines_until(alice, b"from alice: end\n")
        refused = refused_copies(notices, b"breaker open")
        delivered = await drained(sock, (b"from alice: " + STUCK_TEXT + b"\n") * (STUCK_LINES - refused))
    assert refused > 0
    assert delivered.count(b"\n") == STUCK_LINES - refused


@pytest.mark.parametrize("grace_s", [0, 0.2])
async def test_gateway_refuses_with_a_count_when_a_recipient_leaves_before_it_has_read(
    grace_s: float,
) -> None:
    """Every copy that waited for someone who then goes is told to its sender, at once or after the grace."""
    async with open_room(*SMALL_OUTBOXES, f"--set=outbox.reconnect_grace_s={grace_s}") as room:
        alice = await room.login("alice")  # her line to herself there is the first copy
        async with stuck_recipient(room):
            alice.send((b"stuck: " + STUCK_TEXT + b"\n") * STUCK_LINES)
            await room.gateway.wait_record("metrics", lambda record: record["outbox"]["paused"] == 1)
        metrics = await room.gateway.wait_record(
            "metrics", lambda record: record["accepted"] == STUCK_LINES + 1 and record["in_flight"] == 0
        )
        alice.send(b"alice: end\n")
        notices = await lines_until(alice, b"from alice: end\n")
    late = sum(int(count or b"1") for count in UNKNOWN.findall(notices))  # read after the recipient had gone
    gone = refused_copies(UNKNOWN.sub(b"", notices), b"gone")
    assert gone > 0
    assert metrics["delivered"] == STUCK_LINES + 1 - gone - late


@pytest.mark.parametrize(
    "notice", [b"! slow-consumer you did not read what was sent to you\n", b""], ids=["notices", "silent"]
)
async def test_gateway_evicts_when_a_recipient_is_stuck_for_too_long(notice: bytes) -> None:
    """It is closed; when it reads after all, it gets what had left the gateway, and at last the reason."""
    options = [*SMALL_OUTBOXES, *QUICK_BREAKER, "--set=outbox.evict_after_s=0.5", "--set=outbox.linger_s=30"]
    options += [f"--set=limits.notices={str(bool(notice)).lower()}"]
    async with open_room(*options) as room, stuck_recipient(room) as sock:
        alice = await room.login("alice")
        alice.send((b"stuck: " + STUCK_TEXT + b"\n") * STUCK_LINES + b"alice: end\n")
        notices = await lines_until(alice, b"from alice: end\n")
        assert (refused_copies(notices, b"breaker open") > 0) == bool(notice)
        await room.gateway.wait_record("metrics", lambda record: record["evictions"] == 1)
        received = await drained(sock, None)
    lines = (b"from alice: " + STUCK_TEXT + b"\n") * received.count(b"from alice: ")
    assert lines
    assert received == lines + notice
