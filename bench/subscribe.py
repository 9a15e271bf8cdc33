"""Opens the sessions of a load at a server that has subjects, one after the other; knows nothing of loads."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from bench.login import LoginError, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from bench.protocols import Subscribed

_READ_BYTES = 65_536


def subjects(names: Sequence[str], pairs: int, fanout: int) -> list[str]:
    """What each session of a load listens to, "" for nothing.

    `names` are of senders, then of receivers by sender, then of idle sessions, which listen to their own.
    """
    idle_from = pairs * (1 + fanout)
    firsts = [names[first] for first in range(pairs, idle_from, fanout)]
    return [""] * pairs + [name for name in firsts for _ in range(fanout)] + list(names[idle_from:])


def open_subscribed(
    poll: select.epoll, address: tuple[str, int], dialect: Subscribed, subjects: Iterable[str]
) -> list[socket.socket]:
    """Open a session for each subject, "" for one that listens to none, and return their sockets in order.

    They are non-blocking and registered for reading. What a server says later is left to who reads them.

    Raises:
        LoginError: a connection was refused or closed, a login was not confirmed for 20 s, or the server
            complained.
    """
    opened: list[socket.socket] = []
    try:
        for subject in subjects:
            sock = connect(address)
            opened.append(sock)
            _log_in(sock, dialect, subject)
            sock.setblocking(False)
        for sock in opened:
            poll.register(sock, select.EPOLLIN)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _log_in(sock: socket.socket, dialect: Subscribed, subject: str) -> None:
    hello, proof = dialect.login(subject)
    frames: list[bytes] = []
    rest = b""
    try:
        sock.sendall(hello)
        while rest or proof not in frames:
            data = sock.recv(_READ_BYTES)
            if not data:
                raise LoginError("the server closed a connection during login")
            fresh, rest = dialect.cut(rest + data)
            frames += fresh
            _answer(sock, dialect, [frame for frame in fresh if frame != proof])
    except OSError as error:
        raise LoginError(f"connection lost during login: {error}") from error


def _answer(sock: socket.socket, dialect: Subscribed, frames: list[bytes]) -> None:
    for frame in frames:
        answer = dialect.answer(frame)
        if answer is None:
            raise LoginError(f"the server did not accept a login: {frame!r}")
        sock.sendall(answer)
