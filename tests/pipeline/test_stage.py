"""One stage between its channel and what is behind it: order, limits, time, errors, abort."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BrokenResourceError, WouldBlock
from pipeline.stage import MAX_TURN_WEIGHT, Stage
from pipeline.topology import Topology
from tests.pipeline.gates import Failures, Gate, accepted, stage
from tests.pipeline.sources import turn


def first(item: tuple[Any, ...]) -> Any:
    """The key of a pair."""
    return item[0]


def running(*stages: Stage[Any, Any]) -> Topology:
    """A topology of these that has been started."""
    topology = Topology(stages)
    topology.start()
    return topology


# Asynchronous handlers.


@settings(deadline=None, max_examples=60)
@given(st.data())
async def test_stage_keeps_order_of_each_key_when_handlers_end_in_any_order(data: st.DataObject) -> None:
    """Items of one key leave in order, whatever the handlers' order and errors; no permit is idle or over."""
    concurrency = data.draw(st.integers(1, 5), "concurrency")
    keys = data.draw(st.lists(st.integers(0, 3), max_size=25), "keys")
    items = [(key, number) for number, key in enumerate(keys)]
    gate, failures, arrived = Gate(), Failures(), []
    topology = running(
        stage(gate, concurrency=concurrency, key=first, on_error=failures),
        stage(arrived.append, capacity=data.draw(st.integers(1, 3), "room")),
    )
    for item in items:
        topology.input.send_nowait(item)
    unfinished = list(items)
    while unfinished:
        await turn()
        assert len(gate.inside) == min(concurrency, len({key for key, _ in unfinished}))
        item = data.draw(st.sampled_from(list(gate.inside)), "next")
        if data.draw(st.booleans(), "ends well"):
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
    gate, arrived = Gate(), []
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
    failures, told, cancelled = Failures(), asyncio.Event(), []

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
        (functools.partial(Asynchronous.method, None), True),
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
    gate, handled = Gate(), []

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


async def test_stage_goes_on_when_a_synchronous_handler_raises() -> None:
    """Each failure is reported once, a cancelled future's too, and the others are handled in order."""
    failures, arrived = Failures(), []

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
    failures, arrived = Failures(), []
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


# Abort.


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
@given(st.data())
async def test_abort_accounts_for_every_item_when_it_comes_at_any_moment(data: st.DataObject) -> None:
    """Whatever happens in the same turn, each item has arrived, has failed, or comes back: one of them, once."""
    failures, first_gate, last_gate, arrived = Failures(), Gate(), Gate(), []

    async def last(item: Any) -> None:
        arrived.append(await last_gate(item))

    topology = running(
        stage(first_gate, capacity=8, concurrency=3, key=first, on_error=failures),
        stage(capacity=data.draw(st.integers(1, 2), "room")),
        stage(last, capacity=data.draw(st.integers(1, 2), "last room"), on_error=failures),
    )
    items = [(number % 4, number) for number in range(8)]
    for item in items:
        topology.input.send_nowait(item)
    for _ in range(data.draw(st.integers(0, 15), "steps")):
        for _ in range(data.draw(st.integers(0, 5), "turns")):
            await asyncio.sleep(0)
        gate = data.draw(st.sampled_from([first_gate, last_gate]), "gate")
        waiting = [item for item, future in gate.inside.items() if not future.done()]
        if waiting and data.draw(st.integers(0, 4), "outcome"):
            gate.let_out(waiting[0])
        elif waiting:
            gate.let_fail(waiting[0], ValueError())
    left = await topology.abort()
    await turn()
    assert sorted(arrived + failures.items + left) == sorted(items)


async def test_abort_runs_nothing_more_when_a_turn_is_due() -> None:
    """A turn that was scheduled before, or by what was cancelled, finds nothing to do and raises nothing."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    gate, handled = Gate(), []
    topology = running(stage(), stage(gate, capacity=1), stage(handled.append))
    for item in range(5):
        topology.input.send_nowait(item)
    await turn()
    gate.let_out(0)
    topology.input.send_nowait(5)
    assert sorted(await topology.abort()) == list(range(1, 6)) if handled else list(range(6))
    topology.stages[0].run_ready()
    await turn()
    assert problems == []


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
