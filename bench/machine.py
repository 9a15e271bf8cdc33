"""Who else used this machine while something was measured: other programs, and its host.

Linux only: /proc/stat. Where the machine is a virtual one, its host may run others on the processors
meanwhile ("steal"). Whatever was to be done then waits, so a little of it decides about all the longest
times.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from bench.report import Figures

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class MachineWatch:
    """What was used from its making on; holds nothing."""

    __slots__ = ("_begun_s", "_busy_s", "_own_s", "_stolen_s")

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._own_s = _own_cpu_s()
        self._busy_s, self._stolen_s = parse_stat(Path("/proc/stat").read_text(encoding="ascii"))

    def figures(self) -> Figures:
        """Shares of one core: `others_cpu_share` of programs that are not ours, `stolen_share` of the host.

        Ours are this process and its children that have ended.
        """
        now = type(self)()
        return {
            "others_cpu_share": round(max(self._spent_by_others_s(now), 0.0) / self._took_s(now), 2),
            "stolen_share": round((now._stolen_s - self._stolen_s) / self._took_s(now), 4),
        }

    def _spent_by_others_s(self, now: Self) -> float:
        return (now._busy_s - self._busy_s) - (now._own_s - self._own_s)

    def _took_s(self, now: Self) -> float:
        return max(now._begun_s - self._begun_s, 1e-9)


def parse_stat(text: str) -> tuple[float, float]:
    """Seconds since the machine started, all processors together: not idle, and stolen by the host."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, text.split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S, steal / _TICKS_PER_S


def _own_cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
