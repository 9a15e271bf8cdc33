"""The outbox, points 1 to 4 of its contract: order, bound, turns and stalls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from stages.message import Ledger, Refusal
from stages.outbox import Outbox
from tests.stages.fakes import (
    OUTBOX_SETTINGS,
    FakeOwner,
    FakeSender,
    FakeWriter,
    Turns,
    World,
    entry_of,
    sized,
)

if TYPE_CHECKING:

    from stages.outbox import WhenFull

# 1. Order, whole, once.


def test_outbox_writes_once_a_turn_when_entries_are_small() -> None:
    """What was offered in one turn leaves in one call, in the order in which it was offered."""
    world = World()
    for number in range(4):
        world.offer(world.alice if number % 2 else world.eve, b"%d\n" % number)
    assert world.writer.calls == []
    world.turns.end()
    assert world.writer.calls == [b"0\n1\n2\n3\n"]
    assert world.ledger.delivered == 4
    assert world.ledger.bytes_out == 8
    assert world.ledger.in_flight == 0
    assert len(world.alice.given_back) == len(world.eve.given_back) == 2


def test_outbox_divides_a_flush_between_entries_when_it_is_large() -> None:
    """No call of the writer gets more than `max_flush_bytes`, and an entry is never cut."""
    world = World()
    for name in "abcd":
        world.offer(world.alice, sized(name, 24))
    world.turns.end()
    assert [len(call) for call in world.writer.calls] == [48, 48]
    assert world.writer.written == b"".join(sized(name, 24) for name in "abcd")


def test_outbox_writes_an_entry_whole_when_it_is_larger_than_a_flush() -> None:
    """An entry that no flush can hold is a flush of its own."""
    world = World()
    world.offer(world.alice, sized("a", 10))
    world.offer(world.alice, sized("b", 80))
    world.offer(world.alice, sized("c", 10))
    world.turns.end()
    assert world.writer.calls == [sized("a", 10), sized("b", 80), sized("c", 10)]


def test_outbox_stops_when_the_writer_pauses_within_a_flush() -> None:
    """A writer that says stop while it takes a flush gets no further one before it says go on."""
    world = World()
    world.writer.is_stuck = True
    world.offer(world.alice, sized("a", 40))
    world.offer(world.alice, sized("b", 40))
    world.turns.end()
    assert world.writer.calls == [sized("a", 40)]
    assert world.outbox.pending_bytes == 40
    world.turns.end()
    assert len(world.writer.calls) == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.calls == [sized("a", 40), sized("b", 40)]


# 2. Bound, parking, refusing.


def test_outbox_parks_what_does_not_fit_when_traffic_is_direct() -> None:
    """Up to the bound entries are pending, beyond it they wait with their sender's credit."""
    world = World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 50))
    assert world.outbox.pending_bytes == 100
    assert world.outbox.parked_copies == 1
    assert world.alice.given_back == []
    assert world.ledger.peak_outbox_bytes == 100
    world.writer.free()
    world.turns.end()
    assert world.writer.written == b"".join(sized(name, 50) for name in "abc")
    assert world.outbox.parked_copies == 0


def test_outbox_refuses_what_does_not_fit_when_traffic_is_fanout() -> None:
    """One slow member of a group does not hold the others: its copy is refused as full."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, sized("a", 90), is_fanout=True)
    world.offer(world.alice, sized("b", 20), is_fanout=True)
    world.offer(world.alice, sized("c", 10), is_fanout=True)
    assert world.alice.notices == [("refused", Refusal.FULL, "bob", 1)]
    assert world.ledger.refused == {Refusal.FULL: 1}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == sized("a", 90) + sized("c", 10)


def test_outbox_takes_an_entry_when_it_is_larger_than_the_bound_and_nothing_is_pending() -> None:
    """A large entry enters an empty outbox, of whatever kind, or it could never leave."""
    for is_fanout in (False, True):
        world = World()
        world.outbox.pause()
        world.offer(world.alice, sized("a", 500), is_fanout=is_fanout)
        assert world.outbox.pending_bytes == 500
        world.offer(world.alice, b"b\n")
        assert world.outbox.parked_copies == 1
        world.writer.free()
        world.turns.end()
        assert world.writer.written == sized("a", 500) + b"b\n"


def test_outbox_lets_a_large_parked_entry_in_when_nothing_else_is_pending() -> None:
    """Parked entries beyond the bound get their turn too."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, b"a\n")
    world.offer(world.alice, sized("b", 500))
    assert world.outbox.parked_copies == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.written == b"a\n" + sized("b", 500)


