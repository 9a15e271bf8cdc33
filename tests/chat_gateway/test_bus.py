"""Several workers are one gateway: copies, logins and what happens when one of them dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from chat_gateway.bus import Bus, link_settings
from chat_gateway.directory import Member
from tests.chat_gateway.fake_cluster import Cluster, settled
from tests.chat_gateway.fake_net import passed, turns, virtual_time
from tests.chat_gateway.fakes import FakeLog, configured

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.link import Link
    from tests.chat_gateway.fakes import Peer

PATIENT = ("outbox.write_timeout_s=1000", "outbox.evict_after_s=2000")
SMALL = (
    *(*PATIENT, "outbox.max_outbox_bytes=2000"),
    *("outbox.high_watermark_bytes=1000", "outbox.low_watermark_bytes=500"),
)


@virtual_time
async def test_message_arrives_when_its_recipient_is_at_another_worker() -> None:
    """Counted once, by the sender's worker; the credit is back when it has arrived."""
    cluster = Cluster(2)
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    alice.send(b"bob: 1\nbob: 2\n")
    await settled(40)
    assert bob.take() == b"from alice: 1\nfrom alice: 2\n"
    first, second = (cluster.workers[wid].ledger for wid in (1, 2))
    assert (first.accepted, first.delivered, first.in_flight) == (2, 2, 0)
    assert (second.accepted, second.delivered, second.buffered_bytes) == (0, 0, 0)
    assert (alice.session.inflight_messages, alice.session.inflight_bytes) == (0, 0)
    assert cluster.bus(1).statistics().batches_out == 1
    await cluster.close()


@virtual_time
async def test_text_crosses_once_when_it_is_for_several_at_another_worker() -> None:
    """And those here get theirs here."""
    cluster = Cluster(3)
    await cluster.start()
    alice = await cluster.login(1, "alice")
    others = [await cluster.login(wid, f"r{wid}{number}") for wid in (1, 2, 3) for number in range(3)]
    text = b"x" * 300
    alice.send(b"r10,r20,r30,r11,r21,r31,r12,r22,r32,nobody: " + text + b"\n")
    await settled(60)
    assert all(other.take() == b"from alice: " + text + b"\n" for other in others)
    assert alice.take() == b"! unknown-recipient nobody: not logged in\n"
    assert cluster.bus(1).statistics().copies_out == 6
    assert cluster.bus(1).link_ledger.bytes_out < 3 * (len(text) + 500)
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_login_is_taken_when_it_lives_at_another_worker() -> None:
    """The first one is not disturbed; once it has left, the login is free."""
    cluster = Cluster(3)
    await cluster.start()
    for name in ("ann", "ben", "cat", "dog"):  # of owners of all kinds
        first = await cluster.login(1, name)
        second = cluster.workers[2].connect()
        second.send(f"{name}\n".encode())
        await settled(40)
        assert second.take().startswith(b"! login-taken ")
        first.end()
        await settled(40)
        third = await cluster.login(3, name)
        third.send(f"{name}: me\n".encode())
        await settled(40)
        assert third.take() == f"from {name}: me\n".encode()
    await cluster.close()


@virtual_time
async def test_one_wins_when_two_clients_want_a_login_at_once() -> None:
    """Whichever it is, and whoever owns the login."""
    cluster = Cluster(3)
    await cluster.start()
    for number in range(60):
        rivals = [cluster.workers[wid].connect() for wid in (1, 2, 3)]
        for rival in rivals:
            rival.send(b"n%d\n" % number)
        await settled(60)
        winners = [rival for rival in rivals if rival.connection.session is not None]
        assert len(winners) == 1
        assert sum(rival.take().startswith(b"! login-taken ") for rival in rivals) == 2
    await cluster.close()


