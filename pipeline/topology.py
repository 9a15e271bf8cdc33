"""Stages wired in a row: started together, drained front to back, reported as one.

Made from a list, so that one more stage is one more entry. The channels form an acyclic graph, which
is what makes draining simple: a stage ends when its input has ended and is empty, and then ends the
input of the next one. One wake-up of the loop runs every stage that has something to do, front to
back, so what one read brought passes all idle stages in the same turn. Knows nothing of the items.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.channel import SendEnd
    from pipeline.stage import Stage, StageStatistics

__all__ = ["Topology"]


class Topology:
    """Owns the stages' running; created, started and drained by a worker, in its event loop.

    Args:
        stages: front to back; what one returns must be what the next one takes.
        on_turn_begin: called before the stages run, once a turn.
        on_turn_end: called after them, for what is done once a turn.
        clock: seconds, monotonic; the same as that of the stages.
    """

    def __init__(
        self,
        stages: Sequence[Stage[Any, Any]],
        *,
        on_turn_begin: Callable[[], None] | None = None,
        on_turn_end: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not stages:
            raise ValueError("a topology needs at least one stage")
        self.stages = tuple(stages)
        self._on_turn_begin = on_turn_begin
        self._on_turn_end = on_turn_end
        self._ready = [False] * len(stages)  # which stages have something to do
        self._at = len(stages)  # the stage that runs now; past the last one outside a turn
        self._is_turn_scheduled = False
        self._is_turn_open = False  # begun, not ended
        self._is_busy = True  # a stage runs, or they were not started yet
        self._first = self.stages[0]
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        for stage, following in zip(self.stages, self.stages[1:], strict=False):
            stage.output = following.input
            stage.following = following

    def offer(self, item: Any, weight: int, on_sent: Callable[[], None]) -> bool:
        """Take an item in: at once through all stages that have nothing to do, else as `SendEnd.offer` does.

        What is done once a turn is done for it at the end of this turn of the loop. One that comes while
        another is handled takes the way through the channel, so that it cannot overtake that.

        Raises: as `SendEnd.offer`.
        """
        if self._is_busy:
            return self.input.offer(item, weight, on_sent)
        if not self._is_turn_scheduled:
            self._schedule_turn()
        if not self._is_turn_open:
            self._open_turn()
        self._is_busy = is_in = True
        try:
            is_in = self._first.take_now(item, weight, self._clock())
        except Exception as error:
            self._report(self._first, error)
        finally:
            self._is_busy = False
        return is_in or self.input.offer(item, weight, on_sent)

    @property
    def input(self) -> SendEnd[Any]:
        """The first stage's input, which ends when the topology is drained."""
        return self._first.input

    def start(self) -> None:
        """Let the stages take items, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._is_busy = False
        for index, stage in enumerate(self.stages):
            stage.start(self._waker(index))

    async def drain(self) -> None:
        """End the input and wait until every stage, front to back, has handled all it had."""
        self.input.close()
        for stage in self.stages:
            await stage.wait_ended()

    async def abort(self) -> list[Any]:
        """Stop at once; returns the items that were still inside, of whatever stage, front to back."""
        left: list[Any] = []
        for stage in self.stages:
            left += await stage.abort()
        return left

    def statistics(self) -> list[StageStatistics]:
        """One entry for each stage, front to back."""
        return [stage.statistics() for stage in self.stages]

    def _waker(self, index: int) -> Callable[[], None]:
        def wake() -> None:
            self._ready[index] = True
            if index <= self._at and not self._is_turn_scheduled:
                self._schedule_turn()

        return wake

    def _schedule_turn(self) -> None:
        assert self._loop is not None
        self._is_turn_scheduled = True
        self._loop.call_soon(self._run_turn)

    def _open_turn(self) -> None:
        self._is_turn_open = True
        if self._on_turn_begin is not None:
            self._on_turn_begin()

    def _run_turn(self) -> None:
        self._is_turn_scheduled = False
        if not self._is_turn_open:
            self._open_turn()
        ready = self._ready
        for stage in self.stages:
            stage.turn_weight = 0
        self._is_busy = True
        try:
            for index, stage in enumerate(self.stages):
                if ready[index]:
                    ready[index] = False
                    self._at = index
                    self._run(index, stage)
        finally:
            self._at = len(self.stages)
            self._is_busy = self._is_turn_open = False
        if self._on_turn_end is not None:
            self._on_turn_end()

    def _run(self, index: int, stage: Stage[Any, Any]) -> None:
        """A stage never raises, unless who hears of its errors does: the others run all the same."""
        try:
            stage.run_ready()
        except Exception as error:
            self._report(stage, error)
            self._waker(index)()  # for what it had not come to

    def _report(self, stage: Stage[Any, Any], error: Exception) -> None:
        assert self._loop is not None
        self._loop.call_exception_handler({"message": f"stage {stage.name} failed", "exception": error})
