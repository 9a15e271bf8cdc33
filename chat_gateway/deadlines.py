"""Timeouts of equal length for many things, with one timer for all of them.

Since all are equally long they fall due in the order they were begun, so a dict in that order is
enough, and starting or ending one costs no timer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadlines"]

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Made and closed by a worker, used in its loop.

    Args:
        timeout_s: how long each item has.
        on_due: called, in the loop, with an item whose time is over; the item has been removed.
            Must not raise.
        loop: whose clock and timer are used.
    """

    def __init__(
        self, timeout_s: float, on_due: Callable[[T], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._timeout_s = timeout_s
        self._on_due = on_due
        self._loop = loop
        self._due_at: dict[T, float] = {}  # by time, since all begin with the same length
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: T) -> None:
        """Begin the item's time, anew if it had begun."""
        self._due_at.pop(item, None)
        due_at = self._due_at[item] = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(due_at, self._on_timer)

    def stop(self, item: T) -> None:
        """End the item's time, if it has any."""
        self._due_at.pop(item, None)

    def close(self) -> None:
        """Forget all items."""
        self._due_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self._due_at)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = []
        for item, due_at in self._due_at.items():
            if due_at > now:
                self._timer = self._loop.call_at(due_at, self._on_timer)
                break
            due.append(item)
        for item in due:
            if self._due_at.get(item, math.inf) <= now:  # neither stopped nor begun anew meanwhile
                del self._due_at[item]
                self._on_due(item)
