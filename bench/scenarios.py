"""The named loads, what each one shows, and the goal it is held to; data only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.options import LoadOptions


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load; `quick` is the same at a fraction of the time and, where that matters, of the size."""

    name: str
    shows: str
    goal: str
    load: LoadOptions
    quick: LoadOptions


def _scenario(name: str, shows: str, goal: str, load: LoadOptions, quick_idle: int = 0) -> Scenario:
    quick = replace(load, seconds=min(load.seconds, 1.0), idle=min(load.idle, quick_idle))
    return Scenario(name, shows, goal, load, quick)


_SECONDS = 3.0

SCENARIOS = (
    _scenario(
        "burst",
        "throughput when many conversations are busy at once and lines arrive in runs",
        "at least 8 times the baseline's messages/s",
        LoadOptions(pairs=100, window=64, seconds=_SECONDS),
    ),
    _scenario(
        "ping",
        "the time one line takes through an idle server, wake-ups included",
        "p50 no longer than the baseline's",
        LoadOptions(pairs=1, window=1, seconds=_SECONDS),
    ),
    _scenario(
        "fanout",
        "lines to 100 recipients each, encoded once",
        "at least 5 times the baseline's messages/s",
        LoadOptions(pairs=10, fanout=100, window=16, seconds=_SECONDS),
    ),
    _scenario(
        "one-at-a-time",
        "many sessions that each say little, so that no run ever forms",
        "less processor time for each message than the baseline",
        LoadOptions(pairs=1000, rate_per_s=20_000, seconds=_SECONDS),
    ),
    _scenario(
        "idle",
        "memory for sessions that are logged in and silent",
        "at most 3 KiB for each session",
        LoadOptions(pairs=1, rate_per_s=10, idle=5000, seconds=_SECONDS),
        quick_idle=1000,
    ),
    _scenario(
        "mixed",
        "texts of 16 to 2,048 bytes, so that reads end in the middle of a line",
        "at least 3 times the baseline's messages/s",
        LoadOptions(pairs=100, window=64, size=(16, 2048), seconds=_SECONDS),
    ),
)
