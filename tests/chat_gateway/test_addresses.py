"""Limits for each address: at the same time, and new ones a second, by a clock that the test turns."""

from __future__ import annotations

import pytest

from chat_gateway import addresses as module
from chat_gateway.addresses import Addresses
from tests.chat_gateway.fakes import configured

ONE, TWO = "192.0.2.1", "192.0.2.2"
PACED = ("limits.new_connections_per_s=2", "limits.new_connections_burst=3", "limits.login_timeout_s=2")


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _addresses(*sets: str, clock: _Clock | None = None) -> Addresses:
    return Addresses(configured(*sets).limits, clock or _Clock())


def _enter_all(table: Addresses, address: str, count: int) -> list[tuple[bool, float]]:
    return [table.enter(address) for _ in range(count)]


def test_addresses_turn_away_when_one_has_too_many_at_once() -> None:
    """The limit is for each address, and a connection that ended, kept or not, makes room again."""
    table = _addresses("limits.connections_per_address=2")
    assert _enter_all(table, ONE, 3) == [(True, 0.0), (True, 0.0), (False, 0.0)]
    assert table.enter(TWO) == (True, 0.0)
    table.leave(ONE)  # the one that was turned away
    assert table.enter(ONE) == (False, 0.0)
    table.leave(ONE)
    table.leave(ONE)
    assert table.enter(ONE) == (True, 0.0)


def test_addresses_remember_nothing_when_all_have_left() -> None:
    """Without a rate there is nothing to remember of an address without connections."""
    table = _addresses("limits.connections_per_address=2")
    _enter_all(table, ONE, 3)
    assert len(table) == 1
    for _ in range(3):
        table.leave(ONE)
    assert len(table) == 0


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"], ids=["first", "other", "six", "mapped"]
)
def test_addresses_exempt_loopback_when_not_told_otherwise(address: str) -> None:
    """Every spelling of this machine is free, unless it shall be limited too."""
    free = _addresses("limits.connections_per_address=1")
    assert _enter_all(free, address, 3) == [(True, 0.0)] * 3
    free.leave(address)
    assert len(free) == 0
    strict = _addresses("limits.connections_per_address=1", "limits.limit_loopback=true")
    assert _enter_all(strict, address, 2) == [(True, 0.0), (False, 0.0)]


@pytest.mark.parametrize("address", ["2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1"])
def test_addresses_limit_every_other_kind_of_address(address: str) -> None:
    """An address of IPv6 is limited as well, also with a scope."""
    table = _addresses("limits.connections_per_address=1")
    assert _enter_all(table, address, 2) == [(True, 0.0), (False, 0.0)]


def test_addresses_count_one_host_once_when_it_comes_through_both_kinds_of_listeners() -> None:
    """An address of IPv4 that is mapped into IPv6 is the same address."""
    table = _addresses("limits.connections_per_address=1")
    assert table.enter(ONE) == (True, 0.0)
    assert table.enter(f"::ffff:{ONE}") == (False, 0.0)
    table.leave(f"::ffff:{ONE}")
    table.leave(ONE)
    assert len(table) == 0


def test_addresses_count_a_network_once_when_its_hosts_are_of_ipv6() -> None:
    """Who changes the last 64 bits of its address is the same one; who differs in those before is another."""
    table = _addresses("limits.connections_per_address=2")
    same = ["2001:db8:0:7::1", "2001:db8::7:ffff:ffff:ffff:ffff", "2001:db8:0:7:8000::"]
    assert [table.enter(address) for address in same] == [(True, 0.0), (True, 0.0), (False, 0.0)]
    assert table.enter("2001:db8:0:6:ffff:ffff:ffff:ffff") == (True, 0.0)
    assert table.enter("2001:db8:0:8::1") == (True, 0.0)
    for address in same:
        table.leave(address)
    assert len(table) == 2
    assert table.enter(same[0]) == (True, 0.0)


def test_addresses_of_ipv4_are_not_one_network_when_they_are_mapped() -> None:
    """All of them lie in one /64 of IPv6, but each is a host of its own."""
    table = _addresses("limits.connections_per_address=1")
    for address in (f"::ffff:{ONE}", f"::ffff:{TWO}"):
        assert table.enter(address) == (True, 0.0)
    assert len(table) == 2


def test_addresses_pace_a_network_when_each_connection_has_its_own_address() -> None:
    """The rate of new connections goes by the network as well."""
    table = _addresses(*PACED)
    entered = [table.enter(f"2001:db8::{number:x}") for number in range(5)]
    assert entered == [(True, 0.0)] * 3 + [(True, 0.5), (True, 1.0)]


