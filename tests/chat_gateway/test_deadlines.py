"""Many timeouts with one timer, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.deadlines import Deadlines
from tests.chat_gateway.fakes import VirtualLoop, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable


class Watched:
    """Deadlines of two seconds that note who fell due, and when."""

    def __init__(self, timeout_s: float = 2.0) -> None:
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self.due: list[tuple[str, float]] = []
        self.deadlines: Deadlines[str] = Deadlines(timeout_s, self.on_due, loop)
        self.then: Callable[[str], None] = lambda _: None  # what is done when an item falls due
        self._loop = loop

    def on_due(self, item: str) -> None:
        self.due.append((item, round(self._loop.time() - self.began, 6)))
        self.then(item)


@virtual_time
async def test_deadlines_tell_each_item_once_when_its_time_is_over() -> None:
    """Every item has its own full time, though there is one timer."""
    watched = Watched()
    for item in "abc":
        watched.deadlines.start(item)
        await asyncio.sleep(0.5)
    assert len(watched.deadlines) == 3
    await asyncio.sleep(10)
    assert watched.due == [("a", 2.0), ("b", 2.5), ("c", 3.0)]
    assert len(watched.deadlines) == 0


@virtual_time
async def test_deadlines_tell_nothing_when_the_item_was_stopped() -> None:
    """A stopped item is not told, those behind it in time are; stopping twice is nothing."""
    watched = Watched()
    watched.deadlines.start("a")
    watched.deadlines.start("b")
    watched.deadlines.stop("a")
    watched.deadlines.stop("a")
    await asyncio.sleep(10)
    assert watched.due == [("b", 2.0)]


@virtual_time
async def test_deadlines_begin_anew_when_an_item_is_started_again() -> None:
    """The time of a restarted item counts from the restart, also behind others."""
    watched = Watched()
    watched.deadlines.start("a")
    await asyncio.sleep(1)
    watched.deadlines.start("b")
    await asyncio.sleep(0.5)
    watched.deadlines.start("a")
    await asyncio.sleep(10)
    assert watched.due == [("b", 3.0), ("a", 3.5)]


@virtual_time
async def test_deadlines_work_again_when_they_had_run_empty() -> None:
    """After the last item a new one gets a timer."""
    watched = Watched()
    watched.deadlines.start("a")
    await asyncio.sleep(5)
    watched.deadlines.start("b")
    await asyncio.sleep(5)
    assert watched.due == [("a", 2.0), ("b", 7.0)]


@virtual_time
async def test_deadlines_do_not_tell_an_item_when_another_one_due_with_it_stops_it() -> None:
    """Whoever is told may end the time of others that are due in the same moment."""
    watched = Watched()
    deadlines = watched.deadlines
    watched.then = lambda _: deadlines.stop("b")
    deadlines.start("a")
    deadlines.start("b")
    await asyncio.sleep(10)
    assert watched.due == [("a", 2.0)]


@virtual_time
async def test_deadlines_give_the_full_time_when_an_item_is_restarted_by_one_due_with_it() -> None:
    """Begun anew is begun anew, also while its old time is just being found over."""
    watched = Watched()
    deadlines = watched.deadlines

    def restart_other(item: str) -> None:
        if item == "a":
            deadlines.start("b")

    watched.then = restart_other
    deadlines.start("a")
    deadlines.start("b")
    await asyncio.sleep(10)
    assert watched.due == [("a", 2.0), ("b", 4.0)]


@virtual_time
async def test_deadlines_repeat_when_an_item_restarts_itself() -> None:
    """An item that is told may ask for another time, as a slow but moving close does."""
    watched = Watched()
    deadlines = watched.deadlines

    def restart(item: str) -> None:
        if len(watched.due) < 3:
            deadlines.start(item)

    watched.then = restart
    deadlines.start("a")
    await asyncio.sleep(20)
    assert watched.due == [("a", 2.0), ("a", 4.0), ("a", 6.0)]


@virtual_time
async def test_deadlines_forget_everything_when_closed() -> None:
    """Closed ones hold no item and no timer; closing twice is nothing."""
    watched = Watched()
    watched.deadlines.start("a")
    watched.deadlines.close()
    watched.deadlines.close()
    assert len(watched.deadlines) == 0
    await asyncio.sleep(10)
    assert watched.due == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "stop"]), st.sampled_from("abcd"), st.floats(0, 3)), max_size=30
    )
)
def test_deadlines_agree_with_one_timer_for_each_item_when_used_at_random(
    steps: list[tuple[str, str, float]],
) -> None:
    """What falls due, and when, is the same as with a timer for each item."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        watched = Watched()
        expected: list[tuple[str, float]] = []
        timers: dict[str, asyncio.TimerHandle] = {}

        def model_due(item: str) -> None:
            expected.append((item, round(loop.time() - watched.began, 6)))

        for what, item, pause_s in steps:
            if item in timers:
                timers.pop(item).cancel()
            if what == "start":
                timers[item] = loop.call_later(2.0, model_due, item)
                watched.deadlines.start(item)
            else:
                watched.deadlines.stop(item)
            await asyncio.sleep(pause_s)
        await asyncio.sleep(10)
        assert sorted(watched.due) == sorted(expected)
        assert [at for _, at in watched.due] == sorted(at for _, at in expected)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
