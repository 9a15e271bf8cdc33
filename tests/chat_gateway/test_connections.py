"""What the connections of one worker share: admission, deadlines, account and log."""

from __future__ import annotations

from chat_gateway.connections import outbox_settings
from chat_gateway.disconnect import Disconnect
from tests.chat_gateway.fakes import FakeGateway, configured, passed, take, turns, virtual_time

BUSY = b"! busy too many connections, try again later\n"


def test_outbox_settings_follow_the_configuration_when_made() -> None:
    """Each bound and policy comes from its own key."""
    settings = outbox_settings(
        configured(
            "outbox.max_outbox_bytes=5000",
            "outbox.high_watermark_bytes=4000",
            "outbox.low_watermark_bytes=3000",
            "outbox.send_buffer_bytes=2048",
            "when_full.direct=refuse",
            "when_full.fanout=stall",
        )
    )
    assert (settings.max_outbox_bytes, settings.max_flush_bytes) == (5000, 2048)
    assert (settings.high_watermark_bytes, settings.low_watermark_bytes) == (4000, 3000)
    assert (settings.direct, settings.fanout) == ("refuse", "stall")


@virtual_time
async def test_connections_count_everyone_when_they_come_log_in_and_go() -> None:
    """Connections now and ever, logins ever, ends by reason; each is logged once with its address."""
    gateway = FakeGateway()
    connections = gateway.connections
    alice, stranger = gateway.login("alice"), gateway.connect()
    assert (len(connections), connections.accepted, connections.logins) == (2, 2, 1)
    assert len(gateway.log.found("connection.accepted")) == 2
    alice.end()
    stranger.reset()
    await turns()
    assert (len(connections), connections.accepted, connections.logins) == (0, 2, 1)
    assert connections.closed == {"client_closed": 1, "client_lost": 1}
    (closed,) = gateway.log.found("session.closed")
    assert (closed["login"], closed["reason"]) == ("alice", "client_closed")
    assert closed["port"] == alice.connection.port
    (closed,) = gateway.log.found("connection.closed")
    assert (closed["login"], closed["reason"]) == (None, "client_lost")
    await gateway.close()


@virtual_time
async def test_connections_log_what_was_said_escaped_when_a_login_is_refused() -> None:
    """The operator sees what came, and no peer can forge a line of the log."""
    gateway = FakeGateway()
    gateway.connect().send(b"GET / HTTP/1.1\r\n\r\n")
    gateway.connect().send(b"a\x1b[2J b\n")
    await turns()
    first, second = gateway.log.found("session.refused")
    assert first["reason"] == "not_line_protocol"
    assert first["got"].startswith("GET / HTTP/1.1")
    assert second["reason"] == "bad_login"
    assert "\x1b" not in second["got"]
    assert "\n" not in first["got"]
    await gateway.close()


@virtual_time
async def test_connections_turn_away_when_the_token_is_of_that_kind() -> None:
    """It is told, closed in order, and its token goes back to where it came from; its login is not taken."""
    gateway = FakeGateway()
    peer = gateway.connect(gateway.connections.turned_away)
    peer.send(b"alice\n")
    await turns()
    assert peer.take() == BUSY
    assert peer.transport.is_lost
    assert not peer.transport.is_aborted
    assert gateway.connections.logins == 0
    assert gateway.connections.turned_away.in_use == 0
    assert gateway.tokens.available == gateway.tokens.total
    await gateway.close()


@virtual_time
async def test_connections_turn_away_when_the_gateway_drains() -> None:
    """Who was accepted in the last moment hears why it is closed."""
    gateway = FakeGateway()
    gateway.connections.stop_reading()
    peer = gateway.connect()
    await turns()
    assert peer.take() == b"! shutdown the gateway stops\n"
    assert peer.transport.is_lost
    await gateway.close()


