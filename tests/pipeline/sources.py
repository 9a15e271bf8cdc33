"""What the tests of streams draw on: a source that keeps count, and a check that no task is left."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

T = TypeVar("T")


class Source(Generic[T]):
    """An asynchronous iterator that knows how often it was asked and closed."""

    def __init__(self, items: Iterable[T], error: Exception | None = None) -> None:
        self._rest = iter(items)
        self._error = error  # raised after the last item
        self.asked = 0
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        assert not self.is_closed
        self.asked += 1
        for item in self._rest:
            return item
        raise self._error or StopAsyncIteration

    async def aclose(self) -> None:
        await asyncio.sleep(0)  # closing may take a turn
        self.is_closed = True


@contextmanager
def no_task_left() -> Iterator[None]:
    """Inside, tasks may be started; at the end, without another turn, none of them is left."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before


async def turn() -> None:
    """Let every callback that is scheduled run, and those that they schedule."""
    for _ in range(10):
        await asyncio.sleep(0)
