"""The accept loop over a fake listening socket: errors, shortages, limits; no token is ever lost."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, cast

import pytest

from chat_gateway.listener import PAUSE_S
from tests.chat_gateway.fakes import (
    FakeGateway,
    FakeListening,
    FakeSocket,
    passed,
    turns,
    virtual_time,
)

if TYPE_CHECKING:
    from tests.chat_gateway.fakes import FakeTransport, VirtualLoop

SHORTAGES = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


class Rig:
    """A gateway with fake listening sockets that accept."""

    def __init__(self, *sets: str, count: int = 1) -> None:
        self.sockets = [FakeListening(port=7000 + index) for index in range(count)]
        self.gateway = FakeGateway(*sets, listening=self.sockets)
        self.loop = cast("VirtualLoop", self.gateway.loop)
        self.socket = self.sockets[0]
        self.listener = self.gateway.worker.listeners[0]
        self.log = self.gateway.log
        self.tokens = self.gateway.tokens
        for listener in self.gateway.worker.listeners:
            listener.start()

    @property
    def transports(self) -> list[FakeTransport]:
        """Of every connection that was opened."""
        return self.loop.transports

    async def close(self) -> None:
        """Everything ends, and every token is back."""
        for listener, one in zip(self.gateway.worker.listeners, self.sockets, strict=True):
            if not one.is_closed:
                await listener.aclose()
        await self.gateway.close()
        assert self.tokens.available == self.tokens.total
        turned_away = self.gateway.connections.turned_away
        assert turned_away.available == turned_away.total


@virtual_time
async def test_listener_opens_what_arrives_when_started() -> None:
    """Each connection has a token, its peer's address, and is served."""
    rig = Rig()
    rig.socket.arrive(FakeSocket(), FakeSocket())
    await turns()
    assert len(rig.transports) == rig.tokens.in_use == 2
    accepted = rig.log.found("connection.accepted")
    assert [one["address"] for one in accepted] == ["127.0.0.1"] * 2
    assert [one["port"] for one in accepted] == [40_001, 40_002]
    rig.transports[0].from_peer(b"alice\nalice: hi\n")
    await turns()
    assert rig.transports[0].received == b"from alice: hi\n"
    await rig.close()


@virtual_time
async def test_listener_skips_the_connection_when_accept_fails_for_it_alone() -> None:
    """Reset before it was accepted: a record, no pause, and the next one is served in the same turn."""
    rig = Rig()
    aborted = OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
    rig.socket.arrive(aborted, FakeSocket(), aborted, FakeSocket())
    await turns(2)
    assert rig.tokens.in_use == 2
    assert rig.socket.is_watched
    assert [one["reason"] for one in rig.log.found("connection.failed")] == [aborted.strerror] * 2
    assert not rig.log.errors
    await rig.close()


@pytest.mark.parametrize("number", SHORTAGES, ids=[errno.errorcode[number] for number in SHORTAGES])
@virtual_time
async def test_listener_pauses_with_a_hint_when_the_process_or_machine_is_short(number: int) -> None:
    """One record for each pause, one accept for each pause, no token gone; then it goes on by itself."""
    rig = Rig()
    rig.socket.shortage = number
    rig.socket.arrive(FakeSocket())
    await turns()
    (record,) = rig.log.found("listener.paused")
    assert rig.log.errors[0].event == "listener.paused"
    assert (record["errno"], record["pause_s"]) == (number, PAUSE_S)
    assert record["error"] == os.strerror(number).lower()
    assert record["listen"] == "line://192.0.2.1:7000"
    assert record["hint"].split()[0] in ("raise", "the")
    assert not rig.socket.is_watched
    assert rig.tokens.in_use == 0
    await passed(PAUSE_S * 4.5)
    assert rig.socket.accepts == len(rig.log.found("listener.paused")) == 5
    rig.socket.shortage = None
    await passed(PAUSE_S)
    assert rig.tokens.in_use == 1
    assert rig.socket.is_watched
    await rig.close()


