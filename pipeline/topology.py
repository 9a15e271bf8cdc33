"""Stages wired in a row: started together, drained front to back, reported as one.

Made from a list, so that one more stage is one more entry. The channels form an acyclic graph, which
is what makes draining simple: a stage ends when its input has ended and is empty, and then ends the
input of the next one. One wake-up of the loop runs every stage that has something to do, front to
back. What is offered while none has anything to do passes them all at once, past the channels: same order,
same bounds, same counts. Knows nothing of the items.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from pipeline.histogram import EXACT_US
from pipeline.stage import MAX_TURN_WEIGHT

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
        self._is_clear = False  # nothing is in a stage, and none runs; told by the last turn
        self._passed_weight = 0  # that went past the channels since then
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        for stage, following in zip(self.stages, self.stages[1:], strict=False):
            stage.output = following.input

    def offer(self, item: Any, weight: int, on_sent: Callable[[], None]) -> bool:
        """Take an item in: at once through all stages if these have nothing to do, else as `SendEnd.offer`.

        It goes past the channels then, which spares it most of the way. One that comes while another is
        handled goes through them, so that it cannot overtake it; so does what is too much for one turn.

        Raises: as `SendEnd.offer`.
        """
        if not self._is_clear or self._passed_weight >= MAX_TURN_WEIGHT or weight < 1:
            return self.input.offer(item, weight, on_sent)
        self._is_clear = False
        try:
            self._passed_weight += self._pass(item, weight)
        finally:
            self._is_clear = not self._is_turn_scheduled
        return True

    def _pass(self, item: Any, weight: int) -> int:
        """Returns what it weighed in the last stage it came to."""
        clock = self._clock
        began = clock()
        for stage in self.stages:
            stage.passed_items += 1
            stage.passed_weight += weight
            if weight > stage.passed_peak:
                stage.passed_peak = weight
            try:
                result = stage.handler(item)
                ended = clock()
                if result is not None:
                    weight = stage.weigh(result)
            except (Exception, asyncio.CancelledError) as error:
                stage.fail_passed(item, weight, error)
                break
            took_s = ended - began
            stage.busy_s += took_s
            us = int(took_s * 1e6)
            if us < EXACT_US:
                stage.time_in_stage.counts[us] += 1
            else:
                stage.time_in_stage.record(took_s)
            if result is None:
                break
            item, began = result, ended
        return weight

    @property
    def input(self) -> SendEnd[Any]:
        """The first stage's input, which ends when the topology is drained."""
        return self.stages[0].input

    def start(self) -> None:
        """Let the stages take items, in the running loop."""
        self._loop = asyncio.get_running_loop()
        for index, stage in enumerate(self.stages):
            stage.start(self._waker(index))
        self._is_clear = self._are_stages_clear()

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

    def _are_stages_clear(self) -> bool:
        return all(stage.is_clear for stage in self.stages)

    def _waker(self, index: int) -> Callable[[], None]:
        def wake() -> None:
            self._ready[index] = True
            self._is_clear = False
            if index <= self._at and not self._is_turn_scheduled:
                self._schedule_turn()

        return wake

    def _schedule_turn(self) -> None:
        assert self._loop is not None
        self._is_turn_scheduled = True
        self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        self._is_turn_scheduled = self._is_clear = False
        if self._on_turn_begin is not None:
            self._on_turn_begin()
        ready = self._ready
        for index, stage in enumerate(self.stages):
            if ready[index]:
                ready[index] = False
                self._at = index
                stage.run_ready()
        self._at = len(self.stages)
        self._passed_weight = 0
        self._is_clear = not self._is_turn_scheduled and self._are_stages_clear()
        if self._on_turn_end is not None:
            self._on_turn_end()
