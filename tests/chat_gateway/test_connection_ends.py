"""What a connection leaves behind when it ends: its token, its copies, its login."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from chat_gateway.disconnect import Disconnect
from tests.chat_gateway.fakes import PATIENT, SMALL, FakeGateway, Peer, fill, passed, turns, virtual_time


def end(gateway: FakeGateway, peer: Peer) -> None:
    peer.end()


def reset(gateway: FakeGateway, peer: Peer) -> None:
    peer.reset()


def overlong(gateway: FakeGateway, peer: Peer) -> None:
    peer.send(b"x" * 20_000)


def shut_down(gateway: FakeGateway, peer: Peer) -> None:
    peer.connection.end(Disconnect.SHUTDOWN)


def abort(gateway: FakeGateway, peer: Peer) -> None:
    peer.connection.abort(Disconnect.ERROR)


STEPS = (end, reset, overlong, shut_down, abort)
# Every way to end, and every way that another one cuts short.
ENDS = [
    *((step,) for step in STEPS),
    *((first, second) for first in (end, overlong, shut_down) for second in (end, abort) if first != second),
    *((first, reset) for first in (overlong, shut_down)),
]


@pytest.mark.parametrize("steps", ENDS, ids=lambda steps: "-".join(step.__name__ for step in steps))
@virtual_time
async def test_token_comes_back_once_and_after_the_last_outcome_when_a_session_ends(
    steps: tuple[Callable[[FakeGateway, Peer], None], ...],
) -> None:
    """In whatever way it ends: not before its last copy has an outcome, and never twice."""
    gateway = FakeGateway(*PATIENT)
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: waits\n")
    await turns()
    for step in steps:
        step(gateway, alice)
    await turns()
    assert gateway.tokens.in_use == 2
    assert gateway.ledger.in_flight == 1
    bob.unstick()
    await turns()
    assert alice.transport.is_lost
    assert gateway.tokens.in_use == len(gateway.connections) == 1
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0
    assert not gateway.log.errors
    await gateway.close()
    assert gateway.tokens.in_use == 0


@virtual_time
async def test_token_comes_back_once_when_its_own_outbox_holds_its_last_copy() -> None:
    """A message to oneself that is refused by one's own end is resolved within that end."""
    gateway = FakeGateway(*PATIENT)
    alice = gateway.login("alice")
    alice.stick()
    alice.send(b"alice: 1\n")
    await turns()
    alice.send(b"alice: 2\n")
    await turns()
    assert gateway.ledger.in_flight == 1
    alice.reset()
    await turns()
    assert gateway.ledger.refused == {"gone": 1}
    assert gateway.tokens.in_use == len(gateway.connections) == 0
    await gateway.close()


@virtual_time
async def test_token_comes_back_when_the_connection_fails_by_our_own_fault() -> None:
    """An error in our code ends that connection only: logged, aborted, its token back; others go on."""
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")

    def fail(*_arguments: object) -> bool:
        raise RuntimeError("broken")

    gateway.connections.input = type("Broken", (), {"offer": staticmethod(fail)})()
    bob.send(b"bob: 1\n")
    await turns()
    assert bob.transport.is_aborted
    assert [record.event for record in gateway.log.errors] == ["connection.failed"]
    assert gateway.connections.closed == {"error": 1}
    assert alice.is_read
    assert gateway.connections.hub.holder("bob") is None
    await gateway.close()


@virtual_time
async def test_token_comes_back_when_the_pipeline_does_not_take_a_block() -> None:
    """What never got into the pipeline is not in flight."""
    gateway = FakeGateway()
    bob = gateway.login("bob")
    gateway.worker.topology.input.close()
    bob.send(b"bob: 1\n")
    await turns()
    assert bob.transport.is_lost
    assert gateway.tokens.in_use == len(gateway.connections) == 0
    await gateway.close()


