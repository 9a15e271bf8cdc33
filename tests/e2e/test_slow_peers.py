"""Recipients that do not read, or hardly: what their senders meet, and what becomes of every copy.

The steps of the ladder are short here. How long one takes is never asserted, only their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import WAIT_S, LineClient, running_gateway
from tests.e2e.outcomes import assert_adds_up, notice_counts, options, whole_lines
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed, numbers_by_sender
from tests.e2e.room import lines_until, same_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

KIB = 1024
LINE_BYTES = 512
SMALL = options(
    outbox__max_outbox_bytes=32 * KIB,
    outbox__high_watermark_bytes=16 * KIB,
    outbox__low_watermark_bytes=4 * KIB,
    outbox__send_buffer_bytes=4 * KIB,
    limits__refused_per_s=0,
    metrics__interval_s=0.05,
)
FAIL_MAX = 3
LADDER = options(
    outbox__write_timeout_s=0.1,
    breaker__fail_max=FAIL_MAX,
    breaker__reset_timeout_s=0.1,
    retry__base_delay_s=0.01,
    retry__max_delay_s=0.02,
)
NO_LADDER = options(outbox__write_timeout_s=600)
NO_EVICTION = options(outbox__evict_after_s=600)

# A client that writes to its standard output all it gets, and nothing else.
READER = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"bob\\n")
while data := sock.recv(65536):
    sys.stdout.buffer.write(data)
"""


@contextlib.asynccontextmanager
async def reader_process(gateway: GatewayProcess) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client in a process of its own, logged in as bob; ended whatever happens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", READER, str(gateway.port)), stdout=PIPE
    )
    try:
        await gateway.wait_record("session.login", lambda record: record["login"] == "bob")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def record_of(gateway: GatewayProcess, event: str, login: str) -> dict[str, Any]:
    """The first record of this event for this login, waiting for it."""
    return await gateway.wait_record(event, lambda record: record["login"] == login)


def breaker_events(gateway: GatewayProcess, login: str) -> list[str]:
    """What the breaker of this login has become, in order."""
    events = ("breaker.opened", "breaker.half_open", "breaker.closed")
    return [one["event"] for one in gateway.records if one["event"] in events and one["login"] == login]


@pytest.mark.parametrize("ladder", [NO_LADDER, LADDER], ids=["patient", "impatient"])
async def test_recipient_gets_what_was_not_refused_when_its_process_is_stopped_for_a_while(
    ladder: list[str],
) -> None:
    """Everything arrives in order, or the breaker had opened and each missing copy was reported."""
    lines = 600
    async with (
        running_gateway("--loop", same_loop(), *SMALL, *ladder, *NO_EVICTION) as gateway,
        reader_process(gateway) as bob,
    ):
        alice = await RawPeer.login(gateway.port, "alice", send_buffer_bytes=16 * KIB)
        script = Script(alice, "bob", line_bytes=LINE_BYTES, total_bytes=lines * LINE_BYTES)
        bob.send_signal(signal.SIGSTOP)
        if ladder is LADDER:
            await drive(script.push, alice.read, until=lambda: bool(alice.received))
        else:
            await drive(script.push, until=elapsed(0.7))
            await gateway.wait_record("metrics", lambda record: record["sessions_stalled"] == 1)
            assert not script.is_done
        bob.send_signal(signal.SIGCONT)
        output = asyncio.create_task(bob.communicate())
        await drive(script.push, alice.read, until=lambda: script.is_done)
        if ladder is LADDER:
            await gateway.wait_record("breaker.closed", lambda record: record["login"] == "bob")
        await gateway.wait_record(
            "metrics", lambda record: record["accepted"] == lines + 1 and not record["in_flight"]
        )
        end = Script(alice, "bob", line_bytes=LINE_BYTES, total_bytes=LINE_BYTES)
        await drive(end.push, until=lambda: end.is_done)  # a second number 0: the way is free again
        assert await gateway.stop() == 0
        received, _ = await output
        await drive(alice.read, until=lambda: alice.is_ended)
        assert_adds_up(gateway)
        events = breaker_events(gateway, "bob")

    shutdown = b"! shutdown the gateway stops\n"
    refused = notice_counts(alice.received.replace(shutdown, b""))
    numbers = numbers_by_sender(received.replace(shutdown, b""))["alice"]
    assert numbers.pop() == 0
    assert numbers == sorted(set(numbers))
    assert len(numbers) + refused["bob"] == lines
    assert (refused["bob"] > 0) == (ladder is LADDER)
    assert events[:1] + events[-1:] == (["breaker.opened", "breaker.closed"] if refused else [])


async def test_copies_all_have_an_outcome_when_nobody_reads_before_it_has_written_everything() -> None:
    """Two that flood each other, one that floods itself and a ring: the ladder lets all of them finish."""
    lines, line_bytes = 448, 1024  # more than what the kernel and the gateway hold for one
    routes = {"alice": "bob", "bob": "alice", "carol": "carol"}
    routes |= {f"ring{number}": f"ring{(number + 1) % 50}" for number in range(50)}
    async with running_gateway("--loop", same_loop(), *SMALL, *LADDER, *NO_EVICTION) as gateway:
        peers = {
            name: await RawPeer.login(
                gateway.port, name, send_buffer_bytes=4 * KIB, receive_buffer_bytes=4 * KIB
            )
            for name in routes
        }
        scripts = [
            Script(peers[name], to, line_bytes=line_bytes, total_bytes=lines * line_bytes)
            for name, to in routes.items()
        ]
        await drive(*(script.push for script in scripts), until=lambda: all(one.is_done for one in scripts))
        stalled = max(record["sessions_stalled"] for record in gateway.found("metrics"))

        def missing() -> dict[str, int]:
            """Copies that have not come and were not reported, by their sender."""
            come = {name: numbers_by_sender(whole_lines(peer.received)) for name, peer in peers.items()}
            left = {}
            for name, to in routes.items():
                numbers = come[to].get(name, [])
                assert numbers == sorted(set(numbers))
                left[name] = lines - len(numbers) - notice_counts(peers[name].received)[to]
            return {name: count for name, count in left.items() if count}

        is_over = elapsed(WAIT_S)
        while missing() and not is_over():
            await drive(*(peer.read for peer in peers.values()), until=elapsed(0.2))
        assert missing() == {}
        await gateway.wait_record(
            "metrics",
            lambda record: record["accepted"] == (lines + 1) * len(routes) and not record["in_flight"],
        )
        assert_adds_up(gateway)
        for peer in peers.values():
            assert not peer.is_ended
            peer.close()
    assert stalled == len(routes)
    assert len(gateway.found("breaker.opened")) >= len(routes)


