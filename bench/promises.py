"""The scenarios that show what slow, dead and hostile peers cost their neighbours, and the goals; data only.

A plan is made for one run: with the bad peers (B) or without them (A). Sizes of the gateway's bounds are
taken from what `chat-gateway check` says of the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.memory import FALLEN_SHARE
from bench.options import LoadOptions
from bench.trial import Peers, Plan, bounds
from bench.verdict import Goal

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
_MIB, _MS = 1 / MIB, 1e-3  # for figures in bytes and in microseconds

CAPACITY_LOAD = LoadOptions(pairs=500, window=1, seconds=4.0)
"""What capacity is measured with: every session has one line under way, so no run ever forms."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the scenarios are; `seconds` is None for each one's own time."""

    capacity_per_s: float
    seconds: float | None = None
    is_quick: bool = False

    def seconds_or(self, full_s: float, quick_s: float) -> float:
        """The time asked for, or the scenario's own."""
        return self.seconds or (quick_s if self.is_quick else full_s)

    def share(self, number: int, quick_share: float) -> int:
        """A number of peers or cycles, or a share of it."""
        return max(int(number * quick_share), 1) if self.is_quick else number


@dataclass(frozen=True, slots=True)
class Trials:
    """What a scenario runs, and what the figures are held to; `alone` is None where nothing is compared."""

    beside: Plan
    alone: Plan | None
    goals: tuple[Goal, ...]


@dataclass(frozen=True, slots=True)
class Promise:
    """One scenario; `make` gets the scale and, if it `asks`, the figures of a first run of `beside`."""

    name: str
    shows: str
    make: Callable[[Scale, dict[str, Any] | None], Trials]
    asks: bool = False


_UNHARMED = (
    Goal("p99 of the healthy, ms", "p99_us", "<=", 1.2, is_ratio=True, is_timing=True, scale=_MS),
    Goal("messages/s of the healthy", "delivered_per_s", ">=", 0.9, is_ratio=True, is_timing=True),
    Goal("lost, changed or refused of the healthy", "healthy_faults", "==", ""),
)
_SOUND = (
    Goal("metrics records whose sum does not hold", "unbalanced", "==", 0),
    Goal("exit status of the gateway", "server_exit_status", "==", 0),
)


def _stuck(scale: Scale, seconds: float, options: dict[str, Any], settings: tuple[str, ...]) -> Trials:
    """Stuck recipients beside 500 pairs; the ladder is shortened with the time, so that it is seen whole."""
    short = min(seconds / 60.0, 1.0)
    ladder = {"evict_after_s": 30.0 * short, "write_timeout_s": 5.0 * short, "linger_s": 2.0 * short}
    settings += (f"breaker.reset_timeout_s={5 * short}", *(f"outbox.{key}={ladder[key]}" for key in ladder))
    found = bounds(settings).config
    healthy = LoadOptions(pairs=500, rate_per_s=max(scale.capacity_per_s / 2, 500.0), seconds=seconds)
    each_bytes = found["outbox"]["max_outbox_bytes"] + found["limits"]["max_inflight_bytes"]
    # From the first message on: the kernel's buffers fill until the first look at most, then the ladder's
    # time, then the wait for a peer that may still read why it is closed; and two seconds of slack.
    in_time_s = sum(ladder.values()) + 2.0
    alone = Plan(settings, healthy)
    recipients = options["recipients"]
    goals = (
        *_UNHARMED,
        Goal("memory growth, MiB", "growth_bytes", "<=", recipients * each_bytes + 16 * MIB, scale=_MIB),
        Goal("growth in the second half, MiB", "late_growth_bytes", "<=", 4 * MIB, scale=_MIB),
        Goal("sessions stalled at some time", "sessions_stalled_peak", ">=", 1),
        Goal("closed with reason slow_consumer", "records_of_slow_consumers", "==", recipients),
        Goal("last one closed after, s", "evicted_last_s", "<=", in_time_s),
        Goal("breakers opened", "breakers_opened", ">=", recipients),
        Goal("stuck senders that were closed", "stuck.lost_senders", "==", 0),
        *_SOUND,
    )
    return Trials(replace(alone, peers=(Peers("stuck", {**options, "seconds": seconds}),)), alone, goals)


def _make_stuck(scale: Scale, _: object) -> Trials:
    options = {"senders": 200, "recipients": 200, "rate_per_s": 20_000.0, "text_bytes": 1024}
    return _stuck(scale, scale.seconds_or(60.0, 12.0), options, ())


