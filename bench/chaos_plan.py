"""What is done to which worker of a chaos run and when: all follows from one seed. No processes, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from bench.stress_plan import Weights

__all__ = ["HANG_TIMEOUT_S", "WEIGHTS", "Blow", "Strike", "make_strikes"]

Blow = Literal["kill", "kill twice", "hang", "pause"]

HANG_TIMEOUT_S: Final = 1.2  # after which the supervisor kills a worker that hangs
_FIRST_S = 1.5  # everybody is logged in by then
_LAST_S = 5.0  # before the end: all is as it was again by then
_BETWEEN_S = (0.4, 2.5)
_PAUSE_S = (0.02, 0.5)  # well below `HANG_TIMEOUT_S`, also on a machine that is busy
_AGAIN_S = (0.0, 0.8)  # from the start of a new worker until it is struck too: before and after it is ready
_BLOWS: dict[Blow, int] = {"kill": 10, "kill twice": 2, "hang": 4, "pause": 5}
_MOST_AT_ONCE = (1, 1, 1, 1, 1, 1, 1, 2, 2, 99)  # workers that are struck together; the last: all of them

# What clients do, which is less wild than in a run without blows: what goes wrong is to come from these.
WEIGHTS: Final[Weights] = {
    "steady": {"send": 20},
    "polite": {"send": 20, "stall": 1, "leave": 1},
    "rude": {"send": 20, "leave": 1, "vanish": 1},
}


@dataclass(frozen=True, slots=True)
class Strike:
    """One blow to one or several workers.

    "kill": it dies at once. "kill twice": so does its successor, soon after it was started. "hang": it stands
    still until it is killed. "pause": it stands still for a while.
    """

    at_s: float  # from the beginning of the run
    blow: Blow
    workers: tuple[int, ...]  # their places, from 1
    seconds: float = 0.0  # pause: how long; kill twice: from the start of the successor to its end


def make_strikes(seed: int, seconds: float, workers: int) -> list[Strike]:
    """The same for the same arguments; none in the last seconds of a run of this length."""
    chance = random.Random(f"strikes {seed}")
    strikes = []
    at_s = _FIRST_S + chance.uniform(*_BETWEEN_S)
    while at_s < seconds - _LAST_S:
        (blow,) = chance.choices(list(_BLOWS), list(_BLOWS.values()))
        count = min(chance.choice(_MOST_AT_ONCE), workers)
        struck = tuple(sorted(chance.sample(range(1, workers + 1), count)))
        spans = {"pause": _PAUSE_S, "kill twice": _AGAIN_S}
        lasts_s = chance.uniform(*spans[blow]) if blow in spans else 0.0
        strikes.append(Strike(at_s, blow, struck, lasts_s))
        at_s += chance.uniform(*_BETWEEN_S)
    return strikes
