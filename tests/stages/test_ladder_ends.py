"""The ladder in virtual time: whom it evicts and when, and what is left of a watch that is closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.stages.ladder_world import SETTINGS, LadderWorld

if TYPE_CHECKING:
    from random import Random


# 5. Eviction.


@pytest.mark.parametrize("evict_after_s", [5.0, 6.0, 8.0, 13.0, 17.0, 19.5, 22.0, 24.5, 28.0, 33.0, 100.0])
@pytest.mark.parametrize("fail_max", [1, 3])
async def test_ladder_evicts_on_time_when_nothing_moves(evict_after_s: float, fail_max: int) -> None:
    """Whatever step it is on, also in a jitter: told once, when the time is over, and nothing is left."""
    settings = replace(SETTINGS, evict_after_s=evict_after_s, fail_max=fail_max, base_delay_s=2.0)
    world = LadderWorld(settings, random=lambda: 1.0)
    await world.advance_to(evict_after_s - 0.001)
    assert (evict_after_s, "evict") not in world.bob.told
    await world.advance_to(evict_after_s)
    assert world.bob.told[-1] == (evict_after_s, "evict")
    assert world.ladder.evictions == 1
    world.assert_nothing_is_left()
    await world.advance_to(200.0)
    assert world.ladder.evictions == 1


@pytest.mark.parametrize("reset_timeout_s", [1.0, 5.0, 25.0])
@pytest.mark.parametrize("nbytes", [1, 800])
async def test_ladder_evicts_a_writer_when_it_only_drips(nbytes: int, reset_timeout_s: float) -> None:
    """Less than `min_progress_bytes` in `write_timeout_s` is no progress, however long it goes on."""
    world = LadderWorld(replace(SETTINGS, evict_after_s=30.0, reset_timeout_s=reset_timeout_s))
    await world.move(*[(float(second), nbytes) for second in range(1, 30)], until_s=30.0)
    assert "closed" not in dict(world.changes).values()
    assert world.bob.told == [(15.0, "refuse"), (30.0, "evict")]


async def test_ladder_counts_from_the_last_progress_when_it_evicts() -> None:
    """A writer that moved at any step has its whole `evict_after_s` again, from when it was seen."""
    world = LadderWorld(replace(SETTINGS, evict_after_s=12.0))
    await world.move((11.0, 4096), until_s=12.0)  # seen at 12, where it would have been evicted
    assert world.bob.failures == 0
    await world.advance_to(23.999)
    assert world.ladder.evictions == 0
    await world.advance_to(24.0)
    assert world.bob.told == [(24.0, "evict")]


async def test_ladder_counts_no_failure_when_progress_is_seen_at_the_last_moment() -> None:
    """Progress that saves a writer from eviction ends its trouble too: it is not a failure as well."""
    world = LadderWorld(replace(SETTINGS, evict_after_s=10.0))
    await world.move((9.0, 4096), until_s=10.0)
    assert world.bob.failures == 0
    world.bob.watch.close()
    world.assert_nothing_is_left()


@given(
    bursts=st.lists(st.floats(0.1, 24.0), max_size=5),
    drip_s=st.floats(1.0, 6.0),
    chances=st.randoms(use_true_random=False),
)
@hypothesis_settings(deadline=None, max_examples=40)
def test_ladder_evicts_between_two_bounds_when_a_writer_stops(
    bursts: list[float], drip_s: float, chances: Random
) -> None:
    """Never less than `evict_after_s` after the last burst, and at most one look later, whatever drips."""

    async def live() -> None:
        world = LadderWorld(replace(SETTINGS, evict_after_s=30.0), random=chances.random)
        moves = [(sum(bursts[: number + 1]), 4096) for number in range(len(bursts))]
        stops_at = sum(bursts)
        drips = [(drip_s * number, 1) for number in range(1, int((stops_at + 40.0) / drip_s))]
        await world.move(*sorted(moves + drips), until_s=stops_at + 36.0)
        assert world.ladder.evictions == 1
        evicted_at = world.bob.told[-1][0]
        assert stops_at + 30.0 - 1e-6 <= evicted_at <= stops_at + 35.0 + 1e-6
        world.assert_nothing_is_left()

    asyncio.run(live())


# Ending.


@pytest.mark.parametrize(
    "at_s", [0.0, 3.0, 5.0, 7.0, 16.0], ids=["begun", "waiting", "failed", "retrying", "open"]
)
@pytest.mark.parametrize("by", ["watch", "ladder"])
async def test_watch_leaves_nothing_when_it_is_closed(at_s: float, by: str) -> None:
    """On any step: no timer, no task, no breaker that is counted, and nobody hears of it."""
    world = LadderWorld()
    await world.advance_to(at_s)
    before = (list(world.changes), list(world.bob.told))
    if by == "watch":
        world.bob.watch.close()
        world.bob.watch.close()
        await world.timeline.settle()
    else:
        await world.ladder.aclose()
    world.assert_nothing_is_left()
    await world.advance_to(100.0)
    assert (world.changes, world.bob.told) == before


async def test_watch_counts_nothing_when_it_is_closed_under_a_probe() -> None:
    """A probe that is cancelled is abandoned: neither failed nor passed, and another one may be tried."""
    world = LadderWorld()
    await world.advance_to(22.0)
    breaker = world.bob.watch.breaker
    assert breaker is not None
    assert breaker.is_refusing
    failures = breaker.failures
    world.bob.watch.close()
    await world.timeline.settle()
    assert (breaker.state, breaker.failures, breaker.is_refusing) == ("half_open", failures, False)
    assert world.changes[-1] == (20.0, "half_open")
    world.assert_nothing_is_left()


async def test_watch_does_not_begin_again_when_it_is_closed() -> None:
    """A writer that pauses under its last line is not watched any more."""
    world = LadderWorld()
    world.bob.watch.close()
    world.bob.pause()
    world.assert_nothing_is_left()


async def test_watch_ends_when_its_outbox_closes_as_its_climb_begins() -> None:
    """Closed in the very turn in which the climb was started: it never runs."""
    world = LadderWorld()
    world.timeline.call_later(5.0, world.bob.watch.close)
    await world.advance_to(5.0)
    assert world.bob.failures in (0, 1, None)
    world.assert_nothing_is_left()
