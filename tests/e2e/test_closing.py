"""Peers that do not close when the gateway has ended their connection: what is kept for them, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.gateway_process import LineClient, running_gateway
from tests.e2e.outcomes import assert_adds_up, options
from tests.e2e.raw_peer import RawPeer, drive
from tests.e2e.room import lines_until, same_loop
from tests.e2e.tcp_states import TCP_FIN_WAIT1, tcp_state

if TYPE_CHECKING:
    from tests.e2e.gateway_process import GatewayProcess

KIB = 1024
LINE = b"x" * 489  # 500 bytes with what is put around it
TOO_LONG = b"x" * 20_000
# A kernel keeps what a peer does not read for much longer than a test lasts.
SHORT_LINGER = options(
    outbox__high_watermark_bytes=256 * KIB,  # what one sender fills several outboxes with must not stall it
    outbox__linger_s=0.4,
    outbox__write_timeout_s=0.2,
    outbox__evict_after_s=1,
    tcp__user_timeout_s=600,
    metrics__interval_s=0.05,
)


async def fill(sender: LineClient, sender_name: str, to: RawPeer, nbytes: int) -> None:
    """Have so many bytes of lines delivered to a peer, as far as it and the kernel take them."""
    sender.send(b"%b: %b\n" % (to.name.encode(), LINE) * (nbytes // 500))
    sender.send(f"{sender_name}: filled\n".encode())
    await lines_until(sender, f"from {sender_name}: filled\n".encode())


async def closed(gateway: GatewayProcess, peer: RawPeer) -> str:
    """Why the gateway has closed this peer's session, once it has."""
    record = await gateway.wait_record("session.closed", lambda record: record["login"] == peer.name)
    reason: str = record["reason"]
    return reason


async def test_kernel_keeps_nothing_when_peers_that_do_not_read_were_closed() -> None:
    """Evicted, ended with a full outbox, or ended with bytes in the kernel alone: all are freed at once."""
    async with running_gateway("--loop", same_loop(), *SHORT_LINGER) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        evicted, full, calm = peers = [
            await RawPeer.login(gateway.port, name, receive_buffer_bytes=2048)
            for name in ("evicted", "full", "calm")
        ]
        await fill(alice, "alice", evicted, 200 * KIB)
        await fill(alice, "alice", full, 200 * KIB)
        await fill(alice, "alice", calm, 20 * KIB)
        full.push(TOO_LONG)
        calm.push(TOO_LONG)
        assert [await closed(gateway, peer) for peer in peers] == [
            "slow_consumer",
            "line_too_long",
            "line_too_long",
        ]
        await drive(until=lambda: all(tcp_state(gateway.port, peer.port) is None for peer in peers))
        await gateway.wait_record("metrics", lambda record: record["connections"] == 1)
        assert_adds_up(gateway)
        await alice.close()


async def test_peer_gets_everything_when_it_reads_slowly_at_the_end_of_the_gateway() -> None:
    """Nothing that was delivered is lost by a reset: the kernel goes on when the process has ended."""
    async with running_gateway("--loop", same_loop(), *SHORT_LINGER) as gateway:
        alice = await LineClient.login(gateway.port, "alice")
        bob = await RawPeer.login(gateway.port, "bob", receive_buffer_bytes=2048)
        await fill(alice, "alice", bob, 20_000)
        assert await gateway.stop() == 0
        assert not bob.received
        assert tcp_state(gateway.port, bob.port) == TCP_FIN_WAIT1
        await drive(bob.read, until=lambda: bob.is_ended)
        await alice.close()
    assert not bob.is_reset
    assert bob.received == (b"from alice: %b\n" % LINE) * 40 + b"! shutdown the gateway stops\n"