@virtual_time
async def test_connections_turn_away_when_one_address_has_too_many() -> None:
    """The limit is for each address, and ends with its connections."""
    gateway = FakeGateway("limits.connections_per_address=2", "limits.limit_loopback=true")
    first, _second, third = gateway.connect(), gateway.connect(), gateway.connect()
    await turns()
    assert third.take() == b"! busy too many connections from your address\n"
    first.reset()
    await turns()
    fourth = gateway.login("alice")
    await turns()
    assert fourth.take() == b""
    await gateway.close()
    assert len(gateway.connections.addresses) == 0


@virtual_time
async def test_connections_turn_away_when_messages_fill_the_memory() -> None:
    """Above the ceiling newcomers are told; those who are there stay."""
    gateway = FakeGateway("limits.max_buffered_bytes=1048576")
    alice = gateway.login("alice")
    gateway.ledger.buffered_bytes = 1_048_576
    late = gateway.connect()
    await turns()
    assert late.take() == BUSY
    gateway.ledger.buffered_bytes = 0
    assert gateway.connect().is_read
    assert alice.is_read
    await gateway.close()


@virtual_time
async def test_connections_do_not_read_who_holds_most_when_messages_fill_the_memory() -> None:
    """The others go on; it is looked at again as soon as something of its own has its outcome."""
    gateway = FakeGateway("limits.max_buffered_bytes=1048576", "limits.max_inflight_bytes=1048576")
    alice, bob = gateway.login("alice"), gateway.login("bob")
    cost_bytes = take(alice.session, 2, 600_000)
    gateway.ledger.buffered_bytes = 900_000
    for peer in (alice, bob):
        peer.connection.update_reading()
    assert not alice.is_read
    assert bob.is_read
    gateway.ledger.buffered_bytes = 800_000
    alice.session.give_back(1, cost_bytes - 10, 0)
    assert alice.is_read
    gateway.ledger.buffered_bytes = 0
    await gateway.close()


@virtual_time
async def test_connections_hold_a_newcomer_back_when_its_address_comes_too_often() -> None:
    """It is not read for a while, and served then."""
    gateway = FakeGateway(
        "limits.new_connections_per_s=0.5",
        "limits.new_connections_burst=1",
        "limits.limit_loopback=true",
    )
    first, second = gateway.connect(), gateway.connect()
    assert first.is_read
    assert not second.is_read
    second.send(b"bob\n")
    await passed(2.1)
    assert second.session.login == "bob"
    await gateway.close()


ONE_IN_TWO_S = (
    "limits.new_connections_per_s=0.5",
    "limits.new_connections_burst=1",
    "limits.limit_loopback=true",
    "limits.login_timeout_s=3",
)


@virtual_time
async def test_connections_give_the_whole_time_to_log_in_when_they_held_a_newcomer_back() -> None:
    """It begins when the newcomer is read first: a wait that the gateway imposed is none of its own."""
    gateway = FakeGateway(*ONE_IN_TWO_S)
    gateway.connect()
    held_back = gateway.connect()
    await passed(4.5)
    held_back.send(b"bob\n")
    assert held_back.session.login == "bob"
    assert gateway.connections.closed == {"login_timeout": 1}  # the first one, which did not wait
    await passed(5)
    assert not held_back.transport.is_closing()
    await gateway.close()


@virtual_time
async def test_connections_end_a_newcomer_when_it_is_silent_after_having_been_held_back() -> None:
    """Its time is as long as that of all others."""
    gateway = FakeGateway(*ONE_IN_TWO_S)
    gateway.connect()
    held_back = gateway.connect()
    await passed(5.1)
    assert held_back.take() == b"! login-timeout no login came in time\n"
    assert gateway.connections.closed == {"login_timeout": 2}
    await gateway.close()


@virtual_time
async def test_connections_leave_a_newcomer_alone_when_it_has_logged_in_as_soon_as_it_was_read() -> None:
    """No time to log in begins for a session, also where its login was read before its address was served."""
    gateway = FakeGateway(*ONE_IN_TWO_S)
    gateway.login("alice")
    held_back = gateway.connect()
    held_back.send(b"bob\nbob: in\n")
    held_back.transport.read_anyway()
    await passed(1.9)
    assert gateway.connections.logins == 1
    await passed(0.2)
    assert held_back.take() == b"from bob: in\n"
    await passed(10)
    assert gateway.connections.closed == {}
    await gateway.close()


