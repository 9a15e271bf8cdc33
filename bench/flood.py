"""One client that pushes a fixed number of messages back to back at one that reads all of them."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.login import open_sessions
from bench.peers import ReadBuffer, Receiver, Sender
from bench.wire import Script, payloads

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figures

_PERIOD = 4096  # lines; a piece of up to one period is sent and checked at once
_MAX_WAIT_S = 60.0  # without anything arriving


@dataclass(frozen=True, slots=True)
class FloodOptions:
    """What one flooder sends, and how many seconds after the load beside it has begun."""

    address: tuple[str, int]
    messages: int = 1_000_000
    text_bytes: int = 64
    delay_s: float = 0.0


def run_flood(options: FloodOptions, on_begun: Callable[[], None]) -> Figures:
    """Log both in, push everything as fast as the gateway takes it, and wait until it has arrived.

    Raises:
        LoginError: a connection could not be opened or did not prove its login.
    """
    with select.epoll() as poll:
        socks = open_sessions(poll, options.address, ["flooder", "reader"])
        try:
            time.sleep(options.delay_s)
            texts = payloads(_PERIOD, options.text_bytes, options.text_bytes)
            sender = Sender(socks[0], Script(b"reader: ", texts), 1)
            receiver = Receiver(socks[1], Script(b"from flooder: ", texts), sender)
            on_begun()
            return _flood(options.messages, poll, sender, receiver)
        finally:
            for sock in socks:
                sock.close()


def _flood(messages: int, poll: select.epoll, sender: Sender, receiver: Receiver) -> Figures:
    buffer = ReadBuffer()
    begun_s = time.perf_counter()
    poll.modify(sender.sock, select.EPOLLIN | select.EPOLLOUT)
    sender.queue(messages, begun_s)
    while sender.in_flight > 0:
        events = poll.poll(_MAX_WAIT_S)
        if not events:
            break
        for fd, mask in events:
            if fd == receiver.sock.fileno():
                receiver.on_readable(buffer)
            elif mask & select.EPOLLIN:
                sender.on_readable(buffer)
        if sender.is_blocked:
            sender.flush()
        else:
            poll.modify(sender.sock, select.EPOLLIN)
    took_s = time.perf_counter() - begun_s
    expected = receiver.expected
    wrong = expected.reordered + expected.corrupt + expected.notices + sender.notices
    return {
        "rate_per_s": round((messages - sender.in_flight) / took_s, 1),
        "faults": sender.in_flight + wrong,
    }
