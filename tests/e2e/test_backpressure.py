"""Pressure over real sockets: it reaches exactly the sender that causes it, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed, numbers_by_sender
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from tests.e2e.gateway_process import GatewayProcess

MIB = 1 << 20
OFFERED_BYTES = 1 << 30
BUFFER_BYTES = 65_536  # of the clients' sockets, or the kernel takes some MiB from each
MAX_TAKEN_BYTES = 4 * MIB  # the default bounds hold less than one, the kernel's buffers are the rest
MAX_GROWTH_BYTES = 8 * MIB
PAIRS = 6
# For recipients that are stuck longer than a patient gateway allows by default.
PATIENT = ("--set", "outbox.write_timeout_s=600", "--set", "outbox.evict_after_s=600")
OFTEN = ("--set", "metrics.interval_s=0.1")


class Pair:
    """Two clients that talk to each other all the time; each round trip is timed."""

    def __init__(self, asking: LineClient, answering: LineClient, number: int) -> None:
        self.round_trips_s: list[float] = []  # since `take_p99_s`
        self._asking = asking
        self._answering = answering
        self._number = number

    @classmethod
    async def join(cls, port: int, number: int) -> Pair:
        """Log both in."""
        return cls(
            await LineClient.login(port, f"ask{number}"),
            await LineClient.login(port, f"answer{number}"),
            number,
        )

    async def talk(self) -> None:
        """Ask and answer until cancelled; a message that is lost ends it with an error."""
        ask, answer = f"ask{self._number}", f"answer{self._number}"
        count = 0
        while True:
            began = time.monotonic()
            self._asking.send(f"{answer}: {count}?\n".encode())
            assert await self._answering.line() == f"from {ask}: {count}?\n".encode()
            self._answering.send(f"{ask}: {count}!\n".encode())
            assert await self._asking.line() == f"from {answer}: {count}!\n".encode()
            self.round_trips_s.append(time.monotonic() - began)
            count += 1
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Both leave."""
        await self._asking.close()
        await self._answering.close()