def _make_permits(scale: Scale, _: object) -> Trials:
    concurrency = 8
    peers = 5 * concurrency
    options = {"senders": peers, "recipients": peers, "rate_per_s": 20_000.0, "text_bytes": 1024}
    settings = (f"stages.deliver.concurrency={concurrency}",)
    return _stuck(scale, scale.seconds_or(20.0, 8.0), options, settings)


def _make_flood(_scale: Scale, first: dict[str, Any] | None) -> Trials:
    """Beside: one client that floods. Alone: as many messages in the same time, spread over 50 clients."""
    messages = 1_000_000
    rate_per_s = first["flood.rate_per_s"] if first else 500_000.0
    # The others are measured, which is the last four fifths, while the flood lasts.
    seconds = 0.9 * messages / rate_per_s / 0.8
    options = {"messages": messages, "delay_s": max(0.2 * seconds - 0.3, 0.0)}
    spread = options | {"clients": 50, "rate_per_s": rate_per_s}
    others = LoadOptions(pairs=50, rate_per_s=1000.0, seconds=seconds)
    goals = (
        Goal("p99 of the others, ms", "p99_us", "<=", 3.0, is_ratio=True, is_timing=True, scale=_MS),
        Goal("messages/s beside them", "flood.rate_per_s", "<=", 1.2, is_ratio=True, is_timing=True),
        Goal("lost, changed or refused of the others", "healthy_faults", "==", ""),
        Goal("lost, changed or refused of the flood", "flood.faults", "==", 0),
        *_SOUND,
    )
    return Trials(
        Plan(healthy=others, peers=(Peers("flood", options),)),
        Plan(healthy=others, peers=(Peers("flood", spread),)),
        goals,
    )


def _make_fairness(scale: Scale, _: object) -> Trials:
    equals = LoadOptions(pairs=50, window=64, seconds=scale.seconds_or(5.0, 2.0))
    goals = (
        Goal("fairness among equals (Jain)", "fairness", ">=", 0.95),
        Goal("lost, changed or refused", "healthy_faults", "==", ""),
        *_SOUND,
    )
    return Trials(Plan(healthy=equals), None, goals)


def _make_slow_login(scale: Scale, _: object) -> Trials:
    timeout_s = min(scale.seconds_or(10.0, 4.0), 10.0)
    settings = (f"limits.login_timeout_s={timeout_s}",)
    probe = Peers("probe", {"seconds": timeout_s + 2.0})
    drip = Peers("drip", {"connections": scale.share(5000, 0.4), "seconds": timeout_s + 10.0})
    goals = (
        Goal("new login, p99, ms", "probe.p99_us", "<=", 100_000, is_timing=True, scale=_MS),
        Goal("first closed after, s", "drip.closed_first_s", ">=", timeout_s - 1),
        Goal("last closed after, s", "drip.closed_last_s", "<=", timeout_s + 1),
        Goal("not closed", "drip.not_closed", "==", 0),
        Goal("not told why", "drip.not_told", "==", 0),
        *_SOUND,
    )
    return Trials(Plan(settings, peers=(drip, probe)), Plan(settings, peers=(probe,)), goals)


def _make_no_line_end(scale: Scale, _: object) -> Trials:
    connections = 100
    found = bounds(())
    bound = connections * found.parts_bytes["unfinished line"]
    # What a closed connection may still send before it is cut off, and what the kernel holds on both sides.
    taken = found.config["limits"]["max_line_bytes"] + MIB + 8 * MIB
    endless = Peers("endless", {"connections": connections})
    healthy = LoadOptions(pairs=50, rate_per_s=1000.0, seconds=scale.seconds_or(5.0, 3.0))
    warm_up = (Peers("endless", {"connections": 10}),)
    alone = Plan(healthy=healthy, warm_up=warm_up)
    goals = (
        Goal("memory growth, MiB", "growth_bytes", "<", bound + 2 * MIB, scale=_MIB),
        Goal("not closed", "endless.not_closed", "==", 0),
        Goal("not told line-too-long", "endless.not_told", "==", 0),
        Goal("most that one could push, MiB", "endless.pushed_most_bytes", "<=", taken, scale=_MIB),
        Goal("lost, changed or refused of the healthy", "healthy_faults", "==", ""),
        *_SOUND,
    )
    return Trials(replace(alone, peers=(endless,)), alone, goals)


