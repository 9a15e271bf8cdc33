"""What waits for logins that have just left: in order, ahead, bounded, and never without an outcome."""

from __future__ import annotations

import asyncio

import pytest

from chat_gateway.grace import Grace
from stages.message import Ledger, Refusal
from stages.outbox import Entry, Outbox, OutboxSettings
from tests.chat_gateway.fakes import FakeGateway, Peer, configured, passed, turns, virtual_time
from tests.stages.fakes import FakeSender, FakeWriter, Turns, entry_of, open_outbox

HERE, THERE = "192.0.2.1", "192.0.2.2"
SETTINGS = OutboxSettings(
    max_outbox_bytes=100, high_watermark_bytes=60, low_watermark_bytes=20, max_flush_bytes=50
)


class _World:
    """A grace, and outboxes of bob that come and go; every step is checked to balance."""

    def __init__(self, *sets: str) -> None:
        self.ledger = Ledger()
        self.turns = Turns()
        self.alice, self.eve = FakeSender("alice"), FakeSender("eve")
        self.expired: list[tuple[str, list[bytes]]] = []
        self.grace = Grace(configured(*sets).outbox, self._on_expired, asyncio.get_running_loop())

    def outbox(self, *, is_paused: bool = False) -> tuple[Outbox, FakeWriter]:
        """One of a session that has just logged in."""
        outbox, writer = open_outbox(SETTINGS, self.ledger, self.turns)
        if is_paused:
            outbox.pause()
        return outbox, writer

    def offer(self, outbox: Outbox, sender: FakeSender, *payloads: bytes) -> None:
        """Each payload is a batch of its own."""
        for payload in payloads:
            outbox.offer(entry_of(sender, self.ledger, payload), is_fanout=False)
        self.balanced()

    def leave(self, *payloads: bytes, address: str = HERE) -> Outbox:
        """Bob leaves with copies of alice's waiting."""
        outbox, _ = self.outbox(is_paused=True)
        self.offer(outbox, self.alice, *payloads)
        self.grace.keep("bob", address, outbox)
        self.balanced()
        return outbox

    def back(self, address: str = HERE, *, is_paused: bool = False) -> tuple[Outbox, FakeWriter]:
        """Bob logs in again."""
        outbox, writer = self.outbox(is_paused=is_paused)
        self.grace.give("bob", address, outbox)
        self.balanced()
        return outbox, writer

    def balanced(self) -> None:
        """Every copy is accounted for."""
        assert self.ledger.is_balanced

    def _on_expired(self, login: str, entries: list[Entry]) -> None:
        assert self.ledger.in_flight, "told after the refusal"
        self.expired.append((login, [bytes(entry[0]) for entry in entries]))


@virtual_time
async def test_login_gets_what_waited_in_order_when_it_returns() -> None:
    """Everything that was kept goes to the new outbox, ahead of what comes later, and is delivered."""
    world = _World()
    world.leave(b"1\n", b"2\n", b"3\n")
    assert len(world.grace) == 1
    outbox, writer = world.back()
    world.offer(outbox, world.alice, b"4\n")
    world.turns.end()
    assert writer.written == b"1\n2\n3\n4\n"
    assert len(world.grace) == 0
    assert (world.ledger.delivered, world.ledger.in_flight) == (4, 0)
    world.balanced()
    await passed(10)
    assert world.expired == []
    assert world.alice.notices == []


@virtual_time
async def test_login_gets_what_was_kept_first_when_newer_ones_are_pending_already() -> None:
    """Ahead means ahead of all that is in the new outbox."""
    world = _World()
    world.leave(b"1\n", b"2\n")
    outbox, writer = world.outbox(is_paused=True)
    world.offer(outbox, world.alice, b"3\n")
    world.grace.give("bob", HERE, outbox)
    writer.free()
    world.turns.end()
    assert writer.written == b"1\n2\n3\n"
    assert world.ledger.in_flight == 0
    world.balanced()


@virtual_time
async def test_credit_comes_back_at_once_when_copies_are_kept() -> None:
    """Senders run on while the copies stay in flight and count in the memory, until they are delivered."""
    world = _World()
    world.leave(b"12345\n", b"678\n")
    assert world.alice.given_back == [(1, 6), (1, 4)]
    assert (world.ledger.in_flight, world.ledger.buffered_bytes) == (2, 10)
    world.back()
    world.turns.end()
    assert world.alice.given_back == [(1, 6), (1, 4)]
    assert (world.ledger.in_flight, world.ledger.buffered_bytes) == (0, 0)


