"""A link takes frames however they come; one that hears garbage ends, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from chat_gateway.bus_frames import Carry, Cut, Owns, Ping, encode_frame
from tests.chat_gateway.fake_cluster import Cluster, PipeEnd, settled
from tests.chat_gateway.fake_net import passed, turns, virtual_time
from tests.chat_gateway.fakes import FakeLog

if TYPE_CHECKING:
    import asyncio

GARBAGE = [
    pytest.param(b"\xff\xff\xff\xff", id="too long"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    pytest.param(b"\x00\x00\x00\x00", id="empty"),
    pytest.param(b"\x00\x00\x00\x03\x92\x63\x01", id="unknown tag"),
    pytest.param(b"\x00\x01\x86\xa0" + b"\x91" * 100_000, id="deep"),
    pytest.param(encode_frame(Ping(1)) + b"\x00\x00\x00\x01\xc1", id="behind a message"),
]


def stranger(cluster: Cluster, wid: int) -> PipeEnd:
    """Somebody who connects to the socket of this worker and has not said a word."""
    end = PipeEnd(cluster.loop, cluster.bus(wid)._new_link())
    end.link.connection_made(cast("asyncio.BaseTransport", end))
    return end


async def assert_carries(cluster: Cluster, *wids: int) -> None:
    """New clients of these workers reach each other, both ways."""
    names = [f"new{wid}" for wid in wids]
    peers = [await cluster.login(wid, name) for wid, name in zip(wids, names, strict=True)]
    for peer, other in (peers, peers[::-1]):
        peer.send(other.session.login.encode() + b": hi\n")
        await settled(40)
        assert other.take() == b"from " + peer.session.login.encode() + b": hi\n"
    for peer in peers:
        peer.end()
    await settled(40)


@pytest.mark.parametrize("garbage", GARBAGE)
@virtual_time
async def test_link_ends_alone_when_it_hears_garbage(garbage: bytes) -> None:
    """As if that worker had died: its logins are gone, everybody else goes on, and the log says why."""
    cluster = Cluster(3)
    await cluster.start()
    log = FakeLog()
    cast("Any", cluster.bus(1))._log = log.logger
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    cluster.pipes[1, 2].link.data_received(garbage)
    await settled(40)
    (lost,) = log.found("bus.lost")
    assert lost["peer"] == 2
    assert lost["reason"].startswith("worker 2 sent a frame ")
    alice.send(b"bob: hi\n")
    await settled(40)
    assert alice.take() == b"! unknown-recipient bob: not logged in\n"
    assert bob.is_read
    assert [len(cluster.bus(wid).links) for wid in (1, 2, 3)] == [1, 1, 2]
    carol = await cluster.login(3, "carol")
    for peer in (alice, bob):
        peer.send(b"carol: hi\n")
    await settled(40)
    assert sorted(carol.take().splitlines()) == [b"from alice: hi", b"from bob: hi"]
    assert (cluster.broken, cluster.in_flight) == ([], 0)
    await cluster.close()


@pytest.mark.parametrize("garbage", GARBAGE)
@virtual_time
async def test_stranger_is_cut_off_when_it_sends_garbage(garbage: bytes) -> None:
    """Nobody else notices."""
    cluster = Cluster(2)
    await cluster.start()
    end = stranger(cluster, 1)
    end.link.data_received(garbage)
    assert end.is_closing()
    await assert_carries(cluster, 1, 2)
    assert cluster.broken == []
    await cluster.close()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Ping(1), id="ping"),
        pytest.param(Owns(0, 1_000_000), id="owner"),
        pytest.param(Owns(1, 1_000_000), id="other owner"),
        pytest.param(Carry(1, "eve", False, [Cut(["alice"], b"from bob: hi\n", 1)]), id="copies"),
    ],
)
@virtual_time
async def test_stranger_is_cut_off_when_it_does_not_say_first_who_it_is(message: Any) -> None:
    """Nothing that it says counts: neither of logins nor of copies."""
    cluster = Cluster(2)
    await cluster.start()
    alice = await cluster.login(1, "alice")
    end = stranger(cluster, 1)
    end.link.data_received(encode_frame(message))
    await settled(40)
    assert end.is_closing()
    assert alice.take() == b""
    await assert_carries(cluster, 1, 2)
    await cluster.close()


@pytest.mark.parametrize("size", [1, 7, 1000])
@virtual_time
async def test_link_delivers_what_frames_carry_when_reads_cut_them_anywhere(size: int) -> None:
    """Byte by byte or several frames in one read; in order."""
    cluster = Cluster(2)
    await cluster.start()
    alice = await cluster.login(1, "alice")
    lines = [b"from bob: %d\n" % number for number in range(5)]
    carried = [
        Carry(1000 + number, "bob", False, [Cut(["alice"], line, 1)]) for number, line in enumerate(lines)
    ]
    stream = b"".join(map(encode_frame, [Ping(1), *carried]))
    link = cluster.pipes[1, 2].link
    for begin in range(0, len(stream), size):
        link.data_received(stream[begin : begin + size])
    await settled(40)
    assert alice.take() == b"".join(lines)
    assert not cluster.pipes[1, 2].is_closing()
    await cluster.close()


@virtual_time
async def test_link_ends_when_its_outbox_is_given_up() -> None:
    """One that would refuse everything from then on is worse than none, which is noticed."""
    cluster = Cluster(3)
    await cluster.start()
    alice, _ = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    outbox = cluster.pipes[1, 2].link.outbox
    assert outbox is not None
    outbox.evict()
    await settled(40)
    alice.send(b"bob: hi\n")
    await settled(40)
    assert alice.take() == b"! unknown-recipient bob: not logged in\n"
    assert [len(cluster.bus(wid).links) for wid in (1, 2, 3)] == [1, 1, 2]
    await cluster.close()


# Reports.


@pytest.mark.parametrize("answers", [True, False])
@virtual_time
async def test_delivery_is_reported_with_what_goes_there_anyway(answers: bool) -> None:
    """It wakes the other worker by itself only when nothing else has gone there for a moment."""
    cluster = Cluster(2)
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    alice.send(b"bob: 1\n")
    await turns(40)
    assert (bob.take(), alice.session.inflight_messages) == (b"from alice: 1\n", 1)
    if answers:
        bob.send(b"alice: 2\n")
        await turns(40)
    else:
        await passed(0.0011)
        await turns(40)
    assert alice.session.inflight_messages == 0
    await settled()
    assert cluster.in_flight == 0
    await cluster.close()


@virtual_time
async def test_refusal_is_reported_at_once() -> None:
    """Somebody waits to hear of it; also when deliveries wait to be reported."""
    cluster = Cluster(
        2,
        "when_full.direct='refuse'",
        "outbox.max_outbox_bytes=2000",
        "outbox.high_watermark_bytes=1000",
        "outbox.low_watermark_bytes=500",
    )
    await cluster.start()
    alice, bob = await cluster.login(1, "alice"), await cluster.login(2, "bob")
    bob.stick()
    alice.send(b"bob: 1\n")
    await turns(40)
    alice.send(b"bob: " + b"x" * 1900 + b"\n")
    await turns(40)
    alice.send(b"bob: " + b"y" * 1900 + b"\n")
    await turns(40)
    assert alice.take() == b"! refused bob: 1 message, full\n"
    bob.unstick()
    await settled()
    await cluster.close()
