"""Counted rights: fair, exact, and safe against cancellation."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import WouldBlock
from pipeline.permits import Permits


async def turn() -> None:
    """Let every callback that is scheduled run, and those that they schedule."""
    for _ in range(4):
        await asyncio.sleep(0)


async def waiting(permits: Permits, count: int) -> list[asyncio.Task[None]]:
    """Tasks that wait for a permit, in this order."""
    tasks = [asyncio.create_task(permits.acquire()) for _ in range(count)]
    await turn()
    return tasks


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel what still waits."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_permits_counts_when_taken_and_given_back() -> None:
    """Free and taken permits add up to the total."""
    permits = Permits(2)
    assert (permits.available, permits.in_use, permits.total) == (2, 0, 2)
    permits.acquire_nowait()
    assert (permits.available, permits.in_use, permits.total) == (1, 1, 2)
    permits.release()
    assert (permits.available, permits.in_use, permits.total) == (2, 0, 2)


def test_permits_refuses_nowait_when_none_is_free() -> None:
    """At the limit `acquire_nowait` raises and `try_acquire` says no; neither takes anything."""
    permits = Permits(1)
    assert permits.try_acquire()
    assert not permits.try_acquire()
    with pytest.raises(WouldBlock):
        permits.acquire_nowait()
    assert permits.in_use == 1


def test_permits_refuses_when_released_more_than_taken() -> None:
    """A release without a permit is a mistake of the caller and changes nothing."""
    permits = Permits(1)
    permits.acquire_nowait()
    permits.release()
    with pytest.raises(ValueError, match="more often"):
        permits.release()
    assert permits.available == 1


@pytest.mark.parametrize("total", [0, -1])
def test_permits_refuses_when_total_is_less_than_one(total: int) -> None:
    """Without any permit everybody would wait for ever."""
    with pytest.raises(ValueError, match="at least 1"):
        Permits(total)


async def test_permits_acquires_at_once_when_one_is_free() -> None:
    """`acquire` does not give the turn away when it need not wait."""
    permits = Permits(1)
    events: list[str] = []
    asyncio.get_running_loop().call_soon(events.append, "turn")
    await permits.acquire()
    assert events == []
    assert permits.in_use == 1
    await turn()


async def test_permits_go_to_the_longest_waiter_when_released() -> None:
    """Waiters are served in the order they came."""
    permits = Permits(1)
    permits.acquire_nowait()
    tasks = await waiting(permits, 3)
    for served in range(1, 4):
        permits.release()
        await turn()
        assert [task.done() for task in tasks] == [True] * served + [False] * (3 - served)
    assert permits.in_use == 1


async def test_permits_cannot_be_overtaken_when_handed_over() -> None:
    """A permit on its way to a waiter is not free for a newcomer of the same turn."""
    permits = Permits(1)
    permits.acquire_nowait()
    (waiter,) = await waiting(permits, 1)
    permits.release()
    assert permits.available == 0
    assert not permits.try_acquire()
    await turn()
    assert waiter.done()


async def test_permits_pass_on_when_waiter_is_cancelled_after_it_was_served() -> None:
    """A permit handed to a waiter that is cancelled in the same turn goes to the next one."""
    permits = Permits(1)
    permits.acquire_nowait()
    first, second = await waiting(permits, 2)
    permits.release()
    first.cancel()
    await turn()
    assert first.cancelled()
    assert second.done()
    assert permits.in_use == 1


async def test_permits_skip_waiter_when_it_is_cancelled_before_it_is_served() -> None:
    """A waiter that is cancelled, but has not run yet, gets nothing."""
    permits = Permits(1)
    permits.acquire_nowait()
    first, second = await waiting(permits, 2)
    first.cancel()
    permits.release()
    await turn()
    assert first.cancelled()
    assert second.done()
    assert permits.in_use == 1


async def test_permits_are_free_when_the_only_waiter_was_cancelled() -> None:
    """With nobody left to take it, a permit that comes back is free."""
    permits = Permits(1)
    permits.acquire_nowait()
    await stop(await waiting(permits, 1))
    permits.release()
    assert permits.available == 1


async def test_permits_forget_a_waiter_when_its_coroutine_is_closed() -> None:
    """A waiter that is thrown away without being cancelled takes no permit with it."""
    permits = Permits(1)
    permits.acquire_nowait()
    abandoned = permits.acquire()
    abandoned.send(None)
    abandoned.close()
    permits.release()
    assert permits.available == 1


async def test_permits_are_held_when_inside_the_context() -> None:
    """`async with` holds one permit, and gives it back when the body fails too."""
    permits = Permits(1)

    async def fail_inside() -> None:
        async with permits:
            assert permits.in_use == 1
            raise LookupError

    with pytest.raises(LookupError):
        await fail_inside()
    assert permits.in_use == 0


async def test_permits_call_on_release_when_a_permit_is_left_free() -> None:
    """`on_release` is called after the permit is free, and not when a waiter takes it."""
    permits = Permits(1)
    seen: list[int] = []
    permits.on_release = lambda: seen.append(permits.available)
    permits.acquire_nowait()
    tasks = await waiting(permits, 1)
    permits.release()
    await turn()
    assert seen == []
    assert tasks[0].done()
    permits.release()
    assert seen == [1]


async def test_permits_call_on_release_when_a_served_waiter_is_cancelled() -> None:
    """A permit that a cancelled waiter leaves behind is announced like any other."""
    permits = Permits(1)
    seen: list[int] = []
    permits.on_release = lambda: seen.append(permits.available)
    permits.acquire_nowait()
    (waiter,) = await waiting(permits, 1)
    permits.release()
    waiter.cancel()
    await turn()
    assert seen == [1]


def test_permits_can_be_taken_when_on_release_runs() -> None:
    """`on_release` may take the permit it is told of."""
    permits = Permits(1)
    permits.on_release = permits.acquire_nowait
    permits.acquire_nowait()
    permits.release()
    assert permits.in_use == 1


STEPS = st.one_of(
    st.just(("acquire", 0)),
    st.just(("try", 0)),
    st.just(("release", 0)),
    st.just(("turn", 0)),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
)


class _Run:
    """Takes steps on real permits and keeps count beside them."""

    def __init__(self, total: int) -> None:
        self.permits = Permits(total)
        self.total = total
        self.tasks: list[asyncio.Task[None]] = []
        self.granted: list[int] = []  # numbers of the tasks that got a permit, in order
        self.held = 0

    async def _acquire(self, number: int) -> None:
        await self.permits.acquire()
        self.granted.append(number)
        self.held += 1

    async def step(self, kind: str, index: int) -> None:
        if kind == "acquire":
            self.tasks.append(asyncio.create_task(self._acquire(len(self.tasks))))
        elif kind == "try":
            self.held += self.permits.try_acquire()
        elif kind == "release" and self.held:
            self.held -= 1
            self.permits.release()
        elif kind == "cancel" and index < len(self.tasks):
            self.tasks[-1 - index].cancel()
        elif kind == "turn":
            await turn()

    def check(self) -> None:
        assert self.held <= self.permits.in_use <= self.total
        assert self.granted == sorted(self.granted)

    def check_settled(self) -> None:
        """After every callback has run: exact, and nobody waits while a permit is free."""
        assert self.permits.in_use == self.held
        assert not self.permits.available or all(task.done() for task in self.tasks)


@given(total=st.integers(1, 3), steps=st.lists(STEPS, max_size=40))
def test_permits_are_exact_and_fair_when_anything_happens(total: int, steps: list[tuple[str, int]]) -> None:
    """Whoever acquires, releases and is cancelled in whatever turn: no permit is lost, doubled or unfair."""

    async def scenario() -> None:
        run = _Run(total)
        for kind, index in steps:
            await run.step(kind, index)
            run.check()
        await turn()
        run.check_settled()
        await stop(run.tasks)
        for _ in range(run.held):
            run.permits.release()
        assert run.permits.available == total

    asyncio.run(scenario())
