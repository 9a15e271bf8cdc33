"""One stage between its channel and what is behind it: order, limits, time, errors."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BrokenResourceError, WouldBlock
from pipeline.stage import MAX_TURN_WEIGHT
from tests.pipeline.gates import Failures, Gate, first, running, stage
from tests.pipeline.sources import turn

# Asynchronous handlers.


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.booleans()), max_size=25),
)
async def test_stage_keeps_order_of_each_key_when_handlers_end_in_any_order(
    concurrency: int, room: int, script: list[tuple[int, int, bool]]
) -> None:
    """Items of one key leave in order, whatever the handlers' order and errors; no permit is idle or over."""
    items = [(key, number) for number, (key, _, _) in enumerate(script)]
    gate, failures = Gate(), Failures()
    arrived: list[Any] = []
    topology = running(
        stage(gate, concurrency=concurrency, key=first, on_error=failures),
        stage(arrived.append, capacity=room),
    )
    for item in items:
        topology.input.send_nowait(item)
    unfinished = list(items)
    for _, choice, is_well in script:
        await turn()
        assert len(gate.inside) == min(concurrency, len({key for key, _ in unfinished}))
        item = list(gate.inside)[choice % len(gate.inside)]
        if is_well:
            gate.let_out(item)
        else:
            gate.let_fail(item, ValueError(str(item)))
        unfinished.remove(item)
    await topology.drain()
    failed = set(failures.items)
    assert len(failed) == len(failures.items)
    assert sorted(arrived + failures.items) == sorted(items)
    for key in range(4):
        mine = [item for item in items if item[0] == key]
        assert [item for item in gate.began if item[0] == key] == mine
        assert [item for item in arrived if item[0] == key] == [item for item in mine if item not in failed]
    assert gate.most <= concurrency


async def test_stage_lets_other_keys_pass_when_one_key_is_slow() -> None:
    """Items that wait for their key hold no permit."""
    gate = Gate()
    arrived: list[Any] = []
    topology = running(stage(gate, concurrency=2, key=first), stage(arrived.append))
    slow = [("slow", number) for number in range(5)]
    quick = [("quick", number) for number in range(5)]
    for item in slow + quick:
        topology.input.send_nowait(item)
    for item in quick:
        await turn()
        gate.let_out(item)
    await turn()
    assert arrived == quick
    assert list(gate.inside) == slow[:1]
    assert topology.statistics()[0].in_handler == 1
    assert topology.statistics()[0].channel.depth == 5
    assert sorted(await topology.abort()) == slow


@pytest.mark.parametrize("item", [["unhashable"], "equal"])
async def test_stage_runs_items_at_once_when_it_has_no_key(item: Any) -> None:
    """Without a key nothing waits for anything but a permit, not even for an equal item."""
    running_now: list[Any] = []

    async def handler(item: Any) -> None:
        running_now.append(item)
        await asyncio.get_running_loop().create_future()

    topology = running(stage(handler, concurrency=3, clock=lambda: 0.0))
    for _ in range(5):
        topology.input.send_nowait(item)
    await turn()
    assert running_now == [item] * 3
    assert len(await topology.abort()) == 5


async def test_stage_capacity_covers_items_when_they_are_in_the_handler() -> None:
    """An item occupies its weight until its handler has ended, well or not."""
    gate, failures = Gate(), Failures()
    topology = running(stage(gate, capacity=5, concurrency=5, on_error=failures))
    for item in "ab":
        topology.input.send_nowait(item, 2)
    await turn()
    assert set(gate.inside) == {"a", "b"}
    with pytest.raises(WouldBlock):
        topology.input.send_nowait("c", 2)
    gate.let_out("a")
    await turn()
    topology.input.send_nowait("c", 2)
    gate.let_fail("b", ValueError())
    await turn()
    topology.input.send_nowait("d", 2)
    await turn()
    assert set(gate.inside) == {"c", "d"}
    await topology.abort()


async def test_stage_keeps_permit_and_key_when_result_waits_for_room() -> None:
    """What waits for room downstream still counts, and the next of its key does not begin."""
    gate, blocked = Gate(), Gate()
    topology = running(stage(gate, capacity=6, concurrency=2, key=first), stage(blocked, capacity=1))
    for item in [("a", 1), ("a", 2), ("b", 1), ("c", 1)]:
        topology.input.send_nowait(item)
    await turn()
    for item in list(gate.inside):
        gate.let_out(item)
    await turn()
    assert list(blocked.inside) == [("a", 1)]
    assert list(gate.inside) == [("a", 2)]  # its key is free again, and so is one permit
    gate.let_out(("a", 2))
    await turn()
    assert not gate.inside  # ("b", 1) and ("a", 2) wait for room, with both permits
    assert topology.statistics()[0].channel.depth == 3
    blocked.let_out(("a", 1))
    await turn()
    assert list(gate.inside) == [("c", 1)]
    await topology.abort()


