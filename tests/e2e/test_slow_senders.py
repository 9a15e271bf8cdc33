"""Clients that ask too much, or never look at the answer: they are held back, and nobody beside them."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.outcomes import assert_adds_up, notice_counts, options, whole_lines
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed, numbers_by_sender
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

KIB = 1024
MAX_GROWTH_BYTES = 8 << 20
# A recipient that is stuck stays so.
PATIENT = options(outbox__write_timeout_s=600, outbox__evict_after_s=600, metrics__interval_s=0.02)


async def median_round_trip_s(client: LineClient, name: str) -> float:
    """How long a message of this client to itself takes."""
    times_s = []
    for _ in range(100):
        began = time.monotonic()
        client.send(f"{name}: x\n".encode())
        assert await client.line() == f"from {name}: x\n".encode()
        times_s.append(time.monotonic() - began)
    return statistics.median(times_s)


async def has_accepted(gateway: GatewayProcess, copies: int) -> None:
    """Wait until so many copies were accepted in all."""
    await gateway.wait_record("metrics", lambda record: record["accepted"] == copies)


async def read_lines(peer: RawPeer, lines: int) -> None:
    """Read until it has received so many lines in all."""
    await drive(peer.read, until=lambda: peer.received.count(b"\n") == lines)


async def new_metrics(gateway: GatewayProcess, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first metrics record from now on for which the condition holds."""
    seen = {id(record) for record in gateway.records}
    return await gateway.wait_record("metrics", lambda record: id(record) not in seen and condition(record))


async def test_sender_gains_nothing_when_it_fills_its_credit_leaves_and_comes_back() -> None:
    """Each of its connections keeps its token until its copies have an outcome; then all come back."""
    credit_bytes, max_connections, rounds, visits = 8 * KIB, 12, 4, 50
    read_cost_bytes = 2 * 64 * KIB  # of one read, with what its lines take in memory beside it
    fill_lines = 48
    async with running_gateway(
        *("--loop", same_loop(), *PATIENT),
        *options(
            limits__max_connections=max_connections,
            limits__at_limit="busy",
            limits__max_inflight_bytes=credit_bytes,
            outbox__send_buffer_bytes=4 * KIB,
        ),
    ) as gateway:
        stuck = await RawPeer.login(gateway.port, "stuck", receive_buffer_bytes=2048)
        before_bytes = gateway.resident_bytes
        grown_bytes = turned_away = fills = 0
        for _ in range(rounds):
            for _ in range(visits):
                eve = await LineClient.connect(gateway.port)
                eve.send(b"eve\neve: in\n")
                answer = await eve.line()
                if answer.startswith(b"! busy"):
                    turned_away += 1
                elif not answer.startswith(b"! login-taken"):  # before the gateway has seen her leave
                    assert answer == b"from eve: in\n"
                    first = fills * fill_lines
                    numbers = range(first, first + fill_lines)
                    eve.send("".join(f"stuck: {number:08d} {'x' * 400}\n" for number in numbers).encode())
                    fills += 1
                    accepted = fills * (fill_lines + 1) + 1
                    await has_accepted(gateway, accepted)
                await eve.close()
            grown_bytes = max(grown_bytes, gateway.resident_bytes - before_bytes)
            assert gateway.found("metrics")[-1]["in_flight"] > fill_lines
            last = fills * fill_lines
            await read_lines(stuck, last)
            await new_metrics(gateway, lambda record: record["in_flight"] == 0 and record["connections"] == 1)
        records = gateway.found("metrics")
        eve = await LineClient.login(gateway.port, "eve")
        await eve.close()
        stuck.close()
        assert_adds_up(gateway)

    assert fills >= rounds * (max_connections - 2)
    assert turned_away
    assert numbers_by_sender(stuck.received) == {"eve": list(range(last))}
    most_bytes = max_connections * (credit_bytes + read_cost_bytes)
    assert max(record["buffered_bytes"] for record in records) < most_bytes
    assert grown_bytes < most_bytes + MAX_GROWTH_BYTES