@virtual_time
async def test_connections_await_no_login_when_a_newcomer_has_gone_while_it_was_held_back() -> None:
    """Nothing is left of it, whenever it would have been read."""
    gateway = FakeGateway(*ONE_IN_TWO_S)
    gateway.login("alice")
    held_back = gateway.connect()
    held_back.connection.end(Disconnect.SHUTDOWN)
    await turns()
    assert held_back.transport.is_lost
    await passed(10)
    assert gateway.connections.closed == {"shutdown": 1}
    assert len(gateway.connections) == 1
    await gateway.close()


@virtual_time
async def test_connections_warn_with_a_hint_when_the_first_stage_is_full() -> None:
    """The record names the stage and what to do."""
    gateway = FakeGateway("stages.parse.capacity=1", is_started=False)
    alice = gateway.login("alice")
    alice.send(b"x: 1\n")
    assert gateway.log.found("stage.saturated") == []
    alice.send(b"x: 2\n")
    (record,) = gateway.log.found("stage.saturated")
    assert record["stage"] == "parse"
    assert "stages.parse.capacity" in record["hint"]
    await gateway.close()


@virtual_time
async def test_connections_forget_the_login_deadline_when_a_connection_has_ended() -> None:
    """No timer touches what has gone; none is left after close."""
    gateway = FakeGateway("limits.login_timeout_s=1")
    gone, there = gateway.connect(), gateway.connect()
    gone.reset()
    await turns()
    gateway.connections.close()
    await passed(5)
    assert gateway.connections.closed == {"client_lost": 1}
    assert not there.transport.is_closing()
    await gateway.close()


@virtual_time
async def test_connections_list_only_the_living_when_some_wait_for_their_outcomes() -> None:
    """A connection that has ended still counts and holds its token while its copies are on the way."""
    gateway = FakeGateway("outbox.reconnect_grace_s=0")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: waits\n")
    await turns()
    alice.connection.abort(Disconnect.CLIENT_LOST)
    await turns()
    assert gateway.connections.living() == [bob.connection]
    assert len(gateway.connections) == 2
    bob.unstick()
    await turns()
    assert len(gateway.connections) == 1
    await gateway.close()


@virtual_time
async def test_copies_all_have_an_outcome_when_two_ends_of_one_login_overlap() -> None:
    """An old connection that is flushed for long and a new one of its login both leave copies."""
    gateway = FakeGateway(
        "outbox.write_timeout_s=3000",
        "outbox.evict_after_s=3000",
        "outbox.linger_s=1",
        "outbox.reconnect_grace_s=5",
    )
    bob = gateway.login("bob")
    old = await gateway.stuck("alice", bob)
    bob.send(b"alice: for the old one\n")
    await turns()
    old.send(b"x" * 20_000)  # overlong: it is ended, and flushed to a peer that takes nothing
    new = await gateway.stuck("alice", bob)
    bob.send(b"alice: for the new one\n")
    await turns()
    new.reset()
    await passed(20)
    assert old.transport.is_lost
    assert gateway.ledger.is_balanced
    assert gateway.ledger.in_flight == 0
    await gateway.close()


@virtual_time
async def test_connections_remember_nobody_who_is_gone_among_those_that_wait() -> None:
    """Who is not read, and what takes nothing, is counted as long as there is a transport to wait for."""
    gateway = FakeGateway("outbox.high_watermark_bytes=64", "outbox.low_watermark_bytes=16")
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    alice.send(b"bob: " + b"." * 200 + b"\n")
    alice.send(b"bob: more\n")
    await turns()
    connections = gateway.connections
    assert connections.unread == {alice.connection}
    assert connections.unwritable == {bob.connection.outbox}
    assert connections.stalled_sessions == 1
    alice.connection.abort(Disconnect.CLIENT_LOST)
    await turns()
    assert connections.unread == set()
    bob.reset()
    await turns()
    assert connections.unwritable == set()
    await gateway.close()
