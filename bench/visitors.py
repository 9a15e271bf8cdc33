"""Clients that come and leave: as many cycles as possible, or now and then to see how long a login takes."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.histogram import Histogram
from bench.login import LoginError, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.report import Figures

_MAX_UNDER_WAY = 64  # below the smallest usual listen backlog
_MAX_WAIT_S = 20.0
# Each has ports of its own: a port that was just used must rest before it serves again.
_SOURCE_HOSTS = [f"127.0.1.{i}" for i in range(1, 101)]


@dataclass(frozen=True, slots=True)
class VisitOptions:
    """How many cycles of connect, login and leave."""

    address: tuple[str, int]
    visits: int = 200_000


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How often a login is timed, and for how long."""

    address: tuple[str, int]
    rate_per_s: float = 50.0
    seconds: float = 10.0


def run_visits(options: VisitOptions, on_begun: Callable[[], None]) -> Figures:
    """Make all cycles, some at a time; each ends its stream behind its login and waits to be closed.

    Raises:
        LoginError: a connection was refused, or none came to its end for 20 s.
    """
    on_begun()
    begun_s = time.perf_counter()
    under_way: dict[int, socket.socket] = {}
    answered = 0
    with select.epoll() as poll:
        for i in range(options.visits):
            while len(under_way) >= _MAX_UNDER_WAY:
                answered += _see_out(poll, under_way)
            sock = connect(options.address, source_host=_SOURCE_HOSTS[i % len(_SOURCE_HOSTS)])
            sock.sendall(b"visitor%d\n" % i)
            sock.shutdown(1)
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
            under_way[sock.fileno()] = sock
        while under_way:
            answered += _see_out(poll, under_way)
    return {"visits_per_s": round(options.visits / (time.perf_counter() - begun_s), 1), "answered": answered}


def _see_out(poll: select.epoll, under_way: dict[int, socket.socket]) -> int:
    """Wait for visitors whose stream has ended; returns how many were told something, or were reset."""
    events = poll.poll(_MAX_WAIT_S)
    if not events:
        raise LoginError(f"{len(under_way)} visitors were not let go")
    answered = 0
    for fd, _ in events:
        sock = under_way.pop(fd)
        try:
            answered += bool(sock.recv(4096))
        except OSError:
            answered += 1
        poll.unregister(sock)
        sock.close()
    return answered


def run_probe(options: ProbeOptions, on_begun: Callable[[], None]) -> Figures:
    """Log in at a fixed rate, one after the other, each time from connecting until a line came back.

    A login counts from the time it was due, so one that is held up charges those behind it too.

    Raises:
        LoginError: a connection was refused or did not prove its login.
    """
    on_begun()
    latencies, first_s = Histogram(), time.perf_counter()
    for i in range(int(options.seconds * options.rate_per_s)):
        due_s = first_s + i / options.rate_per_s
        time.sleep(max(due_s - time.perf_counter(), 0.0))
        _log_in_once(options.address, b"probe%d" % i)
        latencies.add(time.perf_counter() - due_s)
    return {
        "logins": latencies.count,
        "p50_us": round(latencies.quantile_us(0.5), 1),
        "p99_us": round(latencies.quantile_us(0.99), 1),
        "max_us": round(latencies.max_s * 1e6, 1),
    }


def _log_in_once(address: tuple[str, int], name: bytes) -> None:
    proof = b"from %s: in\n" % name
    sock = connect(address)
    try:
        sock.sendall(b"%s\n%s: in\n" % (name, name))
        got = b""
        while len(got) < len(proof) and (piece := sock.recv(len(proof) - len(got))):
            got += piece
    except OSError as error:
        raise LoginError(f"connection lost during login: {error}") from error
    finally:
        sock.close()
    if got != proof:
        raise LoginError(f"the server did not accept a login: {got!r}")
