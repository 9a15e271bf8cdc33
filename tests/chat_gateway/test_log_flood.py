"""The limit on records that peers can cause: what passes, what is counted, what is reported and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog import DropEvent

from chat_gateway.log_flood import LogFlood


class Flood:
    """A `LogFlood` with a clock that the test moves, and all it let pass and reported."""

    def __init__(self, flood_per_s: int = 10, *, max_keys: int = 4_096) -> None:
        self.now = 1_000.0
        self.reports: list[dict[str, object]] = []
        self.limit = LogFlood(
            flood_per_s,
            clock=lambda: self.now,
            never_limited=frozenset({"metrics"}),
            report=self.reports.append,
            max_keys=max_keys,
        )

    def log(self, event: object = "session.login", **fields: object) -> dict[str, Any] | None:
        """The record as it passes, or None when it is left out."""
        try:
            return dict(self.limit(None, "info", {**fields, "event": event}))
        except DropEvent:
            return None

    def count_passed(self, number: int, **fields: object) -> int:
        return sum(self.log(**fields) is not None for _ in range(number))


def test_flood_leaves_out_what_is_over_the_limit_when_one_key_is_busy() -> None:
    """Of many equal records at one moment, the first `flood_per_s` pass, and the others are counted."""
    flood = Flood()
    assert [flood.log(address="a") is not None for _ in range(15)] == [True] * 10 + [False] * 5
    assert flood.limit.left_out == 5


def test_flood_lets_everything_pass_when_the_rate_is_at_the_limit() -> None:
    """A key that keeps to the limit never loses a record."""
    flood = Flood()
    for _ in range(100):
        assert flood.log(address="a") == {"address": "a", "event": "session.login"}
        flood.now += 0.125


def test_flood_says_how_many_were_left_out_when_the_next_record_passes() -> None:
    """The first record after a gap carries the number, the one after it does not."""
    flood = Flood()
    flood.count_passed(13, address="a")
    flood.now += 1.0
    first, second = flood.log(address="a"), flood.log(address="a")
    assert first is not None
    assert first["left_out"] == 3
    assert second is not None
    assert "left_out" not in second


@pytest.mark.parametrize(
    "other",
    [
        {"address": "b", "reason": "r"},
        {"address": "a", "reason": "s"},
        {"address": "a"},
        {"address": "a", "reason": "r", "event": "session.end"},
    ],
)
def test_flood_limits_keys_apart_when_any_part_differs(other: dict[str, str]) -> None:
    """Event, reason and address make the key."""
    flood = Flood(1)
    assert flood.count_passed(2, address="a", reason="r") == 1
    assert flood.count_passed(2, **other) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"peer": "10.0.0.1:5000"}, {"peer": "10.0.0.1:5001"}),
        ({"peer": "[::1]:5000"}, {"peer": "[::1]:5001"}),
        ({"address": "10.0.0.1"}, {"peer": "10.0.0.1:5001"}),
        ({"address": "10.0.0.1", "login": "x"}, {"address": "10.0.0.1", "login": "y"}),
        ({}, {}),
    ],
)
def test_flood_counts_together_when_the_address_is_the_same(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """A peer's port and all other fields do not matter."""
    flood = Flood(1)
    assert flood.count_passed(1, **one) == 1
    assert flood.count_passed(1, **other) == 0


def test_flood_keeps_hosts_apart_when_only_peers_are_given() -> None:
    """Without an address the host of the peer is the address."""
    flood = Flood(1)
    assert flood.count_passed(1, peer="10.0.0.1:5000") == 1
    assert flood.count_passed(1, peer="10.0.0.2:5000") == 1
    assert flood.count_passed(1, peer="one") == 1
    assert flood.count_passed(1, peer="other") == 1


def test_flood_never_limits_when_the_event_is_exempt() -> None:
    """Events named at the start always pass."""
    flood = Flood(1)
    assert flood.count_passed(50, event="metrics") == 50
    assert flood.limit.left_out == 0


def test_flood_bounds_an_event_when_the_addresses_are_many() -> None:
    """However many addresses there are, an event gets nine tenths of ten times the limit for its records."""
    flood = Flood(10)
    assert sum(flood.count_passed(1, address=str(number)) for number in range(5_000)) == 90
    assert flood.log("session.end", address="x") is not None


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9), st.booleans()), max_size=300),
)
def test_flood_accounts_for_every_record_when_anything_happens(
    flood_per_s: int, steps: list[tuple[int, int, bool]]
) -> None:
    """In no second are there too many lines, and passed, carried and reported counts add up."""
    flood = Flood(flood_per_s, max_keys=4)
    lines: list[tuple[float, str | None]] = []
    carried = 0
    for hundredths, address, is_flushed in steps:
        flood.now += hundredths / 64
        reported = len(flood.reports)
        if is_flushed:
            flood.limit.flush()
        record = flood.log(address=str(address))
        lines += [(flood.now, None)] * (len(flood.reports) - reported)
        if record is not None:
            carried += record.get("left_out", 0)
            lines.append((flood.now, str(address)))
    for start, _ in lines:
        in_second = [name for moment, name in lines if start <= moment < start + 1.0]
        assert len(in_second) <= 10 * flood_per_s
    flood.limit.flush(is_final=True)
    reported = sum(int(str(fields["count"])) for fields in flood.reports)
    passed = sum(name is not None for _, name in lines)
    assert flood.limit.left_out == len(steps) - passed == carried + reported


