"""What passes all channels by, because no stage has anything to do: same order, same bounds, same counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ClosedResourceError
from pipeline.stage import MAX_TURN_WEIGHT
from pipeline.topology import Topology
from tests.pipeline.gates import Failures, Gate, pass_through, running, stage
from tests.pipeline.sources import turn


def not_called() -> None:
    """For items that do not wait."""
    pytest.fail("it did not wait")


async def pass_later(item: Any) -> Any:
    """An asynchronous handler that takes a turn."""
    await asyncio.sleep(0)
    return item


async def test_offer_handles_an_item_at_once_when_nothing_is_under_way() -> None:
    """Through all stages before `offer` returns, and no turn of the topology is needed for it."""
    arrived: list[int] = []
    turns: list[None] = []
    topology = Topology([stage(), stage(arrived.append)], on_turn_end=lambda: turns.append(None))
    topology.start()
    await turn()
    turns.clear()
    for number in range(5):
        assert topology.offer(number, 1, not_called)
        assert arrived[-1] == number
    await turn()
    assert turns == []
    await topology.drain()


async def test_offer_counts_an_item_when_it_passes_the_channels_by() -> None:
    """Statistics tell the same whichever way an item went."""
    arrived: list[Any] = []
    topology = running(stage(weigh=lambda item: item), stage(arrived.append, capacity=5))
    await turn()
    for item in (2, 3):
        assert topology.offer(item, 1, not_called)
    assert arrived == [2, 3]
    first, second = topology.statistics()
    assert (first.handled, first.channel.sends, first.channel.total_in) == (2, 2, 2)
    assert second.handled == topology.stages[1].time_in_stage.total == second.channel.sends == 2
    assert (second.channel.total_in, second.channel.total_out, second.channel.peak) == (5, 5, 3)
    assert second.channel.depth == 0


async def test_offer_records_the_time_in_each_stage_when_an_item_passes_by() -> None:
    """Short and long times alike, and what of it was spent in the handler."""
    now = 0.0

    def clock() -> float:
        return now

    def handler(seconds: float) -> None:
        nonlocal now
        now += seconds

    topology = Topology([stage(handler, clock=clock)], clock=clock)
    topology.start()
    await turn()
    for seconds in (0.000003, 0.5):
        assert topology.offer(seconds, 1, not_called)
    histogram = topology.stages[0].time_in_stage
    assert (histogram.quantile_us(0.5), histogram.max_us, histogram.total) == (3, 500_000, 2)
    assert topology.statistics()[0].busy_s == pytest.approx(0.500003)


async def test_offer_takes_no_more_at_once_when_the_turn_is_over() -> None:
    """Heavy results of light items do not make a turn longer than `MAX_TURN_WEIGHT`; the rest comes next."""
    arrived: list[Any] = []
    topology = running(
        stage(capacity=100, weigh=lambda _: MAX_TURN_WEIGHT // 2),
        stage(arrived.append, capacity=100 * MAX_TURN_WEIGHT),
    )
    await turn()
    for item in range(5):
        assert topology.offer(item, 1, not_called)
    assert arrived == [0, 1]
    await turn()
    assert arrived == [0, 1, 2, 3, 4]
    assert topology.offer(5, 1, not_called)
    assert arrived[-1] == 5


async def test_offer_reports_a_failure_once_when_an_item_passed_by() -> None:
    """The stage that failed reports the item that it was given; the one before has handled its own."""
    first, second = Failures(), Failures()

    def fail(item: Any) -> None:
        raise ValueError(item)

    topology = running(stage(str, on_error=first), stage(fail, on_error=second, capacity=1))
    await turn()
    for item in (1, 2):
        assert topology.offer(item, 1, not_called)
    assert (first.items, second.items) == ([], ["1", "2"])
    assert [one.failed for one in topology.statistics()] == [0, 2]
    assert [one.handled for one in topology.statistics()] == [2, 0]
    assert [one.channel.sends for one in topology.statistics()] == [2, 2]
    await topology.drain()


async def test_offer_reports_a_failure_when_a_result_cannot_be_weighed() -> None:
    """It is the failure of the stage that made the result."""
    failures = Failures()

    def weigh(_result: Any) -> int:
        raise ValueError("weightless")

    topology = running(stage(weigh=weigh, on_error=failures), stage())
    await turn()
    assert topology.offer("x", 1, not_called)
    assert failures.items == ["x"]
    assert [one.handled for one in topology.statistics()] == [0, 0]


async def test_offer_keeps_an_item_when_the_topology_is_not_started() -> None:
    """It waits in the first channel, as one that is sent does."""
    arrived: list[int] = []
    topology = Topology([stage(), stage(arrived.append)])
    assert topology.offer(1, 1, not_called)
    assert arrived == []
    topology.start()
    await turn()
    assert arrived == [1]
    await topology.drain()


async def test_offer_finishes_an_item_first_when_its_handler_offers_another() -> None:
    """The second one does not overtake the first, which is still between two stages."""
    arrived: list[int] = []

    def handler(item: int) -> int:
        if item == 1:
            assert topology.offer(2, 1, not_called)
        return item

    topology = running(stage(handler), stage(arrived.append))
    await turn()
    topology.offer(1, 1, not_called)
    assert arrived == [1]
    await turn()
    assert arrived == [1, 2]
    await topology.drain()


async def test_offer_waits_for_room_when_a_later_stage_is_stuck() -> None:
    """Nothing passes by a stage that has something; back-pressure reaches whoever offers."""
    gate = Gate()
    topology = running(stage(capacity=1), stage(gate, capacity=1))
    await turn()
    entered: list[int] = []
    for number in range(2):
        assert topology.offer(number, 1, not_called)
        await turn()
    assert not topology.offer(2, 1, lambda: entered.append(2))
    assert entered == []
    gate.let_out(0)
    await turn()
    assert entered == [2]
    for number in (1, 2):
        gate.let_out(number)
        await turn()
    assert gate.began == [0, 1, 2]
    await topology.drain()


async def test_offer_raises_when_the_topology_is_drained() -> None:
    """As a send does, with nothing taken."""
    arrived: list[int] = []
    topology = running(stage(arrived.append))
    await turn()
    assert topology.offer(1, 1, not_called)
    topology.input.close()
    with pytest.raises(ClosedResourceError):
        topology.offer(2, 1, not_called)
    await topology.drain()
    with pytest.raises(ClosedResourceError):
        topology.offer(3, 1, not_called)
    assert arrived == [1]


async def test_offer_raises_when_the_weight_is_less_than_one() -> None:
    """As a send does."""
    topology = running(stage())
    await turn()
    with pytest.raises(ValueError, match="weight"):
        topology.offer(1, 0, not_called)
    await topology.drain()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=30),
)
async def test_offer_keeps_the_order_when_items_are_offered_and_sent(
    kinds: list[tuple[int, bool]], arrivals: list[tuple[bool, int]]
) -> None:
    """Whatever waits where, none that went past the channels overtakes one that went through them."""
    arrived: list[int] = []
    stages = [
        stage(pass_later if is_asynchronous else pass_through, capacity=capacity, key=lambda _: "one")
        for capacity, is_asynchronous in kinds
    ]
    topology = running(*stages, stage(arrived.append))
    for number, (is_offered, turns) in enumerate(arrivals):
        (topology if is_offered else topology.input).offer(number, 1, lambda: None)
        for _ in range(turns):
            await asyncio.sleep(0)
    await topology.drain()
    assert arrived == list(range(len(arrivals)))


async def test_offer_returns_when_on_error_raises() -> None:
    """It is the loop that hears of it, not whoever offered; the item has been taken."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def mistaken(_item: Any, _error: Exception) -> None:
        raise RuntimeError("mistake")

    def handler(_item: int) -> None:
        raise ValueError

    topology = running(stage(handler, on_error=mistaken))
    await turn()
    assert topology.offer(1, 1, not_called)
    assert [str(problem["exception"]) for problem in problems] == ["mistake"]
    assert topology.offer(2, 1, not_called)
    await topology.drain()
