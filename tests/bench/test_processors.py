"""Who runs on which processor: dealt out, kept to, and given back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bench import processors, trial
from bench.processors import Processors

if TYPE_CHECKING:
    from bench.report import Figures


@pytest.mark.parametrize(
    ("available", "server", "clients"),
    [({3}, {3}, {3}), ({0, 1}, {0}, {1}), ({5, 2, 7}, {2}, {5, 7})],
)
def test_gateway_gets_a_processor_of_its_own_where_there_are_two(
    available: set[int], server: set[int], clients: set[int]
) -> None:
    """With one processor there is nothing to deal out."""
    dealt = processors.deal_out(frozenset(available))
    assert dealt == Processors(frozenset(server), frozenset(clients))


def test_thread_is_back_where_it_was_also_after_an_error() -> None:
    """What follows a trial is not bound to the processors of its clients."""
    before = processors.available()
    one = frozenset({max(before)})
    seen = []

    def fail() -> None:
        with processors.running_on(one):
            seen.append(processors.available())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert seen == [one]
    assert processors.available() == before


def test_trial_runs_its_gateway_apart_from_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway does not inherit where its clients run."""

    def look(self: trial._Trial) -> Figures:
        return {"gateway": os.sched_getaffinity(self._server.pid), "clients": os.sched_getaffinity(0)}

    monkeypatch.setattr(trial._Trial, "run", look)
    dealt = processors.deal_out(processors.available())
    found = trial.run_trial(trial.Plan())
    assert (found["gateway"], found["clients"]) == (dealt.server, dealt.clients)
