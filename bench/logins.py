"""Logs in at a fixed rate whatever the server does, each time from connecting to a message to oneself.

A login counts from the time it was due, so one that is held up charges those behind it too. Who has got its
message leaves. `python -m bench.logins OPTIONS` takes the options as a JSON object, prints "settled", waits
for a line on standard input, and prints one JSON object at the end.
"""

from __future__ import annotations

import gc
import json
import select
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.histogram import Histogram
from bench.load import is_generator_limited
from bench.login import LoginError, connect, raise_file_limit, rest_of_proof

if TYPE_CHECKING:
    import socket

    from bench.report import Figures

_WARM_UP = 0.2  # share of the logins that are not counted
_MAX_UNDER_WAY = 4096
_MAX_EVENTS = 1024
_MAX_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """How many logins a second, and for how many seconds."""

    rate_per_s: float = 2000.0
    seconds: float = 3.0
    host: str = "127.0.0.1"
    port: int = 0

    def describe(self) -> str:
        """The load in short, for people."""
        return f"{self.rate_per_s:g} logins/s"

    def to_argv(self) -> list[str]:
        """The arguments that give these options back."""
        return [json.dumps(asdict(self))]


class Logins:
    """Made by `main` and run once, in its thread; every connection is closed at its end."""

    def __init__(self, options: LoginOptions, poll: select.epoll) -> None:
        self._options = options
        self._poll = poll
        # descriptor -> socket, what is still to come, and when it was due
        self._under_way: dict[int, tuple[socket.socket, bytes, float]] = {}
        self._latencies = Histogram()
        # how long after it was due each connection was begun
        self._lateness = Histogram()
        # logins due before this are not counted
        self._since_s = 0.0

    def run(self) -> Figures:
        """Make all logins and wait for the last.

        Raises:
            LoginError: a connection was refused or closed, or nothing came for 20 s.
        """
        options = self._options
        total = round(options.seconds * options.rate_per_s)
        begun_s, cpu_begun_s = time.perf_counter(), time.process_time()
        self._since_s = begun_s + _WARM_UP * options.seconds
        made = 0
        while made < total or self._under_way:
            may_begin = made < total and len(self._under_way) < _MAX_UNDER_WAY
            due_s = begun_s + made / options.rate_per_s
            wait_s = due_s - time.perf_counter() if may_begin else _MAX_WAIT_S
            if wait_s <= 0:
                self._begin(f"l{made}", due_s)
                made += 1
            self._read(wait_s)
        took_s = time.perf_counter() - begun_s
        return self._figures(total, took_s, (time.process_time() - cpu_begun_s) / took_s)

    def _begin(self, name: str, due_s: float) -> None:
        if due_s >= self._since_s:
            self._lateness.add(time.perf_counter() - due_s)
        sock = connect((self._options.host, self._options.port))
        self._under_way[sock.fileno()] = sock, f"from {name}: in\n".encode(), due_s
        self._poll.register(sock, select.EPOLLIN)
        try:
            sock.sendall(f"{name}\n{name}: in\n".encode())
        except OSError as error:
            raise LoginError(f"connection lost during login: {error}") from error

    def _read(self, timeout_s: float) -> None:
        if timeout_s > 0:  # epoll rounds up to milliseconds, select is exact
            ready, _, _ = select.select([self._poll], [], [], timeout_s)
            if not ready and timeout_s >= _MAX_WAIT_S:
                raise LoginError(f"{len(self._under_way)} connections did not prove their login")
        for fd, _ in self._poll.poll(0, _MAX_EVENTS):
            self._take(fd)

    def _take(self, fd: int) -> None:
        sock, missing, due_s = self._under_way[fd]
        missing = rest_of_proof(sock, missing)
        if missing:
            self._under_way[fd] = sock, missing, due_s
            return
        if due_s >= self._since_s:
            self._latencies.add(time.perf_counter() - due_s)
        del self._under_way[fd]
        sock.close()

    def close(self) -> None:
        """Close what is under way, after an error."""
        for sock, _, _ in self._under_way.values():
            sock.close()

    def _figures(self, total: int, took_s: float, cpu_share: float) -> Figures:
        latencies, late_p99_us = self._latencies, self._lateness.quantile_us(0.99)
        p99_us = latencies.quantile_us(0.99)
        return {
            "delivered": total,
            "delivered_per_s": round(total / took_s, 1),
            "p50_us": round(latencies.quantile_us(0.5), 1),
            "p99_us": round(p99_us, 1),
            "max_us": round(latencies.max_s * 1e6, 1),
            "cpu_share": round(cpu_share, 3),
            "late_p99_us": round(late_p99_us, 1),
            "generator_limited": is_generator_limited(cpu_share, late_p99_us, p99_us),
        }


def run_logins(options: LoginOptions) -> Figures:
    """Make the logins and return their figures.

    Raises:
        LoginError: a login could not be made.
    """
    raise_file_limit(0)
    with select.epoll() as poll:  # opened before the sockets: `select` takes low descriptors only
        logins = Logins(options, poll)
        try:
            return logins.run()
        finally:
            logins.close()


def main(argv: list[str]) -> int:
    """Entry; status 1 if a login could not be made."""
    options = LoginOptions(**json.loads(argv[0]))
    gc.disable()  # nothing here makes cycles, and a collection would look like a slow server
    print("settled", flush=True)
    sys.stdin.readline()
    try:
        print(json.dumps(run_logins(options)))
    except LoginError as error:
        print(f"bench.logins: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