def _make_churn(scale: Scale, _: object) -> Trials:
    visits = scale.share(200_000, 0.05)
    plan = Plan(
        ("log.flood_per_s=10",),  # the limit remembers so many records of each kind, which is memory
        peers=(Peers("visits", {"visits": visits}),),
        warm_up=(Peers("visits", {"visits": 5000}),),
        watch_s=5.0,
    )
    goals = (
        Goal("logins that were let in", "logins", "==", visits + 5000),
        Goal("more open files than before", "left_files", "==", 0),
        Goal("sessions left", "left_sessions", "==", 0),
        Goal("connections left", "left_connections", "==", 0),
        Goal("more memory than before, MiB", "left_growth_bytes", "<=", 2 * MIB, scale=_MIB),
        *_SOUND,
    )
    return Trials(plan, None, goals)


def _make_overload(scale: Scale, first: dict[str, Any] | None) -> Trials:
    """The first run measures what this load's own capacity is; the others are at three times that."""
    pairs, stuck, ceiling = 200, 200, 32 * MIB
    seconds = scale.seconds_or(10.0, 5.0)
    settings = (f"limits.max_buffered_bytes={ceiling}", f"limits.max_connections={2 * (pairs + stuck) + 16}")
    found = bounds(settings)
    load = LoadOptions(pairs=pairs, window=16, size=(1024, 1024), seconds=3.0, drain_s=20.0)
    plan = Plan(settings, load)
    if first is not None:
        load = replace(load, rate_per_s=3 * first["delivered_per_s"], seconds=seconds)
        options = {"senders": stuck, "recipients": stuck, "burst": 10, "seconds": seconds + 2}
        plan = Plan(settings, load, (Peers("stuck", options),), watch_s=60.0)
    needs = ("buffered_bytes_peak", 0.8 * ceiling)  # or there was no overload
    goals = (
        Goal("counted bytes at most, MiB", "buffered_bytes_peak", "<=", ceiling, scale=_MIB, needs=needs),
        Goal("memory growth, MiB", "growth_bytes", "<=", found.total_bytes, scale=_MIB, needs=needs),
        Goal("counted bytes afterwards", "buffered_bytes_last", "==", 0, needs=needs),
        Goal("share of the rise given back in 60 s", "fallen_share", ">=", FALLEN_SHARE, needs=needs),
        Goal("lost, changed or refused of the load", "healthy_faults", "==", ""),
        *_SOUND,
    )
    return Trials(plan, None, goals)


def _make_bad_lines(scale: Scale, _: object) -> Trials:
    seconds = scale.seconds_or(10.0, 4.0)
    # Whoever sends bad lines is slowed down by default; the log has to hold also where that is off.
    settings = ("log.flood_per_s=10", "limits.refused_per_s=0")
    healthy = LoadOptions(pairs=100, rate_per_s=2000.0, seconds=seconds)
    bad = Peers("bad_lines", {"seconds": seconds})
    goals = (
        Goal("bad lines/s sent", "bad_lines.lines_per_s", ">=", 95_000, is_timing=True),
        Goal("log lines in any second", "log_lines_per_s_most", "<=", 100),
        Goal("records that the log says are left out", "log_left_out", ">=", 1),
        Goal("sessions closed for bad lines", "bad_lines.lost_sessions", "==", 0),
        Goal("lost, changed or refused of the healthy", "healthy_faults", "==", ""),
        *_SOUND,
    )
    return Trials(Plan(settings, healthy, (bad,)), Plan(settings, healthy), goals)


PROMISES = (
    Promise("stuck", "200 recipients that never read, 200 senders that push at them", _make_stuck),
    Promise("permits", "more stuck senders than twice the deliver stage's concurrency", _make_permits),
    Promise("flood", "one client that pushes a million messages back to back", _make_flood, asks=True),
    Promise("fairness", "50 equal senders that send as fast as they are answered", _make_fairness),
    Promise("slow-login", "5,000 connections that send a byte a second and never log in", _make_slow_login),
    Promise("no-line-end", "100 connections that push 100 MB each without a line end", _make_no_line_end),
    Promise("churn", "200,000 cycles of connect, login and leave", _make_churn),
    Promise("overload", "three times the capacity, recipients that never read", _make_overload, asks=True),
    Promise("bad-lines", "100,000 lines a second that are no messages, and bad logins", _make_bad_lines),
)
