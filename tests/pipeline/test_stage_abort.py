"""Stages that are stopped at once: what they have comes back, each item once, and nothing runs any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BrokenResourceError
from pipeline.topology import Topology
from tests.pipeline.gates import Failures, Gate, accepted, first, running, stage
from tests.pipeline.sources import turn


async def test_abort_returns_everything_once_when_items_are_in_every_place() -> None:
    """Running, waiting for a key, waiting in the channel, waiting for room: each comes back, none twice."""
    failures, gate, blocked = Failures(), Gate(), Gate()
    topology = running(
        stage(gate, capacity=9, concurrency=2, key=first, on_error=failures),
        stage(capacity=2),
        stage(blocked, capacity=1),
    )
    items = [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3), ("a", 4), ("b", 4), ("c", 1)]
    for item in items:
        assert accepted(topology.stages[0], item)
    for item in items[:4]:  # in the last stage, waiting for it, in front of the second, waiting for that
        await turn()
        gate.let_out(item)
    outside = accepted(topology.stages[0], ("late", 1), 20)
    refused = asyncio.create_task(topology.input.send(("told", 1)))
    await turn()
    assert (len(gate.inside), len(blocked.inside)) == (1, 1)
    left = await topology.abort()
    assert sorted(left) == sorted([*items, ("late", 1)])
    assert outside == [("late", 1)]  # told that there is nothing to wait for any more
    with pytest.raises(BrokenResourceError):
        await refused
    assert failures.items == []
    assert await topology.abort() == []
    for one in topology.stages:
        await one.wait_ended()


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 4)), max_size=20),
    st.integers(0, 3),
)
async def test_abort_accounts_for_every_item_when_it_comes_at_any_moment(
    room: int, last_room: int, script: list[tuple[int, bool, int]], last_turns: int
) -> None:
    """Whatever happens in the same turn: each item arrives, fails or comes back, one of them and once."""
    failures, first_gate, last_gate = Failures(), Gate(), Gate()
    arrived: list[Any] = []

    async def last(item: Any) -> None:
        arrived.append(await last_gate(item))

    topology = running(
        stage(first_gate, capacity=8, concurrency=3, key=first, on_error=failures),
        stage(capacity=room),
        stage(last, capacity=last_room, on_error=failures),
    )
    items = [(number // 2, number) for number in range(8)]  # neighbours share a key
    for item in items:
        topology.input.send_nowait(item)
    for turns, is_first, outcome in script:
        for _ in range(turns):
            await asyncio.sleep(0)
        gate = first_gate if is_first else last_gate
        waiting = [item for item, future in gate.inside.items() if not future.done()]
        if waiting and outcome:
            gate.let_out(waiting[0])
        elif waiting:
            gate.let_fail(waiting[0], ValueError())
    for _ in range(last_turns):
        await asyncio.sleep(0)
    left = await topology.abort()
    await turn()
    left += await topology.abort()
    assert sorted(arrived + failures.items + left) == items


async def test_abort_runs_nothing_more_when_a_turn_is_due() -> None:
    """A turn that was scheduled before, or by what was cancelled, finds nothing to do and raises nothing."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    gate = Gate()
    handled: list[Any] = []
    topology = running(stage(), stage(gate, capacity=1), stage(handled.append))
    for item in range(5):
        topology.input.send_nowait(item)
    await turn()
    gate.let_out(0)
    topology.input.send_nowait(5)
    assert sorted(await topology.abort()) == list(range(6))
    topology.stages[0].run_ready()
    await turn()
    assert (problems, handled) == ([], [])


async def test_abort_awaits_handlers_when_they_take_time_to_end() -> None:
    """A cancelled handler may clean up; one that ends well all the same has handled its item."""
    ended: list[str] = []

    async def handler(item: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append(item)
            if item == "stubborn":
                return
            raise

    topology = running(stage(handler, concurrency=2))
    for item in ["stubborn", "polite"]:
        topology.input.send_nowait(item)
    await turn()
    assert await topology.abort() == ["polite"]
    assert sorted(ended) == ["polite", "stubborn"]
    assert topology.statistics()[0].handled == 1


async def test_abort_returns_items_when_the_stage_was_never_started() -> None:
    """What was sent to a stage that does not run yet comes back too."""
    topology = Topology([stage()])
    topology.input.send_nowait("x")
    assert await topology.abort() == ["x"]
