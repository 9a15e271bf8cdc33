"""The deliver stage: encoded once, offered to every outbox, in order and by kind of traffic."""

from __future__ import annotations

import pytest

from stages.deliver import Deliver
from stages.line_codec import LineCodec
from stages.message import Batch, Ledger, Refusal, Run
from stages.outbox import OutboxSettings
from stages.route import Route
from tests.stages.fakes import FakeSender, FakeWriter, Turns, entry_of, open_outbox, run_of


class _World:
    """Outboxes by login behind a route and a deliver stage; counts encodings."""

    def __init__(self, *logins: str, max_outbox_bytes: int = 1000, max_flush_bytes: int = 0) -> None:
        self.ledger = Ledger()
        self.sender = FakeSender()
        self.turns = Turns()
        self.encoded = 0
        flush_bytes = max_flush_bytes or max_outbox_bytes
        settings = OutboxSettings(max_outbox_bytes, max_outbox_bytes - 1, 1, flush_bytes)
        self.ends = {login: open_outbox(settings, self.ledger, self.turns) for login in logins}
        self._deliver = Deliver(self._encode)

    def _encode(self, prefix: bytes, texts: bytes) -> bytes:
        self.encoded += 1
        return LineCodec.encode(prefix, texts)

    def writer(self, login: str) -> FakeWriter:
        return self.ends[login][1]

    def deliver(self, *runs: Run) -> Batch:
        batch = Batch(self.sender, list(runs), messages=len(runs), nbytes=1, ledger=self.ledger)
        routed = Route(lambda login: self.ends[login][0] if login in self.ends else None)(batch)
        assert routed is not None
        self._deliver(routed)
        return batch


def test_deliver_encodes_once_when_there_are_many_recipients() -> None:
    """All recipients share one object, so a fan-out costs one encoding and one copy of the text."""
    world = _World("bob", "eve", "dan")
    world.deliver(run_of("bob eve dan", "hi", "there"))
    world.turns.end()
    assert world.encoded == 1
    first, *others = (world.writer(login).calls[0] for login in ("bob", "eve", "dan"))
    assert first == b"from alice: hi\nfrom alice: there\n"
    assert all(other is first for other in others)
    assert world.ledger.delivered == 6


def test_deliver_keeps_the_order_when_runs_interleave() -> None:
    """What one recipient gets of several runs arrives in the order in which it was said."""
    world = _World("bob", "eve")
    runs = [run_of("bob", "1"), run_of("eve", "2"), run_of("bob eve", "3"), run_of("bob", "4", "5")]
    batch = world.deliver(*runs)
    world.turns.end()
    assert world.writer("bob").written == b"".join(b"from alice: %d\n" % number for number in (1, 3, 4, 5))
    assert world.writer("eve").written == b"from alice: 2\nfrom alice: 3\n"
    assert batch.pending == 0
    messages, nbytes = (sum(part) for part in zip(*world.sender.given_back, strict=True))
    assert (messages, nbytes) == (4, 1)
    assert world.sender.settled == 4


def test_deliver_keeps_the_credit_of_direct_messages_when_a_group_beside_them_must_wait() -> None:
    """What is parked holds its sender, or a client could park without end by reconnecting."""
    world = _World("bob", "eve", max_outbox_bytes=60)
    for login in ("bob", "eve"):
        world.ends[login][0].pause()
    batch = world.deliver(run_of("bob eve", "to both"), run_of("bob", "x" * 20), run_of("bob", "y" * 20))
    assert world.ends["bob"][0].parked_copies == 2
    assert world.sender.given_back == [(1, 0)]  # the message to both
    assert (batch.has_credit, batch.pending, world.sender.settled) == (True, 2, 0)
    assert world.ledger.is_balanced


def test_deliver_joins_runs_when_they_are_of_one_kind() -> None:
    """Neighbouring direct runs to one outbox are one entry, so it is resolved with one call."""
    world = _World("bob", "eve", max_outbox_bytes=1, max_flush_bytes=100)
    world.ends["bob"][0].pause()
    world.deliver(run_of("bob", "1"), run_of("eve", "x"), run_of("bob", "2"))
    world.ends["bob"][0].resume()
    world.turns.end()
    assert world.writer("bob").calls == [b"from alice: 1\nfrom alice: 2\n"]


def test_deliver_shares_one_form_when_several_runs_are_fanned_out() -> None:
    """Runs to several recipients are not joined, so that each recipient's copy is the same object."""
    world = _World("bob", "eve", max_outbox_bytes=15)
    world.deliver(run_of("bob eve", "1"), run_of("eve bob", "2"))
    world.turns.end()
    assert world.encoded == 2
    for ours, theirs in zip(world.writer("bob").calls, world.writer("eve").calls, strict=True):
        assert ours is theirs
    assert world.writer("bob").written == b"from alice: 1\nfrom alice: 2\n"


def test_deliver_tells_kinds_apart_when_a_full_outbox_gets_both() -> None:
    """Direct copies wait and fan-out copies are refused, also when both come in one batch."""
    world = _World("bob", "eve", max_outbox_bytes=1)
    outbox = world.ends["bob"][0]
    outbox.pause()
    outbox.offer(entry_of(FakeSender("zoe"), world.ledger, b"full\n"), is_fanout=False)
    world.deliver(run_of("bob", "1"), run_of("bob eve", "2", "3"), run_of("bob", "4"))
    assert world.sender.notices == [("refused", Refusal.FULL, "bob", 2)]
    outbox.resume()
    world.turns.end()
    assert world.writer("bob").written == b"full\nfrom alice: 1\nfrom alice: 4\n"
    assert world.writer("eve").written == b"from alice: 2\nfrom alice: 3\n"
    assert world.ledger.is_balanced
    assert world.ledger.in_flight == 0


@pytest.mark.parametrize("runs", [[("bob", "1"), ("bob eve", "2")], [("bob eve", "1")]])
def test_deliver_counts_fanout_when_only_one_recipient_is_known(runs: list[tuple[str, str]]) -> None:
    """The kind of traffic is what the sender said, not who of them is logged in."""
    world = _World("bob", max_outbox_bytes=1)
    outbox = world.ends["bob"][0]
    outbox.pause()
    outbox.offer(entry_of(FakeSender("zoe"), world.ledger, b"full\n"), is_fanout=False)
    world.deliver(*(run_of(*run) for run in runs))
    assert world.ledger.refused == {Refusal.UNKNOWN: 1, Refusal.FULL: 1}


def test_deliver_offers_nothing_when_encoding_fails() -> None:
    """What can fail comes before the first offer, so a batch is never delivered by half."""
    world = _World("bob", "eve")

    def encode(_prefix: bytes, texts: bytes) -> bytes:
        if texts == b"2\n":
            raise ValueError
        return texts

    runs = [run_of("bob", "1"), run_of("eve", "2")]
    batch = Batch(world.sender, runs, messages=2, nbytes=1, ledger=world.ledger)
    routed = Route(lambda login: world.ends[login][0])(batch)
    assert routed is not None
    with pytest.raises(ValueError, match=r"^$"):
        Deliver(encode)(routed)
    world.turns.end()
    assert world.writer("bob").calls == []
    assert batch.pending == 2
