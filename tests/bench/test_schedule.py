"""Specification of bench.schedule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import Histogram
from bench.schedule import Arrivals, BurstLog, OpenLoop


def test_open_loop_releases_each_message_when_it_is_due() -> None:
    """At 10 a second from 100 s on, senders take turns every 0.1 s and nothing is released early."""
    schedule = OpenLoop(10, 3, 100.0)
    assert list(schedule.release(99.9)) == []
    assert list(schedule.release(100.0)) == [(0, 1, 100.0)]
    assert list(schedule.release(100.05)) == []
    assert schedule.next_due_s() == 100.1
    assert list(schedule.release(100.25)) == [(1, 1, 100.1), (2, 1, 100.2)]


def test_open_loop_keeps_the_due_time_when_the_caller_was_late() -> None:
    """A late caller gets what it missed as one burst for each sender, due when its first message was."""
    schedule = OpenLoop(10, 2, 0.0)
    assert list(schedule.release(0.41)) == [(0, 3, 0.0), (1, 2, 0.1)]


def test_open_loop_releases_once_in_a_tick_when_it_has_one() -> None:
    """What came due meanwhile is released together at the end of it, and charged from when it was due."""
    schedule = OpenLoop(10, 2, 0.0, tick_s=1.0)
    assert list(schedule.release(0.05)) == [(0, 1, 0.0)]
    assert list(schedule.release(0.9)) == []
    assert schedule.next_due_s() == 1.05
    assert list(schedule.release(1.06)) == [(1, 5, 0.1), (0, 5, 0.2)]
    slow = OpenLoop(0.1, 1, 0.0, tick_s=1.0)
    assert list(slow.release(0.0)) == [(0, 1, 0.0)]
    assert slow.next_due_s() == 10.0


@given(st.integers(1, 7), st.lists(st.integers(0, 5000), max_size=20))
def test_open_loop_releases_the_rate_when_called_at_any_times(senders: int, times_ms: list[int]) -> None:
    """However it is called, the number released is what is due, spread evenly, with due times in the past."""
    schedule = OpenLoop(50, senders, 0.0)
    per_sender = [0] * senders
    times = [(time_ms + 0.5) / 1e3 for time_ms in sorted(times_ms)]  # half-way: no due time is met exactly
    for now_s in times:
        for index, count, due_s in schedule.release(now_s):
            per_sender[index] += count
            assert due_s <= now_s + 1e-9
    assert sum(per_sender) == (int(times[-1] * 50) + 1 if times else 0)
    assert max(per_sender) - min(per_sender) <= 1


def log_of(*bursts: tuple[int, float]) -> BurstLog:
    """A log with these (end, due time) bursts."""
    log = BurstLog()
    for end, due_s in bursts:
        log.add(end, due_s)
    return log


@given(st.data())
def test_arrivals_charge_each_message_from_its_burst_when_reads_end_anywhere(data: st.DataObject) -> None:
    """However reads cut the bursts, every message is charged once, from the due time of its own burst."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    arrivals = Arrivals(log_of(*((end, -float(i)) for i, end in enumerate(ends))))
    latencies, left = Histogram(), ends[-1]
    while left:
        taken = data.draw(st.integers(1, left))
        arrivals.arrive(taken, 0.0, -1e9, latencies)
        left -= taken
    model = Histogram()
    for i, size in enumerate(sizes):
        model.add(float(i), size)
    assert arrivals.arrived == ends[-1]
    for q in range(21):
        assert latencies.quantile_us(q / 20) == model.quantile_us(q / 20)


def test_arrivals_leave_the_warm_up_out() -> None:
    """Messages due before the measured time are followed but not counted."""
    latencies = Histogram()
    arrivals = Arrivals(log_of((4, 1.0), (6, 2.0)))
    arrivals.arrive(5, 2.5, 2.0, latencies)
    assert (latencies.count, latencies.max_s) == (1, 0.5)


def test_arrivals_charge_the_wait_when_messages_never_came() -> None:
    """What is missing at the end costs the whole time since it was due."""
    latencies = Histogram()
    arrivals = Arrivals(log_of((4, 1.0), (6, 2.0)))
    arrivals.arrive(3, 1.1, 0.0, latencies)
    arrivals.charge_missing(9.0, 0.0, latencies)
    assert (latencies.count, latencies.max_s) == (6, 8.0)


def test_arrivals_do_not_fail_when_more_came_than_was_sent() -> None:
    """A doubled message has no burst to be charged to and is ignored here."""
    latencies = Histogram()
    arrivals = Arrivals(log_of((1, 1.0)))
    arrivals.arrive(3, 2.0, 0.0, latencies)
    arrivals.charge_missing(3.0, 0.0, latencies)
    assert latencies.count == 1
