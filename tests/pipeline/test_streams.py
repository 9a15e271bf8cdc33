"""The sequential operators and the life of a stream; test_buffering.py has the concurrent ones."""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.streams import Stream
from tests.pipeline.sources import Source, no_task_left, turn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


class VirtualTime:
    """A clock and a sleep that moves it; every sleep is written down."""

    def __init__(self, early_s: float = 0.0) -> None:
        self.now = 50.0
        self.slept: list[float] = []
        self._early_s = early_s  # how much too early the first timer fires

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds - self._early_s
        self._early_s = 0.0


async def double(number: int) -> int:
    """A step that takes a turn."""
    await asyncio.sleep(0)
    return number * 2


async def test_stream_yields_items_when_iterated() -> None:
    """A stream over an asynchronous iterable yields its items, once."""
    stream = Stream(Source("abc"))
    assert [item async for item in stream] == ["a", "b", "c"]
    assert [item async for item in stream] == []


async def test_stream_of_yields_items_when_source_is_ordinary() -> None:
    """`of` makes a stream of any iterable, also of one without a length."""
    assert await Stream.of([1, 2]).collect() == [1, 2]
    assert await Stream.of(number for number in (1, 2)).collect() == [1, 2]


async def test_stream_operators_change_items_when_chained() -> None:
    """`map`, `filter`, `then` and `take` do to each item what their names say."""
    stream = Stream.of(range(100)).map(lambda n: n + 1).filter(lambda n: n % 3 == 0).then(double).take(3)
    assert await stream.collect() == [6, 12, 18]


@given(items=st.lists(st.integers(0, 20), max_size=20), n=st.integers(0, 25))
def test_stream_equals_list_when_operators_are_chained(items: list[int], n: int) -> None:
    """A chain yields what the same chain over a list yields, and asks for no more than it needs."""

    async def scenario() -> tuple[list[int], int, bool]:
        source = Source(items)
        stream = Stream(source).map(lambda x: x * 3).filter(lambda x: x % 2).then(double).take(n)
        return await stream.collect(), source.asked, source.is_closed

    expected = [item * 6 for item in items if item % 2]
    result, asked, is_closed = asyncio.run(scenario())
    assert result == expected[:n]
    assert is_closed
    # Up to the n-th that passes, or all and the end.
    odd_positions = [position for position, item in enumerate(items, 1) if item % 2]
    assert asked == (0 if n == 0 else odd_positions[n - 1] if n <= len(expected) else len(items) + 1)


@pytest.mark.parametrize("operator", ["buffered", "buffer_unordered"])
async def test_stream_asks_nothing_when_not_iterated(operator: str) -> None:
    """Building a chain starts nothing."""
    source = Source([1])
    with no_task_left():
        concurrent: Stream[int] = getattr(Stream(source).filter(bool).map(double), operator)(2)
        stream = concurrent.then(double).throttle(1).take(1)
        await turn()
        assert source.asked == 0
        await stream.aclose()


async def test_stream_then_runs_one_at_a_time_when_items_wait() -> None:
    """`then` asks for the next item only after the function has returned and its result was taken."""
    source = Source([1, 2, 3])
    gate = asyncio.Event()

    async def wait(number: int) -> int:
        await gate.wait()
        return number

    task = asyncio.create_task(Stream(source).then(wait).collect())
    await turn()
    assert source.asked == 1
    gate.set()
    assert await task == [1, 2, 3]


async def test_stream_take_leaves_the_rest_when_it_has_enough() -> None:
    """`take(n)` asks the source n times, and closes it when asked once more."""
    source = Source([1, 2, 3])
    stream = Stream(source).take(2)
    assert [await anext(stream), await anext(stream)] == [1, 2]
    assert not source.is_closed
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert source.asked == 2
    assert source.is_closed


def test_stream_refuses_when_numbers_make_no_sense() -> None:
    """A wrong number is reported where it is written, not when the stream is iterated."""
    with pytest.raises(ValueError, match="take"):
        Stream.of([1]).take(-1)
    for interval_s in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="throttle"):
            Stream.of([1]).throttle(interval_s)


async def test_stream_throttle_waits_when_consumer_is_fast() -> None:
    """The first item comes at once, each later one an interval after the one before; none after the last."""
    time = VirtualTime()
    times = [time.now async for _ in Stream.of("abc").throttle(2, clock=time.clock, sleep=time.sleep)]
    assert times == [50, 52, 54]


async def test_stream_throttle_waits_not_when_consumer_is_slow() -> None:
    """Time that the consumer spent counts, and is not made up for by a burst later."""
    time = VirtualTime()
    stream = Stream.of("abcd").throttle(2, clock=time.clock, sleep=time.sleep)
    times = []
    for pause_s in (1.5, 10, 0, 0):
        await anext(stream)
        times.append(time.now)
        time.now += pause_s
    await stream.aclose()
    assert times == [50, 52, 62, 64]


async def test_stream_throttle_keeps_interval_when_timer_fires_early() -> None:
    """A sleep that ends before its time is slept again for the rest."""
    time = VirtualTime(early_s=0.25)
    stream = Stream.of("ab").throttle(2, clock=time.clock, sleep=time.sleep).take(2)
    assert [time.now async for _ in stream] == [50, 52]
    assert time.slept == [2, 0.25]


