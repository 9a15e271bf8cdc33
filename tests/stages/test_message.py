"""Runs, batches and the account of their copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.message import ENTRY_BYTES, Batch, Block, Ledger, Message, Refusal, Run
from tests.stages.fakes import FakeSender, run_of


def test_run_yields_its_messages_when_asked() -> None:
    """One message for each text, empty ones and ones with odd separators included."""
    run = Run(("bob", "eve"), "hi\n\na\u2028b\n".encode(), 3)
    assert list(run.messages()) == [
        Message(("bob", "eve"), "hi"),
        Message(("bob", "eve"), ""),
        Message(("bob", "eve"), "a\u2028b"),
    ]
    assert run.encoded is None


def test_batch_accepts_its_copies_when_made() -> None:
    """Each message counts once for each recipient."""
    ledger, sender = Ledger(), FakeSender()
    batch = Batch(
        sender, [run_of("bob", "1", "2"), run_of("bob eve", "3")], messages=4, nbytes=30, ledger=ledger
    )
    assert (batch.copies, batch.pending) == (4, 4)
    assert (ledger.accepted, ledger.in_flight) == (4, 4)
    assert ledger.is_balanced
    assert sender.given_back == []


def test_batch_gives_credit_back_once_when_its_last_copy_ends() -> None:
    """Credit is held until every copy has an outcome, and returned as it was taken."""
    ledger, sender = Ledger(), FakeSender()
    batch = Batch(sender, [run_of("bob eve", "1", "2")], messages=5, nbytes=30, ledger=ledger)
    ledger.delivered += 3
    batch.resolve(3)
    assert sender.given_back == []
    batch.refuse(1, Refusal.GONE, "eve")
    assert sender.given_back == [(5, 30)]
    assert ledger.in_flight == 0
    assert ledger.is_balanced


def test_batch_gives_credit_back_once_when_it_is_returned_early() -> None:
    """Credit may come back before the last copy has ended, and then not again."""
    ledger, sender = Ledger(), FakeSender()
    batch = Batch(sender, [run_of("bob", "1")], messages=1, nbytes=30, ledger=ledger)
    assert ledger.buffered_bytes == 30
    batch.return_credit()
    batch.return_credit()
    assert (sender.given_back, ledger.buffered_bytes, ledger.in_flight) == ([(1, 30)], 30, 1)
    batch.refuse(1, Refusal.GONE, "bob")
    assert (sender.given_back, ledger.buffered_bytes, ledger.in_flight) == ([(1, 30)], 0, 0)


def test_batch_counts_what_it_is_instead_of_its_block_when_made() -> None:
    """What the block counted was the most it could be; entries beside others count on their own."""
    ledger, sender = Ledger(), FakeSender()
    ledger.buffered_bytes = 1030
    one = Batch(sender, [run_of("bob", "1")], messages=1, nbytes=30, ledger=ledger, counted_bytes=1000)
    assert (one.memory_bytes, ledger.buffered_bytes) == (30, 60)
    runs = [run_of("bob", "1"), run_of("bob eve", "2", "3")]
    more = Batch(sender, runs, messages=3, nbytes=30, ledger=ledger, counted_bytes=30)
    assert (more.memory_bytes, ledger.buffered_bytes) == (30 + 3 * ENTRY_BYTES, 60 + 3 * ENTRY_BYTES)
    for batch in (one, more):
        batch.refuse(batch.pending, Refusal.GONE, "bob")
    assert ledger.buffered_bytes == 0


def test_block_gives_everything_back_when_it_is_discarded() -> None:
    """It counts no longer before its sender is told, which may then read on."""
    ledger, sender = Ledger(), FakeSender()
    ledger.buffered_bytes = 100
    counted_then: list[int] = []
    sender.give_back = lambda *_: counted_then.append(ledger.buffered_bytes)  # type: ignore[method-assign]
    Block(sender, b"x\n", 1, 30, 80).discard(ledger)
    assert (counted_then, ledger.buffered_bytes, sender.settled) == ([20], 20, 1)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (Refusal.UNKNOWN, "unknown-recipient"),
        *((reason, "refused") for reason in (Refusal.FULL, Refusal.BREAKER_OPEN, Refusal.GONE)),
        *((reason, "refused") for reason in (Refusal.SHUTDOWN, Refusal.TIMEOUT, Refusal.ERROR)),
    ],
)
def test_batch_tells_its_sender_when_copies_are_refused(reason: str, word: str) -> None:
    """A refusal is counted under its reason and told with the recipient's name."""
    ledger, sender = Ledger(), FakeSender()
    batch = Batch(sender, [run_of("bob", "1", "2", "3")], messages=3, nbytes=9, ledger=ledger)
    batch.refuse(2, reason, "bob")
    assert sender.notices == [(word, reason, "bob", 2)]
    assert ledger.refused == {reason: 2}
    assert batch.pending == 1
    assert ledger.is_balanced


def test_ledger_is_not_balanced_when_a_copy_is_lost_or_counted_twice() -> None:
    """The sum is checked against a count of its own, so a slip of any term shows."""
    for term in ("accepted", "delivered", "stored", "in_flight"):
        ledger = Ledger()
        assert ledger.is_balanced
        setattr(ledger, term, 1)
        assert not ledger.is_balanced
    ledger = Ledger()
    assert ledger.is_balanced
    ledger.refused["full"] += 1
    assert not ledger.is_balanced


_ENDS = st.tuples(st.integers(1, 4), st.sampled_from(["delivered", "stored", "full", "gone"]))


@given(st.lists(_ENDS, max_size=9))
def test_ledger_is_balanced_when_copies_end_in_any_way(ends: list[tuple[int, str]]) -> None:
    """After every step the sum holds, and credit comes back with the last copy only."""
    ledger, sender = Ledger(), FakeSender()
    copies = sum(count for count, _ in ends) + 1
    batch = Batch(sender, [run_of("bob", *"x" * copies)], messages=copies, nbytes=1, ledger=ledger)
    for count, how in [*ends, (1, "delivered")]:
        assert not sender.given_back
        if how in ("delivered", "stored"):
            setattr(ledger, how, getattr(ledger, how) + count)
            batch.resolve(count)
        else:
            batch.refuse(count, how, "bob")
        assert ledger.is_balanced
    assert ledger.in_flight == 0
    assert sender.given_back == [(copies, 1)]