def take_p99_s(pairs: list[Pair]) -> float:
    """The 99th percentile of all round trips since the last call."""
    times = sorted(time_s for pair in pairs for time_s in pair.round_trips_s)
    for pair in pairs:
        assert pair.round_trips_s, "a pair stands still"
        pair.round_trips_s.clear()
    return times[len(times) * 99 // 100]


class Growth:
    """The most memory that a gateway has used beyond what it used at first; a step for `drive`."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._before_bytes = gateway.resident_bytes
        self.most_bytes = 0

    def __call__(self) -> int:
        """Look again."""
        self.most_bytes = max(self.most_bytes, self._gateway.resident_bytes - self._before_bytes)
        return 0


async def test_sender_is_held_back_alone_when_its_recipient_does_not_read() -> None:
    """One stuck pair costs the gateway bounded memory and its neighbours nothing, and loses nothing."""
    async with running_gateway("--loop", same_loop(), *PATIENT, *OFTEN) as gateway:
        stuck = await RawPeer.login(gateway.port, "stuck", receive_buffer_bytes=4096)
        pusher = await RawPeer.login(gateway.port, "pusher", send_buffer_bytes=BUFFER_BYTES)
        script = Script(pusher, "stuck", line_bytes=1024, total_bytes=OFFERED_BYTES)
        pairs = [await Pair.join(gateway.port, number) for number in range(PAIRS)]
        talking = [asyncio.create_task(pair.talk()) for pair in pairs]
        await asyncio.sleep(0.3)
        take_p99_s(pairs)  # the first ones are not representative
        await asyncio.sleep(0.8)
        p99_before_s = take_p99_s(pairs)

        growth = Growth(gateway)
        await drive(script.push, growth, until=elapsed(2.5))
        p99_meanwhile_s = take_p99_s(pairs)
        taken_bytes = script.taken_bytes
        records = gateway.found("metrics")

        script.stop(after_lines=2048)
        everything = script.lines + 2048
        await drive(
            script.push, stuck.read, pusher.read, until=lambda: stuck.received.count(b"\n") >= everything
        )
        take_p99_s(pairs)
        await asyncio.sleep(0.8)
        p99_after_s = take_p99_s(pairs)
        assert not any(task.done() for task in talking)
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
        for pair in pairs:
            await pair.close()
        stuck.close()
        pusher.close()

    assert taken_bytes < MAX_TAKEN_BYTES
    assert growth.most_bytes < MAX_GROWTH_BYTES
    assert [record["sessions_stalled"] for record in records[-10:]] == [1] * 10
    assert p99_meanwhile_s < 5 * max(p99_before_s, p99_after_s) + 0.02
    assert script.is_done
    assert numbers_by_sender(stuck.received) == {"pusher": list(range(everything))}
    assert not pusher.received  # nothing was refused


async def test_sender_is_not_read_when_its_credit_is_spent() -> None:
    """What has no outcome yet is at most the credit and one read, whatever room the outbox has."""
    credit, read_lines = 64, 4096 // 64
    async with running_gateway(
        "--loop", same_loop(),
        *PATIENT,
        *OFTEN,
        *("--set", f"limits.max_inflight_messages={credit}"),
        *("--set", "limits.max_line_bytes=1024", "--set", "limits.max_read_bytes=4096"),
    ) as gateway:
        stuck = await RawPeer.login(gateway.port, "stuck", receive_buffer_bytes=4096)
        pusher = await RawPeer.login(gateway.port, "pusher", send_buffer_bytes=BUFFER_BYTES)
        script = Script(pusher, "stuck", line_bytes=64, total_bytes=OFFERED_BYTES)
        await drive(script.push, until=elapsed(1.5))
        records = gateway.found("metrics")[-5:]
        script.stop()
        await drive(script.push, stuck.read, until=lambda: stuck.received.count(b"\n") == script.lines)
        stuck.close()
        pusher.close()

    assert {record["bytes_in"] for record in records} == {records[0]["bytes_in"]}
    assert records[0]["outbox"]["parked_copies"] == 0
    assert credit <= records[0]["in_flight"] <= credit + read_lines
    assert records[0]["sessions_stalled"] == 1
    assert numbers_by_sender(stuck.received) == {"pusher": list(range(script.lines))}


async def test_clients_that_flood_each_other_get_everything_when_they_read_at_last() -> None:
    """Two that flood each other and one that floods itself are all held back, and none for ever."""
    routes = {"alice": "bob", "bob": "alice", "carol": "carol"}
    async with running_gateway("--loop", same_loop(), *PATIENT, *OFTEN) as gateway:
        peers = {
            name: await RawPeer.login(
                gateway.port, name, send_buffer_bytes=BUFFER_BYTES, receive_buffer_bytes=BUFFER_BYTES
            )
            for name in routes
        }
        scripts = [
            Script(peers[name], to, line_bytes=512, total_bytes=4 * MIB) for name, to in routes.items()
        ]
        pushes = [script.push for script in scripts]
        await drive(*pushes, until=elapsed(1.0))
        await gateway.wait_record("metrics", lambda record: record["sessions_stalled"] == 3)
        assert not any(script.is_done for script in scripts)

        lines = 4 * MIB // 512
        await drive(
            *pushes,
            *(peer.read for peer in peers.values()),
            until=lambda: all(peer.received.count(b"\n") == lines for peer in peers.values()),
        )
        for sender, recipient in routes.items():
            assert numbers_by_sender(peers[recipient].received) == {sender: list(range(lines))}
        for peer in peers.values():
            peer.close()


async def test_sender_runs_at_the_pace_of_its_recipient_when_that_reads_slowly() -> None:
    """A recipient that reads 10 KiB/s makes its sender send as much: nothing lost, nothing reordered."""
    async with running_gateway(
        "--loop", same_loop(),
        *PATIENT,
        *OFTEN,
        *("--set", "outbox.max_outbox_bytes=8192", "--set", "outbox.high_watermark_bytes=4096"),
        *("--set", "outbox.low_watermark_bytes=1024", "--set", "outbox.send_buffer_bytes=4096"),
        *("--set", "limits.max_line_bytes=512", "--set", "limits.max_read_bytes=1024"),
        # Credit without end, so that it is the stall that holds the sender back.
        *("--set", "limits.max_inflight_bytes=1000000000", "--set", "limits.max_inflight_messages=1000000"),
    ) as gateway:
        slow = await RawPeer.login(gateway.port, "slow", receive_buffer_bytes=4096)
        pusher = await RawPeer.login(gateway.port, "pusher", send_buffer_bytes=BUFFER_BYTES)
        script = Script(pusher, "slow", line_bytes=256, total_bytes=OFFERED_BYTES)
        due_s = time.monotonic()

        def read_slowly() -> int:
            nonlocal due_s
            if time.monotonic() < due_s:
                return 0
            due_s += 0.05
            return slow.read(512)

        await drive(script.push, read_slowly, until=elapsed(1.0))  # buffers are full
        first, read_before = gateway.found("metrics")[-1], len(slow.received)
        await drive(script.push, read_slowly, until=elapsed(3.0))
        last, read_bytes = gateway.found("metrics")[-1], len(slow.received) - read_before
        script.stop()
        await drive(script.push, slow.read, until=lambda: slow.received.count(b"\n") == script.lines)
        slow.close()
        pusher.close()

    assert read_bytes > 5 * 1024
    assert 0.5 * read_bytes < last["bytes_in"] - first["bytes_in"] < 2 * read_bytes
    assert numbers_by_sender(slow.received) == {"pusher": list(range(script.lines))}
