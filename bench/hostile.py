"""Peers that break the rules: bytes that drip, lines that never end, lines that are no messages.

Each kind is run in one process and one thread. None of them gives up before the gateway closes it, or its
time is over.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.histogram import Histogram
from bench.login import connect, open_sessions
from bench.peers import ReadBuffer
from bench.schedule import OpenLoop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.report import Figures

_MAX_EVENTS = 1024
_PIECE = b"a" * 65_536
_BAD_LINE = b"this line has no recipient\n"
_BAD_LOGIN = b"not allowed: a colon\n"
_OPENED_AT_ONCE = 16
_MAX_BURST = 1024  # bad lines that one peer sends at once; the rest is left out


@dataclass(frozen=True, slots=True)
class DripOptions:
    """Connections that send one byte a second each and no line end; waits `seconds` for their end."""

    address: tuple[str, int]
    connections: int = 5000
    opened_per_s: float = 2500.0
    seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class EndlessOptions:
    """Connections that push `total_bytes` each without a line end, every second one after a login."""

    address: tuple[str, int]
    connections: int = 100
    total_bytes: int = 100_000_000
    seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class BadLinesOptions:
    """Sessions that send lines without a colon, `rate_per_s` in all, and strangers with bad logins."""

    address: tuple[str, int]
    sessions: int = 200
    rate_per_s: float = 100_000.0
    burst: int = 25  # lines that a session sends at once
    bad_logins_per_s: float = 500.0
    seconds: float = 10.0


def run_drip(options: DripOptions, on_begun: Callable[[], None]) -> Figures:
    """Open all connections, let each drip, and time each from its opening to its end.

    Raises:
        LoginError: a connection was refused.
    """
    with select.epoll() as poll:
        opened_s: dict[int, tuple[socket.socket, float]] = {}
        first_s = time.perf_counter()
        for i in range(options.connections):
            if i % _OPENED_AT_ONCE == 0:
                time.sleep(max(first_s + i / options.opened_per_s - time.perf_counter(), 0.0))
            sock = connect(options.address)
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
            opened_s[sock.fileno()] = sock, time.perf_counter()
        on_begun()
        closed_after_s, notices = _drip(options, poll, opened_s)
        for sock, _ in opened_s.values():
            sock.close()
    return {
        "connections": options.connections,
        "not_closed": len(opened_s),
        "not_told": options.connections - notices,
        "closed_first_s": round(min(closed_after_s, default=0.0), 3),
        "closed_last_s": round(max(closed_after_s, default=options.seconds), 3),
    }


def _drip(
    options: DripOptions, poll: select.epoll, opened_s: dict[int, tuple[socket.socket, float]]
) -> tuple[list[float], int]:
    """Until all are closed: how long each lasted, and how many were told why."""
    begun_s = time.perf_counter()
    schedule = OpenLoop(options.connections, options.connections, begun_s)  # each one byte a second
    socks = [sock for sock, _ in opened_s.values()]
    closed_after_s: list[float] = []
    notices = 0
    while opened_s and (now_s := time.perf_counter()) < begun_s + options.seconds:
        for index, _, _ in schedule.release(now_s):
            if socks[index].fileno() >= 0:
                _send_some(socks[index], b"a")
        for fd, _ in poll.poll(0.001, _MAX_EVENTS):
            sock, since_s = opened_s[fd]
            text = _receive(sock)
            if text:
                notices += text.startswith(b"! login-timeout")
            elif text is not None:
                closed_after_s.append(time.perf_counter() - since_s)
                poll.unregister(sock)
                sock.close()
                del opened_s[fd]
    return closed_after_s, notices


def run_endless(options: EndlessOptions, on_begun: Callable[[], None]) -> Figures:
    """Push on every connection at once until the gateway has closed it, and collect what each was told.

    Raises:
        LoginError: a connection was refused or did not prove its login.
    """
    with select.epoll() as poll:
        named = open_sessions(poll, options.address, [f"endless{i}" for i in range(options.connections // 2)])
        nameless = [connect(options.address) for _ in range(options.connections - len(named))]
        for sock in nameless:
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
        on_begun()
        open_socks = {sock.fileno(): sock for sock in named + nameless}
        pushed = dict.fromkeys(open_socks, 0)
        told = _push_endless(options, poll, open_socks, pushed)
        for sock in open_socks.values():
            sock.close()
    return {
        "connections": options.connections,
        "not_closed": len(open_socks),
        "not_told": options.connections - told,
        "pushed_most_bytes": max(pushed.values()),
        "pushed_mib": round(sum(pushed.values()) / 2**20, 1),
    }


def _push_endless(
    options: EndlessOptions, poll: select.epoll, open_socks: dict[int, socket.socket], pushed: dict[int, int]
) -> int:
    """Until all are closed, which are taken out of `open_socks`: how many were told why."""
    deadline_s = time.perf_counter() + options.seconds
    told = 0
    for sock in open_socks.values():
        poll.modify(sock, select.EPOLLIN | select.EPOLLOUT)
    while open_socks and time.perf_counter() < deadline_s:
        for fd, mask in poll.poll(0.05, _MAX_EVENTS):
            sock = open_socks[fd]
            text = _receive(sock) if mask & ~select.EPOLLOUT else None
            if text:
                told += text.startswith(b"! line-too-long")
            elif text is not None:
                poll.unregister(sock)
                sock.close()
                del open_socks[fd]
            elif pushed[fd] < options.total_bytes:
                pushed[fd] += _send_some(sock, _PIECE)
    return told


def run_bad_lines(options: BadLinesOptions, on_begun: Callable[[], None]) -> Figures:
    """Send bad lines when they are due, and meanwhile bad logins, for the time asked.

    Raises:
        LoginError: a connection was refused or did not prove its login.
    """
    with select.epoll() as poll:
        socks = open_sessions(poll, options.address, [f"bad{i}" for i in range(options.sessions)])
        on_begun()
        try:
            return _BadLines(options, poll, socks).run()
        finally:
            for sock in socks:
                sock.close()


class _BadLines:
    """One run; made by `run_bad_lines`, which closes the sockets of the sessions."""

    def __init__(self, options: BadLinesOptions, poll: select.epoll, socks: list[socket.socket]) -> None:
        self._options = options
        self._poll = poll
        self._socks = socks
        self._sessions = {sock.fileno(): sock for sock in socks}
        self._lines = memoryview(_BAD_LINE * _MAX_BURST)
        # what each socket still has to get of a line it took a part of
        self._rests = [0] * len(socks)
        self._strangers: dict[int, socket.socket] = {}
        self._buffer = ReadBuffer()
        self._sent_bytes = 0
        self._bad_logins = 0
        self._notices = 0
        self._lost = 0  # sessions that were closed; none should be
        self._lateness = Histogram()

    def run(self) -> Figures:
        options = self._options
        begun_s = time.perf_counter()
        bursts = OpenLoop(options.rate_per_s / options.burst, options.sessions, begun_s)
        logins = OpenLoop(options.bad_logins_per_s, 1, begun_s)
        while (now_s := time.perf_counter()) < begun_s + options.seconds:
            for index, count, due_s in bursts.release(now_s):
                self._lateness.add(time.perf_counter() - due_s)
                self._push(index, count * options.burst)
            for _, count, _ in logins.release(now_s):
                self._knock(count)
            self._read()
        took_s = time.perf_counter() - begun_s
        for sock in self._strangers.values():
            sock.close()
        return {
            "lines_per_s": round(self._sent_bytes / len(_BAD_LINE) / took_s, 1),
            "logins_per_s": round(self._bad_logins / took_s, 1),
            "notices": self._notices,
            "lost_sessions": self._lost,
            "late_p99_us": round(self._lateness.quantile_us(0.99), 1),
        }

    def _push(self, index: int, lines: int) -> None:
        if self._socks[index].fileno() < 0:
            return
        start = self._rests[index]
        sent = _send_some(self._socks[index], self._lines[start : min(lines, _MAX_BURST) * len(_BAD_LINE)])
        self._rests[index] = (start + sent) % len(_BAD_LINE)
        self._sent_bytes += sent

    def _knock(self, count: int) -> None:
        for _ in range(min(count, 64)):
            sock = connect(self._options.address)
            sock.setblocking(False)
            _send_some(sock, _BAD_LOGIN)
            self._poll.register(sock, select.EPOLLIN)
            self._strangers[sock.fileno()] = sock
            self._bad_logins += 1

    def _read(self) -> None:
        for fd, _ in self._poll.poll(0.001, _MAX_EVENTS):
            is_session = fd in self._sessions
            sock = self._sessions[fd] if is_session else self._strangers[fd]
            text = _receive(sock)
            if text and is_session:
                self._notices += text.count(b"\n")
            elif text == b"":
                self._poll.unregister(sock)
                sock.close()
                self._lost += is_session
                self._strangers.pop(fd, None)


def _send_some(sock: socket.socket, data: bytes | memoryview) -> int:
    """Send what the socket takes; nothing when it takes nothing or has ended."""
    try:
        return sock.send(data)
    except OSError:
        return 0


def _receive(sock: socket.socket) -> bytes | None:
    """What is there; empty when the gateway has closed, in whatever way; None when nothing is there."""
    try:
        return sock.recv(65_536)
    except BlockingIOError:
        return None
    except OSError:
        return b""
