"""Specification of bench.placement; the sockets are in test_workers."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.placement import LoginLog, PlacementError, Places, plan_places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def record(event: str, **fields: Any) -> str:
    """A line of a gateway's log."""
    return json.dumps({"ts": "1970-01-01T00:00:00.000Z", "event": event, **fields}) + "\n"


def kinds(places: list[int], pairs: int, fanout: int) -> list[tuple[int, int]]:
    """Worker of the sender and of the receiver of each conversation."""
    return [(places[j // fanout], places[pairs + j]) for j in range(pairs * fanout)]


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.integers(2, 5))
def test_plan_makes_the_share_whatever_the_numbers_are(
    pairs: int, fanout: int, cross: float, workers: int
) -> None:
    """The nearest number of conversations is between workers, and both of their ends have one."""
    conversations = pairs * fanout
    if 0 < cross < 1 and round(cross * conversations) in (0, conversations):
        with pytest.raises(PlacementError, match="too few conversations"):
            plan_places(pairs, fanout, cross, workers)
        return
    places = plan_places(pairs, fanout, cross, workers)
    assert len(places) == pairs * (1 + fanout)
    assert set(places) <= set(range(1, workers + 1))
    crossing = sum(sender != receiver for sender, receiver in kinds(places, pairs, fanout))
    assert crossing == round(cross * conversations)


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize(("pairs", "fanout"), [(120, 1), (12, 100)])
def test_plan_gives_all_workers_the_same_when_numbers_allow(workers: int, pairs: int, fanout: int) -> None:
    """Each direction between two workers has as many conversations as any other, and so has each worker."""
    places = plan_places(pairs, fanout, 0.5, workers)
    found = Counter(kinds(places, pairs, fanout))
    within = [found[worker, worker] for worker in range(1, workers + 1)]
    across = [found[a, b] for a in range(1, workers + 1) for b in range(1, workers + 1) if a != b]
    assert max(within) == min(within)
    assert max(across) - min(across) <= 1


@pytest.mark.parametrize(
    ("pairs", "cross", "workers", "reason"),
    [(10, 0.5, 1, "one worker"), (1, 0.5, 2, "too few conversations, 1,"), (2, 0.1, 2, "too few")],
)
def test_plan_is_refused_with_a_reason_when_the_share_cannot_be_made(
    pairs: int, cross: float, workers: int, reason: str
) -> None:
    """A share that would silently become none or all is an error."""
    with pytest.raises(PlacementError, match=reason):
        plan_places(pairs, 1, cross, workers)


class Time:
    """A clock that stands still but for sleeping, while which a log may grow."""

    def __init__(self, *writes: str, path: Path) -> None:
        self.now_s = 0.0
        self._writes = list(writes)
        self._path = path

    def clock(self) -> float:
        """Seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let the next piece be written."""
        self.now_s += seconds
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._writes.pop(0))


@pytest.fixture(name="path")
def fixture_path(tmp_path: Path) -> Iterator[Path]:
    """A log of a gateway of three workers where one is logged in."""
    path = tmp_path / "gateway.log"
    with LoginLog(path) as log:
        log.feed(record("worker.ready", worker=2))
        log.feed("Traceback (most recent call last):\n")
        log.feed(record("gateway.ready", worker="supervisor", workers=3, listen=["line://127.0.0.1:1"]))
        log.feed(record("session.login", worker=3, login="a"))
        yield path


@pytest.mark.parametrize(("within", "workers"), [(0, 3), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_places_are_of_the_first_workers_when_the_log_says_so(
    tmp_path: Path, within: int, workers: int
) -> None:
    """Conversations are planned within so many; connections are spread over all all the same."""
    with LoginLog(tmp_path / "gateway.log", within) as log:
        log.feed(record("gateway.ready", worker="supervisor", workers=3))
        log.feed(record("session.login", worker=3, login="a"))
        with Places(log.path) as places:
            assert (places.workers, places.spread) == (workers, 3)
            assert places.wait_for(["a"]) == [3]


def test_log_keeps_only_what_tells_of_places(path: Path) -> None:
    """What else a gateway says is not written."""
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        "gateway.ready",
        "session.login",
    ]


def test_places_are_found_when_the_log_tells_of_them_later_and_in_pieces(path: Path) -> None:
    """A line counts once its end is there, and what is no record is passed over."""
    late, last = record("session.login", worker=1, login="b"), record("session.login", worker=2, login="c")
    time = Time(late[:20], late[20:], "nonsense\n[]\n", last, path=path)
    with Places(path, clock=time.clock, sleep=time.sleep) as places:
        assert places.workers == 3
        assert places.wait_for(["c", "a", "b"]) == [2, 3, 1]


def test_places_are_refused_with_a_hint_when_the_log_never_tells(path: Path) -> None:
    """Who waits for a login that is left out of the log learns of it after a while."""
    time = Time(path=path)
    with (
        Places(path, clock=time.clock, sleep=time.sleep) as places,
        pytest.raises(PlacementError, match=r"where b lives, and 1 more .*flood_per_s"),
    ):
        places.wait_for(["a", "b", "c"])
    assert time.now_s > 5


def test_places_are_refused_when_there_is_no_log(tmp_path: Path) -> None:
    """A wrong path is an error of one line."""
    with pytest.raises(PlacementError, match="No such file"):
        Places(tmp_path / "none")


def test_places_know_one_worker_when_the_gateway_names_no_number(tmp_path: Path) -> None:
    """A gateway without a supervisor says nothing of workers."""
    path = tmp_path / "gateway.log"
    path.write_text(record("gateway.ready", worker=1, listen=[]))
    with Places(path) as places:
        assert places.workers == 1
