"""The outbox, held to the numbered contract in its module, by examples and against a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retry.budget import RetryBudget
from stages.flusher import Flusher
from stages.ladder import Ladder, LadderSettings
from stages.message import Ledger, Refusal
from stages.notices import notice_line
from stages.outbox import Outbox, OutboxSettings
from tests.stages.fakes import FakeSender, FakeWriter, Turns, entry_of, open_outbox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_SETTINGS = OutboxSettings(
    max_outbox_bytes=100, high_watermark_bytes=60, low_watermark_bytes=20, max_flush_bytes=50
)


class _World:
    """One outbox, its writer, and what surrounds them."""

    def __init__(self, settings: OutboxSettings = _SETTINGS) -> None:
        self.ledger = Ledger()
        self.turns = Turns()
        self.outbox, self.writer = open_outbox(settings, self.ledger, self.turns)
        self.alice, self.eve = FakeSender("alice"), FakeSender("eve")

    def offer(self, sender: FakeSender, payload: bytes, *, is_fanout: bool = False) -> None:
        self.outbox.offer(entry_of(sender, self.ledger, payload), is_fanout=is_fanout)
        assert self.ledger.is_balanced

    def let_through_one_by_one(self) -> list[bytes]:
        """What leaves, write by write, while the peer reads slowly."""
        self.writer.is_stuck = True
        before = len(self.writer.calls)
        for _ in range(100):
            self.writer.let_one_through()
            self.turns.end()
        return self.writer.calls[before:]


def _sized(name: str, nbytes: int) -> bytes:
    return name.encode().ljust(nbytes - 1, b".") + b"\n"


# 1. Order, whole, once.


def test_outbox_writes_once_a_turn_when_entries_are_small() -> None:
    """What was offered in one turn leaves in one call, in the order in which it was offered."""
    world = _World()
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
    world = _World()
    for name in "abcd":
        world.offer(world.alice, _sized(name, 24))
    world.turns.end()
    assert [len(call) for call in world.writer.calls] == [48, 48]
    assert world.writer.written == b"".join(_sized(name, 24) for name in "abcd")


def test_outbox_writes_an_entry_whole_when_it_is_larger_than_a_flush() -> None:
    """An entry that no flush can hold is a flush of its own."""
    world = _World()
    world.offer(world.alice, _sized("a", 10))
    world.offer(world.alice, _sized("b", 80))
    world.offer(world.alice, _sized("c", 10))
    world.turns.end()
    assert world.writer.calls == [_sized("a", 10), _sized("b", 80), _sized("c", 10)]


def test_outbox_stops_when_the_writer_pauses_within_a_flush() -> None:
    """A writer that says stop while it takes a flush gets no further one before it says go on."""
    world = _World()
    world.writer.is_stuck = True
    world.offer(world.alice, _sized("a", 40))
    world.offer(world.alice, _sized("b", 40))
    world.turns.end()
    assert world.writer.calls == [_sized("a", 40)]
    assert world.outbox.pending_bytes == 40
    world.turns.end()
    assert len(world.writer.calls) == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.calls == [_sized("a", 40), _sized("b", 40)]


# 2. Bound, parking, refusing.


def test_outbox_parks_what_does_not_fit_when_traffic_is_direct() -> None:
    """Up to the bound entries are pending, beyond it they wait with their sender's credit."""
    world = _World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, _sized(name, 50))
    assert world.outbox.pending_bytes == 100
    assert world.outbox.parked_copies == 1
    assert world.alice.given_back == []
    assert world.ledger.peak_outbox_bytes == 100
    world.writer.free()
    world.turns.end()
    assert world.writer.written == b"".join(_sized(name, 50) for name in "abc")
    assert world.outbox.parked_copies == 0


