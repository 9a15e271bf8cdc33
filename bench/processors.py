"""Which processors a gateway and its clients run on; nothing is measured of how the system deals them out.

A client that plays a bad peer is to cost the gateway what it sends, not the processor that the gateway runs
on: elsewhere, where such peers are, they have processors of their own.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Processors:
    """Numbers of processors; both have all of them where there is only one."""

    server: frozenset[int]
    clients: frozenset[int]


def deal_out(processors: frozenset[int]) -> Processors:
    """One for a gateway of one worker, the lowest, and the others for all of its clients."""
    lowest = frozenset({min(processors)})
    return Processors(lowest, processors - lowest or lowest)


def available() -> frozenset[int]:
    """What this thread may run on."""
    return frozenset(os.sched_getaffinity(0))


@contextlib.contextmanager
def running_on(processors: frozenset[int]) -> Iterator[None]:
    """Run this thread there, and what it starts meanwhile."""
    before = available()
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
