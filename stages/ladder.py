"""What happens to a writer that stands still: the ladder from stall to eviction.

 1. It takes nothing: its outbox fills and stalls its senders. A watch begins, with one timer.
 2. No progress for `write_timeout_s`: one failure. The wait (never the write) is repeated with full
    jitter, by one task for that outbox, as long as the retry budget allows.
 3. `fail_max` failures in a row, or no budget: the breaker opens. What is parked is refused, and so is
    what comes.
 4. After `reset_timeout_s` one probe looks whether it moves, and risks no copy. If so the breaker closes.
 5. Stuck for `evict_after_s` in all: its owner is told to close it.

Progress is `min_progress_bytes` that left the machine, or an outbox that has emptied. A writer that moves
again at any step goes back to the ground. Nothing here runs for a writer that is not paused.
"""

from __future__ import annotations

import asyncio
import random as chance
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from retry.breaker import Breaker
from retry.policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from retry.budget import RetryBudget

__all__ = ["Climber", "Ladder", "LadderSettings", "Watch"]


@dataclass(frozen=True, slots=True)
class LadderSettings:
    """The heights of the steps, the same for all outboxes of a worker."""

    write_timeout_s: float  # without progress: one failure
    min_progress_bytes: int  # less than this that left the machine is no progress
    evict_after_s: float  # without progress in all
    fail_max: int  # failures that open the breaker
    reset_timeout_s: float  # from opening to the probe
    base_delay_s: float  # jitter of the first retry of the wait, at most
    max_delay_s: float  # jitter of any retry of the wait, at most


class Climber(Protocol):
    """An outbox, as the ladder sees it."""

    name: str

    @property
    def left_bytes(self) -> int:
        """Bytes that have left the machine so far; what the transport or the kernel holds has not."""

    @property
    def has_emptied(self) -> bool:
        """The writer takes bytes and nothing is pending."""

    def refuse_all(self) -> None:
        """The breaker has opened: refuse what is parked and what comes; senders run on."""

    def accept_again(self) -> None:
        """The breaker has closed."""

    def evict(self) -> None:
        """It has been stuck for too long: end it."""


