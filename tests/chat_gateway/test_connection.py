"""One connection over a fake transport, in front of the real pipeline: reading, pausing, closing."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import State
from chat_gateway.read_buffers import LITTLE_READS
from tests.chat_gateway.fakes import SMALL, TEXT, FakeGateway, Peer, fill, passed, take, turns, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

TOO_LONG = b"! line-too-long a line is longer than allowed\n"


# Logging in.


@virtual_time
async def test_connection_is_silent_and_routes_when_the_login_is_good() -> None:
    """A login has no greeting; lines behind it in the same read count; `\\r` is dropped."""
    gateway = FakeGateway()
    peer = gateway.connect()
    peer.send(b"alice\r\nalice: one\nalice: two\n")
    await turns()
    assert peer.take() == b"from alice: one\nfrom alice: two\n"
    assert gateway.log.found("session.login")[0]["login"] == "alice"
    await gateway.close()


@virtual_time
async def test_connection_logs_in_when_the_login_comes_byte_by_byte() -> None:
    """However the bytes are split."""
    gateway = FakeGateway()
    peer = gateway.connect()
    for byte in b"alice\nalice: hi\n":
        peer.send(bytes([byte]))
    await turns()
    assert peer.take() == b"from alice: hi\n"
    await gateway.close()


@pytest.mark.parametrize(
    ("first", "notice", "reason"),
    [
        (b"\n", b"! bad-login a login must not be empty\n", "bad_login"),
        (b"a b\n", b"! bad-login a login has no white space\n", "bad_login"),
        (b"GET / HTTP/1.1\r\n", b"", "not_line_protocol"),
        (b"\x16\x03\x01", b"", "not_line_protocol"),
        (b"\xff\xfe\n", b"", "not_line_protocol"),
        (b"x" * 129, TOO_LONG, "line_too_long"),
        (b"x" * 200 + b"\n", TOO_LONG, "line_too_long"),
        (b"alice\n" + b"y" * 300, TOO_LONG, "line_too_long"),
    ],
)
@virtual_time
async def test_connection_is_closed_with_its_reason_when_the_first_line_is_bad(
    first: bytes, notice: bytes, reason: str
) -> None:
    """The peer is told what is wrong if it can understand it, our side is shut down, the token comes back."""
    gateway = FakeGateway("limits.max_line_bytes=128", "limits.max_read_bytes=1024")
    peer = gateway.connect()
    peer.send(first)
    await turns()
    assert peer.take() == notice
    assert peer.transport.is_end_sent
    assert peer.transport.is_lost
    assert not peer.transport.is_aborted
    assert gateway.connections.closed == {reason: 1}
    assert gateway.tokens.in_use == len(gateway.connections) == len(gateway.connections.hub) == 0
    assert not gateway.log.errors
    await gateway.close()


@virtual_time
async def test_connection_delivers_the_good_lines_when_a_line_is_too_long() -> None:
    """What stands before the overlong line is routed; then the Notice and the end."""
    gateway = FakeGateway("limits.max_line_bytes=128", "limits.max_read_bytes=1024")
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.send(b"bob: before\n" + b"x" * 200 + b"\nbob: after\n")
    await turns()
    assert bob.take() == b"from alice: before\n"
    assert alice.take() == TOO_LONG
    assert alice.transport.is_lost
    await gateway.close()


@virtual_time
async def test_connection_delivers_everything_in_order_when_one_read_has_many_lines() -> None:
    """They go through the stages in several pieces, to alternating recipients, and nothing is left over."""
    gateway = FakeGateway("limits.max_inflight_messages=100000", "limits.max_inflight_bytes=16777216")
    alice, bob, carol = (gateway.login(name) for name in ("alice", "bob", "carol"))
    numbers = range(0, 6000, 2)
    alice.send(b"".join(b"bob:%d\ncarol:%d\n" % (number, number + 1) for number in numbers))
    for _ in range(20):
        await turns()
    assert bob.take() == b"".join(b"from alice: %d\n" % number for number in numbers)
    assert carol.take() == b"".join(b"from alice: %d\n" % (number + 1) for number in numbers)
    assert gateway.ledger.in_flight == gateway.ledger.buffered_bytes == 0
    assert alice.is_read
    await gateway.close()


@virtual_time
async def test_connection_is_not_read_until_what_it_said_is_within_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes; nothing of it is lost meanwhile, and one that has left is forgotten."""
    clock = SimpleNamespace(monotonic=asyncio.get_running_loop().time)
    monkeypatch.setattr("chat_gateway.session.time", clock)
    gateway = FakeGateway("limits.messages_per_s=10", "limits.messages_burst=20")
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.send(b"bob: x\n" * 140)
    await passed(11.9)
    assert not alice.is_read
    assert bob.take() == b"from alice: x\n" * 140
    await passed(0.2)
    assert alice.is_read
    alice.send(b"bob: x\n" * 140)
    alice.connection.abort(Disconnect.ERROR)
    await passed(6)
    assert not alice.connection.is_held_back
    await gateway.close()


