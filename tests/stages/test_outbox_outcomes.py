"""The outbox, from point 5 of its contract on: outcomes, notices, breaker, reconnection."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from retry.budget import RetryBudget
from stages.ladder import Ladder, LadderSettings
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
    open_outbox,
    sized,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


# 5. One outcome.


@pytest.mark.parametrize("is_told_by", ["close", "closing writer"])
def test_outbox_refuses_everything_when_its_connection_is_lost(is_told_by: str) -> None:
    """Pending and parked copies are refused, senders run on, and what comes later is refused at once."""
    world = World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 50))
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
def test_outbox_loses_no_copy_when_the_writer_raises(entries: int) -> None:
    """Copies of a flush that failed are refused with the others when the outbox is closed for it."""
    world = World()
    world.writer.error = RuntimeError("Cannot call write() after write_eof()")
    for _ in range(entries):
        world.offer(world.alice, b"a\n")
    world.turns.end()
    assert [type(error) for _, error in world.turns.errors] == [RuntimeError]
    assert world.ledger.refused == {Refusal.ERROR: entries}
    assert world.ledger.in_flight == 0


def test_outbox_offer_never_raises_when_the_writer_does() -> None:
    """A writer that fails while an offer makes room is the flusher's matter, not the one's who offers."""
    world = World()
    world.writer.error = RuntimeError("Cannot call write() after write_eof()")
    for _ in range(3):
        world.offer(world.alice, sized("a", 50))


@pytest.mark.parametrize("is_shared", [False, True])
def test_outbox_counts_a_copy_when_its_last_byte_was_handed_over(is_shared: bool) -> None:
    """An entry larger than a flush goes in parts, each with its own copies; the rest can be refused."""
    world = World()
    others = World()
    world.writer.is_stuck = others.writer.is_stuck = True
    payload = b"".join(sized(name, 20) for name in "abcdefg")
    entry = entry_of(world.alice, world.ledger, payload, 7)
    world.outbox.offer(entry, is_fanout=False)
    if is_shared:
        batch = entry_of(others.alice, others.ledger, payload, 7)[2]
        others.outbox.offer((payload, 7, batch), is_fanout=True)
        others.turns.end()
    world.turns.end()
    assert world.writer.calls == [payload[:40]]
    assert (world.ledger.delivered, world.ledger.in_flight, world.outbox.pending_bytes) == (2, 5, 100)
    world.writer.let_one_through()
    world.turns.end()
    assert world.writer.calls == [payload[:40], payload[40:80]]
    assert (world.ledger.delivered, world.ledger.in_flight, world.alice.given_back) == (4, 3, [])
    world.outbox.close(Refusal.GONE)
    assert world.ledger.refused == {Refusal.GONE: 3}
    assert (world.alice.given_back, world.alice.settled) == ([(7, 140)], 7)
    assert world.ledger.buffered_bytes == 0
    assert world.ledger.is_balanced


def test_outbox_keeps_what_is_left_of_an_entry_when_it_is_detached() -> None:
    """The successor sends the lines that were not handed over, in order and in parts."""
    world = World()
    world.writer.is_stuck = True
    payload = b"".join(sized(name, 20) for name in "abcdefg")
    world.outbox.offer(entry_of(world.alice, world.ledger, payload, 7), is_fanout=False)
    world.offer(world.eve, b"last\n")
    world.turns.end()
    left = world.outbox.detach(Refusal.GONE)
    assert [copies for _, copies, _ in left] == [5, 1]
    successor, writer = open_outbox(OUTBOX_SETTINGS, world.ledger, world.turns)
    successor.adopt(left)
    world.turns.end()
    assert writer.calls == [payload[40:80], payload[80:120], payload[120:] + b"last\n"]
    assert (world.ledger.delivered, world.ledger.in_flight, world.ledger.buffered_bytes) == (8, 0, 0)


# 6. Notices.


def test_outbox_sends_notices_first_when_entries_are_pending() -> None:
    """Notices merge and go ahead of entries at the next flush."""
    world = World()
    world.offer(world.alice, b"a\n")
    world.outbox.notify("refused", "full", name="eve", count=2)
    world.outbox.notify("refused", "full", name="eve")
    world.turns.end()
    assert world.writer.written == b"! refused eve: 3 messages, full\na\n"


def test_outbox_merges_notices_when_the_writer_is_paused() -> None:
    """While nothing can be written they are one line, and it goes first afterwards."""
    world = World()
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
    world = World()
    world.outbox.write_last(b"! shutdown\n")
    world.writer.closing = True
    world.outbox.write_last(b"! shutdown\n")
    assert world.writer.calls == [b"! shutdown\n"]


# What the ladder and the owner use.


def test_outbox_refuses_and_lets_senders_run_on_when_the_breaker_opens() -> None:
    """What is parked or comes is refused, what is pending stays and gives its credit back."""
    world = World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 50))
    world.outbox.refuse_all()
    assert world.alice.expected_at == [0]  # told before it is let on, and once
    world.offer(world.eve, b"d\n")
    assert world.ledger.refused == {Refusal.BREAKER_OPEN: 2}
    assert world.alice.stalls == 0
    assert len(world.alice.given_back) == 3
    world.outbox.accept_again()
    world.offer(world.eve, b"e\n", is_fanout=True)
    assert world.ledger.refused == {Refusal.BREAKER_OPEN: 2, Refusal.FULL: 1}
    world.writer.free()
    world.turns.end()
    assert world.writer.written == sized("a", 50) + sized("b", 50)
    assert len(world.alice.given_back) == 3
    assert world.ledger.is_balanced
    assert world.ledger.in_flight == 0


def test_outbox_stays_closed_when_the_breaker_closes_late() -> None:
    """A breaker that closes does not reopen an outbox whose connection is gone."""
    world = World()
    world.outbox.close(Refusal.GONE)
    world.outbox.accept_again()
    world.offer(world.alice, b"a\n")
    assert world.ledger.refused == {Refusal.GONE: 1}


def test_outbox_knows_what_has_left_when_the_machine_still_holds_bytes() -> None:
    """Bytes that have left are those handed over but for what the owner says is still here."""
    ledger, turns = Ledger(), Turns()
    outbox = Outbox(FakeWriter(), OUTBOX_SETTINGS, ledger, turns.flusher, owner=FakeOwner(unsent_bytes=4))
    outbox.offer(entry_of(FakeSender(), ledger, sized("a", 10)), is_fanout=False)
    turns.end()
    assert outbox.left_bytes == 6
    world = World()
    world.offer(world.alice, sized("a", 10))
    assert not world.outbox.has_emptied
    world.turns.end()
    assert world.outbox.left_bytes == 10
    assert world.outbox.has_emptied


def test_outbox_tells_when_it_is_empty_and_the_writer_has_taken_all() -> None:
    """`on_empty` is called by a flush that leaves nothing, also when nothing was pending at all."""
    world = World()
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
    outbox = Outbox(FakeWriter(), OUTBOX_SETTINGS, Ledger(), Turns().flusher, ladder)
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


def test_outbox_returns_what_is_left_when_it_is_detached() -> None:
    """Everything is there in order, what was parked in its turn, and its senders have their credit back."""
    world = World()
    world.outbox.pause()
    for name in "abc":
        world.offer(world.alice, sized(name, 50))
        world.offer(world.eve, sized(name.upper(), 50))
    left = world.outbox.detach(Refusal.GONE)
    assert [bytes(payload).strip(b".\n") for payload, _, _ in left] == [b"a", b"A", b"b", b"B", b"c", b"C"]
    assert world.ledger.refused == {}
    assert world.ledger.in_flight == 6
    assert (len(world.alice.given_back), len(world.eve.given_back)) == (3, 3)
    assert (world.alice.stalls, world.eve.stalls) == (0, 0)
    assert (world.outbox.pending_bytes, world.outbox.parked_copies) == (0, 0)
    assert world.ledger.is_balanced


@pytest.mark.parametrize("end", [Outbox.close, Outbox.detach])
def test_outbox_warns_whom_it_has_stalled_when_its_writer_ends(end: Callable[[Outbox, str], object]) -> None:
    """They are let on with all they have ready, which will be refused; who was not stalled just goes on."""
    world = World()
    world.outbox.pause()
    world.offer(world.eve, sized("e", 50))
    world.offer(world.alice, sized("a", 50))
    assert (world.alice.stalls, world.eve.stalls) == (1, 0)
    end(world.outbox, Refusal.GONE)
    assert world.alice.expected_at == [0]  # before it is let on
    assert world.eve.expected_at == []
    assert world.alice.stalls == 0


def test_outbox_refuses_what_comes_when_it_was_detached() -> None:
    """It is closed: what is offered later is refused."""
    world = World()
    world.offer(world.alice, b"a\n")
    assert len(world.outbox.detach(Refusal.GONE)) == 1
    assert world.ledger.refused == {}
    world.offer(world.alice, b"b\n")
    assert world.ledger.refused == {Refusal.GONE: 1}


def test_outbox_sends_what_it_adopts_first_when_more_was_offered() -> None:
    """The order holds across a reconnection: what an earlier outbox has kept goes ahead."""
    old, world = World(), World()
    old.outbox.pause()
    for name in (b"1\n", b"2\n"):
        old.offer(old.alice, name)
    world.offer(world.eve, b"3\n")
    world.outbox.adopt(old.outbox.detach(Refusal.GONE))
    assert world.outbox.pending_bytes == 6
    world.turns.end()
    assert world.writer.written == b"1\n2\n3\n"
    assert len(old.alice.given_back) == 2
    assert old.ledger.in_flight == 0
