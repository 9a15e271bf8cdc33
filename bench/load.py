"""Load generator: holds both ends of every conversation in one process, one thread.

Speaks the line protocol or, with --proto, those of Redis and NATS, where the receivers of a line share a
subject.

Closed loop (--window): each sender keeps a number of lines in flight. Open loop (--rate): lines are sent
when they are due, whatever the server does, and latency counts from the time a line was DUE, so a stalled
server is charged for the wait; lines that never arrive are charged up to the end of the run.

Nothing is sampled: every copy received has its latency counted, from the due time of the oldest line of
the burst it was sent in (bursts of more than one line only make a figure worse, never better). Every byte
received is compared with what must come next, so a loss, a double or a change of order is always seen.

The generator is honest about itself: `cpu_share` is its own processor time, `late_*_us` is how long after
its due time a line was sent (closed loop: after the turn in which its window opened began), and
`generator_limited` says that one of them was so high that the figures describe it and not the server.

A load can be mixed: texts of many sizes (--size), 1 line in EVERY to SEVERAL receivers instead of FANOUT,
writes that end in the middle of a line (--ragged). A ragged sender is a part of a line ahead: the rest of it
is sent when it is due, with a part of the next, so there are as many writes as without, and latency means the
same. The lines that are begun at the end are finished, and counted as delivered, but not timed.

With the gateway's log (--log) it knows at which worker each session lives, and makes conversations of which a
given share (--cross) is between two workers; sessions that no conversation needs are closed before it begins.

Prints "settled" when all connections are logged in, then, at the end, one JSON object. It ends by itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.fairness import jain_index
from bench.histogram import CURVE, Histogram
from bench.login import LoginError, open_sessions, raise_file_limit
from bench.options import LoadOptions, parse_options
from bench.peers import ReadBuffer, Receiver, Sender, hear_idle
from bench.placement import Places, open_placed, plan_places
from bench.protocols import DIALECTS, SUBSCRIBED
from bench.schedule import OpenLoop
from bench.subscribe import open_subscribed, subjects
from bench.wire import Script, payloads

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from bench.placement import Session
    from bench.report import Figures

_WARM_UP = 0.2  # share of the run that is not counted
_MIN_PERIOD = 64
_MAX_EVENTS = 1024
_MAX_WAIT_S = 0.05
_BUSY_SHARE = 0.9  # of one core: above, the generator had no time to spare
_LATE_S = 1e-3  # a lateness below this is the scheduler's, not ours
_LATE_PART = 0.5  # of the latency: above, the figure is mostly the generator's own


def is_generator_limited(cpu_share: float, late_p99_us: float, p99_us: float) -> bool:
    """Whether the generator's own work or delay decided the figures."""
    return cpu_share > _BUSY_SHARE or late_p99_us > max(_LATE_S * 1e6, _LATE_PART * p99_us)


