"""The orderly end of a worker in virtual time: every accepted copy has an outcome, and it ends in time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from chat_gateway.disconnect import Disconnect
from chat_gateway.shutdown import Ending
from tests.chat_gateway.fakes import FakeGateway, FakeListening, FakeSocket, passed, turns, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.shutdown import DrainReport
    from tests.chat_gateway.fakes import Peer

NOTICE = b"! shutdown the gateway stops\n"


def running(*sets: str, listening: tuple[FakeListening, ...] = ()) -> FakeGateway:
    """A gateway to be drained, whose stages run already."""
    gateway = FakeGateway(*sets, listening=listening, is_started=False)
    gateway.worker.topology.start()
    gateway.worker.topology.start = lambda: None  # type: ignore[method-assign]  # serve would start them again
    return gateway


@virtual_time
async def test_drain_delivers_what_was_accepted_and_tells_everybody() -> None:
    """Lines that were read are delivered, then the Notice, then an orderly close; nothing is left."""
    gateway = running()
    alice, bob, stranger = gateway.login("alice"), gateway.login("bob"), gateway.connect()
    alice.send(b"bob: last words\n")
    report = await gateway.drained()
    assert bob.take() == b"from alice: last words\n" + NOTICE
    assert (alice.take(), stranger.take()) == (NOTICE, NOTICE)
    assert all(not peer.transport.is_aborted and peer.transport.is_lost for peer in (alice, bob, stranger))
    assert report.undelivered == 0
    assert gateway.connections.closed == {"shutdown": 3}
    assert gateway.tokens.in_use == 0
    assert gateway.log.found("gateway.draining") == [{"sessions": 2, "in_flight": 1}]


@virtual_time
async def test_drain_closes_listeners_first_and_tells_who_was_just_accepted() -> None:
    """Nobody is accepted while it drains, and nobody who was is left without a word."""
    listening = FakeListening()
    gateway = running(listening=(listening,))
    gateway.worker.listeners[0].start()
    listening.arrive(FakeSocket())
    await turns(1)
    await gateway.drained()
    assert listening.is_closed
    assert gateway.connections.accepted == 1
    assert gateway.connections.closed == {"shutdown": 1}


@virtual_time
async def test_drain_reads_nothing_more_when_it_has_begun() -> None:
    """What comes afterwards is thrown away, not routed."""
    gateway = running()
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: before\n")
    drained = gateway.loop.create_task(gateway.drained())
    await passed(0.1)
    accepted = gateway.ledger.accepted
    assert not alice.is_read
    alice.send(b"bob: after\n")
    bob.unstick()
    await drained
    assert gateway.ledger.accepted == accepted
    assert bob.take() == b"from alice: first\nfrom alice: before\n" + NOTICE


@virtual_time
async def test_drain_gives_a_writer_up_when_it_makes_no_progress() -> None:
    """After `write_timeout_s` its copies are refused as shutdown, and that is no failure."""
    gateway = running("outbox.write_timeout_s=2", "shutdown.drain_timeout_s=60", "breaker.fail_max=100")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\nbob: 2\n")
    await turns()
    report = await gateway.drained()
    assert report.undelivered == 0
    assert 1.9 < report.took_s < 4.0
    assert gateway.ledger.refused == {"shutdown": 2}
    assert gateway.ledger.is_balanced
    assert bob.transport.is_aborted
    assert not alice.transport.is_aborted
    assert alice.take() == b"! refused bob: 2 messages, shutdown\n" + NOTICE


TEXT = b"x" * 1500  # one fills a flush of `SLOW`
SLOW = ("outbox.write_timeout_s=2", "shutdown.drain_timeout_s=60", "outbox.send_buffer_bytes=2048")


async def drained_to_slow_bob(gateway: FakeGateway) -> tuple[DrainReport, Peer]:
    """Drain while somebody takes one of six texts every 1.5 seconds."""
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    for _ in range(6):
        alice.send(b"bob: " + TEXT + b"\n")
    await turns()
    drained = gateway.loop.create_task(gateway.drained())
    bob.transport.take_one()  # what it was stuck with
    while not drained.done() and gateway.ledger.in_flight:
        await passed(1.5)
        bob.transport.take_one()
    bob.unstick()
    return await drained, bob


@virtual_time
async def test_drain_waits_for_a_writer_when_it_is_slow_but_moves() -> None:
    """As long as enough bytes leave, its copies are delivered."""
    gateway = running(*SLOW, "outbox.min_progress_bytes=1024")
    report, bob = await drained_to_slow_bob(gateway)
    assert (report.undelivered, gateway.ledger.refused) == (0, {})
    assert report.took_s > 6.0
    assert bob.take().count(TEXT) == 6


@virtual_time
async def test_drain_gives_a_writer_up_when_it_only_drips() -> None:
    """Fewer than `min_progress_bytes` in `write_timeout_s` are no progress, however long they go on."""
    gateway = running(*SLOW, "outbox.min_progress_bytes=4096")
    report, bob = await drained_to_slow_bob(gateway)
    assert report.undelivered == 0
    assert 1.9 < report.took_s < 4.0
    assert gateway.ledger.refused == {"shutdown": 4}
    assert bob.transport.is_aborted


@virtual_time
async def test_drain_keeps_a_writer_when_its_outbox_empties_again_and_again() -> None:
    """It has taken all there was, be that less than `min_progress_bytes`."""
    gateway = running("outbox.write_timeout_s=2")
    bob = await gateway.stuck("bob", gateway.login("alice"))
    all_drained = asyncio.Event()

    async def settled() -> None:
        await all_drained.wait()

    drained = gateway.loop.create_task(ended(gateway, Ending(timeout_s=60, settled=settled)))
    for _ in range(4):
        await passed(1.5)
        bob.transport.take_one()
        await passed(0.1)
        bob.connection.nudge()
        await turns()
    bob.unstick()
    all_drained.set()
    await drained
    assert not bob.transport.is_aborted
    assert bob.take().endswith(NOTICE)


@virtual_time
async def test_drain_closes_everybody_in_order_when_time_is_over_for_a_slow_one() -> None:
    """Its copies are undelivered and refused; the others are told, though one does not close, and in time."""
    gateway = running("outbox.write_timeout_s=5", "shutdown.drain_timeout_s=3")
    alice, idle, lingering = (gateway.login(name) for name in ("alice", "carol", "dave"))
    stranger = gateway.connect()
    lingering.transport.closes_with_us = False
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\nbob: 2\n")
    await turns()
    report = await gateway.drained()
    assert report.undelivered == 2
    assert report.took_s == pytest.approx(3.0, abs=0.1)
    assert alice.take() == b"! refused bob: 2 messages, shutdown\n" + NOTICE
    assert [peer.take() for peer in (idle, stranger, lingering)] == [NOTICE] * 3
    assert not any(peer.transport.is_aborted for peer in (alice, idle, stranger))
    assert bob.transport.is_aborted
    assert lingering.transport.is_aborted
    assert gateway.ledger.refused == {"shutdown": 2}
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0
    assert gateway.tokens.in_use == 0


@virtual_time
async def test_drain_closes_a_slow_one_in_order_when_it_takes_what_was_handed_over() -> None:
    """Its time is over a quarter before that of all; then only what its transport holds is waited for."""
    gateway = running("outbox.write_timeout_s=5", "shutdown.drain_timeout_s=4")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\n")
    drained = gateway.loop.create_task(gateway.drained())
    await passed(2.9)
    assert gateway.ledger.in_flight == 1
    await passed(0.2)
    assert gateway.ledger.refused == {"shutdown": 1}
    bob.unstick()
    report = await drained
    assert report.undelivered == 1
    assert report.took_s == pytest.approx(3.1, abs=0.1)
    assert bob.take() == b"from alice: first\n" + NOTICE
    assert not bob.transport.is_aborted


@virtual_time
async def test_drain_says_that_it_is_late_before_it_closes_anybody() -> None:
    """Other workers, which are not, may end before it has closed its connections."""
    gateway = running("outbox.write_timeout_s=5")
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\nbob: 2\n")
    await turns()
    told: list[tuple[int, bytes]] = []

    async def settled() -> None:
        raise AssertionError("it has not drained")

    ending = Ending(timeout_s=2, settled=settled, on_late=lambda left: told.append((left, alice.take())))
    report = await ended(gateway, ending)
    assert told == [(2, b"")]
    assert report.undelivered == 2


@virtual_time
async def test_drain_ends_at_once_when_it_has_no_time() -> None:
    """`drain_timeout_s = 0` aborts; that costs no copy its outcome."""
    gateway = running("shutdown.drain_timeout_s=0")
    alice = gateway.login("alice")
    report = await gateway.drained()
    assert report.undelivered == 0
    assert report.took_s < 0.1
    assert alice.transport.is_lost
    assert gateway.tokens.in_use == 0


@virtual_time
async def test_drain_does_not_wait_for_ever_when_peers_do_not_close() -> None:
    """They linger for `linger_s` and are aborted."""
    gateway = running("outbox.linger_s=2")
    peers = [gateway.login(name) for name in "abc"]
    for peer in peers:
        peer.transport.closes_with_us = False
    report = await gateway.drained()
    assert all(peer.take() == NOTICE and peer.transport.is_aborted for peer in peers)
    assert report.took_s == pytest.approx(2.0, abs=0.1)


@virtual_time
async def test_drain_closes_everybody_when_they_are_very_many() -> None:
    """More than are closed in one turn."""
    gateway = running()
    peers = [gateway.login(f"u{number}") for number in range(600)]
    report = await gateway.drained()
    assert all(peer.take() == NOTICE for peer in peers)
    assert gateway.connections.closed == {"shutdown": 600}
    assert report.took_s < 1.0


@virtual_time
async def test_drain_closes_sessions_in_every_state() -> None:
    """Logged in or not, leaving, flushing or lingering: each ends once and with its own reason."""
    gateway = running("outbox.linger_s=2", "outbox.write_timeout_s=1", "outbox.reconnect_grace_s=0")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    leaving, lingering, login = gateway.login("carol"), gateway.login("dave"), gateway.connect()
    lingering.transport.closes_with_us = False
    lingering.connection.end(Disconnect.RESTARTING)
    leaving.send(b"bob: unfinished")
    leaving.end()
    await turns()
    bob.connection.end(Disconnect.SLOW_CONSUMER)
    await turns()
    report = await gateway.drained()
    assert report.undelivered == 0
    assert gateway.tokens.in_use == len(gateway.connections) == 0
    assert gateway.connections.closed.total() == 5
    assert gateway.connections.closed["restarting"] == 1
    assert leaving.take() == b"! refused bob: 1 message, shutdown\n"
    assert login.take() == NOTICE
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0


async def ended(gateway: FakeGateway, ending: Ending) -> DrainReport:
    """Run the worker through its drain as one of several."""
    stop = asyncio.Event()
    stop.set()
    return await gateway.worker.serve(stop, lambda: None, lambda: ending)


@virtual_time
async def test_drain_closes_nobody_before_the_other_workers_have_drained() -> None:
    """Its own copies have outcomes, but its clients may still get some of the others'; then they are told."""
    gateway = running()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.send(b"bob: last words\n")
    all_drained = asyncio.Event()
    is_settled = []

    async def settled() -> None:
        is_settled.append(gateway.ledger.in_flight == 0)
        await all_drained.wait()

    drained = gateway.loop.create_task(ended(gateway, Ending(settled=settled)))
    await passed(3)
    assert is_settled == [True]
    assert bob.take() == b"from alice: last words\n"
    assert bob.connection.outbox is not None
    assert not bob.transport.is_lost
    all_drained.set()
    report = await drained
    assert bob.take() == NOTICE
    assert report.undelivered == 0
    assert report.took_s == pytest.approx(3.0, abs=0.1)
    assert len(gateway.log.found("worker.draining")) == 1