@pytest.mark.parametrize("is_fanout", [False, True])
def test_outbox_asks_the_writer_first_when_much_comes_in_one_turn(is_fanout: bool) -> None:
    """An outbox that is full only since the turn has not ended is flushed; nothing is parked or refused."""
    world = World()
    for name in "abcdef":
        world.offer(world.alice, sized(name, 40), is_fanout=is_fanout)
    world.turns.end()
    assert world.writer.written == b"".join(sized(name, 40) for name in "abcdef")
    assert world.alice.stalled_ever == 0
    assert world.alice.notices == []


def test_outbox_parks_when_the_writer_pauses_as_it_is_asked() -> None:
    """The flush in the middle of a turn may find out that the writer is stuck."""
    world = World()
    world.writer.is_stuck = True
    for name in "abcd":
        world.offer(world.alice, sized(name, 50))
    assert world.writer.calls == [sized("a", 50)]
    assert world.outbox.pending_bytes == 100
    assert world.outbox.parked_copies == 1
    assert b"".join(world.let_through_one_by_one()) == b"".join(sized(name, 50) for name in "bcd")


def test_outbox_drops_the_oldest_when_the_policy_says_so() -> None:
    """With `drop_oldest` room is made for the newest, and what is dropped is refused with that reason."""
    world = World(replace(OUTBOX_SETTINGS, fanout="drop_oldest"))
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 40), is_fanout=True)
    assert world.ledger.refused == {Refusal.DROPPED: 1}
    assert world.outbox.pending_bytes == 80
    world.offer(world.alice, sized("d", 500), is_fanout=True)
    assert world.ledger.refused == {Refusal.DROPPED: 3}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == sized("d", 500)


def test_outbox_drops_the_newest_when_the_oldest_may_not_be_overtaken() -> None:
    """With entries parked by the other kind of traffic no room can be made, so the new entry is refused."""
    world = World(replace(OUTBOX_SETTINGS, fanout="drop_oldest"))
    world.outbox.pause()
    world.offer(world.alice, sized("a", 90))
    world.offer(world.alice, sized("b", 90))
    world.offer(world.eve, sized("c", 10), is_fanout=True)
    assert world.ledger.refused[Refusal.FULL] == 1
    assert world.outbox.parked_copies == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.written.endswith(sized("b", 90))
    assert world.ledger.is_balanced
    assert world.ledger.in_flight == 0


@pytest.mark.parametrize("has_owner", [False, True])
def test_outbox_has_its_owner_close_it_when_the_policy_is_disconnect(has_owner: bool) -> None:
    """With `disconnect` a full outbox ends its connection and refuses all it holds."""
    ledger, turns, owner, alice = Ledger(), Turns(), FakeOwner(), FakeSender()
    settings = replace(OUTBOX_SETTINGS, direct="disconnect")
    outbox = Outbox(FakeWriter(), settings, ledger, turns.flusher, owner=owner if has_owner else None)
    outbox.pause()
    for name in "abc":
        outbox.offer(entry_of(alice, ledger, sized(name, 50)), is_fanout=False)
    assert owner.evictions == has_owner
    assert ledger.refused == {Refusal.FULL: 1, Refusal.EVICTED: 2}
    assert ledger.in_flight == 0
    assert ledger.is_balanced


# 3. Nothing overtakes; senders in turn.


