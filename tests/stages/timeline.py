"""Virtual time: what waits for a moment happens when a test advances to it, in the order of the moments."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timeline"]

# Turns of the loop after each moment: more than any chain of awaits in the code under test is long.
_TURNS = 20


class _Call(asyncio.Handle):
    """What the event loop would give for a call that waits; its error is the test's."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(call, (), asyncio.get_running_loop())
        self.run = call


class Timeline:
    """A clock, `sleep` and `call_later` that only a test moves; made in a running loop."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []  # every wait of `sleep`, in seconds
        self._waiting: list[tuple[float, _Call]] = []  # when and what, in the order of the asking

    @property
    def waiting(self) -> int:
        """Sleepers and calls that still wait for their moment."""
        self._waiting = [one for one in self._waiting if not one[1].cancelled()]
        return len(self._waiting)

    def clock(self) -> float:
        """Seconds, as far as the test has come."""
        return self.now_s

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.Handle:
        """Have it called when so many seconds have passed, unless it is cancelled."""
        waiting = _Call(call)
        self._waiting.append((self.now_s + seconds, waiting))
        return waiting

    async def sleep(self, seconds: float) -> None:
        """Wait for a moment; cancelling leaves nothing behind."""
        self.slept.append(seconds)
        waiter = asyncio.get_running_loop().create_future()
        handle = self.call_later(seconds, lambda: None if waiter.done() else waiter.set_result(None))
        try:
            await waiter
        finally:
            handle.cancel()

    async def advance(self, seconds: float) -> None:
        """Let so much time pass; what is due at the very end of it happens too."""
        await self.advance_to(self.now_s + seconds)

    async def advance_to(self, moment_s: float) -> None:
        """Let time pass up to a moment on the clock."""
        await self.settle()
        while self.waiting and (due_s := min(due_s for due_s, _ in self._waiting)) <= moment_s:
            due = [one for one in self._waiting if one[0] == due_s]
            self._waiting = [one for one in self._waiting if one[0] != due_s]
            self.now_s = max(self.now_s, due_s)
            for _, call in due:
                if not call.cancelled():  # by one before it
                    call.run()
            await self.settle()
        self.now_s = max(self.now_s, moment_s)

    async def settle(self) -> None:
        """Let every task run as far as it gets without time passing."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
