"""Recipients that never read, and senders that push at them at a fixed rate, in one process and one thread.

A sender whose socket takes nothing leaves out what is due meanwhile and does not make up for it, so the rate
is never above the one asked for; until it takes something again it is not tried, and while none does, this
process sleeps. It runs when the processors have nothing else to do: elsewhere, where such peers are, they
would take no processor time from the gateway and its healthy clients; what they leave out for want of it is
counted. Senders read what the gateway says to them; recipients read nothing after their login has been
proved. They do not learn that they were closed either: what the kernel still has for them stands before the
end of the stream. When each was closed is in the gateway's log.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.histogram import Histogram
from bench.login import open_sessions
from bench.peers import ReadBuffer
from bench.schedule import OpenLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figures

_RECEIVE_BUFFER_BYTES = 2048
_SEND_BUFFER_BYTES = 64 * 1024  # or each sender's kernel takes megabytes, long after nobody reads
_MAX_BURST = 64  # lines that one sender sends at once after a delay of the generator; the rest is left out
_MAX_EVENTS = 1024
_MAX_WAIT_S = 0.05
_TICK_S = 0.005  # what comes due in so long is sent at once, so that it does not wake for each line


@dataclass(frozen=True, slots=True)
class StuckOptions:
    """Sizes in bytes, times in seconds, `rate_per_s` in all; sender i writes to recipient i mod n."""

    address: tuple[str, int]
    senders: int = 200
    recipients: int = 200
    rate_per_s: float = 20_000.0
    text_bytes: int = 1024
    burst: int = 1  # lines that a sender sends at once
    seconds: float = 60.0


class _Pusher:
    """One sender; made and closed by `Stuck`."""

    __slots__ = ("is_blocked", "left_out", "line_bytes", "lines", "pushed", "rest", "sock")

    def __init__(self, sock: socket.socket, line: bytes) -> None:
        self.sock = sock
        # the kernel took nothing the last time, and has not said since that it does
        self.is_blocked = False
        self.line_bytes = len(line)
        self.lines = memoryview(line * _MAX_BURST)
        # what is missing of a line of which the kernel took a part
        self.rest = self.lines[:0]
        # lines of which the kernel took everything
        self.pushed = 0
        # lines that were due while it took nothing
        self.left_out = 0

    def push(self, lines: int) -> None:
        """Send so many lines now, or as many as the kernel takes.

        Raises:
            ConnectionError: the gateway closed the connection.
        """
        try:
            if self.rest:
                self._finish_line()
            sent = self.sock.send(self.lines[: min(lines, _MAX_BURST) * self.line_bytes])
        except BlockingIOError:
            self.left_out += lines
            self.is_blocked = True
            return
        whole, part = divmod(sent, self.line_bytes)
        if part:
            self.rest = self.lines[part : self.line_bytes]
        self.pushed += whole
        self.left_out += lines - whole - (part > 0)

    def _finish_line(self) -> None:
        self.rest = self.rest[self.sock.send(self.rest) :]
        if self.rest:
            raise BlockingIOError
        self.pushed += 1


class Stuck:
    """All senders and recipients of one run; made, run and closed by `run_stuck`."""

    def __init__(self, options: StuckOptions, poll: select.epoll) -> None:
        self._options = options
        self._poll = poll
        names = [f"stuck{i}" for i in range(options.recipients)]
        self._recipients = open_sessions(
            poll, options.address, names, receive_buffer_bytes=_RECEIVE_BUFFER_BYTES
        )
        for sock in self._recipients:
            poll.unregister(sock)
        pushers = open_sessions(poll, options.address, [f"pusher{i}" for i in range(options.senders)])
        for sock in pushers:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._pushers = [
            _Pusher(sock, f"{names[i % len(names)]}: ".encode() + b"x" * options.text_bytes + b"\n")
            for i, sock in enumerate(pushers)
        ]
        self._by_fd = {pusher.sock.fileno(): pusher for pusher in self._pushers}
        self._blocked = 0  # senders that are not tried
        self._writable: list[_Pusher] = []  # of those: what was due until now is not made up for
        self._buffer = ReadBuffer()
        self._begun_s = 0.0
        # the same as seconds since the epoch, which the gateway's records have
        self._begun_epoch_s = 0.0
        # senders that were closed; none should be
        self._lost_senders = 0
        # Notices that senders got
        self._notices = 0
        # how long after it was due each burst was sent
        self._lateness = Histogram()

    def close(self) -> None:
        """Close all connections, those of recipients with what they never read."""
        for sock in (*self._recipients, *(pusher.sock for pusher in self._pushers)):
            sock.close()

    def run(self) -> None:
        """Push for the time asked."""
        options = self._options
        self._begun_s, self._begun_epoch_s = time.perf_counter(), time.time()
        schedule = OpenLoop(options.rate_per_s / options.burst, options.senders, self._begun_s, _TICK_S)
        end_s = self._begun_s + options.seconds
        while (now_s := time.perf_counter()) < end_s:
            for index, lines, due_s in schedule.release(now_s):
                self._push(self._pushers[index], lines * options.burst, due_s)
            self._unblock()
            next_s = end_s if self._blocked == len(self._by_fd) else schedule.next_due_s()
            self._read(min(end_s, next_s) - time.perf_counter())

    def _push(self, pusher: _Pusher, lines: int, due_s: float) -> None:
        if pusher.is_blocked or pusher.sock.fileno() < 0:
            pusher.left_out += lines
            return
        self._lateness.add(time.perf_counter() - due_s)
        try:
            pusher.push(lines)
        except OSError:
            self._lose(pusher)
            return
        if pusher.is_blocked:
            self._blocked += 1
            self._poll.modify(pusher.sock, select.EPOLLIN | select.EPOLLOUT)

    def _unblock(self) -> None:
        for pusher in self._writable:
            pusher.is_blocked = False
        self._writable.clear()

    def _read(self, timeout_s: float) -> None:
        if timeout_s > 0:  # epoll rounds up to milliseconds, select is exact
            select.select([self._poll], [], [], min(timeout_s, _MAX_WAIT_S))
        for fd, mask in self._poll.poll(0, _MAX_EVENTS):
            pusher = self._by_fd[fd]
            try:
                if mask & select.EPOLLOUT:
                    self._blocked -= 1
                    self._writable.append(pusher)
                    self._poll.modify(fd, select.EPOLLIN)
                if mask & ~select.EPOLLOUT:
                    self._notices += bytes(self._buffer.read(pusher.sock)).count(b"\n")
            except OSError:
                self._lose(pusher)

    def _lose(self, pusher: _Pusher) -> None:
        self._lost_senders += 1
        self._blocked -= pusher.is_blocked and pusher not in self._writable
        del self._by_fd[pusher.sock.fileno()]
        with contextlib.suppress(OSError):
            self._poll.unregister(pusher.sock)
        pusher.sock.close()

    def figures(self) -> Figures:
        """What was pushed, and what became of the recipients."""
        return {
            "begun_epoch_s": self._begun_epoch_s,
            "pushed": sum(pusher.pushed for pusher in self._pushers),
            "left_out": sum(pusher.left_out for pusher in self._pushers),
            "notices": self._notices,
            "lost_senders": self._lost_senders,
            "late_p99_us": round(self._lateness.quantile_us(0.99), 1),
        }


def run_stuck(options: StuckOptions, on_begun: Callable[[], None]) -> Figures:
    """Log everybody in, call `on_begun`, push, and return the figures.

    Raises:
        LoginError: a connection could not be opened or did not prove its login.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with select.epoll() as poll:  # opened before the sockets: `select` takes low descriptors only
        stuck = Stuck(options, poll)
        try:
            on_begun()
            stuck.run()
            return stuck.figures()
        finally:
            stuck.close()
