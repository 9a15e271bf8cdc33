"""The concurrent operators: how much runs, in which order it comes, and that nothing outlives the stream."""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.streams import Stream
from tests.pipeline.sources import Source, no_task_left, turn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterable

BOTH = pytest.mark.parametrize("operator", ["buffered", "buffer_unordered"])


class Work:
    """Numbered pieces of work that run until the test ends them."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.cancelled: list[int] = []
        self.most_running = 0
        self._gates: dict[int, asyncio.Future[None]] = {}

    async def __call__(self, number: int) -> int:
        self.running.add(number)
        self.most_running = max(self.most_running, len(self.running))
        self._gates[number] = asyncio.get_running_loop().create_future()
        try:
            await self._gates[number]
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up may take a turn
            self.cancelled.append(number)
            raise
        finally:
            self.running.discard(number)
        return number

    async def finish(self, *numbers: int) -> None:
        for number in numbers:
            self._gates[number].set_result(None)
            await turn()

    async def fail(self, number: int) -> None:
        self._gates[number].set_exception(LookupError(number))
        await turn()


def buffer(source: Source[Any], operator: str, n: int) -> Stream[Any]:
    """The stream of the source's awaitables through one of the two operators."""
    stream: Stream[Any] = getattr(Stream(source), operator)(n)
    return stream


def work_stream(work: Work, numbers: Iterable[int], operator: str, n: int) -> tuple[Source[int], Stream[int]]:
    """A counted source of numbers, and the stream of their work."""
    source = Source(numbers)
    stream: Stream[int] = getattr(Stream(source).map(work), operator)(n)
    return source, stream


async def gather_into(stream: Stream[int], results: list[int]) -> None:
    """Consume, leaving what came where the test can see it."""
    async with aclosing(stream):
        async for item in stream:
            results.append(item)  # noqa: PERF401 - the test looks at what came so far


async def test_buffered_keeps_order_when_later_items_finish_first() -> None:
    """Results come in the order of the items, each as soon as those before it have come."""
    work, results = Work(), list[int]()
    _, stream = work_stream(work, range(4), "buffered", 3)
    task = asyncio.create_task(gather_into(stream, results))
    await turn()
    await work.finish(1, 2)
    assert results == []
    await work.finish(0)
    assert results == [0, 1, 2]
    await work.finish(3)
    await task
    assert results == [0, 1, 2, 3]


async def test_buffer_unordered_yields_as_they_finish_when_order_differs() -> None:
    """Results come in the order in which they are ready, and a slow item holds nobody up."""
    work, results = Work(), list[int]()
    _, stream = work_stream(work, range(5), "buffer_unordered", 2)
    task = asyncio.create_task(gather_into(stream, results))
    await turn()
    await work.finish(1, 2, 3, 4)
    assert results == [1, 2, 3, 4]
    await work.finish(0)
    await task
    assert results == [1, 2, 3, 4, 0]


@BOTH
async def test_buffer_runs_n_when_source_has_more(operator: str) -> None:
    """Exactly n run at once, and no more than n items are taken from the source ahead."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 3)
    first = asyncio.ensure_future(anext(stream))
    await turn()
    assert work.running == {0, 1, 2}
    assert source.asked == 3
    await work.finish(0)
    assert await first == 0
    await turn()
    assert work.running == {1, 2, 3}
    assert source.asked == 4
    await work.finish(1, 2, 3)
    assert work.running == set()
    assert source.asked == 4  # three finished ones that nobody has come for still take their place
    await stream.aclose()


@BOTH
@given(data=st.data(), count=st.integers(0, 12), n=st.integers(1, 5))
def test_buffer_equals_model_when_items_finish_in_any_order(
    operator: str, data: st.DataObject, count: int, n: int
) -> None:
    """Whatever finishes when: every item comes once, in its order, and at most n run."""

    async def scenario() -> None:
        work, results, finished = Work(), list[int](), list[int]()
        source, stream = work_stream(work, range(count), operator, n)
        task = asyncio.create_task(gather_into(stream, results))
        await turn()
        while work.running:
            number = data.draw(st.sampled_from(sorted(work.running)))
            finished.append(number)
            await work.finish(number)
            assert source.asked - len(results) <= n
            if operator == "buffer_unordered":
                assert results == finished
        await task
        assert results == (list(range(count)) if operator == "buffered" else finished)
        assert sorted(finished) == list(range(count))
        assert work.most_running == min(n, count)
        assert source.is_closed

    asyncio.run(scenario())


@BOTH
async def test_buffer_ends_when_source_is_empty(operator: str) -> None:
    """No items, no results, and the source is closed."""
    source = Source[Any]([])
    with no_task_left():
        assert await buffer(source, operator, 2).collect() == []
    assert source.is_closed


@BOTH
async def test_buffer_goes_on_when_source_is_slow(operator: str) -> None:
    """A result is handed on while the source still thinks about the next item."""
    gate = asyncio.Event()

    async def numbers() -> AsyncGenerator[Awaitable[int], None]:
        yield asyncio.sleep(0, 1)
        await gate.wait()
        yield asyncio.sleep(0, 2)

    stream: Stream[int] = getattr(Stream(numbers()), operator)(2)
    assert await anext(stream) == 1
    gate.set()
    assert [item async for item in stream] == [2]


@BOTH
def test_buffer_refuses_when_n_is_less_than_one(operator: str) -> None:
    """A wrong number is reported where it is written."""
    with pytest.raises(ValueError, match="at least 1"):
        buffer(Source([]), operator, 0)


@BOTH
async def test_buffer_cancels_and_awaits_the_others_when_item_fails(operator: str) -> None:
    """The error comes after the other items were cancelled and have ended, and the source was closed."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 3)
    with no_task_left():
        task = asyncio.create_task(stream.collect())
        await turn()
        await work.fail(0)
        with pytest.raises(LookupError):
            await task
    assert sorted(work.cancelled) == [1, 2]
    assert source.is_closed
    assert source.asked == 3


