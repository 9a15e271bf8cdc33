"""The route stage: copies grouped by outbox, unknown recipients refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stages.message import Batch, Ledger, Refusal
from stages.outbox import Outbox, OutboxSettings
from stages.route import Route
from tests.stages.fakes import FakeSender, Turns, open_outbox, run_of

if TYPE_CHECKING:
    from stages.message import Run
    from stages.route import Routed


class _World:
    """Two outboxes, a sender and a ledger."""

    def __init__(self, *logins: str) -> None:
        self.ledger = Ledger()
        self.sender = FakeSender()
        settings = OutboxSettings(1000, 800, 400, 500)
        self.outboxes = {login: open_outbox(settings, self.ledger, Turns())[0] for login in logins}

    def batch(self, *runs: Run) -> Batch:
        return Batch(self.sender, list(runs), messages=9, nbytes=99, ledger=self.ledger)

    def route(self, batch: Batch) -> Routed | None:
        return Route(self.outboxes.get)(batch)

    def names(self, routed: Routed | None) -> list[tuple[str, list[bytes]]]:
        assert routed is not None
        by_outbox: dict[Outbox, str] = {outbox: login for login, outbox in self.outboxes.items()}
        return [(by_outbox[outbox], [run.texts for run in runs]) for outbox, runs in routed.deliveries]


def test_route_finds_the_outbox_when_batch_is_one_run_to_one_login() -> None:
    """The common case: one run, one recipient."""
    world = _World("bob")
    batch = world.batch(run_of("bob", "hi"))
    routed = world.route(batch)
    assert world.names(routed) == [("bob", [b"hi\n"])]
    assert routed is not None
    assert routed.batch is batch
    assert world.sender.notices == []


def test_route_groups_by_outbox_when_runs_interleave() -> None:
    """Each outbox gets its runs in the order in which they were said."""
    world = _World("bob", "eve")
    routed = world.route(world.batch(run_of("bob", "1"), run_of("eve", "2"), run_of("bob eve", "3")))
    assert world.names(routed) == [("bob", [b"1\n", b"3\n"]), ("eve", [b"2\n", b"3\n"])]
    assert world.ledger.in_flight == 4


@pytest.mark.parametrize("runs", [[("bob", "1", "2")], [("bob", "1"), ("eve", "2")], [("bob eve", "1")]])
def test_route_ends_the_batch_when_nobody_is_known(runs: list[tuple[str, ...]]) -> None:
    """All copies are refused, credit returns, nothing goes on to the next stage."""
    world = _World()
    assert world.route(world.batch(*(run_of(*run) for run in runs))) is None
    assert world.ledger.refused == {Refusal.UNKNOWN: 2}
    assert world.ledger.in_flight == 0
    assert world.sender.given_back == [(9, 99)]
    assert world.ledger.is_balanced


def test_route_refuses_only_the_unknown_when_others_are_known() -> None:
    """The other recipients get theirs, and the batch goes on."""
    world = _World("bob")
    batch = world.batch(run_of("carol bob", "1"), run_of("bob", "2"))
    assert world.names(world.route(batch)) == [("bob", [b"1\n", b"2\n"])]
    assert world.sender.notices == [("unknown-recipient", Refusal.UNKNOWN, "carol", 1)]
    assert batch.pending == 2


def test_route_refuses_once_for_each_name_when_it_is_in_many_runs() -> None:
    """A block full of wrong names costs a refusal for each name, not for each line."""
    world = _World("bob")
    runs = [run_of(name, "x", "y") for _ in range(50) for name in ("carol", "dave", "bob")]
    routed = world.route(world.batch(*runs))
    assert len(world.names(routed)) == 1
    assert world.sender.notices == [
        ("unknown-recipient", Refusal.UNKNOWN, "carol", 100),
        ("unknown-recipient", Refusal.UNKNOWN, "dave", 100),
    ]
    assert world.ledger.in_flight == 100
    assert world.ledger.is_balanced
