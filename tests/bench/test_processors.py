"""Who runs on which processor: dealt out, kept to, and given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import processors
from bench.processors import Processors

TELLS = "import os; input(); print(sorted(os.sched_getaffinity(0)))"


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


def test_process_is_moved_beside_whoever_started_it() -> None:
    """It does not inherit where it is to run from a thread that runs elsewhere."""
    wanted = frozenset({min(processors.available())})
    with processors.running_on(frozenset({max(processors.available())})):
        process = subprocess.Popen(
            [sys.executable, "-c", TELLS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processors.move(process.pid, wanted)
        out, _ = process.communicate("\n", timeout=60)
    assert out.split() == str(sorted(wanted)).split()
    assert os.sched_getaffinity(0) >= wanted
