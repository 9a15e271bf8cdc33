"""How one connection ends: in order, in every state, and never for ever."""

from __future__ import annotations

import pytest

from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import State
from tests.chat_gateway.fakes import (
    PATIENT,
    SMALL,
    TEXT,
    FakeGateway,
    fill,
    passed,
    take,
    turns,
    virtual_time,
)


@virtual_time
async def test_connection_counts_the_last_line_when_the_stream_ends_without_its_end() -> None:
    """`printf 'alice\\nalice: hi' | nc`: everything is routed and flushed, then the gateway closes."""
    gateway = FakeGateway()
    alice = gateway.connect()
    alice.send(b"alice\nalice: one\nalice: tw")
    alice.send(b"o")
    alice.end()
    assert alice.connection.state == State.LEAVING
    await turns()
    assert alice.take() == b"from alice: one\nfrom alice: two\n"
    assert alice.transport.is_lost
    assert gateway.connections.closed == {"client_closed": 1}
    assert gateway.tokens.in_use == 0
    await gateway.close()


@virtual_time
async def test_connection_counts_a_login_when_the_stream_ends_without_its_end() -> None:
    """A login alone is a session that ends at once."""
    gateway = FakeGateway()
    alice = gateway.connect()
    alice.send(b"alice")
    alice.end()
    await turns()
    assert gateway.connections.logins == 1
    assert alice.transport.is_lost
    assert len(gateway.connections.hub) == 0
    await gateway.close()


@virtual_time
async def test_connection_refuses_a_bad_login_when_the_stream_ends_without_its_end() -> None:
    """It is told like any other, and our side is closed behind the Notice."""
    gateway = FakeGateway()
    peer = gateway.connect()
    peer.send(b"a b")
    peer.end()
    await turns()
    assert peer.take() == b"! bad-login a login has no white space\n"
    assert peer.transport.is_lost
    assert gateway.connections.closed == {"bad_login": 1}
    await gateway.close()


@virtual_time
async def test_connection_ends_when_the_stream_ends_before_a_login() -> None:
    """Nothing to say, nothing to wait for."""
    gateway = FakeGateway()
    peer = gateway.connect()
    peer.end()
    await turns()
    assert peer.take() == b""
    assert peer.transport.is_lost
    assert gateway.connections.closed == {"client_closed": 1}
    assert gateway.tokens.in_use == 0
    await gateway.close()


@virtual_time
async def test_connection_waits_for_its_copies_when_the_peer_has_ended_its_stream() -> None:
    """It stays, and is found by its login, until the last copy has its outcome; then it closes in order."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    bob.unstick()
    await turns()
    bob.stick()
    fill(alice, "bob")
    await turns()
    alice.send(b"bob: last")
    alice.end()
    await turns()
    assert not alice.transport.is_closing()
    bob.send(b"alice: still there?\n")
    await turns()
    assert alice.take() == b"from bob: still there?\n"
    bob.unstick()
    await turns()
    assert bob.take().endswith(b"from alice: last\n")
    assert alice.transport.is_lost
    assert not alice.transport.is_aborted
    assert gateway.tokens.in_use == 1
    await gateway.close()


@virtual_time
async def test_connection_is_not_read_again_when_the_peer_has_ended_its_stream() -> None:
    """While it leaves, neither stall nor credit touch a transport that has nothing more to read."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    alice.send(b"bob: 1\n")
    alice.end()
    await turns()
    assert alice.connection.state == State.LEAVING
    alice.session.stall()
    alice.session.unstall()
    assert alice.transport.switches == []
    await gateway.close()


# Closing in order.


@virtual_time
async def test_connection_flushes_says_why_and_waits_for_the_peer_when_it_is_ended() -> None:
    """Pending lines, then the Notice, then the end of our side; closed once the peer has closed too."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.transport.closes_with_us = False
    alice.send(b"alice: pending\n")
    await turns()
    alice.connection.end(Disconnect.RESTARTING)
    await turns()
    assert alice.take() == b"from alice: pending\n! restarting connect again\n"
    assert alice.transport.is_end_sent
    assert not alice.transport.is_closing()
    assert alice.connection.state == State.LINGERING
    alice.send(b"thrown: away\n")
    alice.end()
    await turns()
    assert alice.transport.is_lost
    assert not alice.transport.is_aborted
    assert gateway.connections.closed == {"restarting": 1}
    assert gateway.ledger.accepted == 1
    await gateway.close()


@virtual_time
async def test_connection_puts_its_last_word_behind_everything_when_its_outbox_is_paused() -> None:
    """A peer that reads slowly gets all that was pending, then the Notice, then the end."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: second\n")
    await turns()
    bob.connection.end(Disconnect.SHUTDOWN)
    await turns()
    assert bob.connection.state == State.FLUSHING
    assert not bob.transport.is_end_sent
    bob.unstick()
    await turns()
    assert bob.take() == b"from alice: first\nfrom alice: second\n! shutdown the gateway stops\n"
    assert bob.transport.is_lost
    assert not bob.transport.is_aborted
    await gateway.close()


