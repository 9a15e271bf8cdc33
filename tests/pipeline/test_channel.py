"""A channel's contract, case by case; test_channel_model.py runs it against a list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.channel import ReceiveEnd, SendEnd, open_channel
from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock
from tests.pipeline.sources import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class NeverEqual:
    """An item that must not be compared."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]  # as unhashable as a list


def nothing() -> None:
    """A callback that does nothing."""


def opened(capacity: int, clock: Callable[[], float] = lambda: 0.0) -> tuple[SendEnd[Any], ReceiveEnd[Any]]:
    """A new channel for whatever items."""
    return open_channel(capacity, clock=clock)


def items_in(channel: ReceiveEnd[Any]) -> list[Any]:
    """All that can be received now, one by one."""
    taken = []
    while channel.has_items:
        taken.append(channel.receive_nowait())
    return taken


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has come as far as it can."""
    task = asyncio.create_task(coroutine)
    await turn()
    return task


# The four errors.

SENDING: dict[str, Callable[[SendEnd[str]], Any]] = {
    "send_nowait": lambda end: end.send_nowait("x"),
    "offer": lambda end: end.offer("x", 1, nothing),
    "send": lambda end: asyncio.run(end.send("x")),
}
RECEIVING: dict[str, Callable[[ReceiveEnd[str]], Any]] = {
    "receive_nowait": lambda end: end.receive_nowait(),
    "receive_many_nowait": lambda end: end.receive_many_nowait(3),
    "receive": lambda end: asyncio.run(end.receive()),
    "receive_many": lambda end: asyncio.run(end.receive_many(3)),
}


@pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)
def test_channel_raises_closed_resource_when_own_send_end_was_closed(
    send: Callable[[SendEnd[str]], Any],
) -> None:
    """Sending into an end that one has closed oneself is a mistake with its own name."""
    sending, receiving = opened(5)
    sending.close()
    sending.close()
    receiving.close()  # what the other side has done does not matter then
    with pytest.raises(ClosedResourceError):
        send(sending)


@pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)
def test_channel_raises_broken_resource_when_receive_end_was_closed(
    send: Callable[[SendEnd[str]], Any],
) -> None:
    """Who sends to somebody who has left is told so."""
    sending, receiving = opened(5)
    receiving.close()
    with pytest.raises(BrokenResourceError):
        send(sending)


@pytest.mark.parametrize("receive", RECEIVING.values(), ids=RECEIVING)
def test_channel_raises_closed_resource_when_own_receive_end_was_closed(
    receive: Callable[[ReceiveEnd[str]], Any],
) -> None:
    """Receiving from an end that one has closed oneself is a mistake, also at the end of the stream."""
    sending, receiving = opened(5)
    sending.close()
    receiving.close()
    with pytest.raises(ClosedResourceError):
        receive(receiving)


@pytest.mark.parametrize("receive", RECEIVING.values(), ids=RECEIVING)
def test_channel_raises_end_of_channel_when_closed_and_all_was_received(
    receive: Callable[[ReceiveEnd[str]], Any],
) -> None:
    """After `close` what was sent is received, and then the end, as often as one asks."""
    sending, receiving = opened(5)
    sending.send_nowait("last")
    sending.close()
    assert not receiving.is_at_end
    assert receiving.receive_nowait() == "last"
    assert receiving.is_at_end
    for _ in range(2):
        with pytest.raises(EndOfChannel):
            receive(receiving)


def test_channel_raises_would_block_when_full_or_empty() -> None:
    """The calls that never wait say that they would have to, and change nothing."""
    sending, receiving = opened(1)
    with pytest.raises(WouldBlock):
        receiving.receive_nowait()
    sending.send_nowait("a")
    with pytest.raises(WouldBlock):
        sending.send_nowait("b")
    assert items_in(receiving) == ["a"]


@pytest.mark.parametrize("weight", [0, -1])
def test_channel_refuses_item_when_weight_is_less_than_one(weight: int) -> None:
    """Items without weight would pass every bound."""
    sending, _ = opened(1)
    with pytest.raises(ValueError, match="at least 1"):
        sending.send_nowait("x", weight)
    assert sending.statistics().sends == 0


@pytest.mark.parametrize("capacity", [0, -1])
def test_channel_refuses_when_capacity_is_less_than_one(capacity: int) -> None:
    """A channel that holds nothing is not made."""
    with pytest.raises(ValueError, match="at least 1"):
        opened(capacity)


# Weights and turns.


def test_channel_lets_heavy_item_in_when_empty_only() -> None:
    """An item heavier than the capacity enters an empty channel, and nothing enters beside it."""
    sending, receiving = opened(3)
    sending.send_nowait("light")
    with pytest.raises(WouldBlock):
        sending.send_nowait("heavy", 10)
    assert receiving.receive_nowait() == "light"
    sending.send_nowait("heavy", 10)
    with pytest.raises(WouldBlock):
        sending.send_nowait("light")
    assert receiving.receive_many_nowait(1)[0].weight == 10


def test_channel_gives_as_many_as_fit_when_many_are_received() -> None:
    """`receive_many_nowait` gives the longest run of at most that weight, but at least one item."""
    sending, receiving = opened(20)
    for item, weight in [("a", 5), ("b", 2), ("c", 2), ("d", 1)]:
        sending.send_nowait(item, weight)
    assert [one.item for one in receiving.receive_many_nowait(3)] == ["a"]
    assert [one.item for one in receiving.receive_many_nowait(4)] == ["b", "c"]
    assert [one.item for one in receiving.receive_many_nowait(100)] == ["d"]


def test_channel_keeps_room_taken_when_received_with_hold() -> None:
    """What was received with `hold` occupies its weight until it is freed."""
    sending, receiving = opened(3)
    sending.send_nowait("a", 3)
    receiving.receive_many_nowait(3, hold=True)
    with pytest.raises(WouldBlock):
        sending.send_nowait("b")
    receiving.free(2)
    sending.send_nowait("b", 2)
    with pytest.raises(WouldBlock):
        sending.send_nowait("c")
    assert sending.statistics().depth == 3


def test_channel_lets_nobody_overtake_when_a_heavy_sender_waits() -> None:
    """A light item that would fit waits behind a heavy one that does not."""
    sending, receiving = opened(3)
    sending.send_nowait("a", 2)
    entered: list[str] = []
    assert not sending.offer("heavy", 2, lambda: entered.append("heavy"))
    assert not sending.offer("light", 1, lambda: entered.append("light"))
    with pytest.raises(WouldBlock):
        sending.send_nowait("newcomer")
    assert entered == []
    assert items_in(receiving) == ["a", "heavy", "light"]
    assert entered == ["heavy", "light"]


def test_channel_calls_on_sent_when_item_is_in() -> None:
    """When `on_sent` is called the item can be received already, and the producer may offer the next."""
    sending, receiving = opened(1)
    seen: list[int] = []

    def produce() -> None:
        seen.append(sending.statistics().depth)
        sending.offer(len(seen) + 1, 1, produce)

    assert sending.offer(0, 1, produce)
    assert not sending.offer(1, 1, produce)
    assert [receiving.receive_nowait() for _ in range(4)] == [0, 1, 2, 3]
    assert seen == [1, 1, 1, 1]


# Senders that wait.


async def test_send_returns_when_its_item_has_entered() -> None:
    """`send` waits for room and no longer."""
    sending, receiving = opened(1)
    await sending.send("a")
    second = await started(sending.send("b"))
    assert not second.done()
    assert receiving.receive_nowait() == "a"
    await second
    assert receiving.receive_nowait() == "b"


async def test_send_leaves_nothing_when_cancelled_while_waiting() -> None:
    """A cancelled sender leaves the line, and a lighter one behind it gets in."""
    sending, receiving = opened(3)
    sending.send_nowait("a", 2)
    heavy = await started(sending.send("heavy", 2))
    light = await started(sending.send("light", 1))
    heavy.cancel()
    await turn()
    assert heavy.cancelled()
    assert light.done()
    assert items_in(receiving) == ["a", "light"]


async def test_send_is_undone_when_cancelled_in_the_turn_it_was_served() -> None:
    """A send that was served but ends cancelled is as if it had never been, also in the statistics."""
    clock = Clock()
    sending, receiving = opened(1, clock=clock)
    sending.send_nowait("a")
    before = sending.statistics()
    sender = await started(sending.send("b"))
    behind = await started(sending.send("c"))
    clock.now += 4
    assert receiving.receive_nowait() == "a"  # serves "b"
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender
    await behind
    now = receiving.statistics()
    assert items_in(receiving) == ["c"]
    assert (now.total_in, now.sends) == (before.total_in + 1, before.sends + 1)
    assert (now.waited_sends, now.send_wait_s, receiving.send_waits.total) == (1, 4.0, 1)


async def test_send_stays_received_when_cancelled_after_that() -> None:
    """What somebody has received already is not taken back, nor is an equal item of somebody else."""
    sending, receiving = opened(1, clock=Clock())  # same item, weight and time
    sending.send_nowait("first")
    one = await started(sending.send("x"))
    other = await started(sending.send("x"))
    assert [receiving.receive_nowait() for _ in range(2)] == ["first", "x"]  # the one's; serves the other
    one.cancel()
    await turn()
    assert one.cancelled()
    assert other.done()
    assert items_in(receiving) == ["x"]


async def test_send_takes_back_its_own_item_when_others_are_in() -> None:
    """The item taken back is found by identity: items need not be comparable."""
    sending, receiving = opened(2)
    items = [NeverEqual() for _ in range(4)]
    for item in items[:2]:
        sending.send_nowait(item)
    tasks = [await started(sending.send(item)) for item in items[2:]]
    receiving.receive_many_nowait(2)  # serves both
    tasks[1].cancel()
    await turn()
    left = items_in(receiving)
    assert len(left) == 1
    assert left[0] is items[2]


async def test_send_raises_broken_resource_when_receiver_leaves_meanwhile() -> None:
    """A waiting sender is told by the error, so its item is not among what `close` returns."""
    sending, receiving = opened(1)
    sending.send_nowait("in")
    told = await started(sending.send("told by the error"))
    entered: list[str] = []
    sending.offer("offered", 1, lambda: entered.append("called"))
    assert receiving.close() == ["in", "offered"]
    assert receiving.close() == []
    assert entered == ["called"]
    with pytest.raises(BrokenResourceError):
        await told


@pytest.mark.parametrize("is_served", [False, True])
async def test_send_is_cancelled_when_receiver_leaves_in_the_same_turn(is_served: bool) -> None:
    """A cancellation is seen as one, whatever else happened in its turn."""
    sending, receiving = opened(1)
    sending.send_nowait("a")
    sender = await started(sending.send("b"))
    if is_served:
        receiving.receive_nowait()
    assert receiving.close() == (["b"] if is_served else ["a"])
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender


async def test_send_gets_its_item_in_when_closed_while_waiting() -> None:
    """Closing the send end does not cut off who already waits."""
    sending, receiving = opened(1)
    sending.send_nowait("a")
    sender = await started(sending.send("b"))
    sending.close()
    assert items_in(receiving) == ["a", "b"]
    await sender
    assert receiving.is_at_end


# Receivers that wait.


async def test_receive_returns_when_something_is_sent() -> None:
    """A waiting receiver gets the next item; `receive_many` as many as lie there."""
    sending, receiving = opened(5)
    one = await started(receiving.receive())
    sending.send_nowait("a")
    assert await one == "a"
    many = await started(receiving.receive_many(2))
    for item in "bcd":
        sending.send_nowait(item)
    assert await many == ["b", "c"]


async def test_receive_serves_everyone_when_several_items_come_in_one_turn() -> None:
    """No receiver stays behind while there is something to receive."""
    sending, receiving = opened(5)
    receivers = [await started(receiving.receive()) for _ in range(3)]
    for item in range(3):
        sending.send_nowait(item)
    assert await asyncio.gather(*receivers) == [0, 1, 2]


async def test_receive_hands_item_on_when_cancelled_in_the_turn_it_was_served() -> None:
    """What a cancelled receiver was woken for goes to the next one."""
    sending, receiving = opened(5)
    first = await started(receiving.receive())
    second = await started(receiving.receive())
    sending.send_nowait("a")
    first.cancel()
    assert await second == "a"
    assert first.cancelled()


async def test_receive_leaves_the_line_when_cancelled() -> None:
    """A receiver cancelled while waiting is not woken, and others are; so is one behind two of them."""
    sending, receiving = opened(5)
    tasks = [await started(receiving.receive()) for _ in range(4)]
    tasks[0].cancel()
    await turn()
    tasks[1].cancel()  # its task has not run when the item comes
    sending.send_nowait("a")
    assert await tasks[2] == "a"
    assert not tasks[3].done()
    tasks[3].cancel()
    await turn()


async def test_receive_is_fair_when_one_receiver_is_always_quick() -> None:
    """Two receivers that come back at once are served in turn."""
    sending, receiving = opened(5)
    served: list[str] = []

    async def consume(name: str) -> None:
        while True:
            await receiving.receive()
            served.append(name)

    tasks = [await started(consume(name)) for name in "ab"]
    for item in range(6):
        sending.send_nowait(item)
        await turn()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == list("ababab")


async def test_receive_ends_for_everyone_when_send_end_is_closed() -> None:
    """Every waiting receiver learns of the end, also when one of them is cancelled in that turn."""
    sending, receiving = opened(5)
    tasks = [await started(receiving.receive()) for _ in range(4)]
    sending.close()
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [asyncio.CancelledError, EndOfChannel, EndOfChannel, EndOfChannel]
    assert [type(result) for result in results] == kinds


async def test_receive_ends_for_everyone_when_the_last_waiting_sender_is_cancelled() -> None:
    """The end can also come by a cancellation: of the only item that was still to come."""
    sending, receiving = opened(1)
    sending.send_nowait("held")
    receiving.receive_many_nowait(1, hold=True)
    sender = await started(sending.send("never"))
    sending.close()
    receivers = [await started(receiving.receive()) for _ in range(2)]
    told: list[bool] = []
    receiving.set_on_ready(lambda: told.append(receiving.is_at_end))
    sender.cancel()
    results = await asyncio.gather(*receivers, return_exceptions=True)
    assert [type(result) for result in results] == [EndOfChannel, EndOfChannel]
    assert told == [True]


async def test_receive_raises_closed_resource_when_closed_while_waiting() -> None:
    """Every waiting receiver is told when its own end is closed."""
    _, receiving = opened(5)
    tasks = [await started(receiving.receive()) for _ in range(3)]
    receiving.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ClosedResourceError] * 3


def test_channel_calls_on_ready_when_empty_channel_gets_something_or_ends() -> None:
    """One call for each change from nothing to something, and one for the end."""
    sending, receiving = opened(5)
    calls: list[bool] = []
    receiving.set_on_ready(lambda: calls.append(receiving.has_items))
    sending.send_nowait("a")
    sending.send_nowait("b")
    assert calls == [True]
    assert items_in(receiving) == ["a", "b"]
    sending.send_nowait("c")
    assert calls == [True, True]
    receiving.receive_nowait()
    sending.close()
    sending.close()
    assert calls == [True, True, False]


async def test_channel_adds_up_waits_when_senders_had_to_wait() -> None:
    """The statistics say how many sends waited and how long; depth, peak and totals are weights."""
    clock = Clock()
    sending, receiving = opened(4, clock=clock)
    sending.send_nowait("a", 3)
    sending.offer("b", 4, nothing)
    clock.now += 1.5
    sending.offer("c", 1, nothing)
    clock.now += 2
    receiving.receive_nowait()
    statistics = sending.statistics()
    assert (statistics.waited_sends, statistics.send_wait_s, statistics.waiting_senders) == (1, 3.5, 1)
    assert (statistics.depth, statistics.peak, statistics.capacity) == (4, 4, 4)
    assert (statistics.total_in, statistics.total_out, statistics.sends) == (7, 3, 2)
    assert receiving.send_waits.max_us == 3_500_000
    assert receiving.statistics() == statistics
