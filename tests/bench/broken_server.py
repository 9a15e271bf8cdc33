"""A small chat server in threads that does one thing wrong, to see whether a load notices."""

from __future__ import annotations

import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # a copy and its number in the conversation -> what is written instead
    Fault = Callable[[bytes, int], bytes]


class _Client(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Serve one client until its stream ends or the fault closes it."""
        server = self.server
        assert isinstance(server, _Chat)
        lines = self._lines(server.ends)
        name = next(lines).strip()
        server.writers[name] = self.wfile.write
        for number, line in enumerate(lines):
            to, _, text = line.partition(b": ")
            for recipient in to.split(b","):
                copy = server.fault(b"from " + name + b": " + text, number)
                if copy == b"close":
                    return
                server.writers[recipient](copy)

    def _lines(self, ends: list[bool]) -> Iterator[bytes]:
        tail = b""
        while data := self.request.recv(65_536):
            ends.append(data.endswith(b"\n"))
            *lines, tail = (tail + data).split(b"\n")
            yield from (line + b"\n" for line in lines)


class _Chat(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64  # a shorter one costs a connection a second

    def __init__(self, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.fault = fault
        # of each read, by whichever client, whether it ended with a line
        self.ends: list[bool] = []
        self.writers: dict[bytes, Callable[[bytes], object]] = {}

    def handle_error(self, *_: object) -> None:
        """A peer that went away is no news here."""


@contextmanager
def running(fault: Fault, ends: list[bool] | None = None) -> Iterator[int]:
    """Serve on a free port of 127.0.0.1, which is yielded.

    `ends` is told of each read whether it ended with a line.
    """
    with _Chat(fault) as server:
        if ends is not None:
            server.ends = ends
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
