"""Clients that send and read exactly when a test says so, and numbered lines to find gaps with.

The sockets do not block and have no reader behind them, so that what is not read stays unread.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
import weakref
from typing import TYPE_CHECKING, Self

from tests.e2e.gateway_process import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RawPeer", "Script", "drive", "elapsed", "numbers_by_sender"]

_READ_BYTES = 65_536
_CHUNK_LINES = 64  # of a script that are in memory at once
_NUMBERED = re.compile(rb"from ([^:]+): (\d{8}) x*")


class RawPeer:
    """One logged-in client; made and closed by a test, driven by `drive`."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self.port: int = sock.getsockname()[1]  # its own
        self.received = bytearray()  # everything that came since the login
        self.is_ended = False  # the gateway has closed, in whatever way
        self.is_reset = False  # and not in order
        self._sock = sock
        weakref.finalize(self, sock.close)  # a test that fails need not close what it opened

    @classmethod
    async def login(
        cls, port: int, name: str, *, receive_buffer_bytes: int = 0, send_buffer_bytes: int = 0
    ) -> Self:
        """Log in and wait until the gateway knows it; 0 leaves a buffer as the system makes it."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if send_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        peer = cls(sock, name)
        peer.push(f"{name}\n{name}: in\n".encode())
        proof = f"from {name}: in\n".encode()
        await drive(peer.read, until=lambda: peer.received == proof or peer.is_ended)
        assert peer.received == proof
        peer.received.clear()
        return peer

    def push(self, data: bytes) -> int:
        """Send what the socket takes now; returns how much that was."""
        if self.is_ended:
            return 0
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except (ConnectionResetError, BrokenPipeError):
            self.read()  # what came before the end is still there
            self.is_ended = self.is_reset = True
            return 0

    def read(self, max_bytes: int = _READ_BYTES) -> int:
        """Read what is there now; returns how much that was."""
        if self.is_ended:
            return 0
        try:
            data = self._sock.recv(max_bytes)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            self.is_ended = self.is_reset = True
            return 0
        self.is_ended = not data
        self.received += data
        return len(data)

    def close(self) -> None:
        """Close both sides."""
        self.is_ended = True
        self._sock.close()


class Script:
    """Numbered lines from one peer to one login, made as they are taken."""

    def __init__(self, peer: RawPeer, to: str, *, line_bytes: int, total_bytes: int) -> None:
        self.lines = 0  # that were begun
        self.taken_bytes = 0  # by the socket
        self._peer = peer
        self._to = to
        self._padding = "x" * (line_bytes - len(f"{to}: 00000000 \n"))
        self._max_lines = total_bytes // line_bytes
        self._pending = b""

    def push(self) -> int:
        """Send what the socket takes now; returns how much that was."""
        if not self._pending:
            self._pending = self._next_chunk()
        if not self._pending:
            return 0
        taken = self._peer.push(self._pending)
        self._pending = self._pending[taken:]
        self.taken_bytes += taken
        return taken

    def stop(self, after_lines: int = 0) -> None:
        """Offer no more than so many lines beyond those that were begun."""
        self._max_lines = self.lines + after_lines

    @property
    def is_done(self) -> bool:
        """The socket has taken everything."""
        return not self._pending and self.lines == self._max_lines

    def _next_chunk(self) -> bytes:
        first, self.lines = self.lines, min(self.lines + _CHUNK_LINES, self._max_lines)
        lines = [f"{self._to}: {number:08d} {self._padding}\n" for number in range(first, self.lines)]
        return "".join(lines).encode()


def numbers_by_sender(received: bytes | bytearray) -> dict[str, list[int]]:
    """The numbers of all numbered lines, in the order they came; the last line may not be torn."""
    assert received.endswith(b"\n") or not received
    numbers: dict[str, list[int]] = {}
    for line in received.split(b"\n")[:-1]:
        if line.startswith(b"! "):
            continue
        found = _NUMBERED.fullmatch(line)
        assert found is not None, line
        numbers.setdefault(found[1].decode(), []).append(int(found[2]))
    return numbers


async def drive(*steps: Callable[[], int], until: Callable[[], bool], bound_s: float = WAIT_S) -> None:
    """Take all steps again and again until the condition holds; a step says how much it moved."""
    async with asyncio.timeout(bound_s):
        while not until():
            moved = sum(step() for step in steps)
            await asyncio.sleep(0 if moved else 0.002)


def elapsed(duration_s: float) -> Callable[[], bool]:
    """A condition that holds so many seconds from now."""
    due = time.monotonic() + duration_s
    return lambda: time.monotonic() >= due
