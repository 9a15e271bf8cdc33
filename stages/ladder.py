"""What happens to a writer that stands still: the ladder from stall to eviction.

 1. It takes nothing: its outbox fills and stalls its senders. A watch begins, with one timer.
 2. No progress for `write_timeout_s`: one failure. The wait (never the write) is repeated with full
    jitter, by one task for that outbox, as long as the retry budget allows.
 3. `fail_max` failures in a row, or no budget: the breaker opens. What is parked is refused, and so is
    what comes.
 4. After `reset_timeout_s` one probe looks whether it moves, and risks no copy. If so the breaker closes.
 5. Stuck for `evict_after_s` in all: its owner is told to close it.

Progress is `min_progress_bytes` that left the machine within `write_timeout_s`, or an outbox that has
emptied; it is looked for at the end of each wait. A writer that moves again at any step goes back to the
ground. For a writer that is not paused nothing runs, but for a timer that has not noticed yet.
"""

from __future__ import annotations

import asyncio
import random as chance
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from retry.breaker import Breaker
from retry.policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from retry.budget import RetryBudget

__all__ = ["Climber", "Ladder", "LadderSettings", "Watch"]

_GRAIN_S = 0.001
"""By how much a timer may fire early: the event loop counts in milliseconds, and a rest below that would be
waited for again and again."""


