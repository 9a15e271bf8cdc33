"""Specification of bench.machine."""

from __future__ import annotations

import os

from bench.machine import MachineWatch, parse_stat

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def test_stat_is_read_as_busy_and_stolen_when_the_kernel_tells_both() -> None:
    """Idle time and waiting for disks are neither; guests are counted in user time already."""
    first = "cpu  100 20 30 4000 500 6 7 8 90 10"
    text = f"{first}\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert parse_stat(text) == ((100 + 20 + 30 + 6 + 7) / TICKS_PER_S, 8 / TICKS_PER_S)


def test_watch_tells_what_others_used_when_more_was_used_than_by_this_process() -> None:
    """Its own work is not what others used, and there is something to tell right after it was made."""
    assert MachineWatch().figures().keys() == {"others_cpu_share", "stolen_share"}
    watch = MachineWatch()
    watch._busy_s -= 1e6  # as if the machine had been busy for so long since
    assert watch.figures()["others_cpu_share"] > 1
    watch._own_s -= 2e6  # and this process for longer
    assert watch.figures()["others_cpu_share"] == 0


def test_watch_tells_what_the_host_took() -> None:
    """As a share of one core, for the time since it was made."""
    watch = MachineWatch()
    watch._stolen_s -= 1.0
    watch._begun_s -= 100.0
    assert 0.01 <= watch.figures()["stolen_share"] < 0.02 + 1e-9
