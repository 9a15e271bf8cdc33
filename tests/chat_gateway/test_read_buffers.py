"""What one read may fill, and that nothing but the least is read where memory is full."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from chat_gateway.dead_letters import DeadLetters
from chat_gateway.disconnect import Disconnect
from chat_gateway.read_buffers import LEAST_READ_BYTES, ReadBuffers
from tests.chat_gateway.fakes import PATIENT, FakeGateway, passed, turns, virtual_time

if TYPE_CHECKING:
    from pathlib import Path

    from chat_gateway.connections import Entrance


def test_read_buffers_are_narrow_when_memory_is_full_only() -> None:
    """All that is kept is read through the least view; what is thrown away is read as ever."""
    buffers = ReadBuffers(65_536)
    widths = [65_536, 16_384, LEAST_READ_BYTES, 65_536]
    kinds = (buffers.usual, buffers.little, buffers.least, buffers.unbounded)
    assert [len(buffer.view) for buffer in kinds] == widths
    buffers.narrow()
    buffers.narrow()
    assert [len(buffer.view) for buffer in kinds] == [LEAST_READ_BYTES] * 3 + [65_536]
    buffers.widen()
    assert [len(buffer.view) for buffer in kinds] == widths


def test_read_buffers_share_their_bytes_when_they_differ_in_width() -> None:
    """There is one buffer, however many views."""
    buffers = ReadBuffers(128)
    buffers.usual.view[0] = 7
    assert [buffer.view[0] for buffer in (buffers.little, buffers.least, buffers.unbounded)] == [7, 7, 7]
    assert len(buffers.little.view) == 128


# In a gateway.


def _fill(gateway: FakeGateway) -> int:
    """Let others use all memory up, and somebody notice; the bytes that are to be taken off again."""
    full_bytes = gateway.connections.limits.max_buffered_bytes
    gateway.connections.ceiling.count(full_bytes)
    return full_bytes


@virtual_time
async def test_connections_read_a_byte_each_when_one_has_filled_the_memory() -> None:
    """Also those that hold nothing and have not ended a line stand still, until there is room at a tick."""
    gateway = FakeGateway()
    peers = [gateway.login(name) for name in ("alice", "bob", "carol")]
    full_bytes = _fill(gateway)
    for peer in peers:
        peer.send(b"alice: hello\n")
    await turns()
    gateway.connections.look_at_ceiling()
    assert [(peer.is_read, peer.transport.unread) for peer in peers] == [(False, 12)] * 3
    gateway.ledger.buffered_bytes -= full_bytes
    gateway.connections.look_at_ceiling()
    await turns()
    assert all(peer.is_read for peer in peers)
    lines = sorted(peers[0].take().splitlines())
    assert lines == [b"from alice: hello", b"from bob: hello", b"from carol: hello"]
    assert gateway.ledger.buffered_bytes == 0
    await gateway.close()


@virtual_time
async def test_connection_reads_as_usual_when_there_is_room_before_the_tick() -> None:
    """Whoever may read again finds out with its first byte; all others wait for the tick."""
    gateway = FakeGateway()
    alice, bob = gateway.login("alice"), gateway.login("bob")
    full_bytes = _fill(gateway)
    alice.send(b"alice: hello\n")
    gateway.ledger.buffered_bytes -= full_bytes
    bob.send(b"bob: hello\n")
    await turns()
    assert bob.take() == b"from bob: hello\n"
    await gateway.close()


@virtual_time
async def test_connection_throws_away_as_usual_when_memory_is_full() -> None:
    """What a closed peer still sends takes no memory, so it is read on and the peer is not reset."""
    gateway = FakeGateway()
    alice = gateway.login("alice")
    alice.transport.closes_with_us = False
    alice.send(b"x" * 20_000)
    _fill(gateway)
    alice.send(b"x" * 200_000)
    await turns(20)
    assert alice.transport.unread == 0
    gateway.ledger.buffered_bytes = 0
    await gateway.close()


@virtual_time
async def test_newcomer_brings_the_least_when_it_is_held_back_and_read_all_the_same() -> None:
    """A transport that reads what was paused brings one byte; once served, the newcomer brings the usual."""
    gateway = FakeGateway(
        "limits.new_connections_per_s=1", "limits.new_connections_burst=1", "limits.limit_loopback=true"
    )
    gateway.connect()
    late = gateway.connect()
    first = len(late.connection.get_buffer(-1))
    await passed(1.1)
    then = len(late.connection.get_buffer(-1))
    await gateway.close()
    assert (first, then) == (LEAST_READ_BYTES, 65_536)


# What counts, on every way a block can go.


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"no colon\n\n", id="rejected"),
        pytest.param(b"nobody: x\n", id="unknown"),
        pytest.param(b"bob: x\n" * 50, id="direct"),
        pytest.param(b"bob, carol: x, y, z\ncarol: a\nnobody, bob: b\n", id="mixed"),
    ],
)
@virtual_time
async def test_bytes_are_counted_from_the_read_to_the_last_outcome(lines: bytes) -> None:
    """Before it is parsed a block counts at least what it does later, and nothing once all is settled."""
    gateway = FakeGateway(*PATIENT, is_started=False)
    alice, bob, _ = (gateway.login(name) for name in ("alice", "bob", "carol"))
    bob.stick()
    alice.send(lines)
    counted_bytes = gateway.ledger.buffered_bytes
    assert counted_bytes >= alice.session.inflight_bytes > 0
    gateway.worker.topology.start()
    await turns()
    assert gateway.ledger.buffered_bytes <= counted_bytes
    bob.unstick()
    await turns()
    assert (gateway.ledger.buffered_bytes, alice.session.inflight_bytes) == (0, 0)
    await gateway.close()


@virtual_time
async def test_bytes_are_counted_no_longer_when_a_block_cannot_be_handed_on() -> None:
    """An error where it enters the pipeline costs the connection and leaves nothing behind."""
    gateway = FakeGateway()
    alice = gateway.login("alice")

    def fail(*_: object) -> bool:
        raise RuntimeError("boom")

    gateway.connections.input = cast("Entrance", SimpleNamespace(offer=fail))
    alice.send(b"alice: x\n")
    await turns()
    session = alice.session
    counts = (gateway.ledger.buffered_bytes, session.inflight_bytes, session.unsettled_messages)
    await gateway.close()
    assert counts == (0, 0, 0)


# Dead letters for what nobody gets.


@pytest.mark.parametrize("is_back", [False, True])
@virtual_time
async def test_dead_letters_tell_of_every_copy_when_it_is_not_kept(tmp_path: Path, is_back: bool) -> None:
    """What the grace cuts off is written at once, and so is all of it when a successor is there already."""
    gateway = FakeGateway("outbox.max_grace_bytes=20", "outbox.linger_s=1", *PATIENT[:2])
    path = tmp_path / "letters"
    letters = DeadLetters(path, max_bytes=1 << 20, keep=1, now=lambda: 0.0)
    gateway.connections._dead_letters = letters
    alice = gateway.login("alice")
    bob = await gateway.stuck("bob", alice)
    for number in range(3):
        alice.send(b"bob: %d\n" % number)
        await turns()
    if is_back:
        bob.connection.end(Disconnect.LINE_TOO_LONG)
        gateway.login("bob")
    bob.reset()
    await turns()
    letters.close()
    said = [line for letter in path.read_text().splitlines() for line in json.loads(letter)["lines"]]
    refused = gateway.ledger.refused["gone"]
    await gateway.close()
    assert said == [f"from alice: {number}" for number in range(0 if is_back else 1, 3)]
    assert refused == len(said)
