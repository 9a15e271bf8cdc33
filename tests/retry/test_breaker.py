"""The breaker opens after exactly `fail_max`, probes one at a time, and keeps clear of pybreaker's traps."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import tracemalloc

import pybreaker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retry.breaker import Breaker


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Scene:
    """A breaker with fail_max 3 and 5 seconds to a probe, its clock and what it announced."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.changes: list[tuple[str, str]] = []
        self.breaker = Breaker(
            fail_max=3,
            reset_timeout_s=5.0,
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
        )

    def probing(self) -> Breaker:
        """Return the breaker half-open, with its probe handed out and the announcements forgotten."""
        self.breaker.trip()
        self.clock.now_s += 5.0
        assert self.breaker.try_probe()
        self.changes.clear()
        return self.breaker


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_breaker_is_closed_when_it_is_new(scene: Scene) -> None:
    """A new breaker refuses nothing, has nothing to probe and announces nothing."""
    breaker = scene.breaker
    assert (breaker.state, breaker.is_refusing, breaker.retry_in_s) == ("closed", False, 0.0)
    assert not breaker.try_probe()
    assert (breaker.state, scene.changes) == ("closed", [])


@settings(deadline=None)
@given(fail_max=st.integers(1, 20))
def test_breaker_opens_when_exactly_fail_max_failures_came_in_a_row(fail_max: int) -> None:
    """One fewer leaves it closed, the last one opens it, and pybreaker's error on tripping stays inside."""
    breaker = Breaker(fail_max=fail_max, reset_timeout_s=5.0, clock=FakeClock())
    for count in range(fail_max):
        assert (breaker.state, breaker.failures) == ("closed", count)
        breaker.record_failure()
    assert (breaker.state, breaker.is_refusing) == ("open", True)


def test_breaker_stays_closed_when_a_success_parts_the_failures(scene: Scene) -> None:
    """Only failures in a row count."""
    for _ in range(5):
        scene.breaker.record_failure()
        scene.breaker.record_failure()
        scene.breaker.record_success()
    assert (scene.breaker.state, scene.breaker.failures) == ("closed", 0)


def test_trip_opens_when_there_was_no_failure(scene: Scene) -> None:
    """A spent retry budget opens the breaker without any count."""
    scene.breaker.trip()
    assert (scene.breaker.state, scene.breaker.is_refusing) == ("open", True)
    assert scene.changes == [("closed", "open")]


def test_trip_does_not_postpone_the_probe_when_already_open(scene: Scene) -> None:
    """Tripping again and again cannot keep a breaker open for ever, and is announced once."""
    scene.breaker.trip()
    for _ in range(5):
        scene.clock.now_s += 1.0
        scene.breaker.trip()
    assert scene.breaker.try_probe()
    assert scene.changes == [("closed", "open"), ("open", "half_open")]


def test_trip_opens_again_when_a_probe_is_under_way(scene: Scene) -> None:
    """Tripping takes the probe away and the whole timeout begins again."""
    breaker = scene.probing()
    breaker.trip()
    assert (breaker.state, breaker.retry_in_s) == ("open", 5.0)
    assert scene.changes == [("half_open", "open")]
    scene.clock.now_s += 5.0
    assert breaker.try_probe()


def test_retry_in_s_counts_down_when_open(scene: Scene) -> None:
    """The seconds to the probe shrink to zero and stay there; then the breaker no longer refuses."""
    scene.breaker.trip()
    seen = []
    for _ in range(4):
        seen.append((scene.breaker.retry_in_s, scene.breaker.is_refusing))
        scene.clock.now_s += 2.5
    assert seen == [(5.0, True), (2.5, True), (0.0, False), (0.0, False)]


def test_try_probe_is_refused_when_the_timeout_has_not_passed(scene: Scene) -> None:
    """No probe before its time, and asking changes nothing."""
    scene.breaker.trip()
    scene.clock.now_s += 4.999
    assert (scene.breaker.try_probe(), scene.breaker.state) == (False, "open")
    scene.clock.now_s += 0.001
    assert (scene.breaker.try_probe(), scene.breaker.state) == (True, "half_open")


def test_try_probe_hands_out_one_when_many_ask(scene: Scene) -> None:
    """Half-open lets a single probe through, where pybreaker alone would let all through."""
    scene.breaker.trip()
    scene.clock.now_s += 5.0
    assert [scene.breaker.try_probe() for _ in range(100)] == [True] + [False] * 99
    scene.clock.now_s += 1_000.0
    assert not scene.breaker.try_probe()


def test_breaker_refuses_when_a_probe_is_under_way(scene: Scene) -> None:
    """Until its result is known the others are refused, and told to ask after a whole timeout."""
    breaker = scene.probing()
    assert (breaker.state, breaker.is_refusing, breaker.retry_in_s) == ("half_open", True, 5.0)