async def test_stage_reports_timeout_when_handler_takes_too_long() -> None:
    """A handler is cancelled after `timeout_s`, its item is reported once, and the others go on."""
    failures, told = Failures(), asyncio.Event()
    cancelled: list[str] = []

    async def handler(item: str) -> str:
        try:
            if item == "endless":
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(item)
            told.set()
            raise
        return item

    arrived: list[str] = []
    topology = running(stage(handler, timeout_s=0.001, on_error=failures), stage(arrived.append))
    for item in ["first", "endless", "last"]:
        topology.input.send_nowait(item)
    await told.wait()
    await topology.drain()
    assert cancelled == failures.items == ["endless"]
    assert isinstance(failures.errors[0], TimeoutError)
    assert arrived == ["first", "last"]
    assert topology.statistics()[0].failed == 1


async def test_stage_takes_no_time_from_handler_when_result_waits_for_room() -> None:
    """The timeout is for the handler alone: waiting for the next stage is not its fault."""
    gate = Gate()

    async def handler(item: int) -> int:
        return item

    topology = running(stage(handler, timeout_s=0.001), stage(gate, capacity=1))
    topology.input.send_nowait(1)
    topology.input.send_nowait(2)
    await turn()
    await asyncio.sleep(0.005)  # longer than the timeout: 2 waits for room; a failure would raise
    gate.let_out(1)
    await turn()
    assert list(gate.inside) == [2]
    await topology.abort()


async def test_stage_reports_failure_when_what_a_handler_waits_for_is_cancelled() -> None:
    """Nobody cancelled the stage: the item fails, frees its room, and the others go on."""
    gate, failures = Gate(), Failures()
    topology = running(stage(gate, capacity=2, key=first, on_error=failures))
    topology.input.send_nowait(("a", 1))
    topology.input.send_nowait(("a", 2))
    await turn()
    gate.let_fail(("a", 1), asyncio.CancelledError())
    await turn()
    assert failures.items == [("a", 1)]
    assert isinstance(failures.errors[0], RuntimeError)
    assert list(gate.inside) == [("a", 2)]
    assert topology.statistics()[0].channel.depth == 1
    await topology.abort()
    assert len(failures.items) == 1


async def test_stage_reports_item_when_its_key_cannot_be_told() -> None:
    """An item whose `key` raises or is unhashable fails alone."""
    gate, failures = Gate(), Failures()
    topology = running(stage(gate, capacity=2, key=lambda item: item["key"], on_error=failures))
    topology.input.send_nowait({})
    topology.input.send_nowait({"key": []})
    topology.input.offer("ab", 1, lambda: None)
    await turn()
    assert [type(error) for error in failures.errors] == [KeyError, TypeError, TypeError]
    assert topology.statistics()[0].channel.depth == 0
    await topology.drain()


async def test_stage_counts_time_when_handler_fails() -> None:
    """Busy time is that of all handlers, also of those that raise; time in the stage that of what left."""
    now = 0.0
    gate, failures = Gate(), Failures()
    topology = running(stage(gate, on_error=failures, clock=lambda: now))
    for item in "ab":
        topology.input.send_nowait(item)
    await turn()
    now = 2.0
    gate.let_out("a")
    await turn()
    now = 5.0
    gate.let_fail("b", ValueError())
    await turn()
    one = topology.stages[0]
    statistics = one.statistics()
    assert (statistics.name, statistics.busy_s, statistics.in_handler) == ("stage", 5.0, 0)
    assert (statistics.handled, statistics.failed) == (1, 1)
    assert (one.time_in_stage.total, one.time_in_stage.max_us) == (1, 2_000_000)
    assert one.send_waits.total == 0
    await topology.drain()


class Asynchronous:
    """A callable object."""

    async def __call__(self, item: Any) -> Any:
        return item

    async def method(self, item: Any) -> Any:
        return item


@pytest.mark.parametrize(
    ("handler", "is_asynchronous"),
    [
        (Asynchronous(), True),
        (Asynchronous().method, True),
        (functools.partial(Asynchronous().method), True),
        (str, False),
        (lambda item: item, False),
    ],
)
async def test_stage_recognises_handler_when_it_is_asynchronous(handler: Any, is_asynchronous: bool) -> None:
    """Functions, methods, partials and callable objects: each is awaited if it has to be."""
    arrived: list[Any] = []
    topology = running(stage(handler), stage(arrived.append))
    assert topology.stages[0].is_asynchronous == is_asynchronous
    topology.input.send_nowait("x")
    await topology.drain()
    assert arrived == ["x"]