@virtual_time
async def test_listener_stays_paused_when_a_token_comes_back_meanwhile() -> None:
    """A connection that ends does not cut the pause short."""
    rig = Rig()
    rig.socket.arrive(FakeSocket())
    await turns()
    rig.socket.shortage = errno.EMFILE
    rig.socket.arrive(FakeSocket())
    await turns()
    rig.transports[0].end_from_peer(is_reset=True)
    await turns()
    assert not rig.socket.is_watched
    assert rig.socket.accepts == 3
    rig.socket.shortage = None
    await passed(PAUSE_S)
    assert rig.tokens.in_use == 1
    await rig.close()


@virtual_time
async def test_listener_leaves_newcomers_waiting_when_at_the_limit_that_says_wait() -> None:
    """Not accepted, not watched, one record; each token that comes back lets one in."""
    rig = Rig("limits.max_connections=2", "limits.at_limit=wait")
    rig.socket.arrive(*(FakeSocket() for _ in range(4)))
    await turns()
    assert (rig.tokens.in_use, len(rig.socket.queue), rig.socket.accepts) == (2, 2, 2)
    assert not rig.socket.is_watched
    (record,) = rig.log.found("listener.at_limit")
    assert (record["max_connections"], record["at_limit"]) == (2, "wait")
    assert "limits.max_connections" in record["hint"]
    rig.transports[0].end_from_peer()
    await turns()
    assert (rig.tokens.in_use, len(rig.socket.queue)) == (2, 1)
    for transport in rig.transports:
        transport.end_from_peer()
    await turns()
    assert (rig.tokens.in_use, len(rig.socket.queue)) == (1, 0)
    await rig.close()


@virtual_time
async def test_listener_answers_busy_when_at_the_limit_that_says_busy() -> None:
    """Told and closed at once; who is in stays in, and the next to come after an end is let in."""
    rig = Rig("limits.max_connections=1", "limits.at_limit=busy")
    rig.socket.arrive(*(FakeSocket() for _ in range(3)))
    await turns()
    first, *others = rig.transports
    notice = b"! busy too many connections, try again later\n"
    assert [bytes(other.received) for other in others] == [notice, notice]
    assert all(other.is_lost for other in others)
    assert not first.is_closing()
    assert rig.socket.is_watched
    first.end_from_peer()
    rig.socket.arrive(FakeSocket())
    await turns()
    assert rig.transports[-1].received == b""
    assert rig.tokens.in_use == 1
    await rig.close()


@virtual_time
async def test_listener_turns_a_bounded_number_away_when_they_do_not_leave() -> None:
    """Those who are told so are bounded too: beyond them newcomers wait, until one has left."""
    rig = Rig("limits.max_connections=1", "limits.at_limit=busy", "outbox.linger_s=2")
    rig.loop.peers_close_with_us = False
    rig.socket.arrive(*(FakeSocket() for _ in range(100)))
    await turns()
    told = rig.gateway.connections.turned_away
    assert told.available == 0
    assert len(rig.socket.queue) == 100 - 1 - told.total
    assert not rig.socket.is_watched
    rig.transports[5].end_from_peer()
    await turns()
    assert len(rig.socket.queue) == 100 - 2 - told.total
    await rig.close()


@virtual_time
async def test_listener_does_not_own_the_turn_when_very_many_arrive() -> None:
    """A storm is accepted in portions."""
    rig = Rig()
    rig.socket.arrive(*(FakeSocket() for _ in range(200)))
    await turns(1)
    assert 0 < rig.socket.accepts <= 64
    await turns(20)
    assert rig.tokens.in_use == 200
    await rig.close()


