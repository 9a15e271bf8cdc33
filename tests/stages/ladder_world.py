"""A ladder in virtual time, and an outbox on it that only remembers what it was told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from retry.budget import RetryBudget
from stages.ladder import Ladder, LadderSettings, Watch
from tests.stages.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SETTINGS", "FakeClimber", "LadderWorld"]

# Without jitter: failures at 5, 10 and 15, which opens; probes at 20 and 30, each for 5 seconds.
SETTINGS = LadderSettings(
    write_timeout_s=5.0,
    min_progress_bytes=4096,
    evict_after_s=1000.0,
    fail_max=3,
    reset_timeout_s=5.0,
    base_delay_s=0.1,
    max_delay_s=2.0,
)


class FakeClimber:
    """An outbox that is paused, and does what an outbox does with its watch."""

    def __init__(self, name: str, world: LadderWorld) -> None:
        self.name = name
        self.left_bytes = 0
        self.has_emptied = False
        self.told: list[tuple[float, str]] = []  # after how many seconds, and what
        self._world = world
        self.watch = Watch(self, world.ladder)

    def pause(self) -> None:
        self.has_emptied = False
        self.watch.begin()

    def empty(self) -> None:
        self.has_emptied = True
        self.watch.note_emptied()

    def refuse_all(self) -> None:
        self.told.append((self._world.passed_s, "refuse"))

    def accept_again(self) -> None:
        self.told.append((self._world.passed_s, "accept"))

    def evict(self) -> None:
        self.told.append((self._world.passed_s, "evict"))
        self.watch.close()

    @property
    def failures(self) -> int | None:
        """As its breaker counts them; None without one."""
        return None if self.watch.breaker is None else self.watch.breaker.failures


class LadderWorld:
    """A ladder, its time, and one outbox on it that has just paused."""

    def __init__(
        self,
        settings: LadderSettings = SETTINGS,
        *,
        random: Callable[[], float] = lambda: 0.0,
        budget: RetryBudget | None = None,
    ) -> None:
        self.timeline = Timeline()
        self.begun_at = self.timeline.now_s
        self.changes: list[tuple[float, str]] = []  # of breakers: after how many seconds, and to what
        self.ladder = Ladder(
            settings,
            budget or RetryBudget(ratio=1.0, floor=1000, clock=self.timeline.clock),
            call_later=self.timeline.call_later,
            on_change=self._on_change,
            clock=self.timeline.clock,
            sleep=self.timeline.sleep,
            random=random,
        )
        self.bob = FakeClimber("bob", self)
        self.bob.pause()

    @property
    def passed_s(self) -> float:
        return self.timeline.now_s - self.begun_at

    async def advance_to(self, passed_s: float) -> None:
        await self.timeline.advance_to(self.begun_at + passed_s)

    async def move(self, *moves: tuple[float, int], until_s: float) -> None:
        """Let so many bytes leave at these moments, and time pass until a last one."""
        for moment_s, nbytes in moves:
            await self.advance_to(moment_s)
            self.bob.left_bytes += nbytes
        await self.advance_to(until_s)

    def assert_nothing_is_left(self) -> None:
        assert self.timeline.waiting == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not self.ladder.watches
        assert not self.ladder.breakers()

    def _on_change(self, name: str, state: str) -> None:
        assert name == "bob"
        self.changes.append((self.passed_s, state))