class Generator:
    """One load over connections that are logged in; created, run and closed by `main`, in one thread."""

    def __init__(self, options: LoadOptions, poll: select.epoll, sessions: Sequence[Session]) -> None:
        self._options = options
        self._dialect = DIALECTS[options.proto]
        # of senders, then of receivers by sender, then idle ones
        self._socks = [sock for _, sock in sessions]
        # descriptors stay known after a loss, so that an event of the same turn finds its socket
        self._socks_by_fd = {sock.fileno(): sock for sock in self._socks}
        # the end of a conversation that a descriptor is; None for an idle one
        self._peers: dict[int, Sender | Receiver | None] = dict.fromkeys(self._socks_by_fd)
        # every socket is registered for reading already
        self._poll = poll
        self._buffer = ReadBuffer()
        # open loop: what is due when; None in a closed loop
        self._schedule: OpenLoop | None = None
        self._senders: list[Sender] = []
        self._receivers: list[Receiver] = []
        self._build([name for name, _ in sessions])
        # senders that may send, in a closed loop
        self._freed = set(self._senders)
        # latency of copies due after the warm-up
        self._latencies = Histogram()
        # how long after it was due each burst was sent
        self._lateness = Histogram()
        # copies received so far
        self._delivered = 0
        # connections that the server closed or reset
        self._lost = 0
        # lines never handed to the kernel because the server did not read
        self._unsent = 0
        # messages due before this are not counted
        self._since_s = 0.0

    def _build(self, names: list[str]) -> None:
        options = self._options
        period = _MIN_PERIOD
        while not options.rate_per_s and period < 2 * options.window:
            period *= 2
        if options.several:
            period += -period % (options.every or 1)
        texts = payloads(period, *options.size)
        for i in range(options.pairs):
            first = options.pairs + i * options.receivers
            turn = i % period  # so that not all are at texts of one size at a time
            self._add_sender(
                i, range(first, first + options.receivers), names, texts[turn:] + texts[:turn]
            )
        self._peers.update((sender.sock.fileno(), sender) for sender in self._senders)
        self._peers.update((receiver.sock.fileno(), receiver) for receiver in self._receivers)

    def _add_sender(self, at: int, group: range, names: list[str], texts: list[bytes]) -> None:
        """Add a sender and its group of receivers, given as places of their sockets and names."""
        fanout, dialect, mixture = self._options.fanout, self._dialect, self._options.mixture(at)
        everyone = [names[k] for k in group]
        lines = range(len(texts))
        to = [everyone if mixture.is_for_all(line) else everyone[:fanout] for line in lines]
        sent = Script(b"", list(map(dialect.sent, to, texts)), b"")
        sender = Sender(self._socks[at], sent, fanout, dialect, mixture)
        self._senders.append(sender)
        received = [dialect.received(names[at], everyone, text) for text in texts]
        wanted = Script(b"", received, b"")
        self._receivers += [Receiver(self._socks[k], wanted, sender, dialect) for k in group[:fanout]]
        # silent ones must get nothing: whatever comes is counted as a copy too many
        for_all = [received[line] for line in lines if mixture.is_for_all(line)] or received
        wanted = Script(b"", for_all, b"")
        self._receivers += [
            Receiver(self._socks[k], wanted, sender, dialect, is_further=True) for k in group[fanout:]
        ]

    def close(self) -> None:
        """Close all connections."""
        for sock in self._socks:
            sock.close()

    def run(self) -> Figures:
        """Send for the time asked, wait for what is in flight, and return the figures."""
        options = self._options
        begun_s, cpu_begun_s = time.perf_counter(), time.process_time()
        end_s = begun_s + options.seconds
        self._since_s = begun_s + _WARM_UP * options.seconds
        self._send_until(self._since_s, begun_s)
        delivered, offered, warm_s = self._delivered, self._offered(), time.perf_counter()
        self._send_until(end_s, begun_s)
        measured_s = time.perf_counter() - warm_s
        rates = {
            "delivered_per_s": round((self._delivered - delivered) / measured_s, 1),
            "offered_per_s": round((self._offered() - offered) / measured_s, 1),
        }
        cpu_share = (time.process_time() - cpu_begun_s) / (time.perf_counter() - begun_s)
        self._drain()
        return rates | self._figures(cpu_share)

    def _send_until(self, end_s: float, begun_s: float) -> None:
        if self._schedule is None and self._options.rate_per_s:
            options = self._options
            self._schedule = OpenLoop(options.rate_per_s, options.pairs, begun_s, options.tick_s)
        turn = self._closed_turn if self._schedule is None else self._open_turn
        while time.perf_counter() < end_s and self._lost < len(self._socks):
            turn(end_s)

    def _closed_turn(self, end_s: float) -> None:
        woken_s = time.perf_counter()
        for sender in self._freed:
            room = sender.room(self._options.window)
            if room > 0:
                due_s = time.perf_counter()
                self._send(sender, room, due_s, due_s - woken_s)
        self._freed.clear()
        self._read(min(_MAX_WAIT_S, max(end_s - time.perf_counter(), 0)))

    def _open_turn(self, end_s: float) -> None:
        schedule = self._schedule
        assert schedule is not None
        for index, lines, due_s in schedule.release(time.perf_counter()):
            self._send(self._senders[index], lines, due_s, time.perf_counter() - due_s)
        self._freed.clear()
        self._read(min(end_s, schedule.next_due_s()) - time.perf_counter())

    def _send(self, sender: Sender, lines: int, due_s: float, late_s: float) -> None:
        if sender.sock.fileno() < 0:
            return
        if due_s >= self._since_s:
            self._lateness.add(late_s)
        was_blocked = sender.is_blocked
        try:
            sender.queue(lines, due_s)
        except OSError:
            self._lose(sender.sock)
            return
        if sender.is_blocked and not was_blocked:
            self._poll.modify(sender.sock, select.EPOLLIN | select.EPOLLOUT)

    def _read(self, timeout_s: float) -> None:
        """Wait for events and serve them; remembers the senders that may have room again."""
        if self._schedule is not None and timeout_s > 0:  # epoll rounds up to milliseconds, select is exact
            select.select([self._poll], [], [], timeout_s)
            timeout_s = 0
        for fd, mask in self._poll.poll(max(timeout_s, 0), _MAX_EVENTS):
            try:
                self._serve(fd, mask)
            except OSError:
                self._lose(self._socks_by_fd[fd])

    def _serve(self, fd: int, mask: int) -> None:
        peer = self._peers[fd]
        if isinstance(peer, Receiver):
            lines = peer.on_readable(self._buffer)
            peer.arrivals.arrive(lines, time.perf_counter(), self._since_s, self._latencies)
            self._delivered += lines
            self._freed.add(peer.sender)
        elif peer is None:
            hear_idle(self._socks_by_fd[fd], self._buffer, self._dialect)
        else:
            if mask & ~select.EPOLLOUT:
                peer.on_readable(self._buffer)
            if peer.is_blocked:
                peer.flush()
                if not peer.is_blocked:
                    self._poll.modify(fd, select.EPOLLIN)

    def _lose(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._lost += 1
            self._poll.unregister(sock)
            sock.close()

    def _drain(self) -> None:
        """Wait for the copies in flight, then charge those that never came with the wait until now."""
        for sender in self._senders:
            if sender.end_ragged():  # its next line was begun early and is finished early: that is not timed
                self._send(sender, 1, -math.inf, 0.0)
        self._unsent = sum(sender.drop_unsent() for sender in self._senders)
        deadline_s = time.perf_counter() + self._options.drain_s
        while any(sender.in_flight > 0 for sender in self._senders) and time.perf_counter() < deadline_s:
            self._read(_MAX_WAIT_S)
        now_s = time.perf_counter()
        for receiver in self._receivers:
            receiver.arrivals.charge_missing(now_s, self._since_s, self._latencies)

    def _offered(self) -> int:
        """Copies that were due so far."""
        return sum(sender.due_copies for sender in self._senders)

    def _figures(self, cpu_share: float) -> Figures:
        latencies, lateness = self._latencies, self._lateness
        late_p99_us, p99_us = lateness.quantile_us(0.99), latencies.quantile_us(0.99)
        expected = [receiver.expected for receiver in self._receivers]
        return {
            "p50_us": round(latencies.quantile_us(0.5), 1),
            "p99_us": round(p99_us, 1),
            "p999_us": round(latencies.quantile_us(0.999), 1),
            "max_us": round(latencies.max_s * 1e6, 1),
            "curve_us": [round(latencies.quantile_us(q), 1) for q in CURVE],
            "delivered": self._delivered,
            "undelivered": sum(sender.in_flight for sender in self._senders),
            "unsent": self._unsent,
            "reordered": sum(one.reordered for one in expected),
            "corrupt": sum(one.corrupt for one in expected),
            "notices": sum(one.notices for one in expected) + sum(one.notices for one in self._senders),
            "lost_connections": self._lost,
            "fairness": round(jain_index([sender.resolved for sender in self._senders]), 4),
            "cpu_share": round(cpu_share, 3),
            "late_p50_us": round(lateness.quantile_us(0.5), 1),
            "late_p99_us": round(late_p99_us, 1),
            "late_max_us": round(lateness.max_s * 1e6, 1),
            "generator_limited": is_generator_limited(cpu_share, late_p99_us, p99_us),
        }


def session_names(options: LoadOptions) -> list[str]:
    """Logins of all connections: senders, then receivers by sender, then idle ones."""
    receivers = options.pairs * options.receivers
    counts = {"s": options.pairs, "r": receivers, "i": options.idle}
    return [f"{options.tag}{kind}{i}" for kind, count in counts.items() for i in range(count)]


def _open(options: LoadOptions, poll: select.epoll) -> list[Session]:
    address = (options.host, options.port)
    if options.log:
        with Places(Path(options.log)) as places:
            wanted = plan_places(options.pairs, options.fanout, options.cross, places.workers)
            return open_placed(poll, address, options.tag, wanted, places)
    names = session_names(options)
    if options.proto in SUBSCRIBED:
        wanted_subjects = subjects(names, options.pairs, options.fanout)
        socks = open_subscribed(poll, address, SUBSCRIBED[options.proto], wanted_subjects)
        return list(zip(names, socks, strict=True))
    return list(zip(names, open_sessions(poll, address, names), strict=True))


def run_load(options: LoadOptions, on_settled: Callable[[], None]) -> Figures:
    """Log all connections in, call `on_settled`, run the load, and return its figures.

    Raises:
        LoginError: a connection could not be opened or did not prove its login, or the share of conversations
            between workers cannot be made.
    """
    raise_file_limit(options.connections * (2 if options.log else 1))  # some are opened to find places for
    with select.epoll() as poll:  # opened before the sockets: `select` takes low descriptors only
        begun_s = time.perf_counter()
        sessions = _open(options, poll)
        connect_per_s = round(len(sessions) / (time.perf_counter() - begun_s), 1)
        generator = Generator(options, poll, sessions)
        gc.collect()
        gc.disable()  # nothing here makes cycles, and a collection would look like a slow server
        try:
            on_settled()
            return generator.run() | {"connect_per_s": connect_per_s}
        finally:
            gc.enable()
            generator.close()


def _wake_on_time() -> None:
    """Ask the kernel not to group our timers; without it every wait is 50 us too long."""
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")


def main() -> int:
    """Entry of `python -m bench.load`; status 1 if the connections could not be made."""
    options = parse_options("python -m bench.load", (__doc__ or "").strip())
    _wake_on_time()

    def on_settled() -> None:
        print("settled", flush=True)
        if options.hold:
            sys.stdin.readline()

    try:
        print(json.dumps(run_load(options, on_settled)))
    except LoginError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