@virtual_time
async def test_drain_ends_when_its_time_is_over_though_the_others_have_not_drained() -> None:
    """The time is what it was told, and some of it is for closing; its own copies have their outcomes."""
    gateway = running("shutdown.drain_timeout_s=60")
    alice = gateway.login("alice")
    never = asyncio.Event()

    async def settled() -> None:
        await never.wait()

    report = await ended(gateway, Ending(timeout_s=2, settled=settled))
    assert report.undelivered == 0
    assert report.took_s == pytest.approx(1.5, abs=0.1)
    assert alice.take() == NOTICE
    assert not alice.transport.is_aborted


@virtual_time
async def test_drain_counts_what_is_undelivered_of_the_others() -> None:
    """Its own copies have outcomes, but a client has not got those that another worker has sent."""
    gateway = running("outbox.write_timeout_s=5")
    bob = await gateway.stuck("bob", gateway.login("alice"))
    refused: list[tuple[object, ...]] = []
    foreign = SimpleNamespace(
        runs_on=True, return_credit=lambda: None, refuse=lambda *arguments: refused.append(arguments)
    )
    assert bob.connection.outbox is not None
    bob.connection.outbox.offer((b"from eve: hi\n" * 3, 3, cast("Any", foreign)), is_fanout=False)

    async def settled() -> None:
        await asyncio.Event().wait()

    report = await ended(gateway, Ending(timeout_s=2, settled=settled))
    assert report.undelivered == 3
    assert refused == [(3, "shutdown", "bob")]


