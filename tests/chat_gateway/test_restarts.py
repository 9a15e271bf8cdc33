"""When a worker is started again, and when no more."""

from __future__ import annotations

from chat_gateway.restarts import Restarts
from tests.chat_gateway.fakes import configured


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def restarts(clock: Clock, *sets: str, random: float = 0.5) -> Restarts:
    """Restarts of one place; chance always says the same."""
    settings = configured(
        "supervisor.restart_base_delay_s=1", "supervisor.restart_max_delay_s=5", *sets
    ).supervisor
    return Restarts(settings, clock=clock, random=lambda: random)


def test_delay_doubles_up_to_its_bound_after_a_first_restart_at_once() -> None:
    """A worker that died once is back at once; the others wait a random part of a bound."""
    half, most = restarts(Clock(), random=0.5), restarts(Clock(), random=1.0)
    assert [half.next_delay_s() for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, 2.5]
    assert [most.next_delay_s() for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, 5.0]


def test_there_is_no_restart_when_there_have_been_too_many() -> None:
    """As many as `max_restarts` in the window."""
    some = restarts(Clock(), "supervisor.max_restarts=2")
    assert [some.next_delay_s() for _ in range(4)] == [0.0, 0.5, None, None]
    none = restarts(Clock(), "supervisor.max_restarts=0")
    assert none.next_delay_s() is None


def test_restarts_are_forgotten_when_they_have_left_the_window() -> None:
    """One after the other; a worker that dies rarely is always back at once."""
    clock = Clock()
    some = restarts(clock, "supervisor.max_restarts=2", "supervisor.restart_window_s=60")
    assert some.next_delay_s() == 0.0
    clock.now += 30
    assert some.next_delay_s() == 0.5
    clock.now += 29.9
    assert some.next_delay_s() is None
    clock.now += 0.1
    assert some.next_delay_s() == 0.5
    clock.now += 3600
    assert some.next_delay_s() == 0.0