def test_outbox_refuses_what_does_not_fit_when_traffic_is_fanout() -> None:
    """One slow member of a group does not hold the others: its copy is refused as full."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, _sized("a", 90), is_fanout=True)
    world.offer(world.alice, _sized("b", 20), is_fanout=True)
    world.offer(world.alice, _sized("c", 10), is_fanout=True)
    assert world.alice.notices == [("refused", Refusal.FULL, "bob", 1)]
    assert world.ledger.refused == {Refusal.FULL: 1}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == _sized("a", 90) + _sized("c", 10)


def test_outbox_takes_an_entry_when_it_is_larger_than_the_bound_and_nothing_is_pending() -> None:
    """A large entry enters an empty outbox, of whatever kind, or it could never leave."""
    for is_fanout in (False, True):
        world = _World()
        world.outbox.pause()
        world.offer(world.alice, _sized("a", 500), is_fanout=is_fanout)
        assert world.outbox.pending_bytes == 500
        world.offer(world.alice, b"b\n")
        assert world.outbox.parked_copies == 1
        world.writer.free()
        world.turns.end()
        assert world.writer.written == _sized("a", 500) + b"b\n"


def test_outbox_lets_a_large_parked_entry_in_when_nothing_else_is_pending() -> None:
    """Parked entries beyond the bound get their turn too."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, b"a\n")
    world.offer(world.alice, _sized("b", 500))
    assert world.outbox.parked_copies == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.written == b"a\n" + _sized("b", 500)


@pytest.mark.parametrize("is_fanout", [False, True])
def test_outbox_asks_the_writer_first_when_much_comes_in_one_turn(is_fanout: bool) -> None:
    """An outbox that is full only since the turn has not ended is flushed; nothing is parked or refused."""
    world = _World()
    for name in "abcdef":
        world.offer(world.alice, _sized(name, 40), is_fanout=is_fanout)
    world.turns.end()
    assert world.writer.written == b"".join(_sized(name, 40) for name in "abcdef")
    assert world.alice.stalled_ever == 0
    assert world.alice.notices == []


def test_outbox_parks_when_the_writer_pauses_as_it_is_asked() -> None:
    """The flush in the middle of a turn may find out that the writer is stuck."""
    world = _World()
    world.writer.is_stuck = True
    for name in "abcd":
        world.offer(world.alice, _sized(name, 50))
    assert world.writer.calls == [_sized("a", 50)]
    assert world.outbox.pending_bytes == 100
    assert world.outbox.parked_copies == 1
    assert b"".join(world.let_through_one_by_one()) == b"".join(_sized(name, 50) for name in "bcd")


def test_outbox_drops_the_oldest_when_the_policy_says_so() -> None:
    """With `drop_oldest` room is made for the newest, and what is dropped is refused with that reason."""
    world = _World(replace(_SETTINGS, fanout="drop_oldest"))
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, _sized(name, 40), is_fanout=True)
    assert world.ledger.refused == {Refusal.DROPPED: 1}
    assert world.outbox.pending_bytes == 80
    world.offer(world.alice, _sized("d", 500), is_fanout=True)
    assert world.ledger.refused == {Refusal.DROPPED: 3}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == _sized("d", 500)


@pytest.mark.xfail(
    strict=True, reason="all that is pending is dropped in vain, and what is parked is then never let in"
)
def test_outbox_drops_the_newest_when_the_oldest_may_not_be_overtaken() -> None:
    """With entries parked by the other kind of traffic no room can be made, so the new entry is refused."""
    world = _World(replace(_SETTINGS, fanout="drop_oldest"))
    world.outbox.pause()
    world.offer(world.alice, _sized("a", 90))
    world.offer(world.alice, _sized("b", 90))
    world.offer(world.eve, _sized("c", 10), is_fanout=True)
    assert world.ledger.refused[Refusal.FULL] == 1
    assert world.outbox.parked_copies == 1
    world.writer.free()
    world.turns.end()
    assert world.writer.written.endswith(_sized("b", 90))
    assert world.ledger.is_balanced
    assert world.ledger.in_flight == 0


class _FakeOwner:
    """A connection that only counts."""

    def __init__(self, unsent_bytes: int = 0) -> None:
        self.evictions = 0
        self._unsent_bytes = unsent_bytes

    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def evict(self) -> None:
        self.evictions += 1


