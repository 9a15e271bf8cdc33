"""The policy retries what it may, waits as it should, and gives up with the very last error."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retry.policy
from retry.budget import RetryBudget
from retry.policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY = RetryPolicy(attempts=4, base_delay_s=1.0, max_delay_s=3.0)


class World:
    """Virtual time, a sleep that only moves it, and attempts that raise the given errors, then succeed."""

    def __init__(self, *errors: BaseException, attempt_s: float = 0.0) -> None:
        self.now_s = 50.0
        self.slept_s: list[float] = []
        self.made = 0
        self._errors = list(errors)
        self._attempt_s = attempt_s

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s

    async def attempt(self) -> str:
        self.made += 1
        self.now_s += self._attempt_s
        if self._errors:
            raise self._errors.pop(0)
        return "done"

    async def run(
        self,
        policy: RetryPolicy = POLICY,
        *,
        budget: RetryBudget | None = None,
        random: Callable[[], float] = lambda: 1.0,
        on_retry: Callable[[int, BaseException, float], None] | None = None,
        retry_on: tuple[type[Exception], ...] = (OSError,),
    ) -> str:
        return await policy.run(
            self.attempt,
            retry_on=retry_on,
            budget=budget,
            sleep=self.sleep,
            random=random,
            clock=self.clock,
            on_retry=on_retry,
        )


def errors(count: int) -> list[OSError]:
    return [OSError(number) for number in range(count)]


async def test_run_returns_the_result_when_the_first_attempt_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A success costs one attempt, no wait and not one call into tenacity."""
    monkeypatch.delattr(retry.policy, "AsyncRetrying")
    world = World()
    assert await world.run() == "done"
    assert (world.made, world.slept_s) == (1, [])


async def test_run_returns_the_result_when_a_later_attempt_succeeds() -> None:
    """Failures before the last attempt are made good."""
    world = World(*errors(3))
    assert await world.run() == "done"
    assert world.made == 4


async def test_run_raises_the_very_last_error_when_all_attempts_fail() -> None:
    """The error is the last attempt's own object, without another in its context or as its cause."""
    failures = errors(5)
    world = World(*failures)
    with pytest.raises(OSError, match="3") as caught:
        await world.run()
    assert caught.value is failures[3]
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert (world.made, len(world.slept_s)) == (4, 3)


async def test_run_makes_one_attempt_when_the_policy_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `attempts=1` the first error is final, and tenacity is not entered."""
    monkeypatch.delattr(retry.policy, "AsyncRetrying")
    failures = errors(1)
    world = World(*failures)
    with pytest.raises(OSError, match="0") as caught:
        await world.run(RetryPolicy(attempts=1, base_delay_s=1.0, max_delay_s=1.0))
    assert caught.value is failures[0]
    assert (world.made, world.slept_s) == (1, [])


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_run_raises_at_once_when_the_error_is_not_to_be_retried(before: int) -> None:
    """An error of another type ends the run, in the first attempt and in any other."""
    final = KeyError("final")
    world = World(*errors(before), final)
    with pytest.raises(KeyError) as caught:
        await world.run()
    assert caught.value is final
    assert world.made == before + 1


@pytest.mark.parametrize("final", [KeyError("final"), asyncio.CancelledError()])
async def test_run_does_not_enter_tenacity_when_the_first_error_is_final(
    final: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that ends the run at once costs no more than a success does."""
    monkeypatch.delattr(retry.policy, "AsyncRetrying")
    with pytest.raises(type(final)) as caught:
        await World(final).run()
    assert caught.value is final


async def test_run_retries_every_named_type_when_there_are_several() -> None:
    """`retry_on` names types and their subclasses."""
    world = World(ConnectionResetError(), TimeoutError(), KeyError())
    assert await world.run(retry_on=(OSError, KeyError)) == "done"
    assert world.made == 4


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
async def test_run_never_retries_what_is_no_exception_when_it_is_named(
    before: int, kind: type[BaseException]
) -> None:
    """Cancellation and its like go through, even if `retry_on` wrongly names BaseException."""
    final = kind()
    budget = RetryBudget()
    world = World(*errors(before), final)
    everything: tuple[type[Exception], ...] = (BaseException,)  # type: ignore[assignment] # the mistake under test
    with pytest.raises(kind) as caught:
        await world.run(retry_on=everything, budget=budget)
    assert caught.value is final
    assert (world.made, budget.retries) == (before + 1, before)