@virtual_time
async def test_connection_is_refused_when_its_login_is_taken() -> None:
    """The second one is told and closed; the first one is not disturbed, nor removed by the other's end."""
    gateway = FakeGateway()
    first, second = gateway.login("alice"), gateway.connect()
    second.send(b"alice\nbob: unheard\n")
    await turns()
    assert second.take() == b"! login-taken someone is logged in under that name\n"
    assert second.transport.is_lost
    first.send(b"alice: here\n")
    await turns()
    assert first.take() == b"from alice: here\n"
    assert gateway.tokens.in_use == 1
    await gateway.close()


@virtual_time
async def test_connection_is_closed_when_no_login_comes_in_time() -> None:
    """Idle strangers are told and closed, also when they send a part of a line; sessions stay."""
    gateway = FakeGateway("limits.login_timeout_s=10")
    alice, idle, slow = gateway.login("alice"), gateway.connect(), gateway.connect()
    slow.send(b"bo")
    gateway.loop.call_later(9.9, slow.send, b"b")
    await turns()
    gateway.loop.call_later(9.95, lambda: states.append(idle.connection.state))
    states: list[State] = []
    await passed(11.0)
    assert states == [State.LOGIN]
    notice = b"! login-timeout no login came in time\n"
    assert (alice.take(), idle.take(), slow.take()) == (b"", notice, notice)
    assert idle.transport.is_lost
    assert gateway.connections.closed == {"login_timeout": 2}
    await gateway.close()


@virtual_time
async def test_connection_keeps_silent_when_notices_are_off() -> None:
    """It is closed without a word."""
    gateway = FakeGateway("limits.notices=false")
    peer = gateway.connect()
    peer.send(b"a b\n")
    await turns()
    assert peer.take() == b""
    assert peer.transport.is_lost
    await gateway.close()


# Pausing and resuming.


class Cause:
    """Something that forbids reading: how a test brings it about and ends it."""

    def __init__(
        self,
        name: str,
        begin: Callable[[FakeGateway, Peer], None],
        end: Callable[[FakeGateway, Peer], None] | None,
    ) -> None:
        self.name = name
        self.begin = begin
        self.end = end  # None: ends by itself with the turn

    def __repr__(self) -> str:
        return self.name


def _spend(_gateway: FakeGateway, peer: Peer) -> None:
    take(peer.session, 4096)
    peer.connection.update_reading()


def _return(_gateway: FakeGateway, peer: Peer) -> None:
    peer.session.give_back(4096, 512 + 72 * 4096, 0)


def _fill_stage(_gateway: FakeGateway, peer: Peer) -> None:
    peer.send(b"x: 1\n")
    peer.send(b"x: 2\n")  # finds no room; the stages do not run yet


STALLED = Cause("stalled", lambda _, peer: peer.session.stall(), lambda _, peer: peer.session.unstall())
SPENT = Cause("spent", _spend, _return)
NO_ROOM = Cause("no-room", _fill_stage, lambda gateway, _: gateway.worker.topology.start())
YIELDED = Cause("yielded", lambda _, peer: peer.send(b"x: ".ljust(127, b".") + b"\n"), None)
CAUSES = (STALLED, SPENT, NO_ROOM, YIELDED)

# Of two that need what the peer sends only the first could be brought about.
PAIRS = [
    *(pair for pair in itertools.permutations(CAUSES, 2) if pair[1] not in (NO_ROOM, YIELDED)),
    (STALLED, STALLED),
]


def _gateway_of_one_place() -> tuple[FakeGateway, Peer]:
    gateway = FakeGateway(
        "stages.parse.capacity=1",
        "limits.max_line_bytes=128",
        "limits.max_read_bytes=128",
        is_started=False,
    )
    return gateway, gateway.login("alice")


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
@virtual_time
async def test_connection_is_not_read_exactly_while_one_cause_holds(cause: Cause) -> None:
    """Paused as soon as the cause is there, resumed as soon as it is not; each told the transport once."""
    gateway, alice = _gateway_of_one_place()
    assert alice.is_read
    cause.begin(gateway, alice)
    assert not alice.is_read
    if cause.end is not None:
        await turns()
        assert not alice.is_read
        cause.end(gateway, alice)
    await turns()
    assert alice.is_read
    assert alice.transport.switches == [False, True]
    await gateway.close()


