"""The outbox beside a model of its contract: the same is done to both, all there is to see is compared."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stages.message import Refusal
from stages.notices import notice_line
from tests.stages.fakes import (
    OUTBOX_SETTINGS,
    FakeSender,
    World,
    sized,
)


class _Model:
    """The contract with lists: entries are (sender's number, payload)."""

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.queue: list[tuple[int, bytes]] = []
        self.parked: list[tuple[int, bytes]] = []  # in the order of arrival
        self.turns: list[int] = []  # whose turn it is next, among those with something parked
        self.stalled: set[int] = set()
        self.without_credit: set[bytes] = set()  # payloads that waited under a policy that does not stall
        self.fanout: set[bytes] = set()  # payloads of that kind
        self.notices = 0
        self.is_paused = self.is_stuck = self.is_touched = self.is_closed = False
        self.refused: Counter[str] = Counter()

    @property
    def pending_bytes(self) -> int:
        return sum(len(payload) for _, payload in self.queue)

    def fits(self, payload: bytes) -> bool:
        pending = self.pending_bytes
        return not pending or pending + len(payload) <= OUTBOX_SETTINGS.max_outbox_bytes

    def offer(self, sender: int, payload: bytes, is_fanout: bool) -> None:
        if self.is_closed:
            self.refused[Refusal.GONE] += 1
            return
        if not self.is_paused and not (self.fits(payload) and not self.parked):
            self.flush()
        if self.fits(payload) and not self.parked:
            self.queue.append((sender, payload))
            if is_fanout:
                self.fanout.add(payload)
            self.is_touched |= not self.is_paused
            if self.is_paused and is_fanout:
                self.without_credit.add(payload)
            elif self.is_paused and self.pending_bytes > OUTBOX_SETTINGS.high_watermark_bytes:
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
            while self.queue and len(taken) + len(self.queue[0][1]) <= OUTBOX_SETTINGS.max_flush_bytes:
                taken += self.queue.pop(0)[1]
            self.write(taken)
            self.let_in()
        if self.pending_bytes <= OUTBOX_SETTINGS.low_watermark_bytes:
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
        if self.is_stuck:
            self.pause()

    def pause(self) -> None:
        self.is_paused = True
        self.without_credit |= {payload for _, payload in self.queue} & self.fanout

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
        self.world = World()
        self.model = _Model()
        self.senders = [FakeSender(login) for login in ("alice", "eve", "dan")]
        self.offered = 0

    @rule(sender=st.integers(0, 2), nbytes=st.integers(5, 130), is_fanout=st.booleans())
    def offer(self, sender: int, nbytes: int, is_fanout: bool) -> None:
        self.offered += 1
        payload = sized(str(self.offered), nbytes)
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
        self.model.pause()

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
        holding = [entry for entry in model.queue + model.parked if entry[1] not in model.without_credit]
        assert sum(len(sender.given_back) for sender in self.senders) == self.offered - len(holding)

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