@pytest.mark.parametrize("has_owner", [False, True])
def test_outbox_has_its_owner_close_it_when_the_policy_is_disconnect(has_owner: bool) -> None:
    """With `disconnect` a full outbox ends its connection and refuses all it holds."""
    ledger, turns, owner, alice = Ledger(), Turns(), _FakeOwner(), FakeSender()
    settings = replace(_SETTINGS, direct="disconnect")
    outbox = Outbox(FakeWriter(), settings, ledger, turns.flusher, owner=owner if has_owner else None)
    outbox.pause()
    for name in "abc":
        outbox.offer(entry_of(alice, ledger, _sized(name, 50)), is_fanout=False)
    assert owner.evictions == has_owner
    assert ledger.refused == {Refusal.FULL: 1, Refusal.EVICTED: 2}
    assert ledger.in_flight == 0
    assert ledger.is_balanced


# 3. Nothing overtakes; senders in turn.


def test_outbox_serves_senders_in_turn_when_room_comes() -> None:
    """A sender with much parked does not hold one with little, and each one's order is kept."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, _sized("full", 100))
    for name in ("a1", "a2", "a3", "a4"):
        world.offer(world.alice, _sized(name, 50))
    for name in ("e1", "e2"):
        world.offer(world.eve, _sized(name, 50))
    names = [call.strip(b".\n").decode() for call in world.let_through_one_by_one()]
    assert names == ["full", "a1", "e1", "a2", "e2", "a3", "a4"]


@pytest.mark.parametrize("is_fanout", [False, True])
def test_outbox_lets_nothing_overtake_when_something_is_parked(is_fanout: bool) -> None:
    """A small entry that would fit waits behind what is parked, or is refused, but never goes first."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, _sized("a", 60))
    world.offer(world.alice, _sized("b", 60))
    world.offer(world.alice, b"c\n", is_fanout=is_fanout)
    assert world.outbox.pending_bytes == 60
    world.writer.free()
    world.turns.end()
    last = b"" if is_fanout else b"c\n"
    assert world.writer.written == _sized("a", 60) + _sized("b", 60) + last


# 4. Stalls.


def test_outbox_stalls_whoever_offers_when_it_is_above_the_high_watermark() -> None:
    """At the mark nobody is stalled; above it each sender once, however much it offers."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, _sized("a", 60))
    assert world.alice.stalls == 0
    for name in "bcd":
        world.offer(world.eve, _sized(name, 10))
    assert (world.alice.stalls, world.eve.stalls) == (0, 1)


def test_outbox_lets_all_go_on_when_it_is_down_at_the_low_watermark() -> None:
    """Between the marks senders stay stalled; at the low one all run on, once each."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, _sized("a", 40))
    for name in ("b", "c"):
        world.offer(world.alice, _sized(name, 20))
        world.offer(world.eve, _sized(name, 10))
    assert (world.alice.stalls, world.eve.stalls) == (1, 1)
    world.writer.is_stuck = True
    world.writer.let_one_through()
    world.turns.end()
    assert world.outbox.pending_bytes == 60
    assert (world.alice.stalls, world.eve.stalls) == (1, 1)
    world.writer.let_one_through()
    world.turns.end()
    assert world.outbox.pending_bytes <= 20
    assert (world.alice.stalls, world.eve.stalls) == (0, 0)
    assert (world.alice.stalled_ever, world.eve.stalled_ever) == (1, 1)


def test_outbox_stalls_nobody_when_the_writer_takes_everything() -> None:
    """What waits for the end of the turn only is no reason to stop a sender."""
    world = _World()
    world.offer(world.alice, _sized("a", 90))
    assert world.alice.stalled_ever == 0


# 5. One outcome.