@virtual_time
async def test_copies_are_refused_when_nobody_returns_in_time() -> None:
    """Each sender hears of its own copies, and they are told of before they are refused."""
    world = _World("outbox.reconnect_grace_s=5.0")
    outbox, _ = world.outbox(is_paused=True)
    world.offer(outbox, world.alice, b"1\n", b"2\n")
    world.offer(outbox, world.eve, b"3\n")
    world.grace.keep("bob", HERE, outbox)
    await passed(4.9)
    assert (len(world.grace), world.ledger.in_flight) == (1, 3)
    await passed(0.2)
    assert (len(world.grace), world.ledger.in_flight, world.ledger.buffered_bytes) == (0, 0, 0)
    assert world.ledger.refused == {Refusal.GONE: 3}
    assert world.alice.notices == [("refused", "gone", "bob", 1)] * 2
    assert world.eve.notices == [("refused", "gone", "bob", 1)]
    assert world.expired == [("bob", [b"1\n", b"2\n", b"3\n"])]
    world.balanced()
    _, writer = world.back()
    world.turns.end()
    assert writer.calls == []


@pytest.mark.parametrize("is_any", [False, True])
@virtual_time
async def test_copies_are_only_given_at_another_address_when_that_is_allowed(is_any: bool) -> None:
    """A stranger who takes the name does not read what was meant for its holder."""
    world = _World(f"outbox.grace_any_address={str(is_any).lower()}")
    world.leave(b"1\n")
    _, writer = world.back(THERE)
    world.turns.end()
    assert writer.written == (b"1\n" if is_any else b"")
    assert world.expired == ([] if is_any else [("bob", [b"1\n"])])
    assert world.ledger.refused == ({} if is_any else {Refusal.GONE: 1})
    assert len(world.grace) == 0
    world.balanced()


@pytest.mark.parametrize(
    ("max_bytes", "count"),
    [(12, 3), (11, 2), (9, 1), (3, 0)],
)
@virtual_time
async def test_the_oldest_are_kept_when_not_all_fit(max_bytes: int, count: int) -> None:
    """The bound is in bytes, whole entries only, nothing newer takes the room of an older one, all that is
    cut off is told of at once.
    """
    world = _World(f"outbox.max_grace_bytes={max_bytes}")
    payloads = [b"123\n", b"45678\n", b"9\n"]
    world.leave(*payloads)
    assert world.ledger.refused.total() == 3 - count
    assert len(world.alice.given_back) == 3
    cut_off = [("bob", payloads[count:])] if count < 3 else []
    assert world.expired == cut_off
    await passed(10)
    assert world.expired == cut_off + ([("bob", payloads[:count])] if count else [])
    world.balanced()


@virtual_time
async def test_parked_copies_are_kept_behind_the_pending_ones_when_they_fit() -> None:
    """What found no room in the outbox comes in turn, sender by sender."""
    world = _World()
    outbox, _ = world.outbox(is_paused=True)
    world.offer(outbox, world.alice, b"a" * 59 + b"\n", b"b" * 59 + b"\n", b"c" * 59 + b"\n")
    world.offer(outbox, world.eve, b"d" * 59 + b"\n")
    assert outbox.parked_copies == 3
    world.grace.keep("bob", HERE, outbox)
    assert (world.alice.stalls, world.eve.stalls) == (0, 0)
    _, writer = world.back()
    world.turns.end()
    assert writer.written.replace(b"\n", b"") == b"".join(letter * 59 for letter in (b"a", b"b", b"d", b"c"))
    assert world.ledger.in_flight == 0
    world.balanced()


@virtual_time
async def test_nothing_is_kept_when_there_is_no_grace() -> None:
    """With reconnect_grace_s = 0 copies are refused at once."""
    world = _World("outbox.reconnect_grace_s=0.0")
    world.leave(b"1\n")
    assert (len(world.grace), world.ledger.in_flight) == (0, 0)
    assert world.ledger.refused == {Refusal.GONE: 1}
    assert world.expired == [("bob", [b"1\n"])]
    world.balanced()


@virtual_time
async def test_nothing_is_kept_when_nothing_waited() -> None:
    """A login that had everything is forgotten, and its outbox takes nothing more."""
    world = _World()
    outbox = world.leave()
    assert len(world.grace) == 0
    world.offer(outbox, world.alice, b"1\n")
    assert world.ledger.refused == {Refusal.GONE: 1}
    assert world.expired == []


