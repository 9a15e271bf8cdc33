"""A bounded in-process pipe with a send and a receive end; knows nothing of what passes through.

Capacity is counted by weight. An item enters when there is room for its weight, or when the
channel is empty (so that one heavier than the whole capacity cannot block for ever), and never
ahead of one that already waits. What was received with `hold=True` goes on occupying its weight
until `free` is called, so that a stage's capacity covers what it works on too.

Both ends belong to one event loop; nothing here is safe to call from another thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock
from pipeline.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ChannelStatistics", "ReceiveEnd", "Received", "SendEnd", "open_channel"]

T = TypeVar("T")


class Received(NamedTuple, Generic[T]):
    """One item as it lay in the channel."""

    item: T
    weight: int
    sent_at: float  # the channel's clock when it was sent, before any waiting


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What a channel has done since it was opened; weights, but `sends` counts items."""

    depth: int
    capacity: int
    peak: int
    total_in: int
    total_out: int
    sends: int
    waiting_senders: int
    waited_sends: int
    send_wait_s: float


class _Waiting(Generic[T]):
    """A sender that waits for room, with what it wants to send."""

    __slots__ = ("entry", "is_in", "on_sent")

    def __init__(self, entry: Received[T], on_sent: Callable[[], None]) -> None:
        self.entry = entry
        self.on_sent = on_sent  # called once the item is in, or the receive end has closed
        self.is_in = False  # the item has entered the channel


class _Channel(Generic[T]):
    """What the two ends share."""

    __slots__ = (
        "buffer",
        "capacity",
        "clock",
        "depth",
        "is_receiver_closed",
        "is_sender_closed",
        "on_ready",
        "peak",
        "receivers",
        "send_wait_s",
        "send_waits",
        "sends",
        "total_in",
        "total_out",
        "waited_sends",
        "waiting",
    )

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.clock = clock
        self.buffer: deque[Received[T]] = deque()  # sent and not yet received
        self.depth = 0  # weight in the buffer, and received with hold and not yet freed
        self.waiting: deque[_Waiting[T]] = deque()  # senders, first come first served
        self.receivers: deque[asyncio.Future[None]] = deque()  # tasks in `receive`
        self.on_ready: Callable[[], None] | None = None  # called when there is something to receive
        self.is_sender_closed = False
        self.is_receiver_closed = False
        self.peak = 0  # largest depth ever
        self.total_in = 0
        self.total_out = 0
        self.sends = 0  # items that went in
        self.waited_sends = 0  # of these, how many had to wait
        self.send_wait_s = 0.0  # how long they waited, added up
        self.send_waits = Histogram()  # the waits that were not zero

    def put(self, entry: Received[T]) -> None:
        self.buffer.append(entry)
        self.depth += entry.weight
        self.total_in += entry.weight
        self.sends += 1
        if self.depth > self.peak:
            self.peak = self.depth
        if len(self.buffer) == 1:
            self.signal()

    def signal(self) -> None:
        """Tell the receiving side that there is something to receive, or that the end has come."""
        if self.on_ready is not None:
            self.on_ready()
        self.wake_receiver()

    def wake_receiver(self) -> None:
        while self.receivers:
            waiter = self.receivers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def free(self, weight: int) -> None:
        """Give back room, and let in who waits for it, in turn."""
        self.depth -= weight
        while self.waiting:
            first = self.waiting[0]
            if self.depth and self.depth + first.entry.weight > self.capacity:
                return
            self.waiting.popleft()
            first.is_in = True
            waited_s = self.clock() - first.entry.sent_at
            self.waited_sends += 1
            self.send_wait_s += waited_s
            self.send_waits.record(waited_s)
            self.put(first.entry)
            first.on_sent()


class SendEnd(Generic[T]):
    """The end that items go into; any number of producers may share it. `close` ends the stream."""

    __slots__ = ("_channel",)

    def __init__(self, channel: _Channel[T]) -> None:
        self._channel = channel

    def send_nowait(self, item: T, weight: int = 1) -> None:
        """Send without waiting.

        Raises:
            WouldBlock: there is no room, or others wait for it.
            ClosedResourceError: this end was closed.
            BrokenResourceError: the receive end was closed.
        """
        if not self._try_put(Received(item, weight, self._channel.clock())):
            raise WouldBlock

    def offer(self, item: T, weight: int, on_sent: Callable[[], None]) -> bool:
        """Send now (True), or leave the item in the line of waiting senders (False).

        In the second case `on_sent` is called, in the loop, once the item has entered. A producer
        that has no task of its own stops producing until then; so at most one item waits for each.

        Raises:
            ClosedResourceError: this end was closed.
            BrokenResourceError: the receive end was closed.
        """
        entry = Received(item, weight, self._channel.clock())
        if self._try_put(entry):
            return True
        self._channel.waiting.append(_Waiting(entry, on_sent))
        return False

    async def send(self, item: T, weight: int = 1) -> None:
        """Send, waiting for room. A cancelled send leaves nothing that was not received already.

        Raises:
            ClosedResourceError: this end was closed.
            BrokenResourceError: the receive end was closed, before or while waiting.
        """
        channel = self._channel
        entry = Received(item, weight, channel.clock())
        if self._try_put(entry):
            return
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_sent() -> None:
            if not sent.done():
                sent.set_result(None)

        waiting = _Waiting(entry, on_sent)
        channel.waiting.append(waiting)
        try:
            await sent
        except asyncio.CancelledError:
            self._take_back(waiting)
            raise
        if not waiting.is_in:
            raise BrokenResourceError

    def close(self) -> None:
        """End the stream: the receive end gets what is left, then `EndOfChannel`. May be called twice.

        Senders that already wait still get their items in.
        """
        if not self._channel.is_sender_closed:
            self._channel.is_sender_closed = True
            while len(self._channel.receivers) > 1:  # every receiver must learn of the end
                self._channel.wake_receiver()
            self._channel.signal()

    def statistics(self) -> ChannelStatistics:
        """A frozen view of the channel, the same at both ends."""
        return _statistics(self._channel)

    def _try_put(self, entry: Received[T]) -> bool:
        channel = self._channel
        if channel.is_sender_closed:
            raise ClosedResourceError
        if channel.is_receiver_closed:
            raise BrokenResourceError
        if channel.waiting or (channel.depth and channel.depth + entry.weight > channel.capacity):
            return False
        channel.put(entry)
        return True

    def _take_back(self, waiting: _Waiting[T]) -> None:
        channel = self._channel
        if not waiting.is_in:
            channel.waiting.remove(waiting)
            channel.free(0)  # the next in line may be lighter
        elif waiting.entry in channel.buffer:
            channel.buffer.remove(waiting.entry)
            channel.total_in -= waiting.entry.weight
            channel.sends -= 1
            channel.free(waiting.entry.weight)


