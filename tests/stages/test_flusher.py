"""One flush for each touched outbox and turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stages.flusher import Flusher
from stages.message import Ledger
from stages.outbox import Outbox
from tests.stages.fakes import (
    OUTBOX_SETTINGS,
    FakeSender,
    FakeWriter,
    Turns,
    entry_of,
    open_outbox,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_flusher_flushes_the_others_when_one_fails() -> None:
    """An outbox whose writer raises is reported, and its neighbours are flushed all the same."""
    ledger, turns, alice = Ledger(), Turns(), FakeSender()
    ends = [open_outbox(OUTBOX_SETTINGS, ledger, turns) for _ in range(3)]
    ends[1][1].error = OSError("broken")
    for outbox, _ in ends:
        outbox.offer(entry_of(alice, ledger, b"a\n"), is_fanout=False)
    assert len(turns.scheduled) == 1
    turns.end()
    assert [writer.calls for _, writer in ends] == [[b"a\n"], [], [b"a\n"]]
    assert [(outbox, str(error)) for outbox, error in turns.errors] == [(ends[1][0], "broken")]


def test_flusher_schedules_nothing_when_a_flush_is_expected() -> None:
    """Who flushes at the end of its turn anyway saves the call, for that turn only."""
    scheduled: list[Callable[[], None]] = []
    flusher = Flusher(scheduled.append, lambda _outbox, error: pytest.fail(str(error)))
    ledger, alice, writer = Ledger(), FakeSender(), FakeWriter()
    outbox = Outbox(writer, OUTBOX_SETTINGS, ledger, flusher)
    flusher.expect_flush()
    outbox.offer(entry_of(alice, ledger, b"a\n"), is_fanout=False)
    assert scheduled == []
    flusher.flush()
    assert writer.calls == [b"a\n"]
    outbox.offer(entry_of(alice, ledger, b"b\n"), is_fanout=False)
    assert scheduled == [flusher.flush]
