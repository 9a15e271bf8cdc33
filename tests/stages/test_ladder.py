"""The ladder in virtual time: when it counts failures, refuses and probes, and when it does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from retry.budget import RetryBudget
from tests.stages.ladder_world import SETTINGS, LadderWorld

# 1 and 2. The watch, failures and retries.


async def test_watch_makes_no_breaker_when_nothing_has_failed_yet() -> None:
    """A pause costs one timer, however often it is reported: no task and no breaker."""
    world = LadderWorld()
    await world.advance_to(4.999)
    world.bob.pause()
    assert world.timeline.waiting == 1
    assert (world.bob.failures, world.ladder.breakers()) == (None, {})
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_watch_counts_one_failure_when_there_was_no_progress_for_the_timeout() -> None:
    """After `write_timeout_s` there is a breaker with one failure, closed, and nobody is told anything."""
    world = LadderWorld()
    await world.move((4.0, 4095), until_s=9.999)
    assert world.bob.failures == 1
    assert world.ladder.breakers() == {"closed": 1}
    assert world.changes == world.bob.told == []
    await world.ladder.aclose()


@pytest.mark.parametrize("phase_s", [0.001, 2.5, 4.999])
async def test_watch_never_fails_a_writer_when_it_moves_enough_in_each_timeout(phase_s: float) -> None:
    """A slow reader that moves `min_progress_bytes` in every `write_timeout_s` is left alone for good."""
    world = LadderWorld(replace(SETTINGS, evict_after_s=5.0))
    await world.move(*[(phase_s + 5.0 * turn, 4096) for turn in range(100)], until_s=499.9)
    assert world.bob.failures is None
    assert world.bob.told == []
    assert world.timeline.waiting == 1
    world.bob.watch.close()


async def test_watch_ends_when_the_writer_has_emptied() -> None:
    """The timer finds an empty outbox and is not set again; the next pause is watched like the first."""
    world = LadderWorld()
    await world.advance_to(1.0)
    world.bob.empty()
    await world.advance_to(5.0)
    assert world.timeline.waiting == 0
    await world.advance_to(7.0)
    world.bob.empty()  # every flush that leaves nothing says so
    world.bob.pause()
    await world.advance_to(11.999)
    assert world.bob.failures is None
    await world.advance_to(12.0)
    assert world.bob.failures == 1
    await world.ladder.aclose()


async def test_watch_begins_again_when_a_climb_has_ended() -> None:
    """A writer that emptied on the ladder is watched at its next pause like one that never was there."""
    world = LadderWorld()
    await world.advance_to(7.0)
    world.bob.empty()
    await world.advance_to(10.0)
    assert (world.timeline.waiting, world.bob.failures) == (0, 0)
    world.bob.pause()
    await world.advance_to(15.0)
    assert world.bob.failures == 1
    await world.ladder.aclose()


async def test_watch_counts_no_failure_when_the_writer_emptied_and_paused_again() -> None:
    """An outbox that was empty since the last look has made progress, though it is paused at the next one."""
    world = LadderWorld()
    await world.advance_to(1.0)
    world.bob.empty()
    await world.advance_to(4.9)
    world.bob.pause()
    await world.advance_to(9.999)
    assert world.bob.failures is None
    await world.advance_to(10.0)
    assert world.bob.failures == 1
    await world.ladder.aclose()


async def test_watch_waits_with_full_jitter_when_it_retries() -> None:
    """Between two waits lies a random part of a bound that doubles up to `max_delay_s`."""
    numbers = iter([0.5, 0.25, 1.0, 1.0])
    settings = replace(SETTINGS, base_delay_s=1.0, max_delay_s=3.0, fail_max=5)
    world = LadderWorld(settings, random=lambda: next(numbers))
    await world.advance_to(31.99)
    assert world.timeline.slept == [0.5, 5.0, 0.5, 5.0, 3.0, 5.0, 3.0, 5.0]
    assert world.ladder.retries == 4
    assert world.bob.failures == 4
    await world.advance_to(32.0)
    assert world.changes == [(32.0, "open")]
    await world.ladder.aclose()


@pytest.mark.parametrize(
    ("moved_at_s", "seen_at_s"), [(5.1, 7.0), (7.1, 12.0), (11.9, 12.0), (12.1, 14.0), (14.1, 19.0)]
)
async def test_watch_forgets_failures_when_the_writer_moves(moved_at_s: float, seen_at_s: float) -> None:
    """Progress in a retried wait, or in the jitter before it, ends the climb: the next one begins anew."""
    settings = replace(SETTINGS, base_delay_s=2.0)
    world = LadderWorld(settings, random=lambda: 1.0)  # looks at 5, after jitter at 7, then 12, 14, 19
    await world.move((moved_at_s, 4096), until_s=seen_at_s)
    assert world.bob.failures == 0
    await world.advance_to(100.0)
    assert world.changes[0] == (seen_at_s + 19.0, "open")
    await world.ladder.aclose()


# 3. The breaker opens.


@pytest.mark.parametrize("fail_max", [1, 2, 5])
async def test_ladder_opens_the_breaker_when_there_were_fail_max_failures(fail_max: int) -> None:
    """With the last failure, and not before it, the outbox refuses; each failure took one timeout."""
    world = LadderWorld(replace(SETTINGS, fail_max=fail_max))
    await world.advance_to(5.0 * fail_max - 0.001)
    assert (world.changes, world.bob.told) == ([], [])
    assert world.bob.failures == (fail_max - 1 or None)
    await world.advance_to(5.0 * fail_max)
    assert world.changes == [(5.0 * fail_max, "open")]
    assert world.bob.told == [(5.0 * fail_max, "refuse")]
    assert world.ladder.retries == fail_max - 1
    assert world.ladder.breakers() == {"open": 1}
    await world.ladder.aclose()


async def test_ladder_opens_the_breaker_at_once_when_the_budget_is_spent() -> None:
    """The budget is shared: when others have spent it, the first failure opens."""
    budget = RetryBudget(ratio=0.0, floor=1)
    assert budget.try_spend()
    world = LadderWorld(budget=budget)
    await world.advance_to(5.0)
    assert world.changes == [(5.0, "open")]
    assert world.bob.told == [(5.0, "refuse")]
    assert world.ladder.retries == 0
    assert budget.refused_total == 1
    await world.ladder.aclose()


async def test_ladder_pays_retries_from_flushes_when_they_are_noted() -> None:
    """What was flushed since the last note counts as attempts, once."""
    world = LadderWorld(budget=RetryBudget(ratio=0.5, floor=0))
    world.ladder.note_flushes(7)
    world.ladder.note_flushes(10)
    assert world.ladder.budget.attempts == 10
    world.bob.watch.close()


# 4. The probe.


async def test_ladder_probes_once_after_each_reset_timeout_when_nothing_moves() -> None:
    """A probe looks for one timeout, then the breaker is open again; the outbox refuses all the time."""
    world = LadderWorld()
    await world.advance_to(45.0)
    assert world.changes == [
        (15.0, "open"),
        *((20.0, "half_open"), (25.0, "open")),
        *((30.0, "half_open"), (35.0, "open")),
        *((40.0, "half_open"), (45.0, "open")),
    ]
    assert world.bob.told == [(15.0, "refuse")]
    await world.ladder.aclose()


@pytest.mark.parametrize(
    ("moved_at_s", "closed_at_s"), [(15.5, 20.0), (19.9, 20.0), (20.5, 25.0), (24.9, 25.0), (25.1, 30.0)]
)
@pytest.mark.parametrize("empties", [False, True])
async def test_ladder_closes_the_breaker_when_the_writer_moves(
    moved_at_s: float, closed_at_s: float, empties: bool
) -> None:
    """Whether it moved while open or under the probe: closed at the probe's end, never in between."""
    world = LadderWorld()
    await world.move((moved_at_s, 0 if empties else 4096), until_s=moved_at_s)
    if empties:
        world.bob.empty()
    await world.advance_to(closed_at_s - 0.001)
    assert "closed" not in dict(world.changes).values()
    await world.advance_to(closed_at_s)
    assert world.changes[-1] == (closed_at_s, "closed")
    assert world.bob.told == [(15.0, "refuse"), (closed_at_s, "accept")]
    assert world.timeline.waiting == (0 if empties else 1)
    assert world.ladder.breakers() == {"closed": 1}
    world.bob.watch.close()