@pytest.mark.parametrize("is_told_by", ["close", "closing writer"])
def test_outbox_refuses_everything_when_its_connection_is_lost(is_told_by: str) -> None:
    """Pending and parked copies are refused, senders run on, and what comes later is refused at once."""
    world = _World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, _sized(name, 50))
    world.outbox.notify("bad-line", "words")
    if is_told_by == "close":
        world.outbox.close(Refusal.GONE)
    else:
        world.writer.closing = True
        world.writer.free()
        world.turns.end()
    assert world.ledger.refused == {Refusal.GONE: 3}
    assert world.ledger.in_flight == 0
    assert (world.outbox.pending_bytes, world.outbox.parked_copies, world.alice.stalls) == (0, 0, 0)
    assert len(world.alice.given_back) == 3
    world.offer(world.alice, b"d\n")
    assert world.ledger.refused == {Refusal.GONE: 4}
    world.outbox.notify("bad-line", "words")
    world.outbox.close(Refusal.GONE)
    world.turns.end()
    assert world.writer.calls == []
    assert world.ledger.is_balanced


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.xfail(
    strict=True, reason="entries leave the queue before the write that raises and have no outcome then"
)
def test_outbox_loses_no_copy_when_the_writer_raises(entries: int) -> None:
    """Copies of a flush that failed are refused with the others when the outbox is closed for it."""
    world = _World()
    world.writer.error = RuntimeError("Cannot call write() after write_eof()")
    for _ in range(entries):
        world.offer(world.alice, b"a\n")
    world.turns.end()
    assert [type(error) for _, error in world.turns.errors] == [RuntimeError]
    assert world.ledger.refused == {Refusal.ERROR: entries}
    assert world.ledger.in_flight == 0


@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="an offer to a full outbox flushes, and that raises"
)
def test_outbox_offer_never_raises_when_the_writer_does() -> None:
    """A writer that fails while an offer makes room is the flusher's matter, not the one's who offers."""
    world = _World()
    world.writer.error = RuntimeError("Cannot call write() after write_eof()")
    for _ in range(3):
        world.offer(world.alice, _sized("a", 50))


# 6. Notices.


def test_outbox_sends_notices_first_when_entries_are_pending() -> None:
    """Notices merge and go ahead of entries at the next flush."""
    world = _World()
    world.offer(world.alice, b"a\n")
    world.outbox.notify("refused", "full", name="eve", count=2)
    world.outbox.notify("refused", "full", name="eve")
    world.turns.end()
    assert world.writer.written == b"! refused eve: 3 messages, full\na\n"


def test_outbox_merges_notices_when_the_writer_is_paused() -> None:
    """While nothing can be written they are one line, and it goes first afterwards."""
    world = _World()
    world.outbox.pause()
    world.offer(world.alice, b"a\n")
    for _ in range(1000):
        world.outbox.notify("bad-line", "words")
    world.turns.end()
    assert world.writer.calls == []
    assert not world.outbox.is_empty
    world.writer.free()
    world.turns.end()
    assert world.writer.written == b"! bad-line 1000 lines, words\na\n"


def test_outbox_writes_the_last_line_when_it_is_not_closed() -> None:
    """The Notice that says why is written unless nothing can arrive any more."""
    world = _World()
    world.outbox.write_last(b"! shutdown\n")
    world.writer.closing = True
    world.outbox.write_last(b"! shutdown\n")
    assert world.writer.calls == [b"! shutdown\n"]


# What the ladder and the owner use.


def test_outbox_refuses_and_lets_senders_run_on_when_the_breaker_opens() -> None:
    """What is parked or comes is refused, what is pending stays and gives its credit back."""
    world = _World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, _sized(name, 50))
    world.outbox.refuse_all()
    world.offer(world.eve, b"d\n")
    assert world.ledger.refused == {Refusal.BREAKER_OPEN: 2}
    assert world.alice.stalls == 0
    assert len(world.alice.given_back) == 3
    world.outbox.accept_again()
    world.offer(world.eve, b"e\n", is_fanout=True)
    assert world.ledger.refused == {Refusal.BREAKER_OPEN: 2, Refusal.FULL: 1}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == _sized("a", 50) + _sized("b", 50)
    assert len(world.alice.given_back) == 3
    assert world.ledger.is_balanced
    assert world.ledger.in_flight == 0