async def test_stream_throttle_loses_no_item_when_wait_is_cancelled() -> None:
    """What is cancelled while it waits has not taken the next item from the source."""
    source = Source("ab")
    stream = Stream(source).throttle(1, clock=lambda: 0.0, sleep=lambda _: asyncio.Event().wait())
    with no_task_left():
        task = asyncio.create_task(stream.collect())
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert source.asked == 1
    assert source.is_closed


async def test_stream_for_each_awaits_each_when_items_come() -> None:
    """`for_each` runs one call at a time, in order, and closes the stream."""
    source = Source([1, 2])
    events: list[str] = []

    async def note(number: int) -> None:
        events.append(f"begin {number}")
        await asyncio.sleep(0)
        events.append(f"end {number}")

    await Stream(source).for_each(note)
    assert events == ["begin 1", "end 1", "begin 2", "end 2"]
    assert source.is_closed


async def test_stream_is_closed_when_for_each_fails() -> None:
    """An error of the consumer's function reaches the caller after the source was closed."""
    source = Source([1, 2])

    async def fail(number: int) -> None:
        raise LookupError(number)

    with pytest.raises(LookupError):
        await Stream(source).map(lambda n: n).for_each(fail)
    assert source.is_closed
    assert source.asked == 1


@pytest.mark.parametrize("operator", ["map", "filter"])
async def test_stream_closes_source_when_function_raises(operator: str) -> None:
    """An error in an operator's function reaches the consumer, and the source is closed before."""
    source = Source([0])
    stream = getattr(Stream(source), operator)(lambda n: 1 / n)
    with pytest.raises(ZeroDivisionError):
        await anext(stream)
    assert source.is_closed


async def test_stream_passes_error_on_when_source_fails() -> None:
    """Items before the error come first, then the error, then the stream has ended."""
    source = Source([1], LookupError("gone"))
    stream = Stream(source).map(str)
    assert await anext(stream) == "1"
    with pytest.raises(LookupError, match="gone"):
        await anext(stream)
    assert [item async for item in stream] == []
    assert source.is_closed


async def test_stream_closes_source_when_consumer_breaks_off() -> None:
    """`aclose` after a `break` closes the source through all operators; a second one is harmless."""
    source = Source(range(9))
    async with aclosing(Stream(source).map(str).filter(bool).then(to_str)) as stream:
        async for item in stream:
            assert item == "0"
            break
        assert not source.is_closed
    assert source.is_closed
    await stream.aclose()


async def to_str(item: str) -> str:
    """A step that changes nothing."""
    return item


async def test_stream_closes_source_when_it_was_never_iterated() -> None:
    """A chain that is closed before it has begun closes its source all the same."""
    source = Source(range(9))
    stream = Stream(source).map(str).take(3)
    await stream.aclose()
    assert source.is_closed
    assert source.asked == 0
    assert [item async for item in stream] == []


async def test_stream_closes_both_when_source_makes_its_iterator() -> None:
    """The iterator that a source makes is closed, and the source too."""
    closed: list[str] = []

    class Numbers:
        async def __aiter__(self) -> AsyncGenerator[int, None]:
            try:
                yield 1
                yield 2
            finally:
                closed.append("iterator")

        async def aclose(self) -> None:
            closed.append("source")

    stream = Stream(Numbers())
    assert await anext(stream) == 1
    await stream.aclose()
    assert closed == ["iterator", "source"]


async def test_stream_closes_nothing_when_source_cannot_be_closed() -> None:
    """A plain iterator without `aclose` is a source like any other."""

    class Endless:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            return 7

    assert await Stream(Endless()).take(2).collect() == [7, 7]


async def test_stream_closes_source_when_consumer_is_cancelled() -> None:
    """Cancellation reaches the function that runs, is not swallowed, and the source is closed."""
    source = Source([1])
    is_cancelled = False

    async def wait(_: int) -> None:
        nonlocal is_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    task = asyncio.create_task(Stream(source).then(wait).collect())
    await turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_cancelled
    assert source.is_closed


@pytest.mark.parametrize("taken", [0, 1])
async def test_stream_of_closes_coroutines_when_they_are_left_over(taken: int) -> None:
    """Coroutines of a list that nobody came for are closed: none is reported as never awaited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = Stream.of([double(1), double(2), double(3)]).map(lambda item: item)
        for _ in range(taken):
            assert await (await anext(stream)) == 2
        await stream.aclose()
        del stream
        gc.collect()
    assert caught == []


async def test_stream_of_leaves_the_rest_when_items_have_no_end() -> None:
    """Closing does not run through an iterable that may be endless, or that belongs to somebody else."""
    rest = iter(range(10))
    stream = Stream.of(rest)
    assert await anext(stream) == 0
    await stream.aclose()
    assert [item async for item in stream] == []
    assert next(rest) == 1


async def test_stream_of_leaves_items_alone_when_they_are_no_coroutines() -> None:
    """Closing a stream over a collection of plain values does nothing to them."""
    values = [1, 2, 3]
    stream = Stream.of(values)
    await stream.aclose()
    assert values == [1, 2, 3]
    assert [item async for item in stream] == []
