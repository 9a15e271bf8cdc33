"""Specification of bench.promises, bench.trial and bench.bad_peers: one very small run with everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bench.bad_peers import KINDS
from bench.options import LoadOptions
from bench.promises import PROMISES, Promise, Scale
from bench.trial import Peers, Plan, run_trial

if TYPE_CHECKING:
    from bench.report import Figures

TINY: dict[str, dict[str, Any]] = {
    "stuck": {"senders": 2, "recipients": 1, "rate_per_s": 2000.0, "seconds": 3.0},
    "drip": {"connections": 5, "seconds": 5.0},
    "endless": {"connections": 4, "seconds": 5.0},
    "bad_lines": {"sessions": 4, "rate_per_s": 2000.0, "bad_logins_per_s": 20.0, "seconds": 1.0},
    "visits": {"visits": 50},
    "probe": {"seconds": 1.0},
    "flood": {"messages": 20_000},
}
LADDER = {"write_timeout_s": 0.3, "evict_after_s": 1.5, "linger_s": 0.2}
SETTINGS = (
    "limits.login_timeout_s=1.5",
    "limits.refused_per_s=0",
    *(f"outbox.{key}={value}" for key, value in LADDER.items()),
)
SCALE = Scale(capacity_per_s=10_000.0, is_quick=True)


@pytest.fixture(scope="module")
def figures() -> Figures:
    """Figures of a run in which all kinds of peers are beside a small load."""
    healthy = LoadOptions(pairs=3, rate_per_s=100, seconds=2.0)
    found = run_trial(Plan(SETTINGS, healthy, tuple(Peers(kind, TINY[kind]) for kind in KINDS)))
    assert "error" not in found
    return found


def test_peers_do_what_they_are_for_when_all_run_beside_a_load(figures: Figures) -> None:
    """Each kind reaches the gateway, is met with what the protocol says, and harms nobody."""
    assert figures["healthy_faults"] == ""
    assert (figures["drip.not_closed"], figures["drip.not_told"]) == (0, 0)
    assert 1.0 < figures["drip.closed_first_s"] <= figures["drip.closed_last_s"]
    assert (figures["endless.not_closed"], figures["endless.not_told"]) == (0, 0)
    assert figures["records_of_slow_consumers"] == figures["evictions"] == 1
    assert figures["evicted_last_s"] > LADDER["evict_after_s"]
    assert figures["sessions_stalled_peak"] >= 1
    assert figures["bad_lines"] > 1000
    assert (figures["bad_lines.lost_sessions"], figures["stuck.lost_senders"]) == (0, 0)
    assert (figures["flood.faults"], figures["visits.answered"]) == (0, 0)
    visits, probes, load, stuck, endless, bad_lines, flood = 50, 50, 6, 3, 2, 4, 2
    assert figures["logins"] == visits + probes + load + stuck + endless + bad_lines + flood
    assert (figures["left_sessions"], figures["unbalanced"], figures["server_exit_status"]) == (0, 0, 0)


@pytest.mark.parametrize("promise", PROMISES, ids=[promise.name for promise in PROMISES])
def test_promise_is_held_to_figures_that_a_run_gives(promise: Promise, figures: Figures) -> None:
    """No goal asks for a figure under another name than the run gives it, and no name is used twice."""
    trials = promise.make(SCALE, None)
    assert {goal.key for goal in trials.goals} <= set(figures)
    assert len({goal.shows for goal in trials.goals}) == len(trials.goals)
    for plan in filter(None, (trials.beside, trials.alone)):
        for peers in (*plan.peers, *plan.warm_up):
            KINDS[peers.kind][0](address=("127.0.0.1", 1), **peers.options)  # it has such options


def test_run_gives_an_error_when_peers_cannot_do_what_they_should() -> None:
    """A scenario that could not be made is never taken for one without faults."""
    settings = ("limits.max_connections=1", "limits.at_limit=busy")
    found = run_trial(Plan(settings, LoadOptions(pairs=2, seconds=0.5)))
    assert set(found) == {"error"}
