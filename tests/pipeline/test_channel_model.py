"""A channel beside a list that does the same: any sequence of calls, cancellations at any moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.channel import ReceiveEnd, SendEnd, open_channel
from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock
from tests.pipeline.sources import turn

Ends = tuple[SendEnd[int], ReceiveEnd[int]]
CAPACITY = 4
weights = st.integers(1, CAPACITY + 2)


@dataclass
class Sent:
    """One item of the model."""

    number: int
    weight: int
    task: asyncio.Task[None] | None = None  # of a `send`; none for an offer
    is_unnoticed: bool = False  # served, and its task has not run since
    at_s: int = 0


@dataclass
class Model:
    """What the channel should hold: two lists and a weight."""

    inside: list[Sent] = field(default_factory=list)
    line: list[Sent] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)  # numbers of offers whose callback is due
    peak: int = 0
    total_in: int = 0
    total_out: int = 0
    sends: int = 0
    waits: dict[int, int] = field(default_factory=dict)  # of what had to wait and got in: number, seconds

    @property
    def depth(self) -> int:
        return sum(one.weight for one in self.inside) + sum(self.held)

    def fits(self, weight: int) -> bool:
        return self.depth == 0 or self.depth + weight <= CAPACITY

    def enter(self, one: Sent) -> None:
        self.inside.append(one)
        self.total_in += one.weight
        self.sends += 1
        self.peak = max(self.peak, self.depth)

    def let_in(self, now: int) -> None:
        while self.line and self.fits(self.line[0].weight):
            one = self.line.pop(0)
            self.waits[one.number] = now - one.at_s
            self.enter(one)
            if one.task is None:
                self.entered.append(one.number)
            else:
                one.is_unnoticed = True

    def undo(self, one: Sent) -> None:
        """The send of `one` was cancelled before its task saw that it was served, or while it waited."""
        if one in self.line:
            self.line.remove(one)
        elif one in self.inside:
            self.inside.remove(one)
            self.total_in -= one.weight
            self.sends -= 1
            del self.waits[one.number]


class ChannelMachine(RuleBasedStateMachine):
    """Runs both; the event loop turns only where a rule says so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0
        ends: Ends = open_channel(CAPACITY, clock=lambda: float(self.now))
        self.sending, self.receiving = ends
        self.model = Model()
        self.count = 0
        self.entered: list[int] = []  # offers that were told
        self.is_sending_closed = self.is_receiving_closed = False
        self.tasks: list[Sent] = []  # sends whose task may not have ended

    def teardown(self) -> None:
        for one in self.tasks:
            assert one.task is not None
            one.task.cancel()
        self.turn()
        self.loop.close()

    def turn(self) -> None:
        self.loop.run_until_complete(turn())
        for one in self.model.inside:
            one.is_unnoticed = False
        self.tasks = [one for one in self.tasks if one.task and not one.task.done()]

    def new(self, weight: int) -> Sent:
        self.count += 1
        return Sent(self.count, weight, at_s=self.now)

    def expected_send_error(self) -> type[Exception] | None:
        if self.is_sending_closed:
            return ClosedResourceError
        return BrokenResourceError if self.is_receiving_closed else None

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(weight=weights)
    def send_nowait(self, weight: int) -> None:
        one = self.new(weight)
        error = self.expected_send_error()
        if error is None and (self.model.line or not self.model.fits(weight)):
            error = WouldBlock
        if error is None:
            self.sending.send_nowait(one.number, weight)
            self.model.enter(one)
        else:
            with pytest.raises(error):
                self.sending.send_nowait(one.number, weight)

    @precondition(lambda self: self.expected_send_error() is None)
    @rule(weight=weights)
    def offer(self, weight: int) -> None:
        one = self.new(weight)
        is_in = not self.model.line and self.model.fits(weight)
        assert self.sending.offer(one.number, weight, lambda: self.entered.append(one.number)) == is_in
        if is_in:
            self.model.enter(one)
        else:
            self.model.line.append(one)

    @precondition(lambda self: self.expected_send_error() is None)
    @rule(weight=weights)
    def send(self, weight: int) -> None:
        one = self.new(weight)
        is_in = not self.model.line and self.model.fits(weight)
        one.task = self.loop.create_task(self.sending.send(one.number, weight))
        self.turn()
        assert one.task.done() == is_in
        if is_in:
            self.model.enter(one)
        else:
            self.model.line.append(one)
            self.tasks.append(one)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel_a_send(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.tasks))
        assert one.task is not None
        one.task.cancel()
        self.turn()
        assert one.task.cancelled()
        if not self.is_receiving_closed:
            self.model.undo(one)
            self.model.let_in(self.now)
            self.turn()

    @rule()
    def loop_turns(self) -> None:
        self.turn()

    @rule(max_weight=st.integers(1, 6), is_held=st.booleans())
    def receive_many_nowait(self, max_weight: int, is_held: bool) -> None:
        if self.is_receiving_closed:
            error: type[Exception] = ClosedResourceError
        elif self.is_sending_closed and not self.model.line:
            error = EndOfChannel
        else:
            error = WouldBlock
        if self.is_receiving_closed or not self.model.inside:
            with pytest.raises(error):
                self.receiving.receive_many_nowait(max_weight, hold=is_held)
            return
        expected = [self.model.inside.pop(0)]
        while self.model.inside and (
            sum(one.weight for one in expected) + self.model.inside[0].weight <= max_weight
        ):
            expected.append(self.model.inside.pop(0))
        weight = sum(one.weight for one in expected)
        self.model.total_out += weight
        received = self.receiving.receive_many_nowait(max_weight, hold=is_held)
        assert [(one.item, one.weight, one.sent_at) for one in received] == [
            (one.number, one.weight, one.at_s) for one in expected
        ]
        if is_held:
            self.model.held.append(weight)
        else:
            self.model.let_in(self.now)

    @precondition(lambda self: self.model.held)
    @rule()
    def free(self) -> None:
        self.receiving.free(self.model.held.pop(0))
        self.model.let_in(self.now)

    @precondition(lambda self: self.count > 15)
    @rule()
    def close_send_end(self) -> None:
        self.is_sending_closed = True
        self.sending.close()

    @precondition(lambda self: self.count > 25)
    @rule()
    def close_receive_end(self) -> None:
        model = self.model
        left = [one.number for one in model.inside] + [one.number for one in model.line if not one.task]
        assert self.receiving.close() == left
        model.entered += [one.number for one in model.line if not one.task]
        self.is_receiving_closed = True
        waiting = [one.task for one in model.line if one.task]
        model.inside.clear()
        model.line.clear()
        self.turn()
        assert all(isinstance(task.exception(), BrokenResourceError) for task in waiting)

    @invariant()
    def agree(self) -> None:
        model, statistics = self.model, self.sending.statistics()
        assert (statistics.depth, statistics.peak) == (model.depth, model.peak)
        assert (statistics.total_in, statistics.total_out) == (model.total_in, model.total_out)
        assert (statistics.sends, statistics.waiting_senders) == (model.sends, len(model.line))
        waits = model.waits.values()
        assert (statistics.waited_sends, statistics.send_wait_s) == (len(waits), sum(waits))
        assert self.receiving.send_waits.total == len(waits)
        assert self.receiving.has_items == bool(model.inside)
        assert self.receiving.is_at_end == (
            self.is_sending_closed and not model.inside and not model.line
        )
        assert self.entered == model.entered


ChannelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestChannel = ChannelMachine.TestCase


# Receivers and senders that wait, on either event loop: what must hold however their turns fall.

ACTIONS = ["send", "offer", "receive", "receive_many", "cancel", "cancel", "sleep", "sleep", "close"]
actions = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99)), max_size=80)


class Crowd:
    """Tasks that send and receive, and what became of each item."""

    def __init__(self) -> None:
        ends: Ends = open_channel(CAPACITY, clock=lambda: 0.0)
        self.sending, self.receiving = ends
        self.tasks: list[asyncio.Task[None]] = []
        self.begun: list[int] = []  # in the order in which the sends were begun
        self.sent: set[int] = set()  # sends that returned, and offers
        self.got: list[int] = []
        self.ends = 0

    async def send(self, number: int) -> None:
        self.begun.append(number)
        with suppress(ClosedResourceError):
            await self.sending.send(number, 1 + number % (CAPACITY + 2))
            self.sent.add(number)

    async def receive(self, max_weight: int) -> None:
        try:
            self.got += await self.receiving.receive_many(max_weight)
        except EndOfChannel:
            self.ends += 1

    async def do(self, action: str, number: int, serial: int) -> None:
        if action == "send":
            self.tasks.append(asyncio.create_task(self.send(serial)))
        elif action == "offer" and not self.receiving.is_at_end:
            with suppress(ClosedResourceError):
                self.sending.offer(serial, 1 + number % CAPACITY, lambda: None)
                self.begun.append(serial)
                self.sent.add(serial)
        elif action.startswith("receive"):
            self.tasks.append(asyncio.create_task(self.receive(1 if action == "receive" else 1 + number % 7)))
        elif action == "cancel" and self.tasks:
            self.tasks.pop(number % len(self.tasks)).cancel()
        elif action == "sleep":
            for _ in range(number % 4):
                await asyncio.sleep(0)
        elif action == "close" and number > 80:
            self.sending.close()

    async def finish(self) -> list[Any]:
        """Receive the rest; what every task ended with."""
        await turn()
        waiting = sum(not task.done() for task in self.tasks)
        assert not (self.receiving.has_items and self.sending.statistics().waiting_senders < waiting), "stuck"
        self.sending.close()
        await self.receive(10**6)
        while not self.receiving.is_at_end:
            await self.receive(10**6)
        return await asyncio.gather(*self.tasks, return_exceptions=True)


@settings(deadline=None, max_examples=200)
@given(actions)
async def test_channel_loses_and_doubles_nothing_when_tasks_are_cancelled(
    script: list[tuple[str, int]],
) -> None:
    """All that was sent is received once and in order, and everyone learns of the end."""
    crowd = Crowd()
    for serial, (action, number) in enumerate(script):
        await crowd.do(action, number, serial)
    ended = await asyncio.wait_for(crowd.finish(), 5)
    assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended), ended
    assert len(set(crowd.got)) == len(crowd.got)
    assert crowd.sent <= set(crowd.got) <= set(crowd.begun)
    assert crowd.got == [number for number in crowd.begun if number in set(crowd.got)]
    statistics = crowd.sending.statistics()
    assert (statistics.depth, statistics.waiting_senders) == (0, 0)
    assert statistics.total_in == statistics.total_out
    assert statistics.sends == len(crowd.got)
