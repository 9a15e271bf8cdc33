"""What the tests of channels work with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pipeline.channel import ReceiveEnd, SendEnd, open_channel
from tests.pipeline.sources import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def nothing() -> None:
    """A callback that does nothing."""


def opened(capacity: int, clock: Callable[[], float] = lambda: 0.0) -> tuple[SendEnd[Any], ReceiveEnd[Any]]:
    """A new channel for whatever items."""
    return open_channel(capacity, clock=clock)


def items_in(channel: ReceiveEnd[Any]) -> list[Any]:
    """All that can be received now, one by one."""
    taken = []
    while channel.has_items:
        taken.append(channel.receive_nowait())
    return taken


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has come as far as it can."""
    task = asyncio.create_task(coroutine)
    await turn()
    return task
