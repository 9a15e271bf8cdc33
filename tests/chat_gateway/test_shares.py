"""What part of the gateway's limits each worker has."""

from __future__ import annotations

import os

import pytest

from chat_gateway.reload import changed_keys
from chat_gateway.shares import share_of, worker_count
from tests.chat_gateway.fakes import configured


def test_worker_count_is_that_of_the_usable_processors_when_it_is_auto(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not of all there are: a container or taskset may allow fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    assert worker_count("auto") == 3
    assert worker_count(7) == 7


@pytest.mark.parametrize(
    ("connections", "workers", "share"),
    [(10_000, 2, 6250), (10_000, 3, 4167), (1, 2, 1), (2, 2, 2), (1000, 256, 5), (10, 4, 4)],
)
def test_share_has_a_quarter_more_connections_than_its_even_part(
    connections: int, workers: int, share: int
) -> None:
    """Rounded up, and never more than the gateway has: the kernel does not spread them evenly."""
    config = configured(f"limits.max_connections={connections}")
    assert share_of(config, workers).limits.max_connections == share


def test_shares_of_memory_make_up_the_whole() -> None:
    """The ceiling is a promise for the machine."""
    config = configured("limits.max_buffered_bytes=3000001")
    assert share_of(config, 3).limits.max_buffered_bytes == 1_000_000


def test_share_changes_nothing_else() -> None:
    """What holds for each connection holds in each worker."""
    config = configured("limits.max_recipients=7", "outbox.linger_s=3")
    changed = set(changed_keys(config, share_of(config, 2)))
    assert changed == {"limits.max_connections", "limits.max_buffered_bytes"}


def test_share_is_the_whole_when_there_is_one_worker() -> None:
    """Nobody else is there."""
    config = configured()
    assert share_of(config, 1) is config