async def test_ladder_keeps_its_breaker_when_trouble_comes_back() -> None:
    """After it has closed a new stall is a new climb of all steps, with the same breaker."""
    world = LadderWorld()
    await world.move((16.0, 4096), until_s=20.0)
    breaker = world.bob.watch.breaker
    await world.advance_to(34.9)
    assert world.changes[-1] == (20.0, "closed")
    await world.advance_to(35.0)
    assert world.changes[-1] == (35.0, "open")
    assert world.bob.watch.breaker is breaker
    await world.ladder.aclose()


async def test_ladder_probes_for_longer_when_the_writer_moved_long_before_the_probe() -> None:
    """What counts at the probe is whether it moves now, not that it did since the breaker opened."""
    world = LadderWorld(replace(SETTINGS, reset_timeout_s=20.0))
    await world.move((16.0, 9999), until_s=40.0)
    assert world.changes == [(15.0, "open"), (35.0, "half_open"), (40.0, "open")]
    await world.ladder.aclose()


async def test_ladder_closes_the_breaker_when_the_writer_emptied_long_before_the_probe() -> None:
    """A writer that has nothing left cannot move any more, and is well all the same."""
    world = LadderWorld(replace(SETTINGS, reset_timeout_s=12.0))
    await world.advance_to(16.0)
    world.bob.empty()
    await world.advance_to(27.0)
    assert world.changes == [(15.0, "open"), (27.0, "half_open"), (27.0, "closed")]


async def test_ladder_looks_at_once_when_there_is_no_reset_timeout() -> None:
    """A breaker that may be probed at once is."""
    world = LadderWorld(replace(SETTINGS, fail_max=1, reset_timeout_s=0.0))
    await world.advance_to(9.9)
    assert world.changes == [(5.0, "open"), (5.0, "half_open")]
    await world.ladder.aclose()
