"""What the loop is spared: steps of many writers in one turn, and waits for less than its clock tells."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from tests.stages.ladder_world import SETTINGS, FakeClimber, LadderWorld

WRITERS = 5  # as many as take their steps within the turns that a moment lasts in these tests


class Turns:
    """Counts the turns of the loop, from when it is made until it is closed."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self.number += 1
        self._handle = self._loop.call_soon(self._count)

    def close(self) -> None:
        self._handle.cancel()


class TurnClimber(FakeClimber):
    """Also remembers in which turn it was told something."""

    def __init__(self, world: LadderWorld, turns: Turns, told_in: Counter[int]) -> None:
        super().__init__("bob", world)
        self._turns = turns
        self._told_in = told_in

    def refuse_all(self) -> None:
        super().refuse_all()
        self._told_in[self._turns.number] += 1

    def evict(self) -> None:
        super().evict()
        self._told_in[self._turns.number] += 1


async def test_ladder_takes_one_step_a_turn_when_many_writers_stood_still_together() -> None:
    """Openings and evictions of the same moment leave room for everybody else's lines between them."""
    world = LadderWorld(replace(SETTINGS, evict_after_s=30.0))
    turns = Turns()
    told_in: Counter[int] = Counter()
    climbers = [TurnClimber(world, turns, told_in) for _ in range(WRITERS)]
    for climber in climbers:
        climber.pause()
    await world.advance_to(15.0)
    assert [climber.told for climber in climbers] == [[(15.0, "refuse")]] * WRITERS
    assert max(told_in.values()) == 1
    await world.advance_to(30.0)
    assert [climber.told[1:] for climber in climbers] == [[(30.0, "evict")]] * WRITERS
    assert len(told_in) == 2 * WRITERS
    turns.close()
    await world.ladder.aclose()


async def test_ladder_goes_on_with_the_others_when_one_is_closed_while_it_waits_for_its_turn() -> None:
    """A connection that is lost in between neither takes its step nor keeps the others from theirs."""
    world = LadderWorld()
    others = [FakeClimber("bob", world) for _ in range(3)]
    for climber in others:
        climber.pause()
    # In the moment of the third failure.
    close_of_first = world.ladder.call_later(15.0, others[0].watch.close)
    await world.advance_to(15.0)
    assert others[0].told == []
    assert [climber.told for climber in (world.bob, *others[1:])] == [[(15.0, "refuse")]] * 3
    close_of_first.cancel()
    await world.ladder.aclose()
    world.assert_nothing_is_left()


async def test_ladder_waits_no_second_time_when_a_timer_was_a_little_early() -> None:
    """Timers count in milliseconds: what is left of a wait is less, and would be waited for many times."""
    world = LadderWorld()
    asked: list[float] = []

    async def wake_early(seconds: float) -> None:
        asked.append(seconds)
        await world.timeline.sleep(seconds - 0.0005 if seconds > 0.001 else seconds)

    world.ladder.sleep = wake_early
    await world.advance_to(16.0)
    assert asked == [5.0, 5.0, 5.0]
    assert world.changes[0][1] == "open"
    await world.ladder.aclose()