class ReceiveEnd(Generic[T]):
    """The end that items come out of, in the order they were sent."""

    __slots__ = ("_channel",)

    def __init__(self, channel: _Channel[T]) -> None:
        self._channel = channel

    def receive_nowait(self) -> T:
        """The next item.

        Raises:
            WouldBlock: nothing is there.
            EndOfChannel: nothing is there and nothing will come.
            ClosedResourceError: this end was closed.
        """
        return self.receive_many_nowait(1)[0].item

    def receive_many_nowait(self, max_weight: int, *, hold: bool = False) -> list[Received[T]]:
        """Items of at most `max_weight` in all, but at least one; see the module for `hold`.

        Raises:
            WouldBlock: nothing is there.
            EndOfChannel: nothing is there and nothing will come.
            ClosedResourceError: this end was closed.
        """
        channel = self._channel
        buffer = channel.buffer
        if channel.is_receiver_closed:
            raise ClosedResourceError
        if not buffer:
            raise EndOfChannel if self.is_at_end else WouldBlock
        taken = [buffer.popleft()]
        weight = taken[0].weight
        while buffer and weight + buffer[0].weight <= max_weight:
            weight += buffer[0].weight
            taken.append(buffer.popleft())
        channel.total_out += weight
        if not hold:
            channel.free(weight)
        return taken

    async def receive(self) -> T:
        """The next item, waiting for it.

        Raises:
            EndOfChannel: the send end was closed and everything was received.
            ClosedResourceError: this end was closed, before or while waiting.
        """
        return (await self.receive_many(1))[0]

    async def receive_many(self, max_weight: int) -> list[T]:
        """At least one item, waiting for it, and as many more as lie there up to `max_weight`.

        Raises: as `receive`.
        """
        while True:
            try:
                return [received.item for received in self.receive_many_nowait(max_weight)]
            except WouldBlock:
                await self._wait()
            finally:
                if self._channel.buffer or self.is_at_end:
                    self._channel.wake_receiver()  # one wake-up was given: pass it on

    def free(self, weight: int) -> None:
        """Give back the weight of what was received with `hold=True`."""
        self._channel.free(weight)

    def set_on_ready(self, on_ready: Callable[[], None]) -> None:
        """Have `on_ready` called whenever an empty channel gets something, or comes to its end."""
        self._channel.on_ready = on_ready

    def close(self) -> list[T]:
        """Leave: senders get `BrokenResourceError`. Returns what nobody will receive any more, so that
        it can be accounted for. May be called twice.
        """
        channel = self._channel
        channel.is_receiver_closed = True
        left = [entry.item for entry in channel.buffer] + [w.entry.item for w in channel.waiting]
        waiting = list(channel.waiting)
        channel.depth -= sum(entry.weight for entry in channel.buffer)
        channel.buffer.clear()
        channel.waiting.clear()
        for sender in waiting:
            sender.on_sent()
        while channel.receivers:
            channel.wake_receiver()
        return left

    @property
    def has_items(self) -> bool:
        """Something can be received now."""
        return bool(self._channel.buffer)

    @property
    def is_at_end(self) -> bool:
        """Nothing is there and nothing will come."""
        channel = self._channel
        return channel.is_sender_closed and not channel.buffer and not channel.waiting

    @property
    def send_waits(self) -> Histogram:
        """How long senders waited, only those that had to; taken and begun anew by whoever reports."""
        return self._channel.send_waits

    def statistics(self) -> ChannelStatistics:
        """A frozen view of the channel, the same at both ends."""
        return _statistics(self._channel)

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel.receivers.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._channel.receivers:
                self._channel.receivers.remove(waiter)
            raise


def open_channel(
    capacity: int, *, clock: Callable[[], float] = time.monotonic
) -> tuple[SendEnd[T], ReceiveEnd[T]]:
    """Open a channel that holds a weight of `capacity`; `clock` (seconds) serves the statistics.

    Raises:
        ValueError: the capacity is less than 1.
    """
    channel: _Channel[T] = _Channel(capacity, clock)
    return SendEnd(channel), ReceiveEnd(channel)


def _statistics(channel: _Channel[T]) -> ChannelStatistics:
    return ChannelStatistics(
        depth=channel.depth,
        capacity=channel.capacity,
        peak=channel.peak,
        total_in=channel.total_in,
        total_out=channel.total_out,
        sends=channel.sends,
        waiting_senders=len(channel.waiting),
        waited_sends=channel.waited_sends,
        send_wait_s=channel.send_wait_s,
    )
