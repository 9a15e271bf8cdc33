"""The bound over all sessions: who is held when, who is let go, and that it counts what is there."""

from __future__ import annotations

import tracemalloc

import pytest

from chat_gateway.ceiling import Ceiling
from chat_gateway.read_buffers import ReadBuffers
from stages.message import Ledger
from tests.chat_gateway.fakes import FakeGateway, turns, virtual_time


def _ceiling(buffered_bytes: int, sessions: int = 10) -> Ceiling:
    ledger = Ledger()
    ledger.buffered_bytes = buffered_bytes
    return Ceiling(ledger, 1000, range(sessions), ReadBuffers(1024))


@pytest.mark.parametrize("inflight_bytes", [0, 850, 10_000])
def test_ceiling_holds_nobody_when_there_is_room(inflight_bytes: int) -> None:
    """Up to 85 % a session is bounded by its own credit only."""
    assert not _ceiling(850).holds(inflight_bytes)


@pytest.mark.parametrize(("inflight_bytes", "is_held"), [(0, False), (85, False), (86, True), (900, True)])
def test_ceiling_holds_who_has_more_than_a_share_when_it_is_high(inflight_bytes: int, is_held: bool) -> None:
    """Above 85 % the share is an equal one of that, for as many sessions as there are."""
    assert _ceiling(851).holds(inflight_bytes) is is_held
    assert _ceiling(950).holds(inflight_bytes) is is_held
    assert not _ceiling(950, sessions=1).holds(850)


def test_ceiling_divides_by_one_when_there_is_no_session() -> None:
    """Without sessions the whole is one share."""
    assert not _ceiling(900, sessions=0).holds(850)
    assert _ceiling(900, sessions=0).holds(851)


@pytest.mark.parametrize(("buffered_bytes", "is_full"), [(950, False), (951, True), (2000, True)])
def test_ceiling_holds_everybody_when_it_is_full(buffered_bytes: int, is_full: bool) -> None:
    """Above 95 % also who has nothing in flight is held."""
    ceiling = _ceiling(buffered_bytes)
    assert ceiling.is_full is is_full
    assert ceiling.holds(0) is is_full


@virtual_time
async def test_session_is_read_again_when_its_share_is_resolved() -> None:
    """Between the marks only the one that holds most stands still, until its recipient takes something."""
    gateway = FakeGateway("limits.max_buffered_bytes=1048576", "limits.max_inflight_bytes=1048576")
    alice, eve = gateway.login("alice"), gateway.login("eve")
    bob = await gateway.stuck("bob", eve)
    gateway.ledger.buffered_bytes += 600_000
    alice.send(b"bob: " + b"x" * 16_000 + b"\n")
    await turns()
    assert alice.is_read  # not above the mark yet
    for _ in range(20):
        alice.send(b"bob: " + b"x" * 15_000 + b"\n")
    eve.send(b"eve: small\n")
    await turns()
    assert (alice.is_read, eve.is_read) == (False, True)
    bob.unstick()
    await turns()
    assert alice.is_read
    assert gateway.ledger.in_flight == 0
    await gateway.close()


def _fill(gateway: FakeGateway, is_full: bool) -> None:
    """Let others use all memory up, or give it back."""
    gateway.ledger.buffered_bytes += gateway.connections.limits.max_buffered_bytes * (1 if is_full else -1)


@virtual_time
async def test_everybody_is_read_again_when_it_was_full_at_a_tick() -> None:
    """Who has nothing in flight is let go by the tick, since no outcome of its own will do it."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    _fill(gateway, True)
    alice.send(b"alice: one\n")
    await turns()
    gateway.connections.look_at_ceiling()
    assert not alice.is_read
    _fill(gateway, False)
    gateway.connections.look_at_ceiling()
    assert alice.is_read
    assert alice.take() == b"from alice: one\n"
    await gateway.close()


@virtual_time
async def test_everybody_is_read_again_when_it_was_full_between_two_ticks_only() -> None:
    """A short peak holds nobody for ever."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    gateway.connections.look_at_ceiling()
    _fill(gateway, True)
    alice.send(b"alice: one\n")
    await turns()
    _fill(gateway, False)
    for _ in range(3):
        gateway.connections.look_at_ceiling()
        await turns()
    is_read = alice.is_read
    await gateway.close()
    assert is_read


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"b:\n" * 20_000, id="shortest"),
        pytest.param(b"b:\nc:\n" * 10_000, id="in turn"),
        pytest.param(b"b,c:\nb,d:\n" * 6_000, id="to several"),
        pytest.param(b"b:\nb,c:\n" * 8_000, id="mixed"),
    ],
)
@virtual_time
async def test_ceiling_counts_at_least_what_is_held_when_outboxes_are_stuck(lines: bytes) -> None:
    """What a read takes while its copies wait is no more than what it counts."""
    gateway = FakeGateway(
        "outbox.max_outbox_bytes=100000000", "limits.max_inflight_messages=1000000", "limits.notices=false"
    )
    alice = gateway.login("a" * 64)
    for name in "bcd":
        await gateway.stuck(name, alice)
    counted_before = gateway.ledger.buffered_bytes
    tracemalloc.start()
    alice.send(lines)
    await turns(40)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counted_bytes = gateway.ledger.buffered_bytes - counted_before
    await gateway.close()
    assert held_bytes <= counted_bytes