@dataclass(frozen=True, slots=True)
class LadderSettings:
    """The heights of the steps, the same for all outboxes of a worker."""

    write_timeout_s: float  # without progress: one failure
    min_progress_bytes: int  # fewer that left the machine within `write_timeout_s` are no progress
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
        call_later: Callable[[float, Callable[[], None]], asyncio.Handle],
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
        self.watches: set[Watch] = set()  # of outboxes that have paused and are not closed
        self.policy = RetryPolicy(
            attempts=settings.fail_max,
            base_delay_s=settings.base_delay_s,
            max_delay_s=settings.max_delay_s,
        )
        self._on_change = on_change
        self._flushes = 0  # of all outboxes, as last noted in the budget
        self._tasks: set[asyncio.Task[None]] = set()
        self._step = asyncio.Lock()  # held through a turn of the loop by whoever takes a step

    def note_flushes(self, total: int) -> None:
        """Tell the budget, now and then, how often writers were called so far: those are its attempts."""
        self.budget.note_attempt(total - self._flushes)
        self._flushes = total

    def breakers(self) -> Counter[str]:
        """How many outboxes have a breaker, by its state; one that never had trouble has none."""
        return Counter(watch.breaker.state for watch in self.watches if watch.breaker is not None)

    def make_breaker(self, climber: Climber) -> Breaker:
        """The breaker of an outbox, at its first trouble."""
        return Breaker(
            fail_max=self.settings.fail_max,
            reset_timeout_s=self.settings.reset_timeout_s,
            clock=self.clock,
            on_change=lambda _, state: self._on_change(climber.name, state),
        )

    def run(self, climb: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have a climb run by a task that is awaited at the end."""
        task = asyncio.create_task(climb)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait_for_turn(self) -> None:
        """Wait until a step may be taken: one in each turn of the loop.

        Many writers that stood still at the same moment fail, are refused and are evicted at the same moment,
        too. Everybody else's lines go between their steps.
        """
        async with self._step:
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """End every watch and wait for their climbs."""
        for watch in list(self.watches):
            watch.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _NoProgressError(Exception):
    """The writer stood still for a whole wait."""


class _StuckTooLongError(Exception):
    """The writer stood still for `evict_after_s`."""


class Watch:
    """Watches one outbox from its first pause on; made by it, and closed with it."""

    __slots__ = (
        "_climber",
        "_has_emptied",
        "_is_closed",
        "_is_moving",
        "_ladder",
        "_mark",
        "_moved_at",
        "_task",
        "_timer",
        "breaker",
    )

    def __init__(self, climber: Climber, ladder: Ladder) -> None:
        self.breaker: Breaker | None = None  # from the first trouble on
        self._climber = climber
        self._ladder = ladder
        self._mark = 0  # bytes that had left at the last look
        self._has_emptied = False  # at some time since the last look
        self._is_moving = False  # there was progress at the last look
        self._moved_at = 0.0  # when it was seen to move last
        self._timer: asyncio.Handle | None = None  # ends the first wait
        self._task: asyncio.Task[None] | None = None  # climbs, from the first failure on
        self._is_closed = False
        ladder.watches.add(self)

    def begin(self) -> None:
        """The writer has paused: look after `write_timeout_s`, unless it is watched already."""
        if self._timer is None and self._task is None and not self._is_closed:
            self._mark = self._climber.left_bytes
            self._has_emptied = False
            self._moved_at = self._ladder.clock()
            self._set_timer()

    def note_emptied(self) -> None:
        """The outbox has emptied; it may be full again when it is looked at."""
        self._has_emptied = True

    def close(self) -> None:
        """The outbox has closed. May be called twice."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
        self._ladder.watches.discard(self)

    def _set_timer(self) -> None:
        self._timer = self._ladder.call_later(self._ladder.settings.write_timeout_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._look()
        if not self._is_moving:
            self._task = self._ladder.run(self._climb())
        elif not self._climber.has_emptied:
            self._set_timer()

    def _look(self) -> None:
        """See whether it has moved since the last look. What drips has not, however long it does so."""
        left_bytes = self._climber.left_bytes
        has_emptied = self._has_emptied or self._climber.has_emptied
        self._is_moving = has_emptied or left_bytes - self._mark >= self._ladder.settings.min_progress_bytes
        self._mark = left_bytes
        self._has_emptied = False
        if self._is_moving:
            self._moved_at = self._ladder.clock()

    async def _climb(self) -> None:
        """From the first failure until the writer moves or is evicted."""
        is_stuck = False
        try:
            await self._climb_until_it_moves()
        except _StuckTooLongError:
            is_stuck = True
            await self._ladder.wait_for_turn()
        finally:
            self._task = None
        if is_stuck:
            self._ladder.evictions += 1
            self._climber.evict()
        elif not self._climber.has_emptied:
            self._set_timer()

    async def _climb_until_it_moves(self) -> None:
        if self.breaker is None:
            self.breaker = self._ladder.make_breaker(self._climber)
        if await self._moves_when_retried(self.breaker):
            return
        self.breaker.trip()  # already open when the failures did it, not when the budget was spent
        self._climber.refuse_all()
        await self._probe_until_it_moves(self.breaker)
        self._climber.accept_again()

    async def _moves_when_retried(self, breaker: Breaker) -> bool:
        """Wait again and again, as long as failures and budget allow; whether it moved."""
        is_first = True

        async def wait() -> None:
            nonlocal is_first
            if is_first:  # the timer has waited already
                is_first = False
            elif not self._is_moving:
                await self._wait(self._ladder.settings.write_timeout_s)
            if not self._is_moving:
                await self._ladder.wait_for_turn()
                breaker.record_failure()
                raise _NoProgressError
            breaker.record_success()

        try:
            await self._ladder.policy.run(
                wait,
                retry_on=(_NoProgressError,),
                budget=self._ladder.budget,
                sleep=self._wait,
                random=self._ladder.random,
                clock=self._ladder.clock,
                on_retry=self._on_retry,
            )
        except _NoProgressError:
            return False
        return True

    async def _probe_until_it_moves(self, breaker: Breaker) -> None:
        """One probe after each `reset_timeout_s`: it only looks, for as long as one write may take."""
        while True:
            while not breaker.try_probe():
                await self._wait(breaker.retry_in_s)
            try:
                if not self._is_moving:
                    await self._wait(self._ladder.settings.write_timeout_s)
            except asyncio.CancelledError:
                breaker.abandon_probe()
                raise
            if self._is_moving:
                breaker.record_success()
                return
            breaker.record_failure()

    async def _wait(self, seconds: float) -> None:
        """Wait until it moves, but no longer than this; looks every `write_timeout_s` and at the end.

        Raises:
            _StuckTooLongError: there was no progress for `evict_after_s`; raised at that time.
        """
        settings, clock = self._ladder.settings, self._ladder.clock
        ends_at = clock() + seconds
        while (left_s := ends_at - clock()) > _GRAIN_S:
            evict_in_s = self._moved_at + settings.evict_after_s - clock()
            step_s = min(left_s, settings.write_timeout_s, evict_in_s)
            await self._ladder.sleep(step_s)
            self._look()
            if self._is_moving:
                return
            if step_s == evict_in_s:
                raise _StuckTooLongError

    def _on_retry(self, _number: int, _error: BaseException, _delay_s: float) -> None:
        self._ladder.retries += 1
