"""The outbox on its ladder, in virtual time: what becomes of copies and senders while a writer is stuck."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retry.budget import RetryBudget
from stages.ladder import Ladder, LadderSettings
from stages.message import Ledger, Refusal
from stages.outbox import Outbox, OutboxSettings
from tests.stages.fakes import (
    OUTBOX_SETTINGS,
    FakeSender,
    FakeWriter,
    Turns,
    World,
    entry_of,
    open_outbox,
    sized,
)
from tests.stages.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.outbox import WhenFull

# Failures at 5, 10 and 15, which opens; probes at 20 and 30, each for 5 seconds; evicted at 40.
_STEPS = LadderSettings(
    write_timeout_s=5.0,
    min_progress_bytes=10,
    evict_after_s=40.0,
    fail_max=3,
    reset_timeout_s=5.0,
    base_delay_s=0.1,
    max_delay_s=2.0,
)


class _Owner:
    """A connection whose peer has to be told to read."""

    def __init__(self) -> None:
        self.unsent = 0
        self.evictions = 0

    def unsent_bytes(self) -> int:
        return self.unsent

    def fail(self) -> None:
        raise AssertionError("no writer fails here")

    def evict(self) -> None:
        self.evictions += 1


class _Stuck:
    """An outbox behind which nobody reads, its ladder, and two senders."""

    def __init__(self, settings: OutboxSettings = OUTBOX_SETTINGS, steps: LadderSettings = _STEPS) -> None:
        self.timeline = Timeline()
        self.begun_at = self.timeline.now_s
        self.ledger, self.turns, self.owner, self.writer = Ledger(), Turns(), _Owner(), FakeWriter()
        self.alice, self.eve = FakeSender("alice"), FakeSender("eve")
        self.changes: list[str] = []
        self.ladder = Ladder(
            steps,
            RetryBudget(clock=self.timeline.clock),
            call_later=self.timeline.call_later,
            on_change=lambda name, state: self.changes.append(f"{name} {state}"),
            clock=self.timeline.clock,
            sleep=self.timeline.sleep,
            random=lambda: 0.0,
        )
        self.outbox = Outbox(
            self.writer, settings, self.ledger, self.turns.flusher, self.ladder, owner=self.owner
        )
        self.outbox.name = "bob"
        self.writer.outbox = self.outbox
        self.writer.is_stuck = True
        self.outbox.pause()

    def offer(self, sender: FakeSender, payload: bytes, *, is_fanout: bool = False) -> None:
        self.outbox.offer(entry_of(sender, self.ledger, payload), is_fanout=is_fanout)
        self.turns.end()
        assert self.ledger.is_balanced

    def read_one(self) -> None:
        """The peer takes one write; another one follows it and waits."""
        self.writer.let_one_through()
        self.turns.end()

    def read_all(self) -> None:
        """The peer reads everything from now on."""
        self.writer.free()
        self.turns.end()

    async def advance_to(self, passed_s: float) -> None:
        await self.timeline.advance_to(self.begun_at + passed_s)
        self.turns.end()
        assert self.ledger.is_balanced

    def assert_nothing_is_left(self) -> None:
        assert self.timeline.waiting == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not self.ladder.watches


async def test_outbox_lets_senders_run_on_when_its_writer_was_stuck_too_often() -> None:
    """Up to the breaker senders are stalled; then all credit is back, and what comes is refused at once."""
    stuck = _Stuck()
    for name in "abc":
        stuck.offer(stuck.alice, sized(name, 50))
    await stuck.advance_to(14.999)
    assert (stuck.alice.stalls, stuck.alice.given_back) == (1, [])
    await stuck.advance_to(15.0)
    assert (stuck.alice.stalls, len(stuck.alice.given_back)) == (0, 3)
    assert stuck.alice.notices == [("refused", Refusal.BREAKER_OPEN, "bob", 1)]
    for at_s in (16.0, 22.0, 27.0):  # open, under the probe, open again
        await stuck.advance_to(at_s)
        stuck.offer(stuck.eve, b"d\n")
    assert stuck.ledger.refused == {Refusal.BREAKER_OPEN: 4}
    assert (stuck.eve.stalled_ever, len(stuck.eve.given_back)) == (0, 3)
    assert stuck.writer.calls == []
    assert stuck.ledger.in_flight == 2
    stuck.outbox.close(Refusal.GONE)
    await stuck.timeline.settle()
    stuck.assert_nothing_is_left()


@pytest.mark.parametrize("at_s", [3.0, 8.0, 13.0, 16.0, 22.0, 27.0, 39.0])
async def test_outbox_delivers_in_order_when_its_writer_moves_again(at_s: float) -> None:
    """On any step what is still pending or parked leaves in order, once, and soon all is as before."""
    stuck = _Stuck()
    for number in range(6):
        stuck.offer(stuck.alice, sized(str(number), 40))
    await stuck.advance_to(at_s)
    stuck.read_all()
    await stuck.advance_to(at_s + 10.0)
    stuck.offer(stuck.alice, b"6\n")
    kept = range(6 if at_s < 15.0 else 2)
    assert stuck.writer.written == b"".join(sized(str(number), 40) for number in kept) + b"6\n"
    assert stuck.changes[-1:] == ([] if at_s < 15.0 else ["bob closed"])
    assert (stuck.ledger.in_flight, stuck.alice.stalls, stuck.owner.evictions) == (0, 0, 0)
    assert len(stuck.alice.given_back) == 7
    stuck.outbox.close(Refusal.GONE)
    stuck.assert_nothing_is_left()


async def test_outbox_is_left_alone_when_its_writer_keeps_moving() -> None:
    """A slow reader that takes one write in each timeout is never in trouble, whatever is parked for it."""
    stuck = _Stuck()
    for number in range(30):
        stuck.offer(stuck.alice, sized(str(number), 50))
    for turn in range(28):
        await stuck.advance_to(4.0 + 5.0 * turn)
        stuck.read_one()
    assert stuck.ladder.breakers() == {}
    assert stuck.writer.written == b"".join(sized(str(number), 50) for number in range(28))
    stuck.outbox.close(Refusal.GONE)


async def test_outbox_is_not_in_trouble_when_it_empties_between_two_looks() -> None:
    """Few bytes are progress too when nothing was left, though the writer has paused again since."""
    stuck = _Stuck()
    stuck.offer(stuck.alice, b"a\n")
    await stuck.advance_to(1.0)
    stuck.read_all()
    await stuck.advance_to(4.9)
    stuck.writer.is_stuck = True
    stuck.offer(stuck.alice, b"b\n")
    assert stuck.outbox.is_paused
    await stuck.advance_to(9.9)
    assert stuck.ladder.breakers() == {}
    stuck.outbox.close(Refusal.GONE)


async def test_outbox_is_in_trouble_when_the_machine_keeps_what_it_takes() -> None:
    """Bytes that were handed over and are still here are no progress, however many writes there were."""
    stuck = _Stuck()
    for number in range(9):
        stuck.offer(stuck.alice, sized(str(number), 50))
    for turn in range(3):
        await stuck.advance_to(4.0 + 5.0 * turn)
        stuck.read_one()
        stuck.owner.unsent = len(stuck.writer.written) - 9 * (turn + 1)
    await stuck.advance_to(15.0)
    assert stuck.changes == ["bob open"]
    stuck.outbox.close(Refusal.GONE)
    await stuck.timeline.settle()


async def test_outbox_is_evicted_when_its_writer_never_moves() -> None:
    """At `evict_after_s` its owner is told once, and every copy has an outcome."""
    stuck = _Stuck()
    for name in "abc":
        stuck.offer(stuck.alice, sized(name, 50))
    await stuck.advance_to(39.999)
    assert stuck.owner.evictions == 0
    await stuck.advance_to(40.0)
    assert (stuck.owner.evictions, stuck.ladder.evictions) == (1, 1)
    assert stuck.ledger.refused == {Refusal.BREAKER_OPEN: 1, Refusal.EVICTED: 2}
    assert (stuck.ledger.in_flight, len(stuck.alice.given_back)) == (0, 3)
    stuck.outbox.write_last(b"! slow-consumer\n")  # a stuck writer pauses at it
    stuck.assert_nothing_is_left()


async def test_outbox_keeps_notices_when_its_breaker_is_open() -> None:
    """What a client is told about its own lines waits, merged, until it reads again."""
    stuck = _Stuck()
    await stuck.advance_to(16.0)
    for _ in range(3):
        stuck.outbox.notify("refused", Refusal.FULL, name="carol")
    await stuck.advance_to(17.0)
    stuck.read_all()
    assert stuck.writer.written == b"! refused carol: 3 messages, full\n"
    stuck.outbox.close(Refusal.GONE)
    await stuck.timeline.settle()


@pytest.mark.parametrize("at_s", [2.0, 7.0, 17.0, 22.0])
async def test_outbox_hands_its_copies_to_its_successor_when_it_is_detached_in_trouble(at_s: float) -> None:
    """On any step the watch ends, the copies stay in flight, and the next outbox sends them first."""
    stuck = _Stuck()
    stuck.offer(stuck.alice, sized("a", 50))
    stuck.offer(stuck.alice, sized("b", 50))
    await stuck.advance_to(at_s)
    kept = stuck.outbox.detach(Refusal.GONE)
    await stuck.timeline.settle()
    stuck.assert_nothing_is_left()
    assert (stuck.ledger.in_flight, len(stuck.alice.given_back)) == (2, 2)
    successor, writer = open_outbox(OUTBOX_SETTINGS, stuck.ledger, stuck.turns)
    successor.pause()
    successor.adopt(kept)
    stuck.turns.end()
    assert writer.calls == []
    writer.free()
    stuck.turns.end()
    assert writer.written == sized("a", 50) + sized("b", 50)
    assert (stuck.ledger.in_flight, stuck.ledger.delivered, len(stuck.alice.given_back)) == (0, 2, 2)
    assert stuck.ledger.is_balanced


async def test_outbox_with_policy_disconnect_ends_its_watch_when_it_is_full() -> None:
    """Closed by its policy in the middle of a climb: nothing goes on behind it, and it is no eviction."""
    stuck = _Stuck(replace(OUTBOX_SETTINGS, direct="disconnect"))
    await stuck.advance_to(7.0)
    for name in "abc":
        stuck.offer(stuck.alice, sized(name, 50))
    await stuck.timeline.settle()
    stuck.assert_nothing_is_left()
    assert (stuck.owner.evictions, stuck.ladder.evictions) == (1, 0)
    assert stuck.ledger.refused == {Refusal.FULL: 1, Refusal.EVICTED: 2}


async def test_outbox_with_policy_drop_oldest_sends_the_newest_when_its_writer_moves_again() -> None:
    """What is newest survives a stall, in order; the sender was neither stalled nor made to wait."""
    stuck = _Stuck(replace(OUTBOX_SETTINGS, direct="drop_oldest"))
    for number in range(20):
        stuck.offer(stuck.alice, sized(str(number), 50))
    await stuck.advance_to(4.0)
    stuck.read_all()
    assert stuck.writer.written == sized("18", 50) + sized("19", 50)
    assert stuck.ledger.refused == {Refusal.DROPPED: 18}
    assert (stuck.alice.stalled_ever, len(stuck.alice.given_back)) == (0, 20)
    stuck.outbox.close(Refusal.GONE)


@pytest.mark.parametrize("policy", ["refuse", "drop_oldest", "disconnect"])
def test_outbox_holds_no_credit_when_its_writer_pauses_under_a_flush(policy: WhenFull) -> None:
    """A slow member costs a group nothing, also by what was pending already as it became slow."""
    world = World(replace(OUTBOX_SETTINGS, fanout=policy))
    world.writer.is_stuck = True
    for name in "abcd":
        world.offer(world.alice, sized(name, 25), is_fanout=True)
    world.turns.end()
    assert world.outbox.pending_bytes == 50
    assert len(world.alice.given_back) == 4


# Everything at once.


@dataclass(frozen=True)
class _Step:
    """Something that happens after some time."""

    after_s: float
    do: Callable[[_Stuck, bytes], None]


def _offers(is_by_eve: bool, nbytes: int, is_fanout: bool) -> Callable[[_Stuck, bytes], None]:
    def do(stuck: _Stuck, name: bytes) -> None:
        sender = stuck.eve if is_by_eve else stuck.alice
        payload = b"%s %s\n" % (sender.login.encode(), name.ljust(nbytes, b"."))
        stuck.offer(sender, payload, is_fanout=is_fanout)

    return do


_STEP = st.builds(
    _Step,
    st.sampled_from([0.0, 0.0, 0.5, 3.0, 5.0, 8.0]),
    st.one_of(
        st.builds(_offers, st.booleans(), st.integers(1, 70), st.booleans()),
        st.sampled_from([lambda stuck, _: stuck.read_one(), lambda stuck, _: stuck.read_all()]),
        st.just(lambda stuck, _: setattr(stuck.writer, "is_stuck", True)),
    ),
)


@given(st.lists(_STEP, max_size=40), st.sampled_from(["read", "close", "wait"]))
@hypothesis_settings(deadline=None, max_examples=60)
def test_outbox_keeps_order_and_account_when_its_writer_comes_and_goes(steps: list[_Step], end: str) -> None:
    """Whatever the ladder does: each sender's copies leave in order, once, and all have an outcome."""

    async def live() -> None:
        stuck = _Stuck()
        passed_s = 0.0
        for number, step in enumerate(steps):
            passed_s += step.after_s
            await stuck.advance_to(passed_s)
            step.do(stuck, b"%d" % number)
        if end == "read":
            stuck.read_all()
            await stuck.advance_to(passed_s + 11.0)
        elif end == "wait":
            stuck.writer.is_stuck = True
            stuck.outbox.pause()
            await stuck.advance_to(passed_s + 60.0)
            assert stuck.owner.evictions == 1
        if end != "read" or stuck.outbox.parked_copies:
            stuck.outbox.close(Refusal.GONE)
        assert stuck.ledger.is_balanced
        assert stuck.ledger.in_flight == 0
        for sender in (stuck.alice, stuck.eve):
            lines = [line.split() for line in stuck.writer.written.splitlines()]
            numbers = [int(line[1].strip(b".")) for line in lines if line[0] == sender.login.encode()]
            assert numbers == sorted(set(numbers))
            assert sender.stalls == 0
        delivered = len(stuck.writer.written.splitlines())
        assert delivered + stuck.ledger.refused.total() == stuck.ledger.accepted
        stuck.outbox.close(Refusal.GONE)
        await stuck.timeline.settle()
        stuck.assert_nothing_is_left()

    asyncio.run(live())
