"""Tasks that wait at a channel's ends: served in turn, cancelled at any moment, told of the end."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel
from tests.pipeline.ends import Clock, items_in, opened, started
from tests.pipeline.sources import turn


class NeverEqual:
    """An item that must not be compared."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]  # as unhashable as a list


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


async def test_send_is_undone_when_served_in_the_turn_it_was_cancelled() -> None:
    """The other way round: room that comes too late for a cancelled sender goes to the next one."""
    sending, receiving = opened(1)
    sending.send_nowait("a")
    sender = await started(sending.send("b"))
    behind = await started(sending.send("c"))
    sender.cancel()
    assert receiving.receive_nowait() == "a"  # serves "b", which nobody awaits any more
    await behind
    assert sender.cancelled()
    assert items_in(receiving) == ["c"]


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


async def test_receive_leaves_nothing_behind_when_cancelled_again_and_again() -> None:
    """Receivers that give up, as those with a timeout do, do not pile up in a channel that stays empty."""
    _, receiving = opened(5)
    for _ in range(10):
        task = await started(receiving.receive())
        task.cancel()
        await turn()
    assert not receiving._channel.receivers  # nothing public tells


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