@virtual_time
async def test_drain_fails_when_what_it_waits_for_does() -> None:
    """An error is not taken for the word of the others."""
    gateway = running()

    async def settled() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await ended(gateway, Ending(settled=settled))


@virtual_time
async def test_drain_tells_clients_to_connect_again_when_the_worker_is_replaced() -> None:
    """Those who wait to be accepted are left to the one that replaces it."""
    listening = FakeListening()
    gateway = running(listening=(listening,))
    gateway.worker.listeners[0].start()
    listening.arrive(FakeSocket())
    await turns(1)
    listening.arrive(*(FakeSocket() for _ in range(100)))
    alice = gateway.login("alice")
    await ended(gateway, Ending(Disconnect.RESTARTING))
    assert alice.take() == b"! restarting connect again\n"
    assert set(gateway.connections.closed) == {"restarting"}
    assert listening.queue
    assert listening.is_closed


class SlowOthers:
    """Other workers, which have not answered yet."""

    def __init__(self) -> None:
        self.verdicts: list[Callable[[bool], None]] = []

    def claim(self, _login: str, _address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """Answer when the test says so."""
        self.verdicts.append(on_verdict)
        return lambda: None

    def release(self, _login: str) -> None:
        """Nobody minds."""


@virtual_time
async def test_drain_throws_away_what_came_with_a_login_when_that_is_granted_too_late() -> None:
    """It was read before, but nothing is routed any more; the client is told like the others."""
    gateway = running()
    gateway.connections.claims.others = others = SlowOthers()
    alice = gateway.connect()
    alice.send(b"alice\nalice: hello\n")
    all_drained = asyncio.Event()

    async def settled() -> None:
        await all_drained.wait()

    drained = gateway.loop.create_task(ended(gateway, Ending(settled=settled)))
    await passed(1)
    others.verdicts[0](True)
    await passed(1)
    all_drained.set()
    await drained
    assert alice.take() == NOTICE
    assert gateway.ledger.accepted == 0
    assert gateway.log.errors == []


@virtual_time
async def test_drain_is_cancelled_when_its_worker_is() -> None:
    """Cancellation is passed on, and stops metrics, timers and stages on the way."""
    gateway = running()
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\n")
    task = gateway.loop.create_task(gateway.drained())
    await passed(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(gateway.log.found("metrics")) == 1
    await gateway.close()