@pytest.mark.parametrize("before", [0, 1])
async def test_run_is_cancelled_when_its_task_is_in_an_attempt(before: int) -> None:
    """Cancelling the task cancels the attempt under way and starts no other."""
    made = 0
    hanging = asyncio.Event()

    async def attempt() -> None:
        nonlocal made
        made += 1
        if made <= before:
            raise OSError
        hanging.set()
        await asyncio.get_running_loop().create_future()

    async def no_sleep(delay_s: float) -> None:
        pass

    task = asyncio.create_task(POLICY.run(attempt, retry_on=(OSError,), sleep=no_sleep))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (task.cancelled(), made) == (True, before + 1)


async def test_run_is_cancelled_when_its_task_is_in_a_wait() -> None:
    """Cancelling the task ends the wait and starts no other attempt."""
    made = 0
    waiting = asyncio.Event()

    async def attempt() -> None:
        nonlocal made
        made += 1
        raise OSError

    async def endless(delay_s: float) -> None:
        waiting.set()
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(POLICY.run(attempt, retry_on=(OSError,), sleep=endless))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made == 1


async def test_run_sleeps_on_the_loop_when_nothing_is_injected() -> None:
    """The defaults are the real clock, sleep and chance."""
    world = World(*errors(2))
    policy = RetryPolicy(attempts=3, base_delay_s=0.0, max_delay_s=0.0, deadline_s=60.0)
    assert await policy.run(world.attempt, retry_on=(OSError,)) == "done"


async def test_run_awaits_any_awaitable_when_attempt_is_a_plain_function() -> None:
    """`attempt` need not be a coroutine function: a future that it returns is awaited too."""
    made: list[asyncio.Future[int]] = []

    def attempt() -> Awaitable[int]:
        future = asyncio.get_running_loop().create_future()
        if made:
            future.set_result(7)
        else:
            future.set_exception(OSError())
        made.append(future)
        return future

    policy = RetryPolicy(attempts=2, base_delay_s=0.0, max_delay_s=0.0)
    assert await policy.run(attempt, retry_on=(OSError,)) == 7


async def test_run_waits_up_to_the_doubled_bound_when_chance_is_highest() -> None:
    """The bound doubles with each retry and stops at `max_delay_s`."""
    world = World(*errors(3))
    await world.run()
    assert world.slept_s == [1.0, 2.0, 3.0]


async def test_run_draws_each_wait_from_the_injected_chance_when_it_retries() -> None:
    """Full jitter: each wait is its own draw between zero and the bound, also at the cap."""
    draws = iter([0.5, 0.0, 0.25])
    world = World(*errors(3))
    await world.run(random=lambda: next(draws))
    assert world.slept_s == [0.5, 0.0, 0.75]


async def test_on_retry_is_told_when_a_wait_begins() -> None:
    """Before each wait: the number of the retry, the error of that attempt and the seconds."""
    failures = errors(4)
    world = World(*failures)
    told: list[tuple[int, BaseException, float]] = []
    with pytest.raises(OSError, match="3"):
        await world.run(on_retry=lambda number, error, delay_s: told.append((number, error, delay_s)))
    assert told == [(1, failures[0], 1.0), (2, failures[1], 2.0), (3, failures[2], 3.0)]


@pytest.mark.parametrize(
    ("deadline_s", "made"), [(0.5, 1), (1.0, 2), (2.9, 2), (3.0, 3), (5.9, 3), (6.0, 4), (99.0, 4)]
)
async def test_run_begins_no_wait_when_it_would_end_after_the_deadline(deadline_s: float, made: int) -> None:
    """A wait that ends at the deadline is begun, a longer one is not, and the last error comes at once."""
    failures = errors(4)
    world = World(*failures)
    with pytest.raises(OSError, match=str(made - 1)) as caught:
        await world.run(RetryPolicy(4, 1.0, 3.0, deadline_s))
    assert caught.value is failures[made - 1]
    assert world.made == made
    assert world.now_s <= 50.0 + deadline_s


async def test_deadline_covers_the_attempts_when_they_take_long() -> None:
    """Time spent in attempts, the first one included, counts like time spent waiting."""
    world = World(*errors(4), attempt_s=4.0)
    with pytest.raises(OSError, match="1"):
        await world.run(RetryPolicy(4, 1.0, 3.0, deadline_s=10.0))
    assert (world.made, world.slept_s) == (2, [1.0])