@given(st.integers(1, 4), st.lists(st.integers(0, 40), max_size=200))
def test_flood_keeps_one_key_within_the_limit_when_time_passes(flood_per_s: int, steps: list[int]) -> None:
    """In any second at most `flood_per_s` records of one key pass, and what could pass does."""
    flood = Flood(flood_per_s)
    passed: list[float] = []
    for sixty_fourths in steps:
        flood.now += sixty_fourths / 64
        expected = sum(flood.now - moment < 1.0 for moment in passed) < flood_per_s
        assert (flood.log(address="a") is not None) == expected
        if expected:
            passed.append(flood.now)


def test_flood_reports_a_count_when_its_key_goes_quiet() -> None:
    """What no later record of the key tells is reported after a second, with the parts of the key."""
    flood = Flood(1)
    flood.count_passed(4, address="a", reason="full")
    flood.now += 0.5
    flood.limit.flush()
    assert flood.reports == []
    flood.now += 0.5
    flood.limit.flush()
    assert flood.reports == [{"of": "session.login", "count": 3, "reason": "full", "address": "a"}]
    flood.now += 5.0
    flood.limit.flush()
    assert len(flood.reports) == 1


def test_flood_reports_without_the_parts_that_the_records_lacked() -> None:
    """A report names a reason and an address only if there were any."""
    flood = Flood(1)
    flood.count_passed(3)
    flood.limit.flush(is_final=True)
    assert flood.reports == [{"of": "session.login", "count": 2}]


@pytest.mark.parametrize("event", ["session.end", "metrics"])
def test_flood_reports_a_count_when_any_other_record_comes(event: str) -> None:
    """Reports need no timer as long as something is logged."""
    flood = Flood(1)
    flood.count_passed(2, address="a")
    flood.now += 1.0
    flood.log(event)
    assert flood.reports == [{"of": "session.login", "count": 1, "address": "a"}]


def test_flood_reports_everything_when_it_is_closed() -> None:
    """The final flush waits for nothing."""
    flood = Flood(1)
    flood.count_passed(2, address="a")
    flood.limit.flush(is_final=True)
    flood.limit.flush(is_final=True)
    assert flood.reports == [{"of": "session.login", "count": 1, "address": "a"}]


def test_flood_sums_up_when_there_are_many_counts_to_report() -> None:
    """The largest counts are reported one by one, the rest as one sum: reports cannot flood either."""
    flood = Flood(3)
    for number in range(50):
        flood.count_passed(4 + number, address=str(number))
    flood.limit.flush(is_final=True)
    assert len(flood.reports) == 3
    assert flood.reports[0] == {"of": "session.login", "count": 53, "address": "49"}
    assert flood.reports[1] == {"of": "session.login", "count": 52, "address": "48"}
    assert flood.reports[2]["keys"] == 48
    assert sum(int(str(fields["count"])) for fields in flood.reports) == flood.limit.left_out


def test_flood_reports_at_most_once_a_second_when_it_is_asked_often() -> None:
    """A second round of reports waits, however many calls there are."""
    flood = Flood(1)
    flood.count_passed(2, address="a")
    flood.now += 0.75
    flood.count_passed(2, address="b")
    flood.now += 0.25
    flood.limit.flush()
    flood.now += 0.875
    flood.limit.flush()
    assert [fields["address"] for fields in flood.reports] == ["a"]
    flood.now += 0.125
    flood.limit.flush()
    assert [fields["address"] for fields in flood.reports] == ["a", "b"]


def test_flood_reports_during_a_flood_when_many_addresses_take_all_the_room() -> None:
    """A lasting flood from many addresses is reported while it lasts."""
    flood = Flood(10)
    for number in range(2_000):
        flood.now += 1 / 512
        flood.log(address=str(number))
    reported = sum(int(str(fields["count"])) for fields in flood.reports)
    assert reported > flood.limit.left_out / 2
    assert len(flood.reports) <= 40


def test_flood_keeps_the_count_when_a_key_has_to_leave_the_table() -> None:
    """The table is bounded; the key unused longest goes, and its count is reported in a sum."""
    flood = Flood(1, max_keys=2)
    flood.count_passed(4, address="old")
    flood.count_passed(2, address="used")
    flood.log(address="old")
    flood.log(address="new")
    assert len(flood.limit._keys) == 2
    assert flood.log(address="old") is None
    flood.limit.flush(is_final=True)
    assert flood.reports == [
        {"of": "session.login", "count": 1, "keys": 1},
        {"of": "session.login", "count": 5, "address": "old"},
    ]


def test_flood_bounds_its_events_when_somebody_makes_names_up() -> None:
    """Beyond a few hundred names, further ones share one entry, and their counts are not lost."""
    flood = Flood(1, max_keys=8)
    for number in range(2_000):
        flood.count_passed(2, event=f"made.up.{number}")
    assert len(flood.limit._events) <= 257
    flood.limit.flush(is_final=True)
    assert sum(int(str(fields["count"])) for fields in flood.reports) == flood.limit.left_out


class Hostile:
    """A value whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 1}, Hostile(), "x" * 10_000])
def test_flood_lets_a_record_pass_when_its_key_is_made_of_strange_values(value: object) -> None:
    """Any value may stand in any field; long ones are not kept."""
    flood = Flood(2)
    assert flood.log(value, reason=value, address=value) is not None
    assert all(len(part) <= 64 for key in flood.limit._keys for part in key)


def test_flood_refuses_to_start_when_the_limit_is_zero() -> None:
    """A limit below one is a mistake of the configuration."""
    with pytest.raises(ValueError, match="flood_per_s"):
        Flood(0)