def test_outbox_stays_closed_when_the_breaker_closes_late() -> None:
    """A breaker that closes does not reopen an outbox whose connection is gone."""
    world = _World()
    world.outbox.close(Refusal.GONE)
    world.outbox.accept_again()
    world.offer(world.alice, b"a\n")
    assert world.ledger.refused == {Refusal.GONE: 1}


def test_outbox_knows_what_has_left_when_the_machine_still_holds_bytes() -> None:
    """Bytes that have left are those handed over but for what the owner says is still here."""
    ledger, turns = Ledger(), Turns()
    outbox = Outbox(FakeWriter(), _SETTINGS, ledger, turns.flusher, owner=_FakeOwner(unsent_bytes=4))
    outbox.offer(entry_of(FakeSender(), ledger, _sized("a", 10)), is_fanout=False)
    turns.end()
    assert outbox.left_bytes == 6
    world = _World()
    world.offer(world.alice, _sized("a", 10))
    assert not world.outbox.has_emptied
    world.turns.end()
    assert world.outbox.left_bytes == 10
    assert world.outbox.has_emptied


def test_outbox_tells_when_it_is_empty_and_the_writer_has_taken_all() -> None:
    """`on_empty` is called by a flush that leaves nothing, also when nothing was pending at all."""
    world = _World()
    calls: list[str] = []
    world.outbox.on_empty = lambda: calls.append("empty")
    world.outbox.flush_soon()
    world.turns.end()
    assert calls == ["empty"]
    world.writer.is_stuck = True
    world.offer(world.alice, b"a\n")
    world.turns.end()
    assert calls == ["empty"]
    world.writer.free()
    world.turns.end()
    assert calls == ["empty", "empty"]


def test_outbox_is_watched_when_its_writer_pauses() -> None:
    """The ladder watches from the first pause on, with one timer, until the outbox is closed."""
    timers: list[_FakeTimer] = []

    def call_later(_delay_s: float, _call: Callable[[], None]) -> asyncio.TimerHandle:
        timers.append(_FakeTimer())
        return cast("asyncio.TimerHandle", timers[-1])

    steps = LadderSettings(5, 1, 30, 3, 5, 1, 2)
    ladder = Ladder(steps, RetryBudget(), call_later=call_later, on_change=lambda _name, _state: None)
    outbox = Outbox(FakeWriter(), _SETTINGS, Ledger(), Turns().flusher, ladder)
    assert timers == []
    outbox.pause()
    outbox.pause()
    assert [timer.is_cancelled for timer in timers] == [False]
    outbox.close(Refusal.GONE)
    assert [timer.is_cancelled for timer in timers] == [True]


class _FakeTimer:
    """A timer that never fires."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


# Entries that outlive their connection.


def test_outbox_keeps_the_oldest_when_it_is_detached() -> None:
    """What fits is kept in order without its senders' credit, the rest is refused."""
    world = _World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, _sized(name, 50))
        world.offer(world.eve, _sized(name.upper(), 50))
    kept = world.outbox.detach(210, Refusal.GONE)
    assert [payload.strip(b".\n") for payload, _, _ in kept] == [b"a", b"A", b"b", b"B"]
    assert world.ledger.refused == {Refusal.GONE: 2}
    assert world.ledger.in_flight == 4
    assert (len(world.alice.given_back), len(world.eve.given_back)) == (3, 3)
    assert (world.alice.stalls, world.eve.stalls) == (0, 0)
    assert (world.outbox.pending_bytes, world.outbox.parked_copies) == (0, 0)
    assert world.ledger.is_balanced


def test_outbox_keeps_everything_when_it_fits_as_it_is_detached() -> None:
    """With room for all, nothing is refused; what is offered later is."""
    world = _World()
    world.offer(world.alice, b"a\n")
    assert len(world.outbox.detach(2, Refusal.GONE)) == 1
    assert world.ledger.refused == {}
    world.offer(world.alice, b"b\n")
    assert world.ledger.refused == {Refusal.GONE: 1}