async def test_sender_runs_on_when_its_recipient_reads_too_little_to_count() -> None:
    """Who reads a byte now and then, or less than `min_progress_bytes`, is stuck and in the end evicted."""
    bites = {"byte": 1, "drip": 1500}
    every_s = 0.4
    async with running_gateway(
        *("--loop", same_loop(), *SMALL, *LADDER),
        *options(outbox__write_timeout_s=0.2, outbox__evict_after_s=2.5, outbox__min_progress_bytes=4096),
    ) as gateway:
        other = await RawPeer.login(gateway.port, "other")
        slow = {
            name: await RawPeer.login(gateway.port, name, receive_buffer_bytes=2048) for name in bites
        }
        senders = [await RawPeer.login(gateway.port, f"to-{name}") for name in bites]
        floods = [
            Script(sender, name, line_bytes=LINE_BYTES, total_bytes=200 * KIB)
            for sender, name in zip(senders, bites, strict=True)
        ]
        await drive(*(script.push for script in floods), until=lambda: all(one.is_done for one in floods))
        for sender in senders:  # behind all that
            sender.push(b"other: 00000000 \n")
        due_s = time.monotonic()

        def nibble() -> int:
            nonlocal due_s
            if time.monotonic() < due_s:
                return 0
            due_s += every_s
            return sum(peer.read(bites[name]) for name, peer in slow.items())

        await drive(nibble, other.read, until=lambda: other.received.count(b"\n") == len(senders))
        for name in bites:
            await record_of(gateway, "breaker.opened", name)
        assert not gateway.found("metrics")[-1]["evictions"]
        read_bytes = len(slow["drip"].received)
        await drive(
            nibble, until=lambda: gateway.found("metrics")[-1]["evictions"] == len(bites)
        )
        read_later_bytes = len(slow["drip"].received) - read_bytes
        await drive(
            *(peer.read for peer in slow.values()), until=lambda: all(one.is_ended for one in slow.values())
        )
        for name in bites:
            closed = await record_of(gateway, "session.closed", name)
            assert closed["reason"] == "slow_consumer"
            assert "breaker.closed" not in breaker_events(gateway, name)
        assert_adds_up(gateway)
    assert read_later_bytes > bites["drip"]  # it did read all the time


async def test_refusals_are_quick_and_probes_are_single_when_a_recipient_is_a_black_hole() -> None:
    """It costs `fail_max` waits, then nothing but one probe at a time, until it is evicted."""
    async with running_gateway(
        *("--loop", same_loop(), *SMALL, *LADDER, *options(outbox__evict_after_s=2, outbox__linger_s=1)),
    ) as gateway:
        late = await RawPeer.login(gateway.port, "late", receive_buffer_bytes=2048)
        never = await RawPeer.login(gateway.port, "never", receive_buffer_bytes=2048)
        alice, bob = [await LineClient.login(gateway.port, name) for name in ("alice", "bob")]
        for client, client_name, to in ((alice, "alice", "late"), (bob, "bob", "never")):
            client.send(f"{to}: {'x' * 500}\n".encode() * 400)
            await record_of(gateway, "breaker.opened", to)
            client.send(f"{client_name}: end\n".encode())
            assert notice_counts(await lines_until(client, f"from {client_name}: end\n".encode()))[to]
        seen = len(gateway.found("metrics"))

        async def round_trip_s(said: bytes, answer: bytes) -> float:
            began = time.monotonic()
            alice.send(said)
            assert await alice.line() == answer
            return time.monotonic() - began

        refusal_s, delivery_s = [], []
        for _ in range(30):
            refusal_s.append(await round_trip_s(b"late: x\n", b"! refused late: 1 message, breaker open\n"))
            delivery_s.append(await round_trip_s(b"alice: x\n", b"from alice: x\n"))
        evicted = await gateway.wait_record("metrics", lambda record: record["evictions"] == 2)
        await drive(late.read, until=lambda: late.is_ended)
        for login in ("late", "never"):
            closed = await record_of(gateway, "session.closed", login)
            assert closed["reason"] == "slow_consumer"
        assert_adds_up(gateway)
        first = gateway.found("metrics")[seen]
        events = {login: breaker_events(gateway, login) for login in ("late", "never")}
        for client in (alice, bob):
            await client.close()
        never.close()

    assert statistics.median(refusal_s) < 10 * statistics.median(delivery_s)
    assert first["retries"] == 2 * (FAIL_MAX - 1)
    assert evicted["refused_by_reason"]["slow_consumer"] > 0  # what had waited for them
    assert late.received.endswith(b"\n! slow-consumer you did not read what was sent to you\n")
    for changes in events.values():
        assert len(changes) >= 4
        assert set(changes[::2]) == {"breaker.opened"}
        assert set(changes[1::2]) == {"breaker.half_open"}