async def test_buffered_raises_in_turn_when_a_later_item_fails() -> None:
    """In order means errors too: what comes before the failed item is yielded first."""
    work, results = Work(), list[int]()
    _, stream = work_stream(work, range(3), "buffered", 3)
    task = asyncio.create_task(gather_into(stream, results))
    await turn()
    await work.fail(1)
    assert not task.done()
    await work.finish(0)
    with pytest.raises(LookupError):
        await task
    assert results == [0]
    assert work.cancelled == [2]


async def test_buffer_unordered_raises_at_once_when_a_later_item_fails() -> None:
    """As they finish means errors too."""
    work = Work()
    _, stream = work_stream(work, range(3), "buffer_unordered", 3)
    task = asyncio.create_task(stream.collect())
    await turn()
    await work.fail(1)
    with pytest.raises(LookupError):
        await task
    assert sorted(work.cancelled) == [0, 2]


async def test_buffered_yields_earlier_results_when_source_fails() -> None:
    """The source's error takes its place in the order: after all items that came before it."""
    work, results = Work(), list[int]()
    source = Source([0, 1], OSError("source"))
    with no_task_left():
        task = asyncio.create_task(gather_into(Stream(source).map(work).buffered(3), results))
        await turn()
        await work.finish(1, 0)
        with pytest.raises(OSError, match="source"):
            await task
    assert results == [0, 1]
    assert source.is_closed


async def test_buffer_unordered_cancels_items_when_source_fails() -> None:
    """The source's error comes when it happens, and ends what still runs."""
    work = Work()
    source = Source([0, 1], OSError("source"))
    with no_task_left():
        task = asyncio.create_task(Stream(source).map(work).buffer_unordered(3).collect())
        await turn()
        with pytest.raises(OSError, match="source"):
            await task
    assert sorted(work.cancelled) == [0, 1]


@BOTH
async def test_buffer_ends_everything_when_consumer_takes_few(operator: str) -> None:
    """`take(n)` behind the buffer ends the rest of what runs before it says that it has ended."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 3)
    with no_task_left():
        task = asyncio.create_task(stream.take(1).collect())
        await turn()
        await work.finish(0)
        assert await task == [0]
    assert sorted(work.cancelled) == [1, 2]
    assert source.asked == 3
    assert source.is_closed


@BOTH
async def test_buffer_ends_everything_when_consumer_breaks_off(operator: str) -> None:
    """When `aclose` after a `break` returns, every task has ended and the source is closed."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 2)
    with no_task_left():
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, work_once_running(work, 0))
        async for item in stream:
            assert item == 0
            break
        assert work.running == {1}
        await turn()
        await stream.aclose()
    assert sorted(work.cancelled) == [1, 2]
    assert source.is_closed


async def work_once_running(work: Work, number: int) -> None:
    """End one piece of work as soon as it runs."""
    await turn()
    await work.finish(number)


@BOTH
async def test_buffer_ends_everything_when_consumer_fails(operator: str) -> None:
    """An error of the consumer ends what runs, whatever is between the two."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 2)

    async def fail(number: int) -> None:
        raise LookupError(number)

    with no_task_left():
        task = asyncio.create_task(stream.map(lambda n: n).for_each(fail))
        await turn()
        await work.finish(0)
        with pytest.raises(LookupError):
            await task
    assert 1 in work.cancelled
    assert not work.running
    assert source.is_closed


@BOTH
async def test_buffer_ends_everything_when_consumer_is_cancelled(operator: str) -> None:
    """A consumer that is cancelled while it waits is done after everything that ran for it is done."""
    work = Work()
    source, stream = work_stream(work, range(9), operator, 3)
    with no_task_left():
        task = asyncio.create_task(stream.collect())
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(work.cancelled) == [0, 1, 2]
    assert source.is_closed


@BOTH
async def test_buffer_raises_only_when_item_fails(operator: str) -> None:
    """An error that has reached the consumer is not reported a second time elsewhere."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def fail() -> None:
        raise LookupError

    with no_task_left(), pytest.raises(LookupError):
        await buffer(Source([fail()]), operator, 1).collect()
    gc.collect()
    assert reported == []


