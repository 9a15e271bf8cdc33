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
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.channel_state import ChannelState, ChannelStatistics, Received, WaitingSender
from pipeline.errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.histogram import Histogram

__all__ = ["ChannelStatistics", "ReceiveEnd", "Received", "SendEnd", "open_channel"]

T = TypeVar("T")


class SendEnd(Generic[T]):
    """The end that items go into; any number of producers may share it. `close` ends the stream."""

    __slots__ = ("_channel",)

    def __init__(self, channel: ChannelState[T]) -> None:
        self._channel = channel

    def send_nowait(self, item: T, weight: int = 1) -> None:
        """Send without waiting; `weight` is at least 1, here and below.

        Raises:
            ValueError: the weight is less than 1.
            WouldBlock: there is no room, or others wait for it.
            ClosedResourceError: this end was closed.
            BrokenResourceError: the receive end was closed.
        """
        if not self._try_put(Received(item, weight, self._channel.clock())):
            raise WouldBlock

    def offer(self, item: T, weight: int, on_sent: Callable[[], None]) -> bool:
        """Send now (True), or leave the item in the line of waiting senders (False).

        In the second case `on_sent` is called, in the loop, once the item has entered, or the receive
        end was closed (which accounts for the item); it must not raise. A producer that has no task
        of its own stops producing until then; so no more waits for each than it had in hand.

        Raises: as `send_nowait`, but for `WouldBlock`.
        """
        entry = Received(item, weight, self._channel.clock())
        if self._try_put(entry):
            return True
        self._channel.waiting.append(WaitingSender(entry, on_sent, is_told=False))
        return False

    async def send(self, item: T, weight: int = 1) -> None:
        """Send, waiting for room. A cancelled send leaves nothing that was not received already.

        Raises: as `send_nowait`, but for `WouldBlock`; `BrokenResourceError` also while waiting.
        """
        channel = self._channel
        entry = Received(item, weight, channel.clock())
        if self._try_put(entry):
            return
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_sent() -> None:
            if not sent.done():
                sent.set_result(None)

        waiting = WaitingSender(entry, on_sent, is_told=True)
        channel.waiting.append(waiting)
        try:
            await sent
        except asyncio.CancelledError:
            self._take_back(waiting)
            raise
        if waiting.waited_s is None:
            raise BrokenResourceError

    def close(self) -> None:
        """End the stream: the receive end gets what is left, then `EndOfChannel`. May be called twice.

        Senders that already wait still get their items in.
        """
        if not self._channel.is_sender_closed:
            self._channel.is_sender_closed = True
            self._channel.signal()  # one receiver learns of the end, and wakes the next one

    def statistics(self) -> ChannelStatistics:
        """A frozen view of the channel, the same at both ends."""
        return self._channel.statistics()

    def _try_put(self, entry: Received[T]) -> bool:
        channel = self._channel
        if channel.is_sender_closed:
            raise ClosedResourceError
        if channel.is_receiver_closed:
            raise BrokenResourceError
        if entry.weight < 1:
            raise ValueError(f"weight must be at least 1, not {entry.weight}")
        if channel.waiting or (channel.depth and channel.depth + entry.weight > channel.capacity):
            return False
        channel.put(entry)
        return True

    def _take_back(self, waiting: WaitingSender[T]) -> None:
        channel = self._channel
        if channel.is_receiver_closed:
            return  # whoever closed it has emptied it
        if waiting.waited_s is None:
            channel.waiting.remove(waiting)
            channel.free(0)  # the next in line may be lighter
        else:
            channel.take_out(waiting)
        if channel.is_at_end:
            channel.signal()  # this was the last item still to come


class ReceiveEnd(Generic[T]):
    """The end that items come out of, in the order they were sent."""

    __slots__ = ("_channel",)

    def __init__(self, channel: ChannelState[T]) -> None:
        self._channel = channel

    def receive_nowait(self) -> T:
        """The next item. Raises: as `receive_many_nowait`."""
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
            raise EndOfChannel if channel.is_at_end else WouldBlock
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
        """The next item, waiting for it. Raises: as `receive_many`."""
        return (await self.receive_many(1))[0]

    async def receive_many(self, max_weight: int) -> list[T]:
        """At least one item, waiting for it, and as many more as lie there up to `max_weight`.

        Raises:
            EndOfChannel: the send end was closed and everything was received.
            ClosedResourceError: this end was closed, before or while waiting.
        """
        try:
            while True:
                try:
                    return [received.item for received in self.receive_many_nowait(max_weight)]
                except WouldBlock:
                    await self._wait()
        finally:
            if self._channel.buffer or self._channel.is_at_end:
                self._channel.wake_receiver()  # one wake-up was given: pass it on

    def free(self, weight: int) -> None:
        """Give back the weight of what was received with `hold=True`."""
        self._channel.free(weight)

    def set_on_ready(self, on_ready: Callable[[], None]) -> None:
        """Have `on_ready` called whenever an empty channel gets something, or comes to its end."""
        self._channel.on_ready = on_ready

    def close(self) -> list[T]:
        """Leave: senders get `BrokenResourceError`. Returns what nobody will receive any more, so that
        it can be accounted for, but for what still waits in `send`, whose caller is told by the error.
        May be called twice.
        """
        channel = self._channel
        channel.is_receiver_closed = True
        waiting, channel.waiting = channel.waiting, deque()
        left = [entry.item for entry in channel.buffer]
        left += [sender.entry.item for sender in waiting if not sender.is_told]
        channel.depth -= sum(entry.weight for entry in channel.buffer)
        channel.buffer.clear()
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
        return self._channel.is_at_end

    @property
    def send_waits(self) -> Histogram:
        """How long senders waited, only those that had to; taken and begun anew by whoever reports."""
        return self._channel.send_waits

    def statistics(self) -> ChannelStatistics:
        """A frozen view of the channel, the same at both ends."""
        return self._channel.statistics()

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
    channel: ChannelState[T] = ChannelState(capacity, clock)
    return SendEnd(channel), ReceiveEnd(channel)