@virtual_time
async def test_connection_says_its_words_once_when_it_is_ended_twice() -> None:
    """The first reason stays."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.connection.end(Disconnect.SHUTDOWN, "other words")
    alice.connection.end(Disconnect.BUSY)
    await turns()
    alice.connection.end(Disconnect.BUSY)
    assert alice.take() == b"! shutdown other words\n"
    assert gateway.connections.closed == {"shutdown": 1}
    await gateway.close()


@virtual_time
async def test_connection_closes_at_once_when_it_is_ended_while_the_peer_has_ended_already() -> None:
    """Nothing unread is left that a close could reset: no lingering, but flushed and told."""
    gateway = FakeGateway(*PATIENT)
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    alice.transport.closes_with_us = False
    alice.send(b"bob: 1\n")
    alice.end()
    await turns()
    alice.connection.end(Disconnect.SHUTDOWN)
    await turns()
    assert alice.take() == b"! shutdown the gateway stops\n"
    assert alice.transport.is_lost
    assert not alice.transport.is_aborted
    assert not alice.transport.is_end_sent
    assert gateway.tokens.in_use == 2  # its copies have no outcome yet
    await gateway.close()


@virtual_time
async def test_connection_closes_at_once_when_the_peer_ends_its_stream_while_it_flushes() -> None:
    """The peer's end that comes between our decision and our last byte spares the lingering."""
    gateway = FakeGateway(*PATIENT)
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    bob.connection.end(Disconnect.SHUTDOWN)
    bob.end()
    await turns()
    assert not bob.transport.is_closing()
    bob.unstick()
    await turns()
    assert bob.take() == b"from alice: first\n! shutdown the gateway stops\n"
    assert bob.transport.is_lost
    assert not bob.transport.is_end_sent
    assert not bob.transport.is_aborted
    await gateway.close()


@virtual_time
async def test_connection_is_aborted_when_the_peer_never_closes() -> None:
    """Lingering is bounded by `linger_s`."""
    gateway = FakeGateway("outbox.linger_s=2")
    alice = gateway.login("alice")
    alice.transport.closes_with_us = False
    alice.connection.end(Disconnect.SHUTDOWN)
    await passed(1.9)
    assert not alice.transport.is_aborted
    await passed(0.2)
    assert alice.transport.is_aborted
    assert gateway.connections.closed == {"shutdown": 1}
    assert gateway.tokens.in_use == 0
    await gateway.close()


@pytest.mark.parametrize("extra", [0, 1])
@virtual_time
async def test_connection_is_aborted_when_too_much_is_thrown_away(extra: int) -> None:
    """Exactly 16 MiB are polite, one byte more is not."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.transport.closes_with_us = False
    alice.connection.end(Disconnect.SHUTDOWN)
    await turns()
    for _ in range(256):
        alice.send(b"\n" * 65_536)
        await turns(3)
    alice.send(b"\n" * extra)
    assert alice.transport.is_aborted == bool(extra)
    assert gateway.ledger.rejected.total() == gateway.ledger.accepted == 0
    await gateway.close()


@virtual_time
async def test_connection_is_aborted_when_it_flushes_to_a_peer_that_takes_nothing() -> None:
    """A flush without progress is bounded too; what is pending is refused as gone."""
    gateway = FakeGateway(*SMALL, *PATIENT, "outbox.linger_s=2")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    bob.connection.end(Disconnect.SHUTDOWN)
    await passed(4.1)
    assert bob.transport.is_aborted
    await passed(0.6)
    assert alice.is_read
    assert gateway.ledger.refused == {"gone": 3}
    assert gateway.ledger.is_balanced
    assert alice.take() == b"! refused bob: 3 messages, gone\n"
    await gateway.close()


@virtual_time
async def test_connection_goes_on_flushing_when_what_moves_is_replaced_from_behind() -> None:
    """Bytes that left count as progress also when parked copies of the same size take their place."""
    gateway = FakeGateway(*SMALL, *PATIENT, "outbox.linger_s=2")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob", 6)
    await turns()
    bob.connection.end(Disconnect.SHUTDOWN)
    for _ in range(4):
        await passed(1.5)
        bob.transport.take_one()
    assert not bob.transport.is_aborted
    await gateway.close()


@virtual_time
async def test_connection_goes_on_flushing_when_the_peer_is_slow_but_moves() -> None:
    """As long as something leaves within `linger_s`, it is not cut off."""
    gateway = FakeGateway(*PATIENT, "outbox.linger_s=2", "outbox.send_buffer_bytes=2048")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob", 12)
    await turns()
    bob.connection.end(Disconnect.SHUTDOWN)
    for _ in range(6):
        await passed(1.5)
        bob.transport.take_one()
    bob.unstick()
    await turns()
    assert not bob.transport.is_aborted
    lines = bob.take().splitlines()
    assert lines == [b"from alice: first"] + [b"from alice: " + TEXT] * 12 + [b"! shutdown the gateway stops"]
    await gateway.close()


@virtual_time
async def test_connection_is_read_again_to_throw_away_when_it_is_ended_while_stalled() -> None:
    """Only a connection that is read notices its peer's end."""
    gateway = FakeGateway(*SMALL, *PATIENT)
    alice = gateway.login("alice")
    await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    alice.send(b"bob: unread\n")
    accepted = gateway.ledger.accepted
    assert not alice.is_read
    alice.connection.end(Disconnect.SHUTDOWN)
    assert alice.is_read
    await turns()
    assert alice.transport.is_lost
    assert not alice.transport.is_aborted
    assert gateway.ledger.accepted == accepted
    await gateway.close()


