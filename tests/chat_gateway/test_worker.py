"""One worker without sockets: the wired stages, and what an error of a stage or a writer costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from stages.deliver import Deliver
from stages.parse import Parse
from stages.route import Route
from tests.chat_gateway.fakes import (
    PATIENT,
    SMALL,
    TEXT,
    FakeGateway,
    FakeListening,
    FakeSocket,
    Peer,
    fill,
    passed,
    turns,
    virtual_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.message import Batch, Block
    from stages.route import Routed


@virtual_time
async def test_worker_routes_a_message_to_each_recipient_once_and_in_order() -> None:
    """The tutorial's example, with what each screen shows."""
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.send(b"bob: hello\n")
    bob.send(b"alice, bob, alice: hi!\n")
    await turns()
    assert alice.take() == b"from bob: hi!\n"
    assert bob.take() == b"from alice: hello\nfrom bob: hi!\n"
    assert (gateway.ledger.accepted, gateway.ledger.delivered) == (3, 3)
    await gateway.close()


@virtual_time
async def test_worker_tells_the_sender_when_lines_are_wrong_or_recipients_unknown() -> None:
    """A thousand of a kind are one line with a count; the good lines are delivered."""
    gateway = FakeGateway("limits.max_recipients=2", "limits.refused_per_s=0")
    alice = gateway.login("alice")
    alice.send(b"no colon\n" * 3 + b"a\x00: bad\n" + b"a,b,c: many\n" + b"carol: x\n" * 1000 + b"alice: ok\n")
    await turns()
    assert sorted(alice.take().splitlines()) == [
        b"! bad-line 3 lines, " + b'expected "login1, login2: message"',
        b"! bad-text a message is UTF-8 without control characters",
        b"! too-many-recipients at most 2 in one line",
        b"! unknown-recipient carol: 1000 messages, not logged in",
        b"from alice: ok",
    ]
    assert gateway.ledger.rejected == {"bad-line": 3, "bad-text": 1, "too-many-recipients": 1}
    assert alice.session.inflight_messages == 0
    await gateway.close()


class Trap:
    """Mixed into a stage's handler: it fails for whatever has "boom" in it."""

    error: Exception = RuntimeError("boom")

    def spring(self, data: bytes) -> None:
        if b"boom" in data:
            raise self.error


class TrapParse(Trap, Parse):
    def __call__(self, block: Block) -> Batch | None:
        self.spring(block.data)
        return super().__call__(block)


class TrapRoute(Trap, Route):
    def __call__(self, batch: Batch) -> Routed | None:
        self.spring(b"".join(run.texts for run in batch.runs))
        return super().__call__(batch)


class LateTrapRoute(Trap, Route):
    """Fails when it has refused some copies already."""

    def __call__(self, batch: Batch) -> Routed | None:
        routed = super().__call__(batch)
        self.spring(b"".join(run.texts for run in batch.runs))
        return routed


class TrapDeliver(Trap, Deliver):
    def __call__(self, routed: Routed) -> None:
        self.spring(b"".join(run.texts for run in routed.batch.runs))
        super().__call__(routed)


TRAPS: list[tuple[str, type[Any]]] = [
    ("Parse", TrapParse),
    ("Route", TrapRoute),
    ("Route", LateTrapRoute),
    ("Deliver", TrapDeliver),
]