def test_addresses_look_at_nothing_when_there_is_no_limit() -> None:
    """With both limits at 0 nothing is counted."""
    table = _addresses("limits.connections_per_address=0")
    assert _enter_all(table, ONE, 100) == [(True, 0.0)] * 100
    assert len(table) == 0
    table.leave(ONE)


def test_addresses_delay_the_next_when_the_burst_is_over() -> None:
    """Connections beyond the rate are not read for a while, each for longer; time makes up for it."""
    clock = _Clock()
    table = _addresses(*PACED, clock=clock)
    assert _enter_all(table, ONE, 5) == [(True, 0.0)] * 3 + [(True, 0.5), (True, 1.0)]
    assert table.enter(TWO) == (True, 0.0)
    clock.now = 1.5
    assert table.enter(ONE) == (True, 0.0)
    assert table.enter(ONE) == (True, 0.5)


def test_addresses_remember_the_rate_when_all_connections_have_left() -> None:
    """Coming again and again is what the rate is about, so leaving does not reset it."""
    table = _addresses(*PACED)
    for delay_s in (0.0, 0.0, 0.0, 0.5):
        assert table.enter(ONE) == (True, delay_s)
        table.leave(ONE)
    assert len(table) == 1


def test_addresses_turn_away_when_the_delay_would_outlast_the_time_to_log_in() -> None:
    """Who would not be read in time is told at once, and a flood leaves no debt for those who come later."""
    clock = _Clock()
    table = _addresses(*PACED, clock=clock)
    entered = _enter_all(table, ONE, 10_000)
    assert entered[:7] == [(True, delay_s) for delay_s in (0.0, 0.0, 0.0, 0.5, 1.0, 1.5)] + [(False, 0.0)]
    assert set(entered[7:]) == {(False, 0.0)}
    clock.now = 2.0
    assert table.enter(ONE) == (False, 0.0)  # 64 at once are too many as well
    for _ in range(10_001):
        table.leave(ONE)
    assert table.enter(ONE) == (True, 0.0)


def test_addresses_take_nothing_from_the_rate_when_too_many_are_there_at_once() -> None:
    """A client that is turned away and tries again does not slow down those behind its address."""
    table = _addresses(*PACED, "limits.connections_per_address=1")
    assert _enter_all(table, ONE, 10) == [(True, 0.0)] + [(False, 0.0)] * 9
    for _ in range(10):
        table.leave(ONE)
    assert _enter_all(table, ONE, 1) == [(True, 0.0)]


def test_addresses_forget_the_longest_unused_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is bounded by the connections there are and a number of idle addresses."""
    monkeypatch.setattr(module, "_MAX_IDLE", 3)
    table = _addresses("limits.new_connections_per_s=1", "limits.new_connections_burst=1")
    names = [f"192.0.2.{number}" for number in range(10)]
    for name in names:
        assert table.enter(name) == (True, 0.0)
    assert len(table) == 10
    for name in names[:4]:
        table.leave(name)
    assert len(table) == 9
    assert table.enter(names[1]) == (True, 1.0)  # remembered, and used again
    table.leave(names[1])
    for name in names[4:]:
        table.leave(name)
    assert len(table) == 3
    assert table.enter(names[0]) == (True, 0.0)  # forgotten: as new


def test_addresses_forget_none_that_is_in_use_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that came back is not among the idle ones, however many of these come after it."""
    monkeypatch.setattr(module, "_MAX_IDLE", 3)
    table = _addresses("limits.new_connections_per_s=1", "limits.connections_per_address=1")
    table.enter(ONE)
    table.leave(ONE)
    table.enter(ONE)
    for number in range(10, 20):
        table.enter(f"192.0.2.{number}")
        table.leave(f"192.0.2.{number}")
    assert table.enter(ONE) == (False, 0.0)
    assert len(table) == 4


def test_addresses_change_nothing_when_one_leaves_that_was_never_counted() -> None:
    """A connection that failed while it was made leaves as all do."""
    table = _addresses()
    table.leave(ONE)
    assert len(table) == 0


def test_addresses_are_bounded_when_ever_new_ones_come() -> None:
    """The real bound holds for a stranger with a whole network."""
    table = _addresses("limits.new_connections_per_s=1")
    for number in range(module._MAX_IDLE + 100):
        address = f"2001:db8:0:{number:x}::1"
        table.enter(address)
        table.leave(address)
    assert len(table) == module._MAX_IDLE
