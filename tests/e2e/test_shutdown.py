"""SIGTERM in the middle of work: every accepted copy has an outcome, and no client is cut off."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.raw_peer import RawPeer, Script, drive, elapsed, numbers_by_sender
from tests.e2e.room import same_loop
from tests.e2e.workers import several

if TYPE_CHECKING:
    from typing import Any

    from tests.e2e.gateway_process import GatewayProcess

MIB = 1 << 20
SENDERS = 50
RECIPIENTS = 10
SHUTDOWN_NOTICE = b"! shutdown the gateway stops\n"
OFTEN = ("--set", "metrics.interval_s=0.1")
# Nothing but the drain itself may give a stuck recipient up.
PATIENT = ("--set", "breaker.fail_max=1000", "--set", "outbox.evict_after_s=600")
REFUSED = re.compile(rb"! refused stuck: (\d+) messages, shutdown\n" + re.escape(SHUTDOWN_NOTICE))


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


async def stuck_pair(port: int) -> tuple[RawPeer, RawPeer]:
    """A recipient that does not read, and a sender that is held back because of it."""
    stuck = await RawPeer.login(port, "stuck", receive_buffer_bytes=4096)
    sender = await RawPeer.login(port, "sender", send_buffer_bytes=65_536)
    script = Script(sender, "stuck", line_bytes=256, total_bytes=64 * MIB)
    await drive(script.push, until=elapsed(0.5))
    return stuck, sender


async def test_stuck_recipient_is_given_up_when_the_gateway_stops() -> None:
    """Copies for one that does not read are refused with reason shutdown; that is no failure."""
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN, *PATIENT, "--set", "outbox.write_timeout_s=0.5")
    ) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        stuck, sender = await stuck_pair(gateway.port)
        gateway.signal(signal.SIGTERM)
        await drive(sender.read, until=lambda: sender.is_ended)
        assert await alice.rest() == SHUTDOWN_NOTICE
        await alice.close()
        sender.close()
        status = await gateway.wait()
        stuck.close()

    assert status == 0
    last = assert_accounted(gateway)
    refusal = REFUSED.fullmatch(sender.received)
    assert refusal is not None, sender.received
    assert last["refused_by_reason"] == {"shutdown": int(refusal[1])}
    (stopped,) = gateway.found("gateway.stopped")
    assert stopped["undelivered"] == 0


async def test_gateway_ends_with_status_1_when_the_drain_runs_out_of_time() -> None:
    """Copies without an outcome in time are counted in the last record, and a failure; nobody else pays."""
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN, *PATIENT),
        *("--set", "outbox.write_timeout_s=600", "--set", "shutdown.drain_timeout_s=2"),
    ) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        stuck, sender = await stuck_pair(gateway.port)
        gateway.signal(signal.SIGTERM)
        await drive(sender.read, until=lambda: sender.is_ended)
        assert not sender.is_reset
        assert REFUSED.fullmatch(sender.received)
        assert await alice.rest() == SHUTDOWN_NOTICE
        await alice.close()
        status = await gateway.wait()
        stuck.close()
        sender.close()

    assert status == 1
    last = assert_accounted(gateway)
    (stopped,) = gateway.found("gateway.stopped")
    assert stopped["undelivered"] == last["refused_by_reason"]["shutdown"] > 0
    assert gateway.stderr == b""


async def test_clients_of_every_worker_are_told_when_the_drain_runs_out_of_time() -> None:
    """One slow recipient costs nobody the last word, and is a failure, whoever's it is and its sender."""
    async with several(
        *PATIENT, "--set=outbox.write_timeout_s=600", "--set=shutdown.drain_timeout_s=2"
    ) as gateway:
        clients = [await LineClient.login(gateway.port, f"c{number}") for number in range(8)]
        stuck, sender = await stuck_pair(gateway.port)
        gateway.signal(signal.SIGTERM)
        await drive(sender.read, until=lambda: sender.is_ended)
        for client in clients:
            assert await client.rest() == SHUTDOWN_NOTICE
            await client.close()
        status = await gateway.wait()
        stuck.close()

    assert status == 1
    assert not sender.is_reset
    assert sender.received.endswith(SHUTDOWN_NOTICE)  # its worker may be the first whose time is over
    assert not gateway.found("worker.broken")
    assert gateway.stderr == b""


async def test_clients_are_told_or_refused_when_they_connect_while_the_gateway_stops() -> None:
    """Those that waited to be accepted at the signal get the Notice; later ones find nobody listening."""
    waiting = 200  # more than are accepted in one turn of the loop
    async with running_gateway(
        *("--loop", same_loop(), *OFTEN, *PATIENT, "--set", "outbox.write_timeout_s=0.5")
    ) as gateway:
        stuck, sender = await stuck_pair(gateway.port)  # makes the drain last
        gateway.signal(signal.SIGSTOP)
        clients = [await LineClient.connect(gateway.port) for _ in range(waiting)]
        gateway.signal(signal.SIGTERM)
        gateway.signal(signal.SIGCONT)
        await gateway.wait_record("gateway.draining")
        await gateway.wait_record("metrics", lambda record: record["connections"] >= waiting)
        with pytest.raises(ConnectionRefusedError):
            await LineClient.connect(gateway.port)
        for client in clients:
            assert await client.rest() == SHUTDOWN_NOTICE
            await client.close()
        sender.close()
        assert await gateway.wait() == 0
        stuck.close()

    assert_accounted(gateway)