@pytest.mark.parametrize(
    "broken",
    [
        FakeSocket(prepare_error=OSError(errno.EINVAL, "gone already")),
        FakeSocket(error_before_made=RuntimeError("no transport")),
        FakeSocket(error_after_made=RuntimeError("transport failed later")),
    ],
    ids=["prepare", "before-made", "after-made"],
)
@virtual_time
async def test_listener_goes_on_when_a_connection_cannot_be_opened(broken: FakeSocket) -> None:
    """That connection ends, its socket is closed, its token is back exactly once; the next one is served."""
    rig = Rig()
    rig.socket.arrive(broken, FakeSocket())
    await turns()
    assert broken.is_closed
    assert len(rig.log.found("connection.failed")) == 1
    assert rig.tokens.in_use == 1
    assert rig.socket.is_watched
    await rig.close()


@virtual_time
async def test_listener_goes_on_when_a_connection_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a constructor that raises costs more than its connection."""
    rig = Rig()

    def fail(*_arguments: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("chat_gateway.listener.Connection", fail)
        lost = FakeSocket()
        rig.socket.arrive(lost)
        await turns()
    assert lost.is_closed
    assert rig.tokens.in_use == 0
    rig.socket.arrive(FakeSocket())
    await turns()
    assert rig.tokens.in_use == 1
    await rig.close()


@virtual_time
async def test_listeners_share_the_tokens_when_there_are_several() -> None:
    """A token that comes back lets one in at whichever listener has somebody waiting."""
    rig = Rig("limits.max_connections=1", count=2)
    rig.sockets[0].arrive(FakeSocket())
    await turns()
    rig.sockets[1].arrive(FakeSocket())
    await turns()
    assert len(rig.transports) == 1
    rig.transports[0].end_from_peer()
    await turns()
    assert len(rig.transports) == 2
    assert rig.tokens.in_use == 1
    await rig.close()


@virtual_time
async def test_listener_is_silent_when_closed() -> None:
    """Closed in a pause or not, once or twice: nothing is accepted any more, whatever falls due."""
    rig = Rig(count=2)
    rig.sockets[0].shortage = errno.EMFILE
    rig.sockets[0].arrive(FakeSocket())
    await turns()
    for listener in rig.gateway.worker.listeners:
        await listener.aclose()
        listener.resume()
    accepts = [one.accepts for one in rig.sockets]
    await rig.listener.aclose()
    rig.sockets[0].shortage = None
    await passed(5)
    assert all(one.is_closed and not one.is_watched for one in rig.sockets)
    assert [one.accepts for one in rig.sockets] == accepts
    await rig.close()


@virtual_time
async def test_listener_takes_in_who_has_connected_when_closed() -> None:
    """A close resets those that wait in the kernel's queue, so they are accepted before it."""
    rig = Rig()
    rig.socket.arrive(*(FakeSocket() for _ in range(150)))
    await rig.listener.aclose()
    assert rig.socket.queue == []
    assert rig.tokens.in_use == len(rig.gateway.connections) == 150
    await rig.close()


@virtual_time
async def test_listener_leaves_who_has_connected_to_its_successor_when_closed_so() -> None:
    """Another process has the same socket open: closing ours resets nobody."""
    rig = Rig()
    rig.socket.arrive(*(FakeSocket() for _ in range(150)))
    await rig.listener.aclose(takes_waiting=False)
    await passed(5)
    assert len(rig.socket.queue) == 150
    assert rig.socket.is_closed
    await rig.close()


@virtual_time
async def test_listener_waits_for_what_it_is_opening_when_closed() -> None:
    """A connection that was accepted a moment before is opened, not lost."""
    rig = Rig()
    rig.socket.arrive(FakeSocket())
    await turns(1)
    assert rig.transports == []
    await rig.listener.aclose()
    assert len(rig.gateway.connections) == 1
    await rig.close()


@virtual_time
async def test_listener_spells_its_address_as_a_url_when_asked() -> None:
    """An IPv6 host stands in brackets."""
    rig = Rig()
    assert rig.listener.url == "line://192.0.2.1:7000"
    rig.socket.name = ("2001:db8::1", 7001, 0, 0)
    assert rig.listener.url == "line://[2001:db8::1]:7001"
    await rig.close()
