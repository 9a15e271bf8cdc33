"""Runs the awaitables of a stream, a bounded number at once; the concurrent half of `pipeline.streams`.

Every task that is started here is awaited here, however the iteration ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.permits import Permits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterable

    from pipeline.streams import Stream

__all__ = ["run_buffered"]

T = TypeVar("T")


def run_buffered(source: Stream[Awaitable[T]], n: int, *, is_ordered: bool) -> AsyncGenerator[T, None]:
    """Yield the results of the items of `source`, `n` of them running or waiting to be yielded.

    Nothing is taken from the source before there is room for it, so nothing is held that does not run.

    Args:
        source: closed when the iteration ends.
        n: the most items taken from the source and not yet yielded.
        is_ordered: yield in the order of the items, else in the order in which they finish.

    Raises:
        ValueError: `n` is less than 1.
    """
    return _results(source, Permits(n), is_ordered)


async def _results(source: Stream[Awaitable[T]], room: Permits, is_ordered: bool) -> AsyncGenerator[T, None]:
    # What to look at next: every item's task once, and last or when it fails the feeder. `room` bounds it.
    ready: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue(room.total + 1)
    unseen: set[asyncio.Task[Any]] = set()  # every task whose end has not been looked at

    async def feed() -> None:
        async with aclosing(source):
            await room.acquire()
            async for item in source:
                task = _start(item)
                unseen.add(task)
                if is_ordered:
                    ready.put_nowait(task)
                else:
                    task.add_done_callback(ready.put_nowait)
                await room.acquire()

    feeder = asyncio.create_task(feed())
    unseen.add(feeder)
    feeder.add_done_callback(ready.put_nowait)
    try:
        while unseen:
            task = await ready.get()
            if not task.done():
                # Not `await task`: one that ignores cancellation would swallow ours.
                await asyncio.wait((task,))
            unseen.discard(task)
            result = task.result()
            if task is not feeder:
                room.release()
                yield result
    finally:
        await _cancel_and_wait(unseen)


def _start(item: Awaitable[T]) -> asyncio.Task[T]:
    """A task of its own for each item, also where one future comes twice."""
    # A coroutine is run as it is: cancelled before its first step, it counts as awaited.
    return asyncio.create_task(item if isinstance(item, Coroutine) else _await(item))


async def _await(item: Awaitable[T]) -> T:
    return await item


async def _cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and see each of them end, also when the caller is cancelled meanwhile.

    What they raise has no caller left to go to: the event loop's exception handler is told.
    """
    loop = asyncio.get_running_loop()
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            loop.call_exception_handler(
                {"message": "a stream's task failed while the stream was closed", "exception": outcome}
            )