@virtual_time
async def test_sender_runs_out_of_credit_when_a_recipient_elsewhere_is_stuck() -> None:
    """Pressure crosses processes: it is not read any more, and goes on when there is room again."""
    cluster = Cluster(2, *SMALL, "limits.max_inflight_messages=20")
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    bob.stick()
    for number in range(40):
        alice.send(b"bob: %03d " % number + b"x" * 200 + b"\n")
        await settled(40)
    assert not alice.is_read
    assert alice.session.inflight_messages >= 20
    bob.unstick()
    for _ in range(60):
        bob.unstick()
        await settled(40)
    assert alice.is_read
    numbers = [int(line.split()[2]) for line in bob.take().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == 40
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_sender_is_told_when_its_copies_are_refused_elsewhere() -> None:
    """A full outbox of a member of a group refuses at its worker; the Notice comes from the sender's."""
    cluster = Cluster(2, *SMALL)
    await cluster.start()
    alice, eve = await cluster.login(1, "alice"), await cluster.login(1, "eve")
    bob = await cluster.login(2, "bob")
    bob.stick()
    for _ in range(30):
        alice.send(b"bob,eve: " + b"x" * 300 + b"\n")
        await settled(40)
    assert b"! refused bob: " in alice.take()
    assert eve.take().count(b"\n") == 30
    assert alice.is_read
    ledger = cluster.workers[1].ledger
    assert ledger.refused["full"] > 0
    assert ledger.is_balanced
    await cluster.close()


async def _moved(cluster: Cluster, peer: Peer, wid: int) -> Peer:
    peer.reset()
    await settled(40)
    name = peer.session.login
    return await cluster.login(wid, name)


@virtual_time
async def test_kept_copies_go_along_when_a_login_returns_at_another_worker() -> None:
    """In order and ahead of newer ones, from senders at every worker."""
    cluster = Cluster(3, *PATIENT)
    await cluster.start()
    senders = [await cluster.login(wid, f"s{wid}") for wid in (1, 2, 3)]
    bob = await cluster.login(2, "bob")
    bob.stick()
    for number in range(5):
        for sender in senders:
            sender.send(b"bob: %d\n" % number)
        await settled(40)
    before = bob.take()
    bob.unstick()
    bob.stick()
    bob.reset()
    bob.unstick()
    await settled(40)
    for sender in senders:
        sender.send(b"bob: lost\n")  # nobody is logged in under that name just now
    await settled(40)
    bob = await cluster.login(3, "bob")
    for sender in senders:
        sender.send(b"bob: 5\n")
    await settled(60)
    lines = (before + bob.take()).splitlines()
    for sender in senders:
        prefix = b"from " + sender.session.login.encode() + b": "
        numbers = [int(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 5
        assert b"! unknown-recipient bob: not logged in" in sender.take()
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_order_holds_when_a_recipient_moves_from_worker_to_worker_all_the_time() -> None:
    """Nothing is lost without a word, nothing comes twice, nothing overtakes."""
    cluster = Cluster(3, *PATIENT, "limits.refused_per_s=0")
    await cluster.start()
    senders = [await cluster.login(wid, f"s{wid}") for wid in (1, 2, 3)]
    bob = await cluster.login(1, "bob")
    said = 0
    received: list[bytes] = []
    for step in range(60):
        for _ in range(3):
            for sender in senders:
                sender.send(b"bob: %d\n" % said)
            said += 1
            await turns(step % 5)
        if step % 4 == 3:
            received += bob.take().splitlines()
            bob = await _moved(cluster, bob, step // 4 % 3 + 1)
    await settled(100)
    received += bob.take().splitlines()
    assert cluster.in_flight == 0
    for sender in senders:
        prefix = b"from " + sender.session.login.encode() + b": "
        numbers = [int(line.removeprefix(prefix)) for line in received if line.startswith(prefix)]
        assert numbers == sorted(set(numbers))
        assert len(numbers) > said / 2
    accepted = sum(worker.ledger.accepted for worker in cluster.workers.values())
    assert accepted == 3 * said
    await cluster.close()


@virtual_time
async def test_senders_are_told_when_a_worker_dies_with_their_copies() -> None:
    """They may have arrived or not; its logins can be had again at once, also those that it owned."""
    cluster = Cluster(2, *SMALL)
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    eve = await cluster.login(1, "eve")
    bob.stick()
    for number in range(20):
        alice.send(b"bob: %d " % number + b"x" * 200 + b"\n")
    await settled(40)
    assert cluster.workers[1].ledger.in_flight > 0
    cluster.kill(2)
    await settled(40)
    ledger = cluster.workers[1].ledger
    assert ledger.refused["worker_lost"] > 0
    assert ledger.in_flight == 0
    assert b"worker lost" in alice.take()
    alice.send(b"eve: still here\n")
    await settled(40)
    assert eve.take() == b"from alice: still here\n"
    cluster.add(1)
    cluster.tell()
    await settled(40)
    again = await cluster.login(3, "bob")
    alice.send(b"bob: welcome\n")
    await settled(40)
    assert again.take() == b"from alice: welcome\n"
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_claims_wait_when_their_owner_is_dead() -> None:
    """They have their verdict once a new one has heard of everybody; nobody gets a login that is taken."""
    cluster = Cluster(2)
    await cluster.start()
    names = [f"n{number}" for number in range(20)]
    first = {name: await cluster.login(1, name) for name in names[:10]}
    cluster.kill(2)
    cluster.tell()
    await settled(40)
    waiting = {name: cluster.workers[1].connect() for name in names}
    for name, peer in waiting.items():
        peer.send(f"{name}\n{name}: hi\n".encode())
    await settled(40)
    assert sum(peer.connection.session is None and not peer.take() for peer in waiting.values()) > 0
    cluster.add(1)
    cluster.tell()
    await settled(60)
    for name, peer in waiting.items():
        if name in first:
            assert peer.connection.session is None
        else:
            assert peer.take() == f"from {name}: hi\n".encode()
    await cluster.close()


@virtual_time
async def test_link_breaks_like_any_writer_when_the_other_worker_hangs() -> None:
    """Its senders stall, then are refused, and go on when it moves again; all others notice nothing."""
    cluster = Cluster(
        2,
        *("bus.max_outbox_bytes=65536", "outbox.write_timeout_s=1", "breaker.reset_timeout_s=1"),
        *("limits.refused_per_s=0", "limits.max_inflight_bytes=10000000"),
    )
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    eve, dan = await cluster.login(1, "eve"), await cluster.login(1, "dan")
    pipe = cluster.pipes[1, 2]
    pipe.is_stuck = True
    for _ in range(8):
        alice.send((b"bob: " + b"x" * 1000 + b"\n") * 12)
        await settled(40)
    assert not alice.is_read
    eve.send(b"dan: hi\n")
    await settled(40)
    assert dan.take() == b"from eve: hi\n"
    await passed(20)
    assert alice.is_read
    assert b"! refused bob: " in alice.take()
    pipe.unstick()
    await passed(20)
    assert bob.take().count(b"\n") > 0
    alice.send(b"bob: again\n")
    await settled(60)
    assert bob.take().endswith(b"from alice: again\n")
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_worker_is_broken_when_it_cannot_reach_one_that_lives() -> None:
    """One of them has to go, or the gateway would be two."""
    cluster = Cluster(2, "supervisor.worker_timeout_s=1")
    await cluster.start()
    cluster.bus(1)._schedule_look()
    pipe = cluster.pipes[1, 2]
    pipe.abort()
    await passed(2.5)
    assert cluster.broken == []
    await passed(2)
    assert cluster.broken[0] == "no link to worker 2"
    await cluster.close()


@virtual_time
async def test_worker_is_dialled_once_when_it_takes_its_time_to_greet() -> None:
    """Two links to one worker would not keep the order of what is said to it."""
    loop = asyncio.get_running_loop()
    bus = Bus(
        wid=3,
        slot=0,
        slots=2,
        run_dir="/nowhere",
        config=configured(),
        log=FakeLog().logger,
        loop=loop,
        on_broken=lambda _why: None,
    )
    made: list[Link] = []

    async def connect(new_link: Callable[[], Link], _path: str) -> tuple[None, Link]:
        made.append(new_link())
        return None, made[-1]

    cast("Any", loop).create_unix_connection = connect
    members = [Member(0, 3, is_leaving=False), Member(1, 2, is_leaving=False)]
    bus.set_members(members)
    await settled()
    bus.set_members(members)
    await settled()
    assert len(made) == 1
    bus.on_lost(made[0], "it never greeted")
    bus.set_members(members)
    await settled()
    assert len(made) == 2


@pytest.mark.parametrize("size", [1, 100, 60_000])
@virtual_time
async def test_whole_read_crosses_when_it_is_larger_than_a_frame(size: int) -> None:
    """Cut at line ends; every line arrives, in order."""
    cluster = Cluster(2, "limits.max_line_bytes=65536", "limits.max_read_bytes=1048576")
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    lines = [b"%07d" % number + b"x" * size for number in range(1_000_000 // (size + 13))]
    alice.send(b"".join(b"bob: " + line + b"\n" for line in lines))
    for _ in range(50):
        await settled(40)
    assert bob.take() == b"".join(b"from alice: " + line + b"\n" for line in lines)
    assert cluster.in_flight == 0
    await cluster.close()


@pytest.mark.parametrize("policy", ["stall", "refuse", "drop_oldest"])
def test_link_does_as_every_outbox_when_it_is_full_but_never_disconnects(policy: str) -> None:
    """To end it would be to lose all who live at its other end; their own outboxes disconnect them."""
    config = configured(f"when_full.direct={policy}", "when_full.fanout=disconnect")
    settings = link_settings(config)
    assert (settings.direct, settings.fanout) == (policy, "refuse")
    config = configured("when_full.direct=disconnect", f"when_full.fanout={policy}")
    settings = link_settings(config)
    assert (settings.direct, settings.fanout) == ("refuse", policy)