@virtual_time
async def test_copies_wait_again_when_a_login_leaves_twice() -> None:
    """What the first grace gave and the second outbox did not get out waits once more, for a full time."""
    world = _World("outbox.reconnect_grace_s=5.0")
    world.leave(b"1\n", b"2\n")
    await passed(4)
    outbox, _ = world.back(is_paused=True)
    world.offer(outbox, world.alice, b"3\n")
    world.grace.keep("bob", HERE, outbox)
    assert world.ledger.in_flight == 3
    assert len(world.alice.given_back) == 3
    await passed(4)
    _, writer = world.back()
    world.turns.end()
    assert writer.written == b"1\n2\n3\n"
    assert len(world.alice.given_back) == 3
    assert (world.ledger.in_flight, world.ledger.buffered_bytes) == (0, 0)
    world.balanced()


@virtual_time
async def test_copies_of_an_earlier_session_are_refused_when_a_later_one_left_before() -> None:
    """They are older than what the later session may have got, so they cannot be given; none is forgotten."""
    world = _World()
    late, _ = world.outbox(is_paused=True)
    world.offer(late, world.eve, b"1\n")
    world.leave(b"2\n")
    world.grace.keep("bob", HERE, late)
    assert world.expired == [("bob", [b"1\n"])]
    assert world.eve.notices == [("refused", "gone", "bob", 1)]
    _, writer = world.back()
    world.turns.end()
    assert writer.written == b"2\n"
    assert world.ledger.in_flight == 0
    world.balanced()


@virtual_time
async def test_copies_are_told_of_when_a_successor_is_there_already() -> None:
    """They are refused like those that expire, parked ones included, and nothing is kept."""
    world = _World()
    outbox, _ = world.outbox(is_paused=True)
    world.offer(outbox, world.alice, b"a" * 59 + b"\n", b"b" * 59 + b"\n")
    assert outbox.parked_copies == 1
    world.grace.refuse("bob", outbox)
    assert world.expired == [("bob", [b"a" * 59 + b"\n", b"b" * 59 + b"\n"])]
    assert world.ledger.refused == {Refusal.GONE: 2}
    assert (len(world.grace), world.ledger.in_flight, world.alice.stalls) == (0, 0, 0)
    world.balanced()


@virtual_time
async def test_everything_is_refused_when_the_gateway_stops() -> None:
    """All logins' copies end with the reason that is given, and nothing falls due later."""
    world = _World()
    world.leave(b"1\n")
    outbox, _ = world.outbox(is_paused=True)
    world.offer(outbox, world.eve, b"2\n")
    world.grace.keep("carol", HERE, outbox)
    assert len(world.grace) == 2
    world.grace.end_all(Refusal.SHUTDOWN)
    assert (len(world.grace), world.ledger.in_flight) == (0, 0)
    assert world.ledger.refused == {Refusal.SHUTDOWN: 2}
    assert world.expired == [("bob", [b"1\n"]), ("carol", [b"2\n"])]
    assert world.eve.notices == [("refused", "shutdown", "carol", 1)]
    world.grace.close()
    await passed(10)
    assert len(world.expired) == 2
    world.balanced()


@virtual_time
async def test_nothing_falls_due_when_it_was_closed() -> None:
    """Closing cancels the timer."""
    world = _World()
    world.leave(b"1\n")
    world.grace.close()
    await passed(10)
    assert world.expired == []


# With connections around it.


async def _half_closed(gateway: FakeGateway, alice: Peer) -> Peer:
    """Bob has closed his sending side, does not read, and one copy waits for him."""
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: old\n")
    await turns()
    bob.end()
    return bob


@virtual_time
async def test_every_copy_has_an_outcome_when_an_old_connection_ends_after_its_successor() -> None:
    """Bob's first connection is still being flushed while his second one comes and is lost."""
    gateway = FakeGateway("outbox.linger_s=2.0")
    alice = gateway.login("alice")
    await _half_closed(gateway, alice)
    again = await gateway.stuck("bob", alice)
    alice.send(b"bob: new\n")
    await turns()
    again.reset()
    await passed(4.5)  # the first one is given up meanwhile
    third = gateway.login("bob")
    await turns()
    assert third.take() == b"from alice: new\n"
    await passed(10)
    assert gateway.ledger.in_flight == 0
    assert gateway.ledger.is_balanced
    assert b"! refused bob: 1 messages, gone\n" in alice.take().replace(b"1 message,", b"1 messages,")
    await gateway.close()


@virtual_time
async def test_order_holds_when_an_old_connection_ends_while_its_successor_is_there() -> None:
    """Copies that are older than what the successor got are never given to the login again."""
    gateway = FakeGateway("outbox.linger_s=2.0")
    alice = gateway.login("alice")
    await _half_closed(gateway, alice)
    again = gateway.login("bob")
    alice.send(b"bob: new\n")
    await turns()
    assert again.take() == b"from alice: new\n"
    await passed(4.5)
    again.reset()
    await turns()
    third = gateway.login("bob")
    await turns()
    received = third.take()
    await gateway.close()
    assert received == b""