@pytest.mark.parametrize("error", [RuntimeError("boom"), TimeoutError()], ids=["error", "timeout"])
@pytest.mark.parametrize(("stage", "trap"), TRAPS, ids=[trap.__name__ for _, trap in TRAPS])
@virtual_time
async def test_worker_loses_one_batch_only_when_a_handler_raises(
    stage: str, trap: type[Trap], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender is told and has its credit back, the account is balanced, and everybody goes on."""
    monkeypatch.setattr(f"chat_gateway.worker.{stage}", trap)
    monkeypatch.setattr(trap, "error", error)
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.send(b"bob, nobody: boom\nbob: boom too\n")
    bob.send(b"alice: fine\n")
    await turns()
    alice.send(b"bob: after\n")
    await turns()
    reason = b"timeout" if isinstance(error, TimeoutError) else b"error"
    lines = alice.take().splitlines()
    assert b"from bob: fine" in lines
    assert any(line.startswith(b"! refused") and line.endswith(reason) for line in lines)
    assert bob.take() == b"from alice: after\n"
    assert (alice.session.inflight_messages, alice.session.inflight_bytes) == (0, 0)
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == gateway.ledger.buffered_bytes == 0
    (record,) = gateway.log.found("stage.failed")
    assert (record["reason"], record["exc_info"]) == (reason.decode(), error)
    await gateway.close()
    assert gateway.tokens.in_use == 0


def breaks_when_stalled(alice: Peer, bob: Peer) -> None:
    """The sender's transport fails as the first recipient, which is full, pauses it."""
    alice.transport.switch_error = RuntimeError("boom")


def breaks_when_evicted(alice: Peer, bob: Peer) -> None:
    """The first recipient's transport fails as its last word is written."""
    bob.transport.write_error = RuntimeError("boom")


@pytest.mark.parametrize(
    ("policy", "break_transport"), [("stall", breaks_when_stalled), ("disconnect", breaks_when_evicted)]
)
@virtual_time
async def test_worker_delivers_the_rest_of_a_batch_when_a_transport_raises_in_the_midst_of_it(
    policy: str, break_transport: Callable[[Peer, Peer], None]
) -> None:
    """An offer never raises, so no copy is refused that lies in an outbox already: each has one outcome."""
    gateway = FakeGateway(*SMALL, *PATIENT, f"when_full.direct={policy}")
    alice, carol, dave = gateway.login("alice"), gateway.login("carol"), gateway.login("dave")
    bob = await gateway.stuck("bob", alice)
    if policy == "disconnect":
        fill(alice, "bob", 1)  # takes the last room, so that the next one finds none
        await turns()
    break_transport(alice, bob)
    alice.send(b"dave: 1\nbob: " + TEXT + b"\ncarol: 2\n")
    await turns()
    assert (dave.take(), carol.take()) == (b"from alice: 1\n", b"from alice: 2\n")
    (failed,) = gateway.log.errors
    assert failed.event == "connection.failed"
    bob.transport.write_error = None
    bob.unstick()
    await turns()
    ledger = gateway.ledger
    assert ledger.is_balanced
    assert ledger.in_flight == ledger.buffered_bytes == 0
    assert alice.session.inflight_messages == alice.session.unsettled_messages == 0
    await gateway.close()
    assert gateway.tokens.in_use == 0


@virtual_time
async def test_worker_refuses_what_waits_when_a_writer_fails() -> None:
    """A writer that raises costs its own copies; outboxes flushed after it are flushed all the same."""
    gateway = FakeGateway("outbox.reconnect_grace_s=0")
    alice, bob, carol = gateway.login("alice"), gateway.login("bob"), gateway.login("carol")
    bob.transport.write_error = RuntimeError("broken")
    alice.send(b"bob, carol: hello\n")
    await turns()
    assert carol.take() == b"from alice: hello\n"
    assert gateway.log.found("outbox.failed")[0]["login"] == "bob"
    bob.transport.write_error = None
    alice.send(b"bob: more\n")
    await turns()
    assert b"! refused bob: " in alice.take()
    await gateway.close()


@virtual_time
async def test_worker_gives_every_copy_an_outcome_when_a_writer_fails() -> None:
    """Also the copies that were just being handed over."""
    gateway = FakeGateway("outbox.reconnect_grace_s=0")
    alice, bob = gateway.login("alice"), gateway.login("bob")
    bob.transport.write_error = RuntimeError("broken")
    alice.send(b"bob: hello\n")
    await turns()
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0
    assert alice.session.inflight_messages == 0
    await gateway.close()


@virtual_time
async def test_worker_ends_the_connection_when_its_writer_fails() -> None:
    """A session that can be sent nothing is of no use to anybody: its client should come again."""
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    bob.transport.write_error = RuntimeError("broken")
    alice.send(b"bob: hello\n")
    await turns()
    assert bob.transport.is_closing()
    await gateway.close()


@virtual_time
async def test_worker_logs_no_error_when_a_refusal_comes_behind_the_last_word() -> None:
    """Who was ended with copies on the way and lingers cannot be told of their refusal any more."""
    gateway = FakeGateway("outbox.reconnect_grace_s=0")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.transport.closes_with_us = False
    alice.send(b"bob: waits\n" + b"x" * 20_000)  # overlong: ended, and lingers
    await turns()
    bob.reset()
    await turns()
    assert gateway.ledger.refused == {"gone": 1}
    assert not gateway.log.errors
    await gateway.close()


@virtual_time
async def test_worker_logs_no_error_when_a_peer_resets_before_our_side_is_shut_down() -> None:
    """A port scanner that sends a request and resets makes `shutdown` fail; that is not our error."""
    gateway = FakeGateway()
    scanner = gateway.connect()
    scanner.transport.write_eof_error = OSError(107, "Transport endpoint is not connected")
    scanner.send(b"GET / HTTP/1.1\r\n\r\n")
    await turns()
    assert not gateway.log.errors
    await gateway.close()


@virtual_time
async def test_worker_accepts_reports_and_drains_when_served() -> None:
    """From ready to the report: listeners accept, metrics are written, and all is closed at the end."""
    listening = [FakeListening(7000), FakeListening(7001)]
    gateway = FakeGateway("metrics.interval_s=1", listening=listening, is_started=False)
    stop = asyncio.Event()
    ready: list[bool] = []
    serving = gateway.loop.create_task(gateway.worker.serve(stop, lambda: ready.append(True)))
    await turns()
    assert ready == [True]
    for one in listening:
        one.arrive(FakeSocket())
    await passed(2.5)
    assert gateway.tokens.in_use == 2
    assert len(gateway.log.found("metrics")) == 2
    stop.set()
    report = await serving
    assert report.undelivered == 0
    assert len(gateway.log.found("metrics")) == 3
    assert all(one.is_closed for one in listening)
    assert gateway.tokens.in_use == len(gateway.connections) == 0


@virtual_time
async def test_worker_logs_each_step_of_a_breaker_when_a_writer_is_stuck() -> None:
    """Opened with a warning, looked at, closed; with the login of the writer."""
    gateway = FakeGateway()
    on_change = gateway.worker._on_breaker_change
    for state in ("open", "half_open", "closed"):
        on_change("bob", state)
    assert [(record.level, record.event, record.fields) for record in gateway.log.records] == [
        ("warning", "breaker.opened", {"login": "bob"}),
        ("info", "breaker.half_open", {"login": "bob"}),
        ("info", "breaker.closed", {"login": "bob"}),
    ]
    await gateway.close()