class Ladder:
    """Made by a worker, shared by its outboxes; `aclose` ends all watches.

    Args:
        settings: see `LadderSettings`.
        budget: what retries are taken from, over all outboxes.
        call_later: schedules a call in the event loop; returns something with `cancel`.
        on_change: told the outbox' name and its breaker's new state.
        clock, sleep, random: monotonic seconds, an awaitable wait, a number in [0, 1).
    """

    def __init__(
        self,
        settings: LadderSettings,
        budget: RetryBudget,
        *,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        on_change: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self.settings = settings
        self.budget = budget
        self.call_later = call_later
        self.clock = clock
        self.sleep = sleep
        self.random = random
        self.evictions = 0  # outboxes that were stuck for too long, ever
        self.retries = 0  # waits that were repeated, ever
        self.policy = RetryPolicy(
            attempts=settings.fail_max,
            base_delay_s=settings.base_delay_s,
            max_delay_s=settings.max_delay_s,
        )
        self._on_change = on_change
        self._flushes = 0  # of all outboxes, as last noted in the budget
        self._breakers: set[Breaker] = set()  # of outboxes that are not closed
        self._tasks: set[asyncio.Task[None]] = set()

    def note_flushes(self, total: int) -> None:
        """Tell the budget, now and then, how often writers were called so far: those are its attempts."""
        self.budget.note_attempt(total - self._flushes)
        self._flushes = total

    def breakers(self) -> Counter[str]:
        """How many outboxes have a breaker, by its state; one that never had trouble has none."""
        return Counter(breaker.state for breaker in self._breakers)

    def make_breaker(self, climber: Climber) -> Breaker:
        """The breaker of an outbox, at its first trouble."""
        breaker = Breaker(
            fail_max=self.settings.fail_max,
            reset_timeout_s=self.settings.reset_timeout_s,
            clock=self.clock,
            on_change=lambda _, state: self._on_change(climber.name, state),
        )
        self._breakers.add(breaker)
        return breaker

    def drop_breaker(self, breaker: Breaker) -> None:
        """Its outbox has closed."""
        self._breakers.discard(breaker)

    def run(self, climb: Awaitable[None]) -> asyncio.Task[None]:
        """Have a climb run by a task that is awaited at the end."""
        task = asyncio.ensure_future(climb)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """End every climb and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class NoProgressError(Exception):
    """The writer stood still for a whole wait."""


class _StuckTooLongError(Exception):
    """The writer stood still for `evict_after_s`."""


class Watch:
    """Watches one outbox from its first pause on; made by it, and closed with it."""

    __slots__ = ("_breaker", "_climber", "_ladder", "_mark", "_moved_at", "_task", "_timer")

    def __init__(self, climber: Climber, ladder: Ladder) -> None:
        self._climber = climber
        self._ladder = ladder
        self._breaker: Breaker | None = None  # from the first trouble on
        self._mark = 0  # bytes that had left at the last progress
        self._moved_at = 0.0  # when that was
        self._timer: asyncio.TimerHandle | None = None  # ends the first wait
        self._task: asyncio.Task[None] | None = None  # climbs, from the first failure on

    def begin(self) -> None:
        """The writer has paused: look after `write_timeout_s`, unless it is watched already."""
        if self._timer is None and self._task is None:
            self._note_progress()
            self._set_timer()

    def close(self) -> None:
        """The outbox has closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self._breaker is not None:
            self._ladder.drop_breaker(self._breaker)

    def _set_timer(self) -> None:
        self._timer = self._ladder.call_later(self._ladder.settings.write_timeout_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._has_moved():
            self._task = self._ladder.run(self._climb())
        elif not self._climber.has_emptied:
            self._set_timer()

    def _note_progress(self) -> None:
        self._mark = self._climber.left_bytes
        self._moved_at = self._ladder.clock()

    def _has_moved(self) -> bool:
        """Whether there was progress since it was last noted; notes it."""
        moved = self._climber.left_bytes - self._mark
        if moved < self._ladder.settings.min_progress_bytes and not self._climber.has_emptied:
            return False
        self._note_progress()
        return True

    async def _climb(self) -> None:
        """From the first failure until the writer moves or is evicted."""
        breaker = self._breaker = self._breaker or self._ladder.make_breaker(self._climber)
        try:
            try:
                await self._wait_with_retries(breaker)
            except NoProgressError:
                breaker.trip()  # already open when the failures did it, not when the budget was spent
                self._climber.refuse_all()
                await self._probe_until_it_moves(breaker)
                self._climber.accept_again()
        except _StuckTooLongError:
            self._ladder.evictions += 1
            self._climber.evict()
            return
        finally:
            self._task = None
        if not self._climber.has_emptied:
            self._set_timer()

    async def _wait_with_retries(self, breaker: Breaker) -> None:
        is_first = True

        async def wait() -> None:
            nonlocal is_first
            if is_first:  # the timer has waited already
                is_first = False
            else:
                await self._wait(self._ladder.settings.write_timeout_s)
                if self._has_moved():
                    breaker.record_success()
                    return
            breaker.record_failure()
            raise NoProgressError

        await self._ladder.policy.run(
            wait,
            retry_on=(NoProgressError,),
            budget=self._ladder.budget,
            sleep=self._wait,
            random=self._ladder.random,
            clock=self._ladder.clock,
            on_retry=self._on_retry,
        )

    async def _probe_until_it_moves(self, breaker: Breaker) -> None:
        """One probe after each `reset_timeout_s`: it only looks, for as long as one write may take."""
        while True:
            await self._wait(breaker.retry_in_s)
            if not breaker.try_probe():
                continue
            has_moved = self._has_moved()
            try:
                if not has_moved:
                    await self._wait(self._ladder.settings.write_timeout_s)
                    has_moved = self._has_moved()
            except asyncio.CancelledError:
                breaker.abandon_probe()
                raise
            if has_moved:
                breaker.record_success()
                return
            breaker.record_failure()

    async def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until it would have to be evicted.

        Raises:
            _StuckTooLongError: there was no progress for `evict_after_s`.
        """
        ladder = self._ladder
        left_s = self._moved_at + ladder.settings.evict_after_s - ladder.clock()
        await ladder.sleep(max(min(seconds, left_s), 0.0))
        if seconds >= left_s and not self._has_moved():
            raise _StuckTooLongError

    def _on_retry(self, _number: int, _error: BaseException, _delay_s: float) -> None:
        self._ladder.retries += 1
