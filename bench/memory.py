"""What the course of a gateway's memory says; samples in, figures out, no processes and no clock.

A sample is (seconds of one monotonic clock, resident bytes), in the order of time.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Sample = tuple[float, int]

_PART = re.compile(r"^# +(\S.*?)  +\S+ \S+ +\((\d+) bytes\)", re.MULTILINE)
FALLEN_SHARE = 0.75  # of a rise: given back when so much of it is


@dataclass(frozen=True, slots=True)
class Bounds:
    """What `chat-gateway check` says: the configuration in effect, and the parts of the memory bound."""

    config: dict[str, Any]
    parts_bytes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The most memory that messages can take."""
        return self.parts_bytes["in all"]


def parse_check(report: str) -> Bounds:
    """Read the report, which is TOML with the bound in its comments.

    Raises:
        ValueError: it has no bound.
    """
    parts = {name: int(size) for name, size in _PART.findall(report)}
    if "in all" not in parts:
        raise ValueError("`chat-gateway check` printed no bound")
    return Bounds(tomllib.loads(report), parts)


def peak_bytes(samples: Sequence[Sample]) -> int:
    """The most that was resident; 0 without samples."""
    return max((resident for _, resident in samples), default=0)


def late_growth_bytes(samples: Sequence[Sample]) -> int:
    """How far the second half of the time rose above the peak of the first; 0 when memory stays."""
    if not samples:
        return 0
    middle_s = (samples[0][0] + samples[-1][0]) / 2
    first = peak_bytes([sample for sample in samples if sample[0] <= middle_s])
    second = peak_bytes([sample for sample in samples if sample[0] > middle_s])
    return max(second - first, 0)


def fallen_share(samples: Sequence[Sample], before_bytes: int, peak: int) -> float | None:
    """Which share of the rise was given back by the last sample; None without samples or a rise."""
    if not samples or peak <= before_bytes:
        return None
    return round((peak - samples[-1][1]) / (peak - before_bytes), 3)


def fallen_after_s(samples: Sequence[Sample], before_bytes: int, peak: int) -> float | None:
    """Seconds from the first sample until three quarters of the rise were given back; None if never."""
    wanted = peak - FALLEN_SHARE * (peak - before_bytes)
    for at_s, resident in samples:
        if resident <= wanted:
            return at_s - samples[0][0]
    return None