def test_outbox_sends_what_it_adopts_first_when_more_was_offered() -> None:
    """The order holds across a reconnection: what an earlier outbox has kept goes ahead."""
    old, world = _World(), _World()
    old.outbox.pause()
    for name in (b"1\n", b"2\n"):
        old.offer(old.alice, name)
    world.offer(world.eve, b"3\n")
    world.outbox.adopt(old.outbox.detach(100, Refusal.GONE))
    assert world.outbox.pending_bytes == 6
    world.turns.end()
    assert world.writer.written == b"1\n2\n3\n"
    assert len(old.alice.given_back) == 2
    assert old.ledger.in_flight == 0


# The flusher.


def test_flusher_flushes_the_others_when_one_fails() -> None:
    """An outbox whose writer raises is reported, and its neighbours are flushed all the same."""
    ledger, turns, alice = Ledger(), Turns(), FakeSender()
    ends = [open_outbox(_SETTINGS, ledger, turns) for _ in range(3)]
    ends[1][1].error = OSError("broken")
    for outbox, _ in ends:
        outbox.offer(entry_of(alice, ledger, b"a\n"), is_fanout=False)
    assert len(turns.scheduled) == 1
    turns.end()
    assert [writer.calls for _, writer in ends] == [[b"a\n"], [], [b"a\n"]]
    assert [(outbox, str(error)) for outbox, error in turns.errors] == [(ends[1][0], "broken")]


def test_flusher_schedules_nothing_when_a_flush_is_expected() -> None:
    """Who flushes at the end of its turn anyway saves the call, for that turn only."""
    scheduled: list[Callable[[], None]] = []
    flusher = Flusher(scheduled.append, lambda _outbox, error: pytest.fail(str(error)))
    ledger, alice, writer = Ledger(), FakeSender(), FakeWriter()
    outbox = Outbox(writer, _SETTINGS, ledger, flusher)
    flusher.expect_flush()
    outbox.offer(entry_of(alice, ledger, b"a\n"), is_fanout=False)
    assert scheduled == []
    flusher.flush()
    assert writer.calls == [b"a\n"]
    outbox.offer(entry_of(alice, ledger, b"b\n"), is_fanout=False)
    assert scheduled == [flusher.flush]


# Everything at once, against a model.


class _Model:
    """The contract with lists: entries are (sender's number, payload)."""

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.queue: list[tuple[int, bytes]] = []
        self.parked: list[tuple[int, bytes]] = []  # in the order of arrival
        self.turns: list[int] = []  # whose turn it is next, among those with something parked
        self.stalled: set[int] = set()
        self.notices = 0
        self.is_paused = self.is_stuck = self.is_touched = self.is_closed = False
        self.refused: Counter[str] = Counter()

    @property
    def pending_bytes(self) -> int:
        return sum(len(payload) for _, payload in self.queue)

    def fits(self, payload: bytes) -> bool:
        pending = self.pending_bytes
        return not pending or pending + len(payload) <= _SETTINGS.max_outbox_bytes

    def offer(self, sender: int, payload: bytes, is_fanout: bool) -> None:
        if self.is_closed:
            self.refused[Refusal.GONE] += 1
            return
        if not self.is_paused and not (self.fits(payload) and not self.parked):
            self.flush()
        if self.fits(payload) and not self.parked:
            self.queue.append((sender, payload))
            self.is_touched |= not self.is_paused
            if self.is_paused and self.pending_bytes > _SETTINGS.high_watermark_bytes:
                self.stalled.add(sender)
        elif is_fanout:
            self.refused[Refusal.FULL] += 1
        else:
            self.parked.append((sender, payload))
            self.stalled.add(sender)
            if sender not in self.turns:
                self.turns.append(sender)

    def flush(self) -> None:
        if self.notices and not self.is_paused:
            self.write(notice_line("bad-line", "words", count=self.notices, unit="line"))
            self.notices = 0
        while self.queue and not self.is_paused:
            taken = self.queue.pop(0)[1]
            while self.queue and len(taken) + len(self.queue[0][1]) <= _SETTINGS.max_flush_bytes:
                taken += self.queue.pop(0)[1]
            self.write(taken)
            self.let_in()
        if self.pending_bytes <= _SETTINGS.low_watermark_bytes:
            self.stalled.clear()

    def let_in(self) -> None:
        while self.turns:
            sender = self.turns[0]
            first = next(entry for entry in self.parked if entry[0] == sender)
            if not self.fits(first[1]):
                return
            self.parked.remove(first)
            self.queue.append(first)
            self.turns.pop(0)
            if any(entry[0] == sender for entry in self.parked):
                self.turns.append(sender)

    def write(self, data: bytes) -> None:
        self.out.append(data)
        self.is_paused = self.is_stuck

    def close(self) -> None:
        if not self.is_closed:
            self.refused[Refusal.GONE] += len(self.queue) + len(self.parked)
            self.queue, self.parked, self.turns, self.notices = [], [], [], 0
            self.stalled.clear()
            self.is_closed = True


