"""What becomes of bytes in the kernel when the time for an orderly close is over; tests play the kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import State
from tests.chat_gateway.fakes import PATIENT, FakeGateway, FakeSocket, Peer, passed, turns, virtual_time

RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
LINGER = (*PATIENT, "outbox.linger_s=2")


class OptionSocket(FakeSocket):
    """Remembers the options it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[tuple[object, ...]] = []

    def setsockopt(self, *arguments: object) -> None:
        """Remember it."""
        self.options.append(arguments)


class Kernel:
    """Holds for every socket as many unsent bytes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unsent_bytes = 0
        monkeypatch.setattr("chat_gateway.connection.unsent_bytes", lambda _: self.unsent_bytes)


def logged_in(gateway: FakeGateway) -> tuple[Peer, OptionSocket]:
    """A session whose peer does not close its side, and its socket."""
    sock = OptionSocket()
    peer = gateway.login("alice", sock=sock)
    peer.transport.closes_with_us = False
    return peer, sock


@pytest.mark.parametrize(
    ("is_evicted", "left_bytes", "is_reset"),
    [
        (True, 5000, True),
        (True, 0, False),
        (False, 5000, True),
        (False, 0, False),
    ],
    ids=["evicted", "evicted-read-all", "ended", "ended-read-all"],
)
@virtual_time
async def test_connection_is_reset_when_its_time_is_over_and_the_kernel_still_holds_bytes(
    is_evicted: bool, left_bytes: int, is_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would keep them for a peer that does not read; who has read everything loses nothing."""
    kernel = Kernel(monkeypatch)
    gateway = FakeGateway(*LINGER)
    alice, sock = logged_in(gateway)
    kernel.unsent_bytes = 6000
    if is_evicted:
        alice.connection.evict()
    else:
        alice.connection.end(Disconnect.LINE_TOO_LONG)
    await turns()
    assert alice.connection.state == State.LINGERING
    kernel.unsent_bytes = left_bytes
    await passed(1.9)
    assert not alice.transport.is_aborted
    assert sock.options == []
    await passed(0.2)
    assert alice.transport.is_aborted
    assert sock.options == ([RESET] if is_reset else [])
    await gateway.close()


@virtual_time
async def test_connection_is_reset_when_it_cannot_even_be_flushed() -> None:
    """The transport still holds bytes, so the kernel is full."""
    gateway = FakeGateway(*LINGER)
    alice, sock = logged_in(gateway)
    alice.stick()
    alice.send(b"alice: waits\n")
    await turns()
    alice.connection.end(Disconnect.LINE_TOO_LONG)
    await passed(4.1)
    assert alice.transport.is_aborted
    assert sock.options == [RESET]
    await gateway.close()


@virtual_time
async def test_connection_is_not_reset_when_the_gateway_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel goes on with what was delivered when the process has ended."""
    kernel = Kernel(monkeypatch)
    gateway = FakeGateway(*LINGER)
    alice, sock = logged_in(gateway)
    kernel.unsent_bytes = 5000
    gateway.connections.stop_reading()
    alice.connection.end(Disconnect.SHUTDOWN)
    await passed(2.1)
    assert alice.transport.is_aborted
    assert sock.options == []
    await gateway.close()


@virtual_time
async def test_connection_lingers_for_the_whole_time_when_it_was_long_in_flushing() -> None:
    """The peer cannot close before it has been told, so its time begins then."""
    gateway = FakeGateway(*LINGER)
    alice, _ = logged_in(gateway)
    alice.stick()
    alice.send(b"alice: waits\n")
    await turns()
    alice.connection.end(Disconnect.LINE_TOO_LONG)
    await passed(1.5)
    alice.unstick()
    await passed(1.9)
    assert alice.connection.state == State.LINGERING
    assert not alice.transport.is_aborted
    await passed(0.2)
    assert alice.transport.is_aborted
    await gateway.close()