def test_outbox_serves_senders_in_turn_when_room_comes() -> None:
    """A sender with much parked does not hold one with little, and each one's order is kept."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, sized("full", 100))
    for name in ("a1", "a2", "a3", "a4"):
        world.offer(world.alice, sized(name, 50))
    for name in ("e1", "e2"):
        world.offer(world.eve, sized(name, 50))
    names = [call.strip(b".\n").decode() for call in world.let_through_one_by_one()]
    assert names == ["full", "a1", "e1", "a2", "e2", "a3", "a4"]


@pytest.mark.parametrize("is_fanout", [False, True])
def test_outbox_lets_nothing_overtake_when_something_is_parked(is_fanout: bool) -> None:
    """A small entry that would fit waits behind what is parked, or is refused, but never goes first."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, sized("a", 60))
    world.offer(world.alice, sized("b", 60))
    world.offer(world.alice, b"c\n", is_fanout=is_fanout)
    assert world.outbox.pending_bytes == 60
    world.writer.free()
    world.turns.end()
    last = b"" if is_fanout else b"c\n"
    assert world.writer.written == sized("a", 60) + sized("b", 60) + last


def test_outbox_lets_nothing_overtake_when_the_writer_pauses_again_at_once() -> None:
    """An offer between a resume and its flush makes room, and still stands behind what is parked."""
    world = World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 90))
    world.writer.is_stuck = True
    world.writer.let_one_through()
    world.offer(world.alice, b"d\n")
    assert world.writer.calls == [sized("a", 90)]
    assert (world.outbox.pending_bytes, world.outbox.parked_copies) == (90, 2)
    assert b"".join(world.let_through_one_by_one()) == sized("b", 90) + sized("c", 90) + b"d\n"


# 4. Stalls.


def test_outbox_stalls_whoever_offers_when_it_is_above_the_high_watermark() -> None:
    """At the mark nobody is stalled; above it each sender once, however much it offers."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, sized("a", 60))
    assert world.alice.stalls == 0
    for name in "bcd":
        world.offer(world.eve, sized(name, 10))
    assert (world.alice.stalls, world.eve.stalls) == (0, 1)


def test_outbox_lets_all_go_on_when_it_is_down_at_the_low_watermark() -> None:
    """Between the marks senders stay stalled; at the low one all run on, once each."""
    world = World()
    world.outbox.pause()
    world.offer(world.alice, sized("a", 40))
    for sender, nbytes in ((world.alice, 20), (world.eve, 10), (world.alice, 10), (world.eve, 20)):
        world.offer(sender, sized("b", nbytes))
    assert (world.alice.stalls, world.eve.stalls) == (1, 1)
    world.writer.is_stuck = True
    world.writer.let_one_through()
    world.turns.end()
    assert world.outbox.pending_bytes == 60
    assert (world.alice.stalls, world.eve.stalls) == (1, 1)
    world.writer.let_one_through()
    world.turns.end()
    assert world.outbox.pending_bytes == 20
    assert (world.alice.stalls, world.eve.stalls) == (0, 0)
    assert (world.alice.stalled_ever, world.eve.stalled_ever) == (1, 1)


@pytest.mark.parametrize("policy", ["refuse", "drop_oldest", "disconnect"])
def test_outbox_holds_no_sender_when_the_policy_is_not_to_stall(policy: WhenFull) -> None:
    """A slow member of a group costs the group nothing: no stall, and credit back before it reads."""
    world = World(replace(OUTBOX_SETTINGS, fanout=policy))
    world.outbox.pause()
    world.offer(world.alice, sized("a", 100), is_fanout=True)
    assert world.alice.stalled_ever == 0
    assert len(world.alice.given_back) == 1
    world.writer.free()
    world.turns.end()
    assert len(world.alice.given_back) == 1



def test_outbox_stalls_nobody_when_the_writer_takes_everything() -> None:
    """What waits for the end of the turn only is no reason to stop a sender."""
    world = World()
    world.offer(world.alice, sized("a", 90))
    assert world.alice.stalled_ever == 0