async def test_run_spends_a_retry_each_time_when_there_is_a_budget() -> None:
    """The first attempt is noted and each retry is spent; nothing else is."""
    world = World(*errors(2))
    budget = RetryBudget(clock=world.clock)
    await world.run(budget=budget)
    assert (budget.attempts, budget.retries, budget.refused_total) == (3, 2, 0)


async def test_run_raises_the_last_error_at_once_when_the_budget_is_spent() -> None:
    """No wait is begun for a retry that may not be made."""
    failures = errors(4)
    world = World(*failures)
    budget = RetryBudget(ratio=0.0, floor=1, clock=world.clock)
    with pytest.raises(OSError, match="1") as caught:
        await world.run(budget=budget)
    assert caught.value is failures[1]
    assert (world.made, world.slept_s, budget.refused_total) == (2, [1.0], 1)


@pytest.mark.parametrize("policy", [RetryPolicy(1, 1.0, 1.0), RetryPolicy(2, 1.0, 1.0, deadline_s=1.0)])
async def test_run_leaves_the_budget_alone_when_it_gives_up_for_another_reason(policy: RetryPolicy) -> None:
    """What is given up because of the attempts or the deadline is neither spent nor refused."""
    world = World(*errors(4), attempt_s=0.5)
    budget = RetryBudget(clock=world.clock)
    with pytest.raises(OSError, match="0"):
        await world.run(policy, budget=budget)
    assert (budget.attempts, budget.spent_total, budget.refused_total) == (1, 0, 0)


async def test_runs_do_not_disturb_each_other_when_they_share_a_policy() -> None:
    """One policy serves many tasks at once, each with its own count of attempts."""

    async def turn(delay_s: float) -> None:
        await asyncio.sleep(0)

    async def one(failures: int) -> tuple[str, int]:
        world = World(*errors(failures))
        return await POLICY.run(world.attempt, retry_on=(OSError,), sleep=turn), world.made

    results = await asyncio.gather(*(one(number % 4) for number in range(40)))
    assert results == [("done", number % 4 + 1) for number in range(40)]


async def test_run_frees_the_first_error_without_a_collection_when_a_retry_succeeds() -> None:
    """No cycle through frames is left behind, so that a storm of retries leaves no garbage."""
    class Error(OSError):
        """An error that can be referred to weakly."""

    error = Error()
    gone = weakref.ref(error)
    world = World(error)
    del error
    gc.collect()
    gc.disable()
    try:
        await world.run()
        assert gone() is None
    finally:
        gc.enable()


@settings(deadline=None)
@given(
    n=st.integers(0, 10_000),
    base_delay_s=st.floats(0.0, 1e9),
    max_delay_s=st.floats(0.0, 1e9),
    draw=st.floats(0.0, 1.0, exclude_max=True),
)
def test_delay_s_lies_in_the_bound_when_the_arguments_vary(
    n: int, base_delay_s: float, max_delay_s: float, draw: float
) -> None:
    """Every wait is the draw's share of the smaller of the doubled base and the cap, however large `n` is."""
    delay_s = RetryPolicy(1, base_delay_s, max_delay_s).delay_s(n, lambda: draw)
    assert 0.0 <= delay_s <= max_delay_s
    if n < 50:
        assert delay_s == draw * min(max_delay_s, base_delay_s * 2**n)


def test_delay_s_draws_by_itself_when_no_chance_is_injected() -> None:
    """The default chance is a real one."""
    assert len({POLICY.delay_s(1) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("attempts", "base_delay_s", "max_delay_s", "deadline_s"),
    [
        (0, 1.0, 1.0, None),
        (1, -1.0, 1.0, None),
        (1, float("nan"), 1.0, None),
        (1, 1.0, -1.0, None),
        (1, 1.0, float("inf"), None),
        (1, 1.0, 1.0, 0.0),
        (1, 1.0, 1.0, float("nan")),
    ],
)
def test_policy_is_refused_when_a_field_is_out_of_range(
    attempts: int, base_delay_s: float, max_delay_s: float, deadline_s: float | None
) -> None:
    """Nonsense is refused when the policy is made, not when it is used."""
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(attempts, base_delay_s, max_delay_s, deadline_s)