@virtual_time
async def test_connection_can_be_ended_in_any_state_when_it_is_over() -> None:
    """Ending or aborting what has no transport does nothing."""
    gateway = FakeGateway()
    unmade, gone = gateway.connect(is_made=False), gateway.login("alice")
    gone.reset()
    await turns()
    for peer in (unmade, gone):
        peer.connection.end(Disconnect.SHUTDOWN)
        peer.connection.abort(Disconnect.SHUTDOWN)
        peer.connection.evict()
        peer.connection.update_reading()
        assert peer.connection.unsent_bytes() == 0
    assert unmade.connection.state == State.NEW
    assert gateway.connections.closed == {"client_lost": 1}
    await gateway.close()


@virtual_time
async def test_connection_tells_who_waits_when_it_has_closed() -> None:
    """Any number may wait, before and after."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    waits = [gateway.loop.create_task(alice.connection.wait_closed()) for _ in range(3)]
    await turns()
    waits.pop().cancel()
    assert not any(wait.done() for wait in waits)
    alice.reset()
    await turns()
    assert all(wait.done() and not wait.cancelled() for wait in waits)
    await alice.connection.wait_closed()
    await gateway.close()


@virtual_time
async def test_connection_says_why_behind_what_the_transport_holds_when_it_is_evicted() -> None:
    """What waits in its outbox is refused at once; the peer that reads at last learns what happened."""
    gateway = FakeGateway(*SMALL, *PATIENT, "when_full.direct=disconnect")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await turns()
    assert gateway.ledger.in_flight == 0
    assert gateway.ledger.is_balanced
    assert alice.is_read
    assert gateway.connections.hub.holder("bob") is None
    bob.unstick()
    bob.end()
    await turns()
    assert bob.take() == b"from alice: first\n! slow-consumer you did not read what was sent to you\n"
    assert bob.transport.is_lost
    assert gateway.connections.closed == {"slow_consumer": 1}
    assert gateway.tokens.in_use == 1
    await gateway.close()


@virtual_time
async def test_connection_is_aborted_when_it_is_evicted_and_never_reads() -> None:
    """The last word is bounded by `linger_s` like everything else."""
    gateway = FakeGateway(*SMALL, *PATIENT, "when_full.direct=disconnect", "outbox.linger_s=2")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    fill(alice, "bob")
    await passed(2.1)
    assert bob.transport.is_aborted
    assert gateway.connections.closed == {"slow_consumer": 1}
    assert gateway.tokens.in_use == 1
    await gateway.close()


@virtual_time
async def test_connection_closes_at_once_when_it_is_evicted_while_the_peer_has_ended() -> None:
    """The peer has closed its side: once its last bytes are out there is nothing to wait for."""
    gateway = FakeGateway(*SMALL, *PATIENT, "when_full.direct=disconnect")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    take(bob.session, 1)  # something of its own is in flight
    bob.end()
    await turns()
    assert bob.connection.state == State.LEAVING
    fill(alice, "bob")
    await turns()
    bob.unstick()
    await turns()
    assert bob.transport.is_lost
    assert not bob.transport.is_aborted
    await gateway.close()
