"""The chat client behind ``chat-gateway connect``: connects, then talks for a person or for a pipe.

A person at a terminal gets ``client_terminal``. Everything else gets the filter in this module: bytes in,
bytes out, in two blocking copies, so that the kernel's buffers are the only ones and pressure passes through.
The client knows the line protocol from the outside only; it must not import the gateway or its stages.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final, TextIO

EXIT_OK: Final = 0
EXIT_LOST: Final = 1  # not connected, or the connection ended badly
EXIT_USAGE: Final = 2  # the conventional status of a wrong argument
EXIT_INTERRUPTED: Final = 130  # what shells report for a program ended by Ctrl-C

MAX_LOGIN_BYTES: Final = 64  # the protocol's bound, in UTF-8
BLOCK_BYTES: Final = 65_536  # what a pipe holds on Linux: a larger read returns no more
CONNECT_TIMEOUT_S: Final = 10.0  # the kernel alone would try for two minutes

_BIDI_CONTROLS: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def run_client(login: str, host: str, port: int) -> int:
    """Connect as `login` and talk until either side ends.

    The person's client runs when standard input and output are both a terminal that can move its cursor.

    Returns:
        The exit status: 0 ended as asked, 1 not connected or lost, 2 unusable login, 130 interrupted.
    """
    problem = login_problem(login)
    if problem is not None:
        return _fail(f"unusable login: {problem}", EXIT_USAGE)
    # Before the socket: if standard input is closed, the socket would get its number and be read as input.
    stdin_fd, stdout_fd = _descriptor(sys.stdin, os.O_RDONLY), _descriptor(sys.stdout, os.O_WRONLY)
    try:
        with open_socket(host, port) as sock:
            ended_badly = _talk(login, format_address(host, port), sock, stdin_fd, stdout_fd)
    except ConnectFailedError as error:
        return _fail(str(error), EXIT_LOST)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK if ended_badly is None else _fail(ended_badly, EXIT_LOST)


def _talk(login: str, address: str, sock: socket.socket, stdin_fd: int, stdout_fd: int) -> str | None:
    """Run the client that fits what the two descriptors are; returns why it ended badly, or None."""
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    if is_dumb or not (os.isatty(stdin_fd) and os.isatty(stdout_fd)):
        return filter_lines(login, sock, stdin_fd, stdout_fd)
    # Here, not above: loading the terminal library takes longer than most pipes need to run.
    from chat_gateway.client_terminal import run_terminal

    return run_terminal(login, address, sock)


def login_problem(login: str) -> str | None:
    """Say for people why the gateway would refuse `login`; None if it would not."""
    if not login:
        return "it is empty"
    for char in login:
        if char.isspace() or char in ",:":
            return "it must not contain white space, ',' or ':'"
        if unicodedata.category(char) in {"Cc", "Cs"} or unicodedata.bidirectional(char) in _BIDI_CONTROLS:
            return "it must not contain control characters"
    if len(unicodedata.normalize("NFC", login).encode()) > MAX_LOGIN_BYTES:
        return f"it is longer than {MAX_LOGIN_BYTES} bytes"
    return None


class ConnectFailedError(Exception):
    """No connection could be made; the text says where to and why, in one line for people."""


def open_socket(host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers; the caller closes the blocking socket.

    Raises:
        ConnectFailedError: nothing answered, or the address makes no sense.
    """
    try:
        sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError, OverflowError) as error:  # the last two: a host or port that cannot exist
        address = format_address(host, port)
        raise ConnectFailedError(f"cannot connect to {address}: {explain(error)}") from error
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a typed line leaves at once
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # notices a gateway whose machine has gone
    return sock


def filter_lines(login: str, sock: socket.socket, stdin_fd: int, stdout_fd: int) -> str | None:
    """Send the login and then all of `stdin_fd` to `sock`, and what comes back to `stdout_fd`, unchanged.

    Ends when the peer has closed, or when `stdout_fd` has no reader any more. The end of `stdin_fd` closes
    only the sending side, so that what is still on its way arrives.

    Args:
        login: a login without problems, sent as the first line.
        sock: a connected blocking socket; its sending side is shut down here, the caller closes it.
        stdin_fd: any readable descriptor; when the peer ends first, a thread stays behind in its read.
        stdout_fd: any writable descriptor.

    Returns:
        Why it ended badly, in words for people; None if it ended as it should.
    """
    uplink = Uplink(login, sock, stdin_fd)
    uplink.start()
    try:
        while block := sock.recv(BLOCK_BYTES):
            failure = _write_out(stdout_fd, block)
            if failure is not None:
                return None if isinstance(failure, BrokenPipeError) else f"cannot write: {explain(failure)}"
    except OSError as error:
        return lost_because(error)
    return uplink.settle()


class Uplink:
    """The sending half of the filter: standard input to the socket, in a daemon thread of its own.

    Created and started by `filter_lines`. Nobody joins the thread: a read of standard input cannot be
    interrupted, and must not keep the process alive after the gateway has closed.
    """

    def __init__(self, login: str, sock: socket.socket, stdin_fd: int) -> None:
        self._first_block = login.encode() + b"\n"  # sent before anything of standard input
        self._sock = sock  # shared with the receiving half, which closes it
        self._stdin_fd = stdin_fd  # read by this thread only
        self._sending = threading.Lock()  # held while a send may still fail
        self._problem: str | None = None  # the first failure, in words for people

    def start(self) -> None:
        """Start sending; returns at once."""
        threading.Thread(target=self._run, name="client-stdin", daemon=True).start()

    def settle(self) -> str | None:
        """Cut off a send that is under way; returns what went wrong before that, or None.

        A reset is reported once, to whichever half asks first; the other half sees an ordinary end. So the
        receiving half must not trust its end of stream before it has asked here.
        """
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._sending:
            return self._problem

    def _run(self) -> None:
        block = self._first_block
        while block and self._send(block):
            block = self._read()
        with suppress(OSError):  # the connection has gone: the receiving half finds out
            self._sock.shutdown(socket.SHUT_WR)

    def _read(self) -> bytes:
        try:
            return _read_in(self._stdin_fd)
        except OSError as error:
            self._problem = f"cannot read standard input: {explain(error)}"
            return b""

    def _send(self, block: bytes) -> bool:
        with self._sending:
            try:
                self._sock.sendall(block)
            except BrokenPipeError:  # the gateway has closed in order, which is no failure
                return False
            except OSError as error:
                self._problem = lost_because(error)
                return False
        return True


def _read_in(fd: int) -> bytes:
    """Wait for the next block of `fd`, also if its owner made it non-blocking; empty at the end."""
    while True:
        try:
            return os.read(fd, BLOCK_BYTES)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def _write_out(fd: int, block: bytes) -> OSError | None:
    """Write the whole block, waiting as long as it takes; returns the error that prevented it."""
    rest = memoryview(block)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)
        except OSError as error:
            return error
    return None


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def format_address(host: str, port: int) -> str:
    """HOST:PORT as people write it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def explain(error: Exception) -> str:
    """The reason in an error, in words and without its number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def lost_because(error: OSError) -> str:
    """What both clients say when the connection breaks instead of ending."""
    return f"the connection was lost: {explain(error)}"


def _descriptor(stream: TextIO | None, flags: int) -> int:
    """The number behind a standard stream; a stream that is closed is replaced by the null device."""
    return os.open(os.devnull, flags) if stream is None else stream.fileno()


def _fail(message: str, status: int) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"chat-gateway: {message}\n")
    return status
