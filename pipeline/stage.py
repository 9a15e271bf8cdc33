"""One step of a pipeline: an input channel, a handler, a concurrency limit, order kept for each key.

A synchronous handler runs in line, on all that is waiting, with no task and no timeout. An
asynchronous one gets a task for each item, at most `concurrency` at once, in the manner of
`buffer_unordered`: items leave as they finish, but those of one key one after the other, in order.
Either way an item occupies its weight in the input channel until its handler has ended and its
output has been accepted downstream. Knows nothing of what the items are.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.channel import ChannelStatistics, Received, ReceiveEnd, SendEnd
from pipeline.channel_state import ChannelState
from pipeline.errors import EndOfChannel, WouldBlock
from pipeline.histogram import Histogram
from pipeline.permits import Permits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["Stage", "StageStatistics"]

In = TypeVar("In")
Out = TypeVar("Out")

# The most weight a synchronous stage handles before it lets the event loop turn: at a few
# microseconds for each message this stays well under the 50 ms that nothing may block the loop.
MAX_TURN_WEIGHT = 4096


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """What a stage has done since it was made; `channel` is its input. Items, not weights."""

    name: str
    channel: ChannelStatistics
    handled: int
    failed: int
    in_handler: int
    busy_s: float


def _weight_of_one(_item: object) -> int:
    return 1


class Stage(Generic[In, Out]):
    """One step of a `Topology`, which starts it, wakes it and drains it.

    Args:
        name: appears in statistics.
        handler: takes one item, returns what goes on to the next stage, or None when nothing does.
        capacity: weight that may wait or be worked on.
        concurrency: items in an asynchronous handler at once; of no effect for a synchronous one.
        timeout_s: longest time for one call of an asynchronous handler; None for no limit.
        key: items of equal key keep their order; without it an asynchronous handler keeps none.
        weigh: weight of what the handler returned, for the next stage's channel.
        on_error: told of an item whose handler (or `key`, or `weigh`) raised or ran out of time; never of
            an abort. Must not raise.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[In], Out | None] | Callable[[In], Awaitable[Out | None]],
        *,
        capacity: int,
        on_error: Callable[[In, Exception], None],
        concurrency: int = 1,
        timeout_s: float | None = None,
        key: Callable[[In], Hashable] | None = None,
        weigh: Callable[[Out], int] = _weight_of_one,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.is_asynchronous = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - an object with an asynchronous __call__
        )
        self._channel: ChannelState[In] = ChannelState(capacity, clock)
        self.input, self._receive = SendEnd(self._channel), ReceiveEnd(self._channel)
        self.output: SendEnd[Out] | None = None  # the next stage's input; set by the topology
        self.handler: Callable[[In], Any] = handler
        self.weigh = weigh
        self.passed_items = 0  # that the topology took past the channel and that did not fail
        self.passed_weight = 0
        self.passed_peak = 0  # the heaviest of them
        self.busy_s = 0.0  # in the handler
        self.permits = Permits(concurrency)
        self.time_in_stage = Histogram()  # from being sent to having left, for each item
        self._on_error = on_error
        self._timeout_s = timeout_s
        self._key = key
        self._clock = clock
        self._taken: deque[Received[In]] = deque()  # received, not begun (synchronous handlers)
        # Weight, and when it was sent, of that whose output waits for room (synchronous handlers).
        self._blocked_by: tuple[int, float] | None = None
        self._keys: dict[Hashable, deque[Received[In]]] = {}  # keys at work, and what waits behind each
        self._runnable: deque[tuple[Hashable, Received[In]]] = deque()  # its key is free, waits for a permit
        self._tasks: dict[asyncio.Task[None], Received[In]] = {}  # running, and the item of each
        self._wake: Callable[[], None] = _nobody_to_wake
        self._ended: asyncio.Future[None] | None = None
        self._is_aborted = False
        self._handled = 0
        self._failed = 0

    def start(self, wake: Callable[[], None]) -> None:
        """Begin to take items: `wake` is called whenever `run_ready` should be, in the running loop."""
        self._wake = wake
        self._ended = asyncio.get_running_loop().create_future()
        self.permits.on_release = wake
        self._receive.set_on_ready(wake)
        wake()

    def run_ready(self) -> None:
        """Handle what is waiting, as far as the concurrency limit and the next stage's room allow."""
        if self._is_aborted:
            return  # woken before the abort, or by what it cancelled
        if self.is_asynchronous:
            self._start_tasks()
        else:
            self._run_in_line()
        self._maybe_end()

    async def wait_ended(self) -> None:
        """Wait until the input has ended, everything was handled, and the output was closed."""
        assert self._ended is not None, "not started"
        await asyncio.shield(self._ended)

    async def abort(self) -> list[In]:
        """Stop at once: cancel what is running and await it. Returns the items that were not handled.

        A result that waits for room downstream belongs to the next stage, which returns it when aborted.
        """
        self._is_aborted = True
        left = [received.item for received in self._taken]
        left += [received.item for _, received in self._runnable]
        left += [received.item for waiting in self._keys.values() for received in waiting]
        for cleared in (self._taken, self._runnable, self._keys):
            cleared.clear()
        left += self._receive.close()
        running = dict(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        left += [received.item for task, received in running.items() if task.cancelled()]
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        return left

    def statistics(self) -> StageStatistics:
        """A frozen view of what was done so far."""
        channel = self.input.statistics()
        return StageStatistics(
            name=self.name,
            channel=replace(
                channel,
                peak=max(channel.peak, self.passed_peak),
                total_in=channel.total_in + self.passed_weight,
                total_out=channel.total_out + self.passed_weight,
                sends=channel.sends + self.passed_items,
            ),
            handled=self._handled + self.passed_items,
            failed=self._failed,
            in_handler=len(self._tasks),
            busy_s=self.busy_s,
        )

    @property
    def send_waits(self) -> Histogram:
        """How long senders to this stage waited, only those that had to."""
        return self._receive.send_waits

    # For what the topology takes past the channels.

    @property
    def is_clear(self) -> bool:
        """Nothing is in it and nothing will have to wait: the handler runs in line, both ends are open."""
        channel = self._channel
        return not (self.is_asynchronous or self._is_aborted or channel.depth or channel.is_closed)

    def fail_passed(self, item: In, weight: int, error: Exception | asyncio.CancelledError) -> None:
        """Its handler failed."""
        self.passed_items -= 1
        self.passed_weight -= weight
        self._channel.count_received(weight)
        self._fail(item, 0, error)

    # Synchronous handlers: in line, no task.

    def _run_in_line(self) -> None:
        if self._blocked_by is not None:
            return
        taken = self._taken
        if not taken:
            try:
                taken.extend(
                    self._receive.receive_many_nowait(min(self.capacity, MAX_TURN_WEIGHT), hold=True)
                )
            except (WouldBlock, EndOfChannel):
                return
        while taken and self._blocked_by is None:
            received = taken.popleft()
            self._handle(received)
        if self._blocked_by is None and self._receive.has_items:
            self._wake()

    def _handle(self, received: Received[In]) -> None:
        """Handle one item of the channel and hand its result on."""
        item, weight, sent_at = received
        began = after = self._clock()
        try:
            result = self.handler(item)
            after = self._clock()
            output = self.output if result is not None else None
            if output is not None and not output.offer(result, self.weigh(result), self._unblock):
                self._blocked_by = weight, sent_at
        except (Exception, asyncio.CancelledError) as error:
            self._fail(item, weight, error)
            return
        finally:
            self.busy_s += after - began
        if self._blocked_by is None:
            self._handled += 1
            self.time_in_stage.record(after - sent_at)
            self._receive.free(weight)

    def _unblock(self) -> None:
        blocked_by, self._blocked_by = self._blocked_by, None
        assert blocked_by is not None
        self._leave(*blocked_by)
        self._wake()

    # Ways out, for either kind of handler.

    def _leave(self, weight: int, sent_at: float) -> None:
        self._handled += 1
        self.time_in_stage.record(self._clock() - sent_at)
        self._receive.free(weight)

    def _fail(self, item: In, held_weight: int, error: Exception | asyncio.CancelledError) -> None:
        """Never raises: a mistake of whoever hears of errors must not stop the others."""
        if isinstance(error, asyncio.CancelledError):  # not of this stage, but of what the handler asked
            error = RuntimeError("what the handler waited for was cancelled")
        self._failed += 1
        self._receive.free(held_weight)
        try:
            self._on_error(item, error)
        except Exception as mistake:
            context = {"message": f"on_error of stage {self.name} failed", "exception": mistake}
            asyncio.get_running_loop().call_exception_handler(context)

    # Asynchronous handlers: a task for each item.

    def _start_tasks(self) -> None:
        while self.permits.available:
            ready = self._next_runnable()
            if ready is None:
                return
            self.permits.acquire_nowait()
            key, received = ready
            task = asyncio.get_running_loop().create_task(self._run_task(key, received))
            self._tasks[task] = received
            task.add_done_callback(self._tasks.pop)

    def _next_runnable(self) -> tuple[Hashable, Received[In]] | None:
        """The next item whose key is free; those of busy keys are put behind them on the way."""
        if self._runnable:
            return self._runnable.popleft()
        while True:
            try:
                (received,) = self._receive.receive_many_nowait(1, hold=True)
            except (WouldBlock, EndOfChannel):
                return None
            try:
                key = self._key(received.item) if self._key else id(received)
                behind = self._keys.get(key)
            except Exception as error:
                self._fail(received.item, received.weight, error)
                continue
            if behind is None:
                self._keys[key] = deque()
                return key, received
            behind.append(received)

    async def _run_task(self, key: Hashable, received: Received[In]) -> None:
        def on_room() -> None:
            self._leave(received.weight, received.sent_at)
            self._release(key)

        is_waiting = False  # for room downstream; keeps key and permit until then
        try:
            result = await self._call(received.item)
            if result is not None and self.output is not None:
                is_waiting = not self.output.offer(result, self.weigh(result), on_room)
        except Exception as error:
            self._fail(received.item, received.weight, error)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            self._fail(received.item, received.weight, error)
        else:
            if not is_waiting:
                self._leave(received.weight, received.sent_at)
        finally:
            if not is_waiting:
                self._release(key)

    async def _call(self, item: In) -> Out | None:
        began = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                result: Out | None = await self.handler(item)
                return result
        finally:
            self.busy_s += self._clock() - began

    def _release(self, key: Hashable) -> None:
        behind = self._keys.get(key)
        if behind:
            self._runnable.append((key, behind.popleft()))
        else:
            self._keys.pop(key, None)
        self.permits.release()

    def _maybe_end(self) -> None:
        assert self._ended is not None
        is_busy = self._blocked_by is not None or self._keys  # what was taken is done, unless blocked
        if self._ended.done() or is_busy or not self._receive.is_at_end:
            return
        if self.output is not None:
            self.output.close()
        self._ended.set_result(None)


def _is_cancelled() -> bool:
    """The running task itself was asked to end, as opposed to something that it waits for."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0


def _nobody_to_wake() -> None:
    """Stands in until the stage is started."""