def test_breaker_hands_out_one_probe_when_the_timeout_is_zero() -> None:
    """Without a timeout the probe is due at once, and still there is only one."""
    breaker = Breaker(fail_max=1, reset_timeout_s=0.0, clock=FakeClock())
    breaker.trip()
    assert not breaker.is_refusing
    assert [breaker.try_probe(), breaker.is_refusing, breaker.try_probe()] == [True, True, False]


def test_breaker_closes_when_the_probe_succeeds(scene: Scene) -> None:
    """One good probe closes it, with the failures forgotten."""
    breaker = scene.probing()
    breaker.record_success()
    assert (breaker.state, breaker.is_refusing, breaker.failures) == ("closed", False, 0)
    assert scene.changes == [("half_open", "closed")]


def test_breaker_needs_fail_max_failures_again_when_a_probe_has_closed_it(scene: Scene) -> None:
    """Failures from before the opening do not count after it."""
    breaker = scene.probing()
    breaker.record_success()
    seen = []
    for _ in range(3):
        breaker.record_failure()
        seen.append(breaker.state)
    assert seen == ["closed", "closed", "open"]


def test_breaker_opens_again_when_the_probe_fails(scene: Scene) -> None:
    """One failed probe opens it for a whole new timeout, and the next probe is a single one too."""
    breaker = scene.probing()
    scene.clock.now_s += 3.0
    breaker.record_failure()
    assert (breaker.state, breaker.is_refusing, breaker.retry_in_s) == ("open", True, 5.0)
    assert scene.changes == [("half_open", "open")]
    scene.clock.now_s += 5.0
    assert [breaker.try_probe(), breaker.try_probe()] == [True, False]


def test_abandon_probe_is_neutral_when_the_probe_was_cancelled(scene: Scene) -> None:
    """A probe given up is neither success nor failure: still half-open, and another may start at once."""
    breaker = scene.probing()
    breaker.abandon_probe()
    assert (breaker.state, breaker.is_refusing, breaker.retry_in_s) == ("half_open", False, 0.0)
    assert [breaker.try_probe(), breaker.try_probe()] == [True, False]
    assert (breaker.failures, scene.changes) == (0, [])


def test_abandon_probe_does_nothing_when_there_is_none(scene: Scene) -> None:
    """Giving up what was never taken changes nothing in any state."""
    scene.breaker.abandon_probe()
    assert scene.breaker.state == "closed"
    scene.breaker.trip()
    scene.breaker.abandon_probe()
    assert (scene.breaker.state, scene.breaker.is_refusing) == ("open", True)


@pytest.mark.parametrize("outcome", ["record_failure", "record_success"])
@pytest.mark.parametrize("elapsed_s", [0.0, 6.0])
def test_late_outcomes_change_nothing_when_open(scene: Scene, outcome: str, elapsed_s: float) -> None:
    """A report that began before the opening is no probe: pybreaker would half-open and count it as one."""
    scene.breaker.trip()
    scene.changes.clear()
    scene.clock.now_s += elapsed_s
    getattr(scene.breaker, outcome)()
    assert (scene.breaker.state, scene.breaker.failures, scene.changes) == ("open", 0, [])
    assert scene.breaker.retry_in_s == max(0.0, 5.0 - elapsed_s)


@pytest.mark.parametrize("outcome", ["record_failure", "record_success"])
def test_outcome_counts_when_half_open_without_a_probe(scene: Scene, outcome: str) -> None:
    """After a probe was given up any outcome decides, since the breaker is half-open."""
    breaker = scene.probing()
    breaker.abandon_probe()
    getattr(breaker, outcome)()
    assert breaker.state == {"record_failure": "open", "record_success": "closed"}[outcome]