# Synchronous handlers.


async def test_stage_stops_and_resumes_when_downstream_is_blocked() -> None:
    """A blocked stage handles one item more, no other, and goes on in order when there is room."""
    gate = Gate()
    handled: list[Any] = []

    def handler(item: int) -> int:
        handled.append(item)
        return item

    topology = running(stage(handler, capacity=10), stage(gate, capacity=2, concurrency=1))
    for item in range(10):
        topology.input.send_nowait(item)
    for item in range(10):
        await turn()
        assert handled == list(range(min(item + 3, 10)))  # two in the next stage, one waits for room
        assert list(gate.inside) == [item]
        assert topology.statistics()[0].handled == min(item + 2, 10)
        gate.let_out(item)
    await topology.drain()
    assert gate.began == list(range(10))


async def test_stage_has_not_ended_when_its_last_result_waits_for_room() -> None:
    """A synchronous stage ends only after all it returned has been accepted downstream."""
    gate = Gate()
    topology = running(stage(), stage(gate, capacity=1))
    for item in "ab":
        topology.input.send_nowait(item)
    await turn()
    topology.input.close()
    ended = asyncio.create_task(topology.stages[0].wait_ended())
    await turn()
    assert not ended.done()
    gate.let_out("a")
    await ended
    await turn()
    gate.let_out("b")
    await topology.drain()


async def test_stage_goes_on_when_a_synchronous_handler_raises() -> None:
    """Each failure is reported once, a cancelled future's too, and the others are handled in order."""
    failures = Failures()
    arrived: list[Any] = []

    def handler(item: str) -> str:
        if item == "cancelled":
            raise asyncio.CancelledError
        return str(int(item))

    topology = running(stage(handler, capacity=5, on_error=failures), stage(arrived.append))
    for item in ["1", "x", "2", "cancelled", "3"]:
        topology.input.send_nowait(item)
    await topology.drain()
    assert failures.items == ["x", "cancelled"]
    assert [type(error) for error in failures.errors] == [ValueError, RuntimeError]
    assert arrived == ["1", "2", "3"]
    statistics = topology.statistics()[0]
    assert (statistics.handled, statistics.failed, statistics.channel.depth) == (3, 2, 0)


@pytest.mark.parametrize("is_asynchronous", [False, True])
async def test_stage_reports_item_when_its_result_cannot_be_passed_on(is_asynchronous: bool) -> None:
    """A result that cannot be weighed, or that nobody will take, is a failure of its item alone."""
    failures = Failures()
    arrived: list[Any] = []
    topology = running(
        stage(Asynchronous() if is_asynchronous else str, weigh=int, on_error=failures),
        stage(arrived.append),
    )
    for item in ["1", "x", "0", "2"]:
        topology.input.send_nowait(item)
    await turn()
    assert arrived == ["1", "2"]
    await topology.stages[1].abort()
    topology.input.send_nowait("3")
    await topology.drain()
    assert failures.items == ["x", "0", "3"]
    assert isinstance(failures.errors[-1], BrokenResourceError)
    assert topology.statistics()[0].channel.depth == 0


async def test_stage_bounds_its_turn_when_much_is_waiting() -> None:
    """No more than `MAX_TURN_WEIGHT` is handled before other callbacks of the loop have their turn."""
    handled: list[int] = []
    topology = running(stage(handled.append, capacity=10 * MAX_TURN_WEIGHT))
    for item in range(10):
        topology.input.send_nowait(item, MAX_TURN_WEIGHT // 3)
    await asyncio.sleep(0)
    assert handled == [0, 1, 2]
    await asyncio.sleep(0)
    assert handled == [0, 1, 2, 3, 4, 5]
    await topology.drain()
    assert handled == list(range(10))


async def test_stage_weighs_results_when_it_passes_them_on() -> None:
    """The next channel is filled by what `weigh` says of the result, not by the item's weight."""
    gate = Gate()
    topology = running(stage(weigh=len, capacity=101), stage(gate, capacity=5))
    topology.input.send_nowait("abcd", 100)
    topology.input.send_nowait("ef")
    await turn()
    assert topology.statistics()[1].channel.depth == 4
    assert topology.statistics()[1].channel.waiting_senders == 1
    await topology.abort()