@pytest.mark.parametrize("is_first_ended_first", [True, False], ids=["fifo", "lifo"])
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=repr)
@virtual_time
async def test_connection_is_not_read_until_the_last_of_two_causes_has_gone(
    first: Cause, second: Cause, is_first_ended_first: bool
) -> None:
    """Whichever goes first, the other one still holds."""
    gateway, alice = _gateway_of_one_place()
    first.begin(gateway, alice)
    second.begin(gateway, alice)
    order = [first, second] if is_first_ended_first else [second, first]
    order.sort(key=lambda cause: cause.end is not None)  # what ends with the turn ends first
    for cause in order:
        assert not alice.is_read
        if cause.end is not None:
            cause.end(gateway, alice)
        await turns()
    assert alice.is_read
    assert alice.transport.switches == [False, True]
    await gateway.close()


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
@virtual_time
async def test_connection_is_never_read_again_when_it_drains(cause: Cause) -> None:
    """Draining outlasts every other cause."""
    gateway, alice = _gateway_of_one_place()
    cause.begin(gateway, alice)
    gateway.connections.stop_reading()
    if cause.end is not None:
        cause.end(gateway, alice)
    await turns()
    assert not alice.is_read
    await gateway.close()


@virtual_time
async def test_connection_is_not_read_when_it_is_held_back() -> None:
    """For the time it was told; a second such pause meanwhile adds nothing."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.connection.pause_for(2.0)
    await passed(1.0)
    alice.connection.pause_for(100.0)
    assert not alice.is_read
    await passed(0.5)
    assert not alice.is_read
    await passed(0.6)
    assert alice.is_read
    assert alice.transport.switches == [False, True]
    await gateway.close()


@virtual_time
async def test_connection_is_read_a_little_when_it_was_refused() -> None:
    """Some small reads, each in a turn of its own; whole ones again once so many were not refused."""
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    alice.connection.read_little()
    little = len(alice.connection.get_buffer(-1))
    line = b"bob: ".ljust(255, b".") + b"\n"
    assert little % len(line) == 0
    assert little < len(bob.connection.get_buffer(-1))
    for _ in range(1 + LITTLE_READS):
        assert len(alice.connection.get_buffer(-1)) == little
        alice.send(line * (little // len(line)))
        assert not alice.is_read
        await turns()
        assert alice.is_read
    assert len(alice.connection.get_buffer(-1)) == len(bob.connection.get_buffer(-1))
    await gateway.close()


@virtual_time
async def test_connection_brings_no_more_than_one_read_a_turn_when_it_floods() -> None:
    """What is beyond waits for the next turn, so that others have theirs; nothing is lost."""
    gateway = FakeGateway("limits.max_line_bytes=128", "limits.max_read_bytes=128")
    alice, bob = gateway.login("alice"), gateway.login("bob")
    line = b"bob: " + b"." * 58 + b"\n"
    before = gateway.ledger.bytes_in
    alice.send(line * 40)
    assert gateway.ledger.bytes_in - before == 128
    for turn in range(2, 6):
        await turns(1)
        assert gateway.ledger.bytes_in - before <= 128 * turn
    await turns(60)
    assert bob.take() == (b"from alice: " + b"." * 58 + b"\n") * 40
    assert alice.is_read
    await gateway.close()


@virtual_time
async def test_connection_is_read_on_when_a_read_was_not_full() -> None:
    """A short read does not cost a pause."""
    gateway = FakeGateway("limits.max_line_bytes=128", "limits.max_read_bytes=128")
    alice = gateway.login("alice")
    alice.send(b"x: ".ljust(126, b".") + b"\n")
    assert alice.is_read
    assert alice.transport.switches == []
    await gateway.close()


@virtual_time
async def test_connection_is_stalled_by_a_stuck_recipient_and_runs_on_when_that_moves() -> None:
    """Pressure reaches the socket of its cause only, and goes when the recipient has caught up."""
    gateway = FakeGateway(*SMALL)
    alice, carol = gateway.login("alice"), gateway.login("carol")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    assert not alice.is_read
    assert gateway.connections.stalled_sessions == 1
    carol.send(b"carol: free\n")
    alice.send(b"carol: later\n")
    await turns()
    assert carol.take() == b"from carol: free\n"
    bob.unstick()
    await turns()
    assert alice.is_read
    assert bob.take().splitlines() == [b"from alice: first"] + [b"from alice: " + TEXT] * 3
    assert carol.take() == b"from alice: later\n"
    await gateway.close()


@virtual_time
async def test_connection_waits_for_credit_when_its_messages_have_no_outcome() -> None:
    """Credit is what a session may have in flight, whatever the room in the outbox."""
    gateway = FakeGateway("limits.max_inflight_messages=4")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\nbob: 2\nbob: 3\n")
    await turns()
    assert alice.is_read
    alice.send(b"bob: 4\n")
    assert not alice.is_read
    bob.unstick()
    await turns()
    assert alice.is_read
    await gateway.close()