async def test_notices_merge_when_a_flooder_never_reads_them() -> None:
    """A hundred thousand refusals that nobody reads take no memory, and none is missing in the counts."""
    lines, names = 100_000, 200
    block = b"".join(b"nobody%d: x\n" % (number % names) for number in range(1000))
    async with running_gateway(
        *("--loop", same_loop(), *PATIENT),
        *options(
            limits__refused_per_s=0,
            limits__max_line_bytes=128,
            limits__max_read_bytes=256,  # some twenty lines, each to another name: nothing merges on its way
            outbox__send_buffer_bytes=4 * KIB,
        ),
    ) as gateway:
        flooder = await RawPeer.login(
            gateway.port, "flooder", receive_buffer_bytes=2048, send_buffer_bytes=64 * KIB
        )
        left = memoryview(block * (lines // 1000))

        def push(nbytes: int = 64 * KIB) -> int:
            nonlocal left
            taken = flooder.push(bytes(left[:nbytes]))
            left = left[taken:]
            return taken

        def trickle() -> int:
            push(256)
            return 0

        await drive(
            trickle, until=lambda: any(record["outbox"]["paused"] for record in gateway.found("metrics"))
        )
        assert len(left) > len(block) * lines // 1000 * 9 // 10, "the flood is still to come"
        before_bytes = gateway.resident_bytes
        await drive(push, until=lambda: not left)
        await gateway.wait_record(
            "metrics", lambda record: record["refused_by_reason"].get("not_logged_in") == lines
        )
        assert gateway.resident_bytes - before_bytes < MAX_GROWTH_BYTES // 4  # one Notice for each: 20 MB
        await drive(
            flooder.read, until=lambda: sum(notice_counts(flooder.received).values()) == lines
        )
        assert_adds_up(gateway)
        flooder.close()

    counts = notice_counts(flooder.received)
    assert set(counts) <= {f"nobody{number}" for number in range(names)} | {""}
    assert len(flooder.received) < 64 * KIB


async def test_others_are_unaffected_when_stuck_senders_are_more_than_the_stages_can_work_on() -> None:
    """Who is stuck occupies no stage: with many such senders a message takes as long as without."""
    concurrency = 2
    count = 2 * concurrency + 4
    async with running_gateway(
        *("--loop", same_loop(), *PATIENT),
        *options(
            stages__parse__concurrency=concurrency,
            stages__route__concurrency=concurrency,
            stages__deliver__concurrency=concurrency,
            stages__deliver__capacity=512,
            outbox__max_outbox_bytes=16 * KIB,
            outbox__high_watermark_bytes=8 * KIB,
            outbox__low_watermark_bytes=4 * KIB,
            outbox__send_buffer_bytes=4 * KIB,
        ),
    ) as gateway:
        healthy = await LineClient.login(gateway.port, "healthy")
        before_s = await median_round_trip_s(healthy, "healthy")
        peers = [
            await RawPeer.login(
                gateway.port, f"peer{number}", receive_buffer_bytes=2048, send_buffer_bytes=4 * KIB
            )
            for number in range(2 * count)
        ]
        scripts = [
            Script(sender, to.name, line_bytes=256, total_bytes=1 << 30)
            for sender, to in zip(peers[:count], peers[count:], strict=True)
        ]
        for _ in range(20):
            await drive(*(script.push for script in scripts), until=elapsed(0.05))
            if gateway.found("metrics")[-1]["sessions_stalled"] == count:
                break
        await drive(*(script.push for script in scripts), until=elapsed(0.2))
        pushing = asyncio.create_task(drive(*(one.push for one in scripts), until=lambda: False))
        meanwhile_s = await median_round_trip_s(healthy, "healthy")
        record = await new_metrics(gateway, lambda _: True)
        pushing.cancel()
        for script in scripts:
            script.stop()
        await drive(
            *(script.push for script in scripts),
            *(peer.read for peer in peers),
            until=lambda: all(
                to.received.count(b"\n") == script.lines
                for to, script in zip(peers[count:], scripts, strict=True)
            ),
        )
        after_s = await median_round_trip_s(healthy, "healthy")
        for sender, to, script in zip(peers[:count], peers[count:], scripts, strict=True):
            assert numbers_by_sender(to.received) == {sender.name: list(range(script.lines))}
            assert not sender.received
        assert_adds_up(gateway)
        for peer in peers:
            peer.close()
        await healthy.close()

    assert record["sessions_stalled"] == count
    assert meanwhile_s < 5 * max(before_s, after_s)


async def test_session_is_read_more_slowly_when_it_is_refused_a_lot() -> None:
    """Beyond `refused_per_s` it is held back, by that much and nothing more; a neighbour is not."""
    per_s, read_lines = 200, 64
    async with running_gateway(
        *("--loop", same_loop(), *PATIENT),
        *options(
            limits__refused_per_s=per_s, limits__max_line_bytes=1024, limits__max_read_bytes=read_lines * 64
        ),
    ) as gateway:
        flooder = await RawPeer.login(gateway.port, "flooder", send_buffer_bytes=16 * KIB)
        healthy = await LineClient.login(gateway.port, "healthy")
        script = Script(flooder, "nobody", line_bytes=64, total_bytes=1 << 30)
        pushing = asyncio.create_task(drive(script.push, flooder.read, until=elapsed(1.5)))
        await gateway.wait_record("metrics", lambda record: record["sessions_held_back"] == 1)
        while not pushing.done():
            await median_round_trip_s(healthy, "healthy")
        await pushing
        records = gateway.found("metrics")
        assert_adds_up(gateway)
        flooder.close()
        await healthy.close()

    assert max(record["sessions_held_back"] for record in records) == 1
    assert max(record["sessions_stalled"] for record in records) == 0
    held = [record for record in records if record["refused"]]
    lasted_s = sum(record["interval_s"] for record in held[1:])
    refused = held[-1]["refused"] - held[0]["refused"]
    assert per_s * lasted_s / 4 < refused < per_s * (1 + lasted_s) + 2 * read_lines
    counts = notice_counts(whole_lines(flooder.received))
    assert counts["nobody"] > 0
