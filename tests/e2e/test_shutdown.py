"""SIGTERM in the middle of work: every accepted copy has an outcome, and no client is cut off."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed, numbers_by_sender
from tests.e2e.room import same_loop

if TYPE_CHECKING:
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

MIB = 1 << 20
SENDERS = 50
RECIPIENTS = 10
SHUTDOWN_NOTICE = b"! shutdown the gateway stops\n"
OFTEN = ("--set", "metrics.interval_s=0.1")


def assert_accounted(gateway: GatewayProcess) -> dict[str, Any]:
    """Every metrics record adds up, and the last one leaves nothing in flight; returns that one."""
    records = gateway.found("metrics")
    for record in records:
        ended = record["delivered"] + record["stored"] + record["refused"]
        assert record["accepted"] == ended + record["in_flight"]
    assert records[-1]["in_flight"] == 0
    return records[-1]


async def test_everything_accepted_arrives_when_the_gateway_is_stopped_under_load() -> None:
    """Of 50 senders each gets its accepted lines delivered, in order and once; nobody sees a reset."""
    async with running_gateway("--loop", same_loop(), *OFTEN) as gateway:
        recipients = [await RawPeer.login(gateway.port, f"to{number}") for number in range(RECIPIENTS)]
        senders = [await RawPeer.login(gateway.port, f"by{number}") for number in range(SENDERS)]
        scripts = [
            Script(sender, f"to{number % RECIPIENTS}", line_bytes=200, total_bytes=64 * MIB)
            for number, sender in enumerate(senders)
        ]
        peers = [*recipients, *senders]
        steps = [*(script.push for script in scripts), *(peer.read for peer in peers)]
        await drive(*steps, until=elapsed(1.0))
        assert not any(script.is_done for script in scripts)
        gateway.signal(signal.SIGTERM)
        await drive(*steps, until=lambda: all(peer.is_ended for peer in peers))
        for peer in peers:
            peer.close()
        status = await gateway.wait()

    assert status == 0
    assert not [peer.name for peer in peers if peer.is_reset]
    last = assert_accounted(gateway)
    assert last["refused"] == 0
    arrived = 0
    for index, recipient in enumerate(recipients):
        numbers = numbers_by_sender(recipient.received)
        assert set(numbers) == {f"by{number}" for number in range(index, SENDERS, RECIPIENTS)}
        for received in numbers.values():
            assert received == list(range(len(received)))
            arrived += len(received)
    assert arrived + len(peers) == last["delivered"] == last["accepted"]  # each peer proved its login
    for sender in senders:
        assert sender.received == SHUTDOWN_NOTICE
    for recipient in recipients:
        assert recipient.received.endswith(b"\n" + SHUTDOWN_NOTICE)
    (stopped,) = gateway.found("gateway.stopped")
    assert stopped["undelivered"] == 0
