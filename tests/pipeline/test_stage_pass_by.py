"""What passes a channel by, because the next stage is idle: same order, same bounds, same counts."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.stage import MAX_TURN_WEIGHT
from tests.pipeline.gates import Failures, Gate, pass_through, running, stage
from tests.pipeline.sources import turn


async def test_item_is_counted_when_it_passes_a_channel_by() -> None:
    """Statistics tell the same whichever way an item went."""
    arrived: list[Any] = []
    topology = running(stage(weigh=lambda item: item), stage(arrived.append, capacity=5))
    for item in (2, 3):
        topology.input.send_nowait(item)
    await turn()
    second = topology.statistics()[1]
    assert arrived == [2, 3]
    assert second.handled == topology.stages[1].time_in_stage.total == second.channel.sends == 2
    assert (second.channel.total_in, second.channel.total_out, second.channel.peak) == (5, 5, 3)
    assert second.channel.depth == 0


async def test_item_occupies_its_weight_when_it_passed_by_and_its_result_must_wait() -> None:
    """A stage that is blocked is full, also with what never lay in its channel; nothing overtakes it."""
    gate = Gate()
    topology = running(
        stage(weigh=lambda _: 4), stage(pass_through, capacity=4), stage(gate, capacity=1, concurrency=1)
    )
    for item in range(4):
        topology.input.send_nowait(item)
    await turn()
    assert list(gate.inside) == [0]
    assert [one.channel.depth for one in topology.statistics()] == [2, 4, 1]
    for item in range(4):
        gate.let_out(item)
        await turn()
    assert gate.began == [0, 1, 2, 3]
    assert [one.channel.depth for one in topology.statistics()] == [0, 0, 0]


async def test_stage_takes_no_more_in_line_when_its_turn_is_over() -> None:
    """Heavy results of light items do not make a turn longer than `MAX_TURN_WEIGHT` for each stage."""
    arrived: list[Any] = []
    topology = running(
        stage(capacity=100, weigh=lambda _: MAX_TURN_WEIGHT),
        stage(arrived.append, capacity=100 * MAX_TURN_WEIGHT),
    )
    for item in range(5):
        topology.input.send_nowait(item)
    await asyncio.sleep(0)
    seen = [len(arrived)]
    for _ in range(3):
        await asyncio.sleep(0)
        seen.append(len(arrived))
    assert seen == [2, 3, 4, 5]  # one past the channel and one out of it, then one a turn
    assert arrived == list(range(5))


async def test_failure_is_reported_once_when_an_item_passed_by() -> None:
    """The stage that failed reports the item that it was given; the one before has handled its own."""
    first, second = Failures(), Failures()

    def fail(item: Any) -> None:
        raise ValueError(item)

    topology = running(stage(str, on_error=first), stage(fail, on_error=second, capacity=1))
    for item in (1, 2):
        topology.input.send_nowait(item)
    await topology.drain()
    assert (first.items, second.items) == ([], ["1", "2"])
    assert [one.channel.depth for one in topology.statistics()] == [0, 0]
    assert [one.failed for one in topology.statistics()] == [0, 2]
