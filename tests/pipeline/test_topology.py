"""Stages in a row: exact back-pressure, draining front to back, one wake-up for all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ClosedResourceError
from pipeline.stage import Stage
from pipeline.topology import Topology
from tests.pipeline.gates import Failures, Gate, accepted, no_errors, pass_through, running, stage
from tests.pipeline.sources import turn

capacities = st.integers(1, 5)


async def pass_later(item: Any) -> Any:
    """An asynchronous handler that takes a turn."""
    await asyncio.sleep(0)
    return item


class Turns:
    """Counts the turns of a topology and checks that each one begins and ends once."""

    def __init__(self, *stages: Stage[Any, Any]) -> None:
        self.count = 0
        self.is_inside = False
        self.topology = Topology(stages, on_turn_begin=self.begin, on_turn_end=self.end)
        self.topology.start()

    def begin(self) -> None:
        assert not self.is_inside
        self.is_inside = True
        self.count += 1

    def end(self) -> None:
        assert self.is_inside
        self.is_inside = False


# Back-pressure.


@settings(deadline=None, max_examples=40)
@given(st.tuples(capacities, capacities, capacities), st.integers(1, 4), st.booleans())
async def test_topology_accepts_exactly_its_capacities_when_the_last_stage_is_stuck(
    sizes: tuple[int, int, int], concurrency: int, is_middle_asynchronous: bool
) -> None:
    """As much as all capacities gets in, then the sender waits; for each item let go one more enters."""
    gate = Gate()
    topology = running(
        stage(capacity=sizes[0]),
        stage(pass_later if is_middle_asynchronous else pass_through, capacity=sizes[1]),
        stage(gate, capacity=sizes[2], concurrency=concurrency),
    )
    total = sum(sizes)
    for number in range(total):
        assert accepted(topology.stages[0], number)
        await turn()
    waiting = [accepted(topology.stages[0], total + extra) for extra in range(3)]
    await turn()
    assert waiting == [[], [], []]
    assert [one.channel.depth for one in topology.statistics()] == list(sizes)
    for let_go in range(3):
        gate.let_out(next(iter(gate.inside)))
        await turn()
        assert sum(map(len, waiting)) == let_go + 1
    assert sorted(await topology.abort()) == list(range(3, total + 3))


async def test_topology_lets_task_wait_when_it_is_full() -> None:
    """A task that sends waits at the front for what is stuck at the back."""
    gate = Gate()
    topology = running(stage(capacity=1), stage(gate, capacity=1))
    sent: list[int] = []

    async def produce() -> None:
        for number in range(5):
            await topology.input.send(number)
            sent.append(number)

    producer = asyncio.create_task(produce())
    for number in range(5):
        await turn()
        assert sent == list(range(min(number + 2, 5)))
        gate.let_out(number)
    await producer
    await topology.drain()
    assert gate.began == sent


# Draining.


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(capacities, st.booleans()), min_size=1, max_size=5),
    st.integers(0, 30),
    st.integers(1, 4),
)
async def test_drain_delivers_everything_when_stages_are_of_any_kind(
    kinds: list[tuple[int, bool]], count: int, concurrency: int
) -> None:
    """All that was accepted, also what waited in line, passes every stage in order; then nothing enters."""
    arrived: list[int] = []
    topology = running(
        *[
            stage(
                pass_later if is_asynchronous else pass_through,
                capacity=size,
                concurrency=concurrency,
                key=lambda _: "one",
            )
            for size, is_asynchronous in kinds
        ],
        stage(arrived.append, capacity=2),
    )
    for number in range(count):
        accepted(topology.stages[0], number)
    await asyncio.wait_for(topology.drain(), 5)
    assert arrived == list(range(count))
    with pytest.raises(ClosedResourceError):
        topology.input.send_nowait(-1)
    for one in topology.statistics():
        assert (one.handled, one.in_handler, one.channel.depth) == (count, 0, 0)
    assert await topology.abort() == []


async def test_drain_ends_stages_front_to_back_when_handlers_take_their_time() -> None:
    """A stage ends when its input has ended and it has handled all; only then the next one's input ends."""
    gates = [Gate(), Gate()]
    topology = running(*[stage(gate, concurrency=3) for gate in gates])
    ended: list[int] = []

    async def note_end(index: int) -> None:
        await topology.stages[index].wait_ended()
        ended.append(index)

    waiting = [asyncio.create_task(note_end(index)) for index in range(2)]
    for item in "abc":
        topology.input.send_nowait(item)
    await turn()
    drain = asyncio.create_task(topology.drain())
    for item in "cab":
        await turn()
        assert ended == []
        gates[0].let_out(item)
    await turn()
    assert ended == [0]
    assert not drain.done()
    for item in "bca":
        gates[1].let_out(item)
    await drain
    await asyncio.gather(*waiting)
    assert ended == [0, 1]


