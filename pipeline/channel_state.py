"""What the two ends of a channel share: the items in it, who waits for room, and what is counted.

Its rules are told in `channel`; whether an end may do what is asked of it is that end's affair.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from pipeline.histogram import Histogram

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["ChannelState", "ChannelStatistics", "Received", "WaitingSender"]

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


class WaitingSender(Generic[T]):
    """A sender that waits for room, with what it wants to send."""

    __slots__ = ("entry", "is_told", "on_sent", "waited_s")

    def __init__(self, entry: Received[T], on_sent: Callable[[], None], *, is_told: bool) -> None:
        self.entry = entry
        self.on_sent = on_sent  # called once the item is in, or the receive end has closed
        self.is_told = is_told  # an error tells it when the item did not get in; the item is then its own
        self.waited_s: float | None = None  # how long it waited; None until the item has entered


class ChannelState(Generic[T]):
    """Made with the two ends of a channel, which use it as their own; nothing to close."""

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
        self.waiting: deque[WaitingSender[T]] = deque()  # senders, first come first served
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

    @property
    def is_closed(self) -> bool:
        """One of the ends is."""
        return self.is_sender_closed or self.is_receiver_closed

    @property
    def is_at_end(self) -> bool:
        """Nothing is there and nothing will come."""
        return self.is_sender_closed and not self.buffer and not self.waiting

    def put(self, entry: Received[T]) -> None:
        """It enters; there is room for it."""
        self.buffer.append(entry)
        self.depth += entry.weight
        self.total_in += entry.weight
        self.sends += 1
        if self.depth > self.peak:
            self.peak = self.depth
        if len(self.buffer) == 1:
            self.signal()

    def count_received(self, weight: int) -> None:
        """Count an item that was taken past the channel as one that went through it."""
        self.total_in += weight
        self.total_out += weight
        self.sends += 1

    def signal(self) -> None:
        """Tell the receiving side that there is something to receive, or that the end has come."""
        if self.on_ready is not None:
            self.on_ready()
        if self.receivers:
            self.wake_receiver()

    def wake_receiver(self) -> None:
        """Let one of the tasks that wait look."""
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
            first.waited_s = self.clock() - first.entry.sent_at
            self.count_wait(first.waited_s, 1)
            self.put(first.entry)
            first.on_sent()

    def count_wait(self, waited_s: float, sends: int) -> None:
        """So many sends had to wait for so long; -1 to take that back."""
        self.waited_sends += sends
        self.send_wait_s += waited_s * sends
        self.send_waits.record(waited_s, sends)

    def take_out(self, waiting: WaitingSender[T]) -> None:
        """Undo a send that was served but not yet noticed by its sender, unless the item was received."""
        entry = waiting.entry
        at = next((at for at, one in enumerate(self.buffer) if one is entry), None)
        if at is None:
            return
        del self.buffer[at]
        self.total_in -= entry.weight
        self.sends -= 1
        assert waiting.waited_s is not None
        self.count_wait(waiting.waited_s, -1)
        self.free(entry.weight)

    def statistics(self) -> ChannelStatistics:
        """A frozen view of it."""
        return ChannelStatistics(
            depth=self.depth,
            capacity=self.capacity,
            peak=self.peak,
            total_in=self.total_in,
            total_out=self.total_out,
            sends=self.sends,
            waiting_senders=len(self.waiting),
            waited_sends=self.waited_sends,
            send_wait_s=self.send_wait_s,
        )
