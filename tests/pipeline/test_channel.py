"""A channel's contract where nobody waits; test_channel_model.py runs it against a list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock
from tests.pipeline.ends import Clock, items_in, nothing, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.channel import ReceiveEnd, SendEnd


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


# What the receiving side and the statistics tell.


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
