"""Copies for logins that live elsewhere, through route and deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.deliver import Deliver
from stages.line_codec import LineCodec
from stages.message import Batch, Ledger, Refusal
from stages.outbox import OutboxSettings
from stages.route import Cut, Route
from tests.stages.fakes import FakeSender, Turns, open_outbox, run_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.message import Run


class _Peer:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.carried: list[tuple[Batch, list[Cut], bool]] = []

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        self.carried.append((batch, list(cuts), is_fanout))

    @property
    def cuts(self) -> list[tuple[list[str], bytes, int, bool]]:
        return [(*cut, is_fanout) for _, cuts, is_fanout in self.carried for cut in cuts]


class _World:
    """bob lives here, the others at two other places, nobody at none."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sender = FakeSender()
        self.turns = Turns()
        self.near, self.far = _Peer(), _Peer()
        bob, self.bob = open_outbox(OutboxSettings(10_000, 9_000, 1, 10_000), self.ledger, self.turns)
        self.places: dict[str, Any] = {"bob": bob, "eve": self.near, "dan": self.near, "zoe": self.far}

    def deliver(self, *runs: Run) -> Batch:
        messages = sum(run.count for run in runs)
        batch = Batch(self.sender, list(runs), messages=messages, nbytes=90, ledger=self.ledger)
        routed = Route(self.places.get)(batch)
        assert routed is not None
        Deliver(LineCodec.encode)(routed)
        self.turns.end()
        return batch


def test_run_crosses_whole_when_its_login_lives_elsewhere() -> None:
    """The common case: one cut with all its lines, encoded, for one name."""
    world = _World()
    batch = world.deliver(run_of("eve", "1", "2"))
    assert world.near.carried == [(batch, [Cut(["eve"], b"from alice: 1\nfrom alice: 2\n", 2)], False)]
    assert (world.ledger.in_flight, batch.pending) == (2, 2)


def test_text_crosses_once_when_several_of_its_recipients_live_at_one_place() -> None:
    """Each place gets the text once, with the names that live there; who lives here gets it here."""
    world = _World()
    world.deliver(run_of("bob eve dan zoe nobody", "hi"))
    text = b"from alice: hi\n"
    assert world.near.cuts == [(["eve", "dan"], text, 1, True)]
    assert world.far.cuts == [(["zoe"], text, 1, True)]
    assert world.bob.written == text
    assert world.ledger.refused == {Refusal.UNKNOWN: 1}
    assert world.ledger.in_flight == 3


def test_single_recipients_get_one_cut_each_when_their_runs_interleave() -> None:
    """What is said to one of them keeps its order."""
    world = _World()
    world.deliver(run_of("eve", "1"), run_of("dan", "2"), run_of("eve", "3"), run_of("dan", "4"))
    assert world.near.cuts == [
        (["eve"], b"from alice: 1\nfrom alice: 3\n", 2, False),
        (["dan"], b"from alice: 2\nfrom alice: 4\n", 2, False),
    ]


def test_kinds_of_traffic_cross_in_their_order_and_apart() -> None:
    """What may hold its sender is in another batch than what may not; the copies of both add up."""
    world = _World()
    batch = world.deliver(run_of("eve", "1"), run_of("eve dan", "2"), run_of("eve", "3"))
    assert [(cut[0], cut[1][-3:], cut[3]) for cut in world.near.cuts] == [
        (["eve"], b" 1\n", False),
        (["eve", "dan"], b" 2\n", True),
        (["eve"], b" 3\n", False),
    ]
    direct, fanout, again = (carried[0] for carried in world.near.carried)
    assert direct is again is batch
    assert (direct.pending, fanout.pending) == (2, 2)
    for part, copies in ((direct, 2), (fanout, 2)):
        part.deliver(copies)
    assert world.ledger.delivered == 4
    assert world.ledger.in_flight == world.ledger.buffered_bytes == 0
    assert sum(messages for messages, _ in world.sender.given_back) == 3
