"""Counted rights to occupy capacity; knows nothing of what the capacity is.

One event loop, no lock. A permit that comes back goes to whoever has waited longest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from pipeline.errors import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Permits"]


class Permits:
    """A fixed number of permits, taken one by one and given back one by one.

    Created by whoever limits something (a stage, a listener); there is nothing to close. Any task
    of the event loop may acquire, any callback may release. `async with permits:` holds one.

    While somebody waits no permit is free, so a newcomer cannot overtake.
    """

    __slots__ = ("_free", "_waiters", "on_release", "total")

    def __init__(self, total: int) -> None:
        """Make `total` permits, all of them free.

        Raises:
            ValueError: `total` is less than 1.
        """
        if total < 1:
            raise ValueError(f"permits: total must be at least 1, not {total}")
        # How many permits there are, free and taken; never changes.
        self.total = total
        # Called after a release (also that of a cancelled waiter) that left a permit free; must not raise.
        self.on_release: Callable[[], None] | None = None
        # How many permits nobody holds.
        self._free = total
        # Who waits, longest first; ordered, and a cancelled one leaves the middle in constant time.
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def available(self) -> int:
        """How many permits can be taken now."""
        return self._free

    @property
    def in_use(self) -> int:
        """How many permits are taken, those on their way to a waiter included."""
        return self.total - self._free

    def try_acquire(self) -> bool:
        """Take a permit if one is free; say whether it was."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def acquire_nowait(self) -> None:
        """Take a permit without waiting.

        Raises:
            WouldBlock: no permit is free.
        """
        if not self.try_acquire():
            raise WouldBlock

    async def acquire(self) -> None:
        """Take a permit, after everyone who already waits; does not yield when one is free."""
        if self.try_acquire():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():
                self.release()  # it was handed over in the same turn: the next one gets it
            raise

    def release(self) -> None:
        """Give a permit back, to the longest waiter if there is one.

        Raises:
            ValueError: no permit is taken.
        """
        if self._free == self.total:
            raise ValueError("permits: released more often than acquired")
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():  # done here: cancelled, its task has not run yet
                waiter.set_result(None)
                return
        self._free += 1
        if self.on_release is not None:
            self.on_release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