async def test_drain_can_be_given_up_when_a_handler_never_ends() -> None:
    """Cancelling `drain` changes nothing in the stages: it can be called again, or they can be aborted."""
    gate = Gate()
    topology = running(stage(gate))
    topology.input.send_nowait("x")
    drain = asyncio.create_task(topology.drain())
    await turn()
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    again = asyncio.create_task(topology.drain())
    await turn()
    assert not again.done()
    gate.let_out("x")
    await again


async def test_drain_returns_when_nothing_was_sent() -> None:
    """Draining an idle topology takes no more than the stages' ends."""
    topology = running(stage(), stage(pass_later), stage())
    await asyncio.wait_for(topology.drain(), 5)
    for one in topology.stages:
        with pytest.raises(ClosedResourceError):
            one.input.send_nowait("late")


# Wake-ups.


async def test_topology_passes_all_idle_stages_when_woken_once() -> None:
    """What one callback sent has passed every synchronous stage in the next turn of the loop, in one go."""
    arrived: list[int] = []
    turns = Turns(stage(), stage(), stage(), stage(arrived.append))
    await turn()
    turns.count = 0
    for item in range(10):
        turns.topology.input.send_nowait(item)
    await asyncio.sleep(0)  # one turn of the loop
    assert arrived == list(range(10))
    await turn()
    assert turns.count == 1
    await turns.topology.drain()


async def test_topology_takes_no_turn_when_nothing_happens() -> None:
    """An idle topology leaves the loop alone."""
    turns = Turns(stage(), stage(pass_later))
    await turn()
    assert turns.count == 1  # that of the start
    await turn()
    assert turns.count == 1
    assert not turns.is_inside
    await turns.topology.drain()


async def test_topology_runs_a_stage_again_when_a_later_one_has_unblocked_it() -> None:
    """Room that comes at the back moves everything in front of it, with no other wake-up."""
    arrived: list[int] = []
    turns = Turns(stage(capacity=1), stage(capacity=1), stage(arrived.append, capacity=1))
    for item in range(6):
        accepted(turns.topology.stages[0], item)
    await turn()
    await turn()
    assert arrived == list(range(6))
    await turns.topology.drain()
    assert not turns.is_inside


async def test_topology_runs_a_later_stage_when_only_earlier_ones_ran_before() -> None:
    """A permit that comes back at the end wakes its stage, whichever stage the last turn ended at."""
    gate = Gate()
    topology = running(stage(lambda item: item or None), stage(gate))
    topology.input.send_nowait(1)
    topology.input.send_nowait(2)
    await turn()
    topology.input.send_nowait(0)  # goes no further than the first stage
    await turn()
    gate.let_out(1)
    await turn()
    assert list(gate.inside) == [2]
    gate.let_out(2)
    await topology.drain()


class Counted(Stage[Any, Any]):
    """A stage that counts how often it is run."""

    runs = 0

    def run_ready(self) -> None:
        self.runs += 1
        super().run_ready()


async def test_topology_runs_no_stage_when_it_has_nothing_to_do() -> None:
    """A turn costs nothing for the stages that nothing has happened to."""
    stages = [Counted("counted", pass_through, capacity=5, on_error=no_errors) for _ in range(3)]
    topology = running(*stages)
    await turn()
    stages[1].input.send_nowait("x")
    await turn()
    assert [one.runs for one in stages] == [1, 2, 2]
    await topology.drain()


async def test_topology_handles_items_when_they_were_sent_before_the_start() -> None:
    """What lies in the input when the stages start is taken at once."""
    arrived: list[int] = []
    topology = Topology([stage(), stage(arrived.append)])
    topology.input.send_nowait(1)
    await turn()
    assert arrived == []
    topology.start()
    await turn()
    assert arrived == [1]
    await topology.drain()


async def test_topology_ends_its_turn_when_on_error_raises() -> None:
    """A mistake in `on_error` is told to the loop; the turn ends, the rest of the items is handled."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    arrived: list[int] = []
    failures = Failures()

    def mistaken(item: Any, error: Exception) -> None:
        failures(item, error)
        raise RuntimeError("mistake")

    def handler(item: int) -> int:
        if item % 2:
            raise ValueError(item)
        return item

    turns = Turns(stage(handler, name="odd", on_error=mistaken), stage(arrived.append))
    for item in range(5):
        turns.topology.input.send_nowait(item)
    await turn()
    assert not turns.is_inside
    assert (arrived, failures.items) == ([0, 2, 4], [1, 3])
    assert [str(problem["exception"]) for problem in problems] == ["mistake", "mistake"]
    assert "odd" in problems[0]["message"]
    await turns.topology.drain()


def test_topology_refuses_when_it_has_no_stage() -> None:
    """A topology without stages has no input."""
    with pytest.raises(ValueError, match="at least one"):
        Topology([])