class OutboxMachine(RuleBasedStateMachine):
    """Does the same to an outbox and to the model, and compares all there is to see after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.world = _World()
        self.model = _Model()
        self.senders = [FakeSender(login) for login in ("alice", "eve", "dan")]
        self.offered = 0

    @rule(sender=st.integers(0, 2), nbytes=st.integers(5, 130), is_fanout=st.booleans())
    def offer(self, sender: int, nbytes: int, is_fanout: bool) -> None:
        self.offered += 1
        payload = _sized(str(self.offered), nbytes)
        self.world.offer(self.senders[sender], payload, is_fanout=is_fanout)
        self.model.offer(sender, payload, is_fanout)

    @rule(count=st.integers(1, 3))
    def notify(self, count: int) -> None:
        self.world.outbox.notify("bad-line", "words", count=count)
        if not self.model.is_closed:
            self.model.notices += count
            self.model.is_touched |= not self.model.is_paused

    @rule(is_stuck=st.booleans())
    def stick(self, is_stuck: bool) -> None:
        self.world.writer.is_stuck = self.model.is_stuck = is_stuck

    @rule()
    def pause(self) -> None:
        self.world.outbox.pause()
        self.model.is_paused = True

    @rule()
    def resume(self) -> None:
        self.world.outbox.resume()
        self.model.is_paused = False
        self.model.is_touched = True

    @rule()
    def end_turn(self) -> None:
        self.world.turns.end()
        if self.model.is_touched:
            self.model.flush()
        self.model.is_touched = False

    @precondition(lambda self: self.offered > 8)
    @rule(chance=st.integers(0, 9))
    def close(self, chance: int) -> None:
        if chance == 0:
            self.world.outbox.close(Refusal.GONE)
            self.model.close()

    @invariant()
    def agrees(self) -> None:
        world, model, outbox, ledger = self.world, self.model, self.world.outbox, self.world.ledger
        assert ledger.is_balanced
        assert world.writer.calls == model.out
        assert outbox.pending_bytes == model.pending_bytes
        assert outbox.pending_bytes <= 100 or len(model.queue) == 1
        assert outbox.parked_copies == len(model.parked)
        assert outbox.is_paused == model.is_paused
        assert ledger.in_flight == len(model.queue) + len(model.parked)
        assert +ledger.refused == +model.refused
        assert [sender.stalls for sender in self.senders] == [int(n in model.stalled) for n in range(3)]
        assert sum(len(sender.given_back) for sender in self.senders) == self.offered - ledger.in_flight

    def teardown(self) -> None:
        self.world.writer.is_stuck = self.model.is_stuck = False
        self.resume()
        self.end_turn()
        self.agrees()
        assert self.world.outbox.is_empty
        assert self.world.ledger.in_flight == 0
        assert not any(sender.stalls for sender in self.senders)


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
