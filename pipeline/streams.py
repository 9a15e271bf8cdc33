"""Operators over asynchronous iterators; knows nothing of what flows.

Lazy: nothing starts before the first item is asked for. Each operator asks its source for an item
only when it is asked for one, except the two buffered ones (`pipeline.buffering`), which are at
most n items ahead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.buffering import run_buffered

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable

__all__ = ["Stream"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


class Stream(Generic[T_co]):
    """The items of an asynchronous iterable, once, with operators that can be chained.

    Created and iterated by one task. `collect` and `for_each` close the stream however they end.
    Who writes `async for` and may leave it early, by `break` or by an exception, closes the stream
    with `aclose`, best by `async with contextlib.aclosing(stream)`; closing ends and awaits every
    task that runs for the stream, and closes the source. Operators use the stream up: iterate the
    last one of a chain only.
    """

    __slots__ = ("_items", "_source")

    def __init__(self, source: AsyncIterable[T_co]) -> None:
        """Take over `source`: where it has an `aclose`, that is called, perhaps more than once."""
        # Where the items come from.
        self._items: AsyncIterator[T_co] = aiter(source)
        # What `_items` draws on. An operator closes it when it ends; one that has never run cannot.
        self._source: object = source

    @staticmethod
    def of(items: Iterable[T]) -> Stream[T]:
        """The items of an ordinary iterable.

        Coroutines left over in a collection are closed with the stream, so that none is reported
        as never awaited; an iterable without a length is left where it stands.
        """
        return Stream(_Iterated(items))

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    def __anext__(self) -> Awaitable[T_co]:
        return self._items.__anext__()

    async def aclose(self) -> None:
        """Stop: end what runs for the stream, then close its source; may be called twice."""
        await _close(self._items)
        await _close(self._source)

    def map(self, f: Callable[[T_co], U]) -> Stream[U]:
        """`f` of each item."""
        return self._through(_map(self, f))

    def filter(self, predicate: Callable[[T_co], object]) -> Stream[T_co]:
        """The items for which `predicate` is true."""
        return self._through(_filter(self, predicate))

    def then(self, f: Callable[[T_co], Awaitable[U]]) -> Stream[U]:
        """What `f` returns for each item, one at a time: the next item waits for it."""
        return self._through(_then(self, f))

    def take(self, n: int) -> Stream[T_co]:
        """The first `n` items; the source is asked for no more.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"take: n must not be negative, not {n}")
        return self._through(_take(self, n))

    def throttle(
        self,
        interval_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> Stream[T_co]:
        """At most one item in each `interval_s` seconds; the first one at once.

        It waits before it asks for the next item, so a wait that is cancelled loses none.

        Raises:
            ValueError: `interval_s` is not positive.
        """
        if not interval_s > 0:
            raise ValueError(f"throttle: interval_s must be positive, not {interval_s}")
        return self._through(_throttle(self, interval_s, clock, sleep))

    def buffered(self: Stream[Awaitable[U]], n: int) -> Stream[U]:
        """The results of items that are awaitables: up to `n` run at once, results in the items' order.

        An error comes when it is its item's turn; the items that still run are cancelled and awaited.

        Raises:
            ValueError: `n` is less than 1.
        """
        return self._through(run_buffered(self, n, is_ordered=True))

    def buffer_unordered(self: Stream[Awaitable[U]], n: int) -> Stream[U]:
        """Like `buffered`, but results and errors come in the order in which they are ready.

        Raises:
            ValueError: `n` is less than 1.
        """
        return self._through(run_buffered(self, n, is_ordered=False))

    async def collect(self) -> list[T_co]:
        """All items, in a list; the stream is closed."""
        async with aclosing(self):
            return [item async for item in self]

    async def for_each(self, f: Callable[[T_co], Awaitable[object]]) -> None:
        """Await `f` of each item, one at a time; the stream is closed.

        `f` is asynchronous, as for `then`; a plain function is better called in an `async for`.
        """
        async with aclosing(self):
            async for item in self:
                await f(item)

    def _through(self, operator: AsyncGenerator[U, None]) -> Stream[U]:
        """The stream of what `operator` yields, which draws on this one."""
        stream = Stream(operator)
        stream._source = self
        return stream


class _Iterated(Generic[T]):
    """The asynchronous side of an ordinary iterable; created and closed by its stream."""

    __slots__ = ("_items", "_rest")

    def __init__(self, items: Iterable[T]) -> None:
        # What was handed in: it decides whether there is an end to the rest.
        self._items = items
        # What has not been asked for yet.
        self._rest = iter(items)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        for item in self._rest:
            return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        rest, self._rest = self._rest, iter(())
        if isinstance(self._items, Collection):
            for item in rest:
                if isinstance(item, Coroutine):
                    item.close()


async def _close(source: object) -> None:
    """Close what can be closed: a plain iterator has no `aclose`."""
    aclose: Callable[[], Awaitable[Any]] | None = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


async def _map(source: Stream[T], f: Callable[[T], U]) -> AsyncGenerator[U, None]:
    async with aclosing(source):
        async for item in source:
            yield f(item)


async def _filter(source: Stream[T], predicate: Callable[[T], object]) -> AsyncGenerator[T, None]:
    async with aclosing(source):
        async for item in source:
            if predicate(item):
                yield item


async def _then(source: Stream[T], f: Callable[[T], Awaitable[U]]) -> AsyncGenerator[U, None]:
    async with aclosing(source):
        async for item in source:
            yield await f(item)


async def _take(source: Stream[T], n: int) -> AsyncGenerator[T, None]:
    async with aclosing(source):
        while n > 0:
            n -= 1
            try:
                item = await anext(source)
            except StopAsyncIteration:
                return
            yield item


async def _throttle(
    source: Stream[T],
    interval_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> AsyncGenerator[T, None]:
    async with aclosing(source):
        async for item in source:
            due = clock() + interval_s
            yield item
            while (wait_s := due - clock()) > 0:  # again: a timer may fire a little early
                await sleep(wait_s)