@pytest.mark.parametrize("jump", [datetime.timedelta(days=-400), datetime.timedelta(days=400)])
def test_breaker_ignores_the_wall_clock_when_it_jumps(
    scene: Scene, jump: datetime.timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the monotonic clock decides when a probe is due."""

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumped:
            return cls.fromtimestamp((datetime.datetime.now(tz) + jump).timestamp(), tz)

    scene.breaker.trip()
    monkeypatch.setattr(pybreaker, "datetime", Jumped)
    scene.clock.now_s += 4.0
    assert (scene.breaker.retry_in_s, scene.breaker.is_refusing) == (1.0, True)
    assert not scene.breaker.try_probe()
    scene.clock.now_s += 1.0
    assert not scene.breaker.is_refusing
    assert scene.breaker.try_probe()
    scene.breaker.record_failure()
    assert scene.breaker.retry_in_s == 5.0
    scene.clock.now_s += 5.0
    assert scene.breaker.try_probe()
    scene.breaker.record_success()
    assert scene.breaker.state == "closed"


async def test_cancellation_is_neutral_when_it_hits_writes_and_probes(scene: Scene) -> None:
    """Cancelled work leaves no trace in the counters, and the cancellation itself arrives unchanged."""
    breaker = scene.breaker

    async def guarded_write() -> None:
        """Do what an owner does: report an outcome, and give a probe up if there was none."""
        is_probe = breaker.try_probe()
        try:
            await asyncio.get_running_loop().create_future()
        except OSError:
            breaker.record_failure()
        except asyncio.CancelledError:
            if is_probe:
                breaker.abandon_probe()
            raise

    async def cancel_one() -> None:
        task = asyncio.create_task(guarded_write())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    for _ in range(5):
        await cancel_one()
    assert (breaker.state, breaker.failures) == ("closed", 0)
    breaker.trip()
    scene.clock.now_s += 5.0
    for _ in range(5):
        await cancel_one()
    assert (breaker.state, breaker.failures) == ("half_open", 0)
    assert breaker.try_probe()


def test_on_change_names_both_states_when_a_whole_life_passes(scene: Scene) -> None:
    """Each change is announced once, in order, and nothing that is no change."""
    for _ in range(4):
        scene.breaker.record_failure()
    scene.clock.now_s += 5.0
    scene.breaker.try_probe()
    scene.breaker.record_success()
    scene.breaker.record_failure()
    scene.breaker.record_success()
    assert scene.changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_on_change_sees_the_new_state_when_it_asks_and_acts() -> None:
    """The change is complete when it is announced; pybreaker tells its listeners before that."""
    clock = FakeClock()
    seen: list[tuple[str, str, str, bool]] = []

    def on_change(old: str, new: str) -> None:
        breaker.trip()
        seen.append((old, new, breaker.state, breaker.is_refusing))

    breaker = Breaker(fail_max=1, reset_timeout_s=5.0, clock=clock, on_change=on_change)
    breaker.record_failure()
    assert seen == [("closed", "open", "open", True)]


def test_breaker_stays_open_when_on_change_raises() -> None:
    """An owner that breaks its promise gets its error, and the change is complete all the same."""

    def on_change(old: str, new: str) -> None:
        raise RuntimeError(f"{old} {new}")

    breaker = Breaker(fail_max=1, reset_timeout_s=5.0, clock=FakeClock(), on_change=on_change)
    with pytest.raises(RuntimeError, match="closed open"):
        breaker.record_failure()
    assert (breaker.state, breaker.retry_in_s) == ("open", 5.0)


@pytest.mark.parametrize("name", ["", "bob"])
def test_name_is_what_was_given_when_asked(name: str) -> None:
    """The name is kept for logs."""
    assert Breaker(fail_max=1, reset_timeout_s=1.0, name=name).name == name


@pytest.mark.parametrize(
    ("fail_max", "reset_timeout_s"), [(0, 5.0), (-1, 5.0), (1, -0.1), (1, float("nan"))]
)
def test_breaker_is_refused_when_an_argument_is_out_of_range(fail_max: int, reset_timeout_s: float) -> None:
    """Nonsense is refused when the breaker is made, not when it is used."""
    with pytest.raises(ValueError, match="must"):
        Breaker(fail_max=fail_max, reset_timeout_s=reset_timeout_s)


def test_breaker_takes_about_a_kibibyte_when_there_are_many() -> None:
    """Each writer in trouble costs little, so that thousands can have one."""
    count = 200
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        breakers = [Breaker(fail_max=3, reset_timeout_s=5.0, on_change=print) for _ in range(count)]
        for breaker in breakers:
            breaker.trip()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 1_200


class Model:
    """The rules of a breaker in a few lines, to run beside the real one."""

    def __init__(self) -> None:
        self.state, self.failures, self.opened_at_s, self.probing = "closed", 0, 0.0, False

    def open(self, now_s: float) -> None:
        self.state, self.opened_at_s, self.probing = "open", now_s, False

    def act(self, action: str, now_s: float) -> bool | None:
        """Do one action; return the answer of `try_probe`, else None."""
        if action == "abandon_probe":
            self.probing = False
        elif action == "try_probe":
            is_due = self.state == "open" and now_s - self.opened_at_s >= 4
            if not is_due and (self.state != "half_open" or self.probing):
                return False
            self.state, self.probing = "half_open", True
            return True
        elif self.state != "open":
            self.report(action, now_s)
        return None

    def report(self, action: str, now_s: float) -> None:
        self.failures += action == "record_failure"
        if action == "record_success":
            self.state, self.failures, self.probing = "closed", 0, False
        elif action == "trip" or self.state == "half_open" or self.failures >= 3:
            self.open(now_s)


ACTIONS = ["record_failure", "record_success", "trip", "try_probe", "abandon_probe"]


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ACTIONS)), max_size=60))
def test_breaker_agrees_with_a_model_when_anything_happens_in_any_order(steps: list[tuple[int, str]]) -> None:
    """States, answers and failures are those of the rules, whatever is reported and asked."""
    clock, model = FakeClock(), Model()
    breaker = Breaker(fail_max=3, reset_timeout_s=4.0, clock=clock)
    for elapsed_s, action in steps:
        clock.now_s += elapsed_s
        assert getattr(breaker, action)() == model.act(action, clock.now_s)
        is_early = model.state == "open" and clock.now_s - model.opened_at_s < 4
        assert (breaker.state, breaker.is_refusing) == (model.state, is_early or model.probing)
        if model.state == "closed":
            assert breaker.failures == model.failures