@BOTH
async def test_buffer_is_cancelled_when_its_items_ignore_cancellation(operator: str) -> None:
    """An item that swallows its cancellation and returns does not swallow the consumer's."""

    async def stubborn() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1
        return 0

    with no_task_left():
        task = asyncio.create_task(buffer(Source([stubborn()]), operator, 1).collect())
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@BOTH
async def test_buffer_awaits_everything_when_cancelled_while_it_closes(operator: str) -> None:
    """A second cancellation, during the cleaning up after the first, leaves no task behind."""
    gate = asyncio.Event()
    ended: list[int] = []

    async def slow_to_end(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await gate.wait()
            finally:
                await asyncio.sleep(0)
                ended.append(number)

    with no_task_left():
        items = [slow_to_end(0), slow_to_end(1)]
        task = asyncio.create_task(buffer(Source(items), operator, 2).collect())
        await turn()
        task.cancel()
        await turn()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == [0, 1]


@BOTH
async def test_buffer_is_cancelled_when_an_item_was(operator: str) -> None:
    """An item that ends by cancellation ends the stream by cancellation; it is no result and no error."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    with no_task_left(), pytest.raises(asyncio.CancelledError):
        await buffer(Source([future]), operator, 1).collect()


@BOTH
async def test_buffer_cancels_source_when_it_is_waiting(operator: str) -> None:
    """A source that is waiting for its next item is cancelled and can clean up, in the task that asked it."""
    tasks: list[asyncio.Task[Any] | None] = []

    async def never() -> AsyncGenerator[Awaitable[int], None]:
        tasks.append(asyncio.current_task())
        try:
            yield asyncio.sleep(0, 1)
            await asyncio.Event().wait()
        finally:
            tasks.append(asyncio.current_task())

    stream: Stream[int] = getattr(Stream(never()), operator)(2)
    with no_task_left():
        assert await anext(stream) == 1
        await turn()
        await stream.aclose()
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


@BOTH
async def test_buffer_closes_source_in_its_task_when_there_is_no_room(operator: str) -> None:
    """A source that is not being asked is closed by the task that has asked it before."""
    tasks: list[asyncio.Task[Any] | None] = []

    async def endless() -> AsyncGenerator[Awaitable[int], None]:
        tasks.append(asyncio.current_task())
        try:
            while True:
                yield asyncio.sleep(0, 1)
        finally:
            tasks.append(asyncio.current_task())

    stream: Stream[int] = getattr(Stream(endless()), operator)(2)
    with no_task_left():
        assert await anext(stream) == 1
        await turn()
        await stream.aclose()
    assert tasks[0] is tasks[1]


@BOTH
@pytest.mark.parametrize("taken", [0, 1])
async def test_buffer_closes_coroutines_when_they_have_not_begun(operator: str, taken: int) -> None:
    """Coroutines taken but not begun, and those left in the list, are not reported as never awaited."""
    begun: list[int] = []

    async def note(number: int) -> int:
        begun.append(number)
        return number

    with warnings.catch_warnings(record=True) as caught, no_task_left():
        warnings.simplefilter("always")
        stream: Stream[int] = getattr(Stream.of([note(number) for number in range(6)]), operator)(2)
        for _ in range(taken):
            await anext(stream)
        await stream.aclose()
        del stream
        gc.collect()
    assert caught == []
    assert len(begun) < 6


@BOTH
async def test_buffer_closes_coroutines_when_cancelled_before_their_first_step(operator: str) -> None:
    """A coroutine whose task is cancelled before it has run does not run, and is not reported."""
    begun: list[int] = []

    async def note(number: int) -> None:
        begun.append(number)

    async def cancelling() -> AsyncGenerator[Awaitable[None], None]:
        yield note(0)
        consumer.cancel()
        yield note(1)

    with warnings.catch_warnings(record=True) as caught, no_task_left():
        warnings.simplefilter("always")
        stream: Stream[None] = getattr(Stream(cancelling()), operator)(3)
        consumer = asyncio.create_task(stream.collect())
        with pytest.raises(asyncio.CancelledError):
            await consumer
        del stream
        gc.collect()
    assert caught == []
    assert begun == [0]


@BOTH
async def test_buffer_takes_any_awaitable_when_it_is_no_coroutine(operator: str) -> None:
    """Futures are awaitables too, and one that comes twice counts twice."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(5)
    assert await buffer(Source([future, future]), operator, 2).collect() == [5, 5]


@BOTH
async def test_buffer_raises_when_item_is_no_awaitable(operator: str) -> None:
    """A forgotten `map` is a TypeError at the consumer."""
    with no_task_left(), pytest.raises(TypeError, match="int"):
        await buffer(Source([1]), operator, 1).collect()


@BOTH
async def test_buffer_reports_error_when_cleaning_up_fails(operator: str) -> None:
    """An error that has no consumer left goes to the event loop's exception handler, not nowhere."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    failure = LookupError("cleaning up")

    async def messy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise failure

    with no_task_left():
        task = asyncio.create_task(buffer(Source([messy()]), operator, 1).collect())
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert reported == [failure]
