"""Opens and logs in the connections of a load, a bounded number at a time, and proves each login.

A login is silent, so each connection sends one line to itself and waits for it. Knows nothing of loads.
"""

from __future__ import annotations

import resource
import select
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_UNPROVED = 64  # below the smallest usual listen backlog, so no connection waits for a retransmission
_LOGIN_TIMEOUT_S = 20.0


class LoginError(Exception):
    """Some connections could not be opened or did not prove their login."""


def raise_file_limit(needed: int) -> None:
    """Raise the soft limit of open files to the hard one.

    Raises:
        LoginError: the hard limit is below `needed` files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed + 32:
        raise LoginError(f"needs {needed + 32} open files, the hard limit is {hard} (see `ulimit -Hn`)")


def open_sessions(
    poll: select.epoll, address: tuple[str, int], names: Sequence[str], *, receive_buffer_bytes: int = 0
) -> list[socket.socket]:
    """Log every name in and return their sockets, non-blocking, registered for reading, in the order given.

    A receive buffer of 0 bytes is one as the system makes it.

    Raises:
        LoginError: a connection was refused or closed, or no login was proved for 20 s.
    """
    unproved: dict[int, tuple[socket.socket, bytes]] = {}
    opened: list[socket.socket] = []
    try:
        for name in names:
            while len(unproved) >= _MAX_UNPROVED:
                _collect(poll, unproved)
            sock = connect(address, receive_buffer_bytes=receive_buffer_bytes)
            opened.append(sock)
            sock.sendall(f"{name}\n{name}: ready\n".encode())
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
            unproved[sock.fileno()] = (sock, f"from {name}: ready\n".encode())
        while unproved:
            _collect(poll, unproved)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def connect(
    address: tuple[str, int], *, receive_buffer_bytes: int = 0, source_host: str = ""
) -> socket.socket:
    """One connection, blocking, from `source_host` if one is given.

    Raises:
        LoginError: it was refused, or not taken for 20 s.
    """
    sock = socket.socket()
    try:
        sock.settimeout(_LOGIN_TIMEOUT_S)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if source_host:
            sock.bind((source_host, 0))
        sock.connect(address)
    except OSError as error:
        sock.close()
        raise LoginError(f"cannot connect to {address[0]}:{address[1]}: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def rest_of_proof(sock: socket.socket, missing: bytes) -> bytes:
    """Read on of what proves a login; returns what of it is still missing.

    Raises:
        LoginError: the connection is lost, or something else came.
    """
    try:
        got = sock.recv(len(missing))
    except OSError as error:
        raise LoginError(f"connection lost during login: {error}") from error
    if not got or not missing.startswith(got):
        raise LoginError(f"the server did not accept a login: {got!r}")
    return missing[len(got) :]


def _collect(poll: select.epoll, unproved: dict[int, tuple[socket.socket, bytes]]) -> None:
    events = poll.poll(_LOGIN_TIMEOUT_S)
    if not events:
        raise LoginError(f"{len(unproved)} connections did not prove their login")
    for fd, _ in events:
        if fd not in unproved:
            raise LoginError("the server closed a connection, or said more than the proof of its login")
        sock, missing = unproved.pop(fd)
        missing = rest_of_proof(sock, missing)
        if missing:
            unproved[fd] = (sock, missing)