@pytest.mark.parametrize("part", ["open_outbox", "add"])
@virtual_time
async def test_token_comes_back_when_a_connection_fails_as_it_is_made(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its first moment can take a token along."""
    gateway = FakeGateway()

    def fail(*_arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(gateway.connections, part, fail)
    peer = gateway.connect()
    await turns()
    assert peer.transport.is_aborted
    assert gateway.tokens.in_use == len(gateway.connections) == 0
    assert [record.event for record in gateway.log.errors] == ["connection.failed"]
    await gateway.close()


@virtual_time
async def test_connection_fails_alone_when_its_end_of_stream_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the end of the stream is handled aborts like any other."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.send(b"bob: unfinished")

    def fail(*_arguments: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(gateway.connections, "input", type("Broken", (), {"offer": staticmethod(fail)})())
    alice.end()
    await turns()
    assert alice.transport.is_aborted
    assert gateway.connections.closed == {"error": 1}
    await gateway.close()


@virtual_time
async def test_connection_fails_alone_when_what_was_read_early_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while it is handled at last aborts like any other; nothing is left half alive."""
    gateway = FakeGateway(
        "limits.new_connections_per_s=0.5", "limits.new_connections_burst=1", "limits.limit_loopback=true"
    )
    alice, held_back = gateway.login("alice"), gateway.connect()
    held_back.send(b"bob\nbob: 1\n")
    held_back.transport.read_anyway()

    def fail(*_arguments: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(gateway.connections, "input", type("Broken", (), {"offer": staticmethod(fail)})())
    await passed(2.1)
    assert held_back.transport.is_aborted
    assert gateway.connections.closed == {"error": 1}
    assert [record.event for record in gateway.log.errors] == ["connection.failed"]
    assert gateway.tokens.in_use == 1
    assert alice.is_read
    await gateway.close()


@contextlib.contextmanager
def kernel_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets of this process, for what only the kernel can answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@virtual_time
async def test_login_is_taken_over_when_its_stalled_holder_has_gone() -> None:
    """A paused socket hides that its client has gone: it is looked at before the login is refused."""
    with kernel_pair() as (ours, theirs):
        gateway = FakeGateway(*PATIENT)
        old = gateway.login("alice", sock=ours)
        bob = await gateway.stuck("bob", old)
        old.session.stall()
        old.send(b"bob: unread\n")
        theirs.close()
        new = gateway.connect()
        new.send(b"alice\nalice: new\n")
        assert gateway.connections.hub.holder("alice") is new.session
        await turns()
        assert old.transport.is_aborted
        assert gateway.connections.closed == {"client_lost": 1}
        assert gateway.connections.hub.holder("alice") is new.session
        assert new.take() == b"from alice: new\n"
        bob.unstick()
        bob.send(b"alice: hello\n")
        await turns()
        assert new.take() == b"from bob: hello\n"
        await gateway.close()


@virtual_time
async def test_login_is_refused_when_its_stalled_holder_is_there() -> None:
    """A stalled holder whose peer is alive is told of it, and stays what it was."""
    with kernel_pair() as (ours, _theirs):
        gateway = FakeGateway()
        old = gateway.login("alice", sock=ours)
        old.session.stall()
        new = gateway.connect()
        new.send(b"alice\nalice: lost\n")
        await turns()
        assert old.take() == b"! login-contested someone else asks for your name\n"
        assert not new.is_read
        await passed(1.0)
        assert old.take() == b""
        assert new.take().startswith(b"! login-taken ")
        assert not old.transport.is_closing()
        assert gateway.connections.hub.holder("alice") is old.session
        await gateway.close()


@virtual_time
async def test_login_is_taken_over_when_its_stalled_holder_turns_out_to_have_gone() -> None:
    """What its client sent before it died hides the end of its stream; what we send it brings a reset."""
    with kernel_pair() as (ours, theirs):
        gateway = FakeGateway()
        old = gateway.login("alice", sock=ours)
        old.session.stall()
        new = gateway.connect()
        new.send(b"alice\nalice: first\n")
        await turns()
        assert gateway.connections.hub.holder("alice") is old.session
        theirs.close()  # stands for the reset
        await passed(1.0)
        assert old.transport.is_aborted
        assert gateway.connections.hub.holder("alice") is new.session
        new.send(b"alice: second\n")
        await turns()
        assert new.take() == b"from alice: first\nfrom alice: second\n"
        await gateway.close()


@virtual_time
async def test_claimant_leaves_nothing_behind_when_its_time_is_over_before_the_verdict() -> None:
    """Its login stays with its holder, and it ends like any connection that never logged in."""
    with kernel_pair() as (ours, _theirs):
        gateway = FakeGateway("limits.login_timeout_s=0.1", "outbox.linger_s=0.1")
        old = gateway.login("alice", sock=ours)
        old.session.stall()
        new = gateway.connect()
        new.send(b"alice\n")
        await passed(1.0)
        assert new.take().startswith(b"! login-timeout ")
        assert gateway.connections.hub.holder("alice") is old.session
        assert gateway.connections.closed == {"login_timeout": 1}
        assert len(gateway.connections) == 1
        assert gateway.connections.logins == 1
        await gateway.close()


@virtual_time
async def test_login_is_taken_over_when_its_holder_is_broken_and_its_loop_has_not_come_to_it() -> None:
    """A holder that is read is looked at too: in a busy worker its client is back before its end is heard."""
    with kernel_pair() as (ours, theirs):
        gateway = FakeGateway(*PATIENT)
        old = gateway.login("alice", sock=ours)
        theirs.close()  # stands for the reset: no side is open
        new = gateway.login("alice")
        assert gateway.connections.hub.holder("alice") is new.session
        old.reset()  # heard late
        await turns()
        assert gateway.connections.closed == {"client_lost": 1}
        assert gateway.connections.hub.holder("alice") is new.session
        assert old.take() == b""
        await gateway.close()


@virtual_time
async def test_login_is_refused_when_its_holder_has_only_closed_its_sending_side() -> None:
    """What it has sent before is read and answered yet; who asks is refused when that takes too long."""
    with kernel_pair() as (ours, theirs):
        gateway = FakeGateway()
        old = gateway.login("alice", sock=ours)
        theirs.shutdown(socket.SHUT_WR)
        new = gateway.connect()
        new.send(b"alice\n")
        await passed(1.0)
        assert new.take().startswith(b"! login-taken ")
        assert not old.transport.is_closing()
        old.send(b"alice: last\n")  # read late
        await turns()
        assert old.take() == b"from alice: last\n"
        await gateway.close()


@virtual_time
async def test_login_is_free_at_once_when_its_holder_is_being_ended() -> None:
    """A client that comes back while its old connection is still flushed is let in, and stays in."""
    gateway = FakeGateway(*PATIENT)
    carol = gateway.login("carol")
    old = await gateway.stuck("alice", carol)
    old.connection.end(Disconnect.SLOW_CONSUMER)
    new = gateway.login("alice")
    await turns()
    old.reset()  # the late end of the old one
    await turns()
    assert old.transport.is_lost
    assert gateway.connections.hub.holder("alice") is new.session
    carol.send(b"alice: to the new one\n")
    await turns()
    assert new.take() == b"from carol: to the new one\n"
    await gateway.close()


@virtual_time
async def test_copies_are_refused_when_their_recipient_has_gone() -> None:
    """What waited for a connection that is lost has an outcome, and its sender is told and read again."""
    gateway = FakeGateway(*SMALL, *PATIENT)
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    bob.reset()
    await turns()
    assert alice.take() == b"! refused bob: 3 messages, gone\n"
    await passed(0.6)  # those that a writer has stalled come back one after the other when it ends
    assert alice.is_read
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0
    await gateway.close()
