"""Clients that push a fixed number of messages, back to back or at a rate, each at one that reads them."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.login import open_sessions
from bench.peers import ReadBuffer, Receiver, Sender
from bench.schedule import OpenLoop
from bench.wire import Script, payloads

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.report import Figures

_PERIOD = 4096  # lines; a piece of up to one period is sent and checked at once
_MAX_EVENTS = 1024
_TURN_S = 0.001  # of a flood with a rate
_MAX_WAIT_S = 30.0  # without anything arriving


@dataclass(frozen=True, slots=True)
class FloodOptions:
    """How much is sent in all, by how many; `rate_per_s` is over all of them, 0 for back to back.

    The flood begins `delay_s` seconds after all are logged in.
    """

    address: tuple[str, int]
    messages: int = 1_000_000
    clients: int = 1
    rate_per_s: float = 0.0
    text_bytes: int = 64
    delay_s: float = 0.0


def run_flood(options: FloodOptions, on_begun: Callable[[], None]) -> Figures:
    """Log all in, push everything as fast as the gateway takes it, and wait until it has arrived.

    Raises:
        LoginError: a connection could not be opened or did not prove its login.
    """
    names = [f"{kind}{i}" for kind in ("flooder", "reader") for i in range(options.clients)]
    with select.epoll() as poll:
        socks = open_sessions(poll, options.address, names)
        try:
            time.sleep(options.delay_s)
            on_begun()
            return _Flood(options, poll, socks).run()
        finally:
            for sock in socks:
                sock.close()


class _Flood:
    """One run over connections that are logged in, senders first; made by `run_flood`, which closes them."""

    def __init__(self, options: FloodOptions, poll: select.epoll, socks: list[socket.socket]) -> None:
        self._options = options
        self._poll = poll
        texts = payloads(_PERIOD, options.text_bytes, options.text_bytes)
        self._senders: list[Sender] = []
        self._receivers: list[Receiver] = []
        for i, (near, far) in enumerate(zip(socks[: options.clients], socks[options.clients :], strict=True)):
            sender = Sender(near, Script(b"reader%d: " % i, texts), 1)
            self._senders.append(sender)
            self._receivers.append(Receiver(far, Script(b"from flooder%d: " % i, texts), sender))
        peers: list[Sender | Receiver] = [*self._senders, *self._receivers]
        self._peers = {peer.sock.fileno(): peer for peer in peers}
        self._buffer = ReadBuffer()

    def run(self) -> Figures:
        options = self._options
        begun_s = last_s = time.perf_counter()
        schedule = OpenLoop(options.rate_per_s, options.clients, begun_s) if options.rate_per_s else None
        left = options.messages
        while (left or any(sender.in_flight > 0 for sender in self._senders)) and (
            time.perf_counter() < last_s + _MAX_WAIT_S
        ):
            left -= self._queue(left, schedule)
            if self._serve(_TURN_S if left else 1.0):
                last_s = time.perf_counter()
        return self._figures(left, last_s - begun_s)

    def _queue(self, left: int, schedule: OpenLoop | None) -> int:
        """Queue what is due of the messages left, all of it without a rate; returns how many they are."""
        if not left:
            return 0
        if schedule is None:
            each, rest = divmod(left, len(self._senders))
            due = [(i, each + (i < rest)) for i in range(len(self._senders))]
        else:
            due = [(i, lines) for i, lines, _ in schedule.release(time.perf_counter())]
        queued = 0
        for i, wanted in due:
            lines = min(wanted, left - queued)
            sender = self._senders[i]
            sender.queue(lines, 0.0)
            queued += lines
            if sender.is_blocked:
                self._poll.modify(sender.sock, select.EPOLLIN | select.EPOLLOUT)
        return queued

    def _serve(self, timeout_s: float) -> int:
        """Read and write what can be; returns how many messages arrived."""
        arrived = 0
        for fd, mask in self._poll.poll(timeout_s, _MAX_EVENTS):
            peer = self._peers[fd]
            if isinstance(peer, Receiver):
                arrived += peer.on_readable(self._buffer)
                continue
            if mask & ~select.EPOLLOUT:
                peer.on_readable(self._buffer)
            if peer.is_blocked:
                peer.flush()
                if not peer.is_blocked:
                    self._poll.modify(fd, select.EPOLLIN)
        return arrived

    def _figures(self, left: int, took_s: float) -> Figures:
        expected = [receiver.expected for receiver in self._receivers]
        missing = left + sum(sender.in_flight for sender in self._senders)
        wrong = sum(one.reordered + one.corrupt + one.notices for one in expected)
        return {
            "rate_per_s": round((self._options.messages - missing) / took_s, 1) if took_s else 0.0,
            "faults": missing + wrong + sum(sender.notices for sender in self._senders),
        }
