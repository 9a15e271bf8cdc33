"""Running something again after it failed: full jitter, a number of attempts, a deadline, a budget.

The first attempt runs without tenacity, so that what succeeds costs nothing; only a failure worth a
retry enters it. Time, sleep and chance are the caller's. Knows nothing of what it runs.
"""

from __future__ import annotations

import asyncio
import math
import random as chance
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tenacity import AsyncRetrying, retry_if_exception

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenacity import RetryCallState

    from retry.budget import RetryBudget

T = TypeVar("T")

MAX_DOUBLINGS = 1023  # 2.0 ** 1024 is more than a float can hold


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how far apart and how long something is tried.

    A value without state: created from the configuration, shared by any number of runs at once.

    Raises:
        ValueError: a field is out of its range.
    """

    attempts: int  # how many in all, the first one included; at least 1
    base_delay_s: float  # upper bound of the wait before the first retry; it doubles with each retry
    max_delay_s: float  # upper bound of any wait
    deadline_s: float | None = None  # over all attempts and waits, from the start of the run; None: no bound

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        for field, delay_s in (("base_delay_s", self.base_delay_s), ("max_delay_s", self.max_delay_s)):
            if not 0.0 <= delay_s < math.inf:
                raise ValueError(f"{field} must be finite and not negative, not {delay_s}")
        if self.deadline_s is not None and not self.deadline_s > 0.0:
            raise ValueError(f"deadline_s must be positive, not {self.deadline_s}")

    def delay_s(self, n: int, random: Callable[[], float] = chance.random) -> float:
        """Return the seconds to wait before retry `n` (from 0), with full jitter.

        Any wait from 0 to the bound is equally likely, which spreads those that failed together best
        (M. Brooker, "Exponential Backoff And Jitter", 2015).

        Args:
            n: how many retries there were before this one.
            random: a number from 0.0 up to 1.0.
        """
        return random() * min(self.max_delay_s, self.base_delay_s * 2.0 ** min(n, MAX_DOUBLINGS))

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        retry_on: tuple[type[Exception], ...],
        budget: RetryBudget | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = chance.random,
        clock: Callable[[], float] = time.monotonic,
        on_retry: Callable[[int, BaseException, float], None] | None = None,
    ) -> T:
        """Await `attempt()` until it succeeds or the policy gives up; return its result.

        A wait that would end after the deadline is not begun. An attempt under way is never cut short:
        bound each one yourself. Cancellation is neither retried nor delayed.

        Args:
            attempt: makes one attempt; called once for each.
            retry_on: errors that are worth another attempt; all others are raised at once.
            budget: the first attempt is noted in it and each retry is taken from it, before its wait.
            sleep: awaited with the seconds of each wait.
            random: a number from 0.0 up to 1.0, for the jitter.
            clock: monotonic seconds.
            on_retry: called before each wait with the number of the retry (from 1), the error and the
                seconds of the wait.

        Raises:
            BaseException: what the last attempt raised, the very same object.
        """
        ends_at_s = math.inf if self.deadline_s is None else clock() + self.deadline_s
        if budget is not None:
            budget.note_attempt()
        try:
            return await attempt()
        except Exception as error:
            if self.attempts == 1 or not isinstance(error, retry_on):
                raise
            remaining = _replay(error, attempt)
        # Out of the `except` block, so that a later error does not get the first one as its context.
        course = _Course(self, retry_on, budget, random, clock, on_retry, ends_at_s)
        retrying = AsyncRetrying(
            sleep=sleep,
            retry=retry_if_exception(course.is_worth_a_retry),
            wait=course.next_wait_s,
            stop=course.is_over,
            before_sleep=None if on_retry is None else course.report,
            reraise=True,
        )
        result: T = await retrying(remaining)
        return result


def _replay(first_error: Exception, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """Return `attempt` with the first one, already made, in front: it only raises its error again."""
    made = [first_error]  # emptied: a frame that keeps its own error is garbage only a collection frees

    async def next_attempt() -> T:
        if made:
            raise made.pop()
        return await attempt()

    return next_attempt


@dataclass(frozen=True, slots=True)
class _Course:
    """The decisions of one run after its first failure, in the order in which tenacity asks for them."""

    policy: RetryPolicy
    retry_on: tuple[type[Exception], ...]
    budget: RetryBudget | None
    random: Callable[[], float]
    clock: Callable[[], float]
    on_retry: Callable[[int, BaseException, float], None] | None
    ends_at_s: float  # by `clock`; infinite without a deadline

    def is_worth_a_retry(self, error: BaseException) -> bool:
        # `retry_on` is checked at run time too: a BaseException named in it must not retry cancellation.
        return isinstance(error, Exception) and isinstance(error, self.retry_on)

    def next_wait_s(self, state: RetryCallState) -> float:
        return self.policy.delay_s(state.attempt_number - 1, self.random)

    def is_over(self, state: RetryCallState) -> bool:
        if state.attempt_number >= self.policy.attempts:
            return True
        if self.clock() + state.upcoming_sleep > self.ends_at_s:
            return True
        # Asked last: what is spent here is used.
        return self.budget is not None and not self.budget.try_spend()

    def report(self, state: RetryCallState) -> None:
        assert self.on_retry is not None
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None  # only a failure gets this far
        self.on_retry(state.attempt_number, error, state.upcoming_sleep)
