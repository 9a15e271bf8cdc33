"""The named loads, what each one shows, and the goal it is held to; data only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.options import LoadOptions


@dataclass(frozen=True, slots=True)
class Reference:
    """A load that is put on the same server right before the scenario's own, to compare with.

    `figure` is the key of what is compared, `says` has a place for the ratio. With `offered` the scenario's
    own load is an open loop of that many times the messages/s which the reference delivered.
    """

    load: LoadOptions
    figure: str
    says: str
    offered: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load; `quick` is the same at a fraction of the time and, where that matters, of the size."""

    name: str
    shows: str
    goal: str
    load: LoadOptions
    quick: LoadOptions
    reference: Reference | None = None

    def describe(self, load: LoadOptions) -> str:
        """One of its loads in short, for people."""
        if self.reference is None:
            return load.describe()
        text = load.describe()
        if self.reference.offered:  # the rate of the load is only a place for the one that is found
            found = f"{self.reference.offered:g} x the rate of the first"
            text = text.replace(f"rate {load.rate_per_s:g}/s", found)
        return f"first {self.reference.load.describe()}, then {text}"


def _scenario(
    name: str,
    shows: str,
    goal: str,
    load: LoadOptions,
    *,
    quick_idle: int = 0,
    quick_pairs: int = 0,
    reference: Reference | None = None,
) -> Scenario:
    quick = replace(
        load,
        seconds=min(load.seconds, _QUICK_SECONDS),
        idle=min(load.idle, quick_idle),
        pairs=quick_pairs or load.pairs,
    )
    return Scenario(name, shows, goal, load, quick, reference)


_SECONDS = 3.0
_QUICK_SECONDS = 0.5
# Open loops below what any of the servers can do, so that neither is read in runs that the other is not.
_MIXED = LoadOptions(pairs=1000, rate_per_s=10_000, size=(16, 2048), several=5, ragged=1, seconds=_SECONDS)
# The same copies/s, bytes of text in each and connections; further receivers are silent.
_UNMIXED = replace(_MIXED, rate_per_s=12_000, size=(424, 424), every=0, ragged=0)

SCENARIOS = (
    _scenario(
        "burst",
        "throughput when many conversations are busy at once and lines arrive in runs",
        "at least 8 times the baseline's messages/s",
        LoadOptions(pairs=100, window=64, seconds=_SECONDS),
    ),
    _scenario(
        "burst-16",
        "the same with texts of 16 bytes, where the work for each message is all there is",
        "at least 8 times the baseline's messages/s",
        LoadOptions(pairs=100, window=64, size=(16, 16), seconds=_SECONDS),
    ),
    _scenario(
        "burst-512",
        "the same with texts of 512 bytes, where bytes begin to count",
        "at least 4 times the baseline's messages/s",
        LoadOptions(pairs=100, window=64, size=(512, 512), seconds=_SECONDS),
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
        LoadOptions(pairs=1, rate_per_s=10, idle=9000, seconds=_SECONDS),
        quick_idle=1000,
    ),
    _scenario(
        "mixed",
        "texts of all sizes, some to several recipients, and reads that end in the middle of a line",
        "at most 1.3 x the processor time of a load of as many messages and bytes without the mixture",
        _MIXED,
        reference=Reference(_UNMIXED, "cpu_us", "{:.2f} x the cpu us/msg without the mixture"),
    ),
    _scenario(
        "mixed-runs",
        "the same in runs, 64 lines under way each: a line to several is a write more for each of them",
        "at most 1.3 x the processor time of a load of as many messages and bytes without the mixture",
        replace(_MIXED, rate_per_s=0.0, pairs=100),
        reference=Reference(
            replace(_UNMIXED, rate_per_s=0.0, pairs=100), "cpu_us", "{:.2f} x the cpu us/msg without it"
        ),
    ),
    _scenario(
        "overload",
        "twice the messages/s that the server can deliver, offered whatever it does",
        "at least 0.9 of the peak; void where the generator was the limit",
        LoadOptions(pairs=100, rate_per_s=1, tick_s=0.005, drain_s=10.0, seconds=_SECONDS),
        reference=Reference(
            LoadOptions(pairs=100, window=1024), "delivered_per_s", "{:.2f} x the peak", offered=2.0
        ),
    ),
    _scenario(
        "connections",
        "what a message costs on 8,000 connections beside what it costs on 8, at one total rate",
        "none: how much more it is belongs largely to the kernel, as the other servers show",
        LoadOptions(pairs=4000, rate_per_s=10_000, seconds=_SECONDS),
        quick_pairs=500,
        reference=Reference(
            LoadOptions(pairs=4, rate_per_s=10_000), "cpu_us", "{:.2f} x the cpu us/msg of 8 connections"
        ),
    ),
)
