"""Tests of the client's command and of its filter, on socket pairs and pipes: no terminal and no network."""

from __future__ import annotations

import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from chat_gateway import client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

WAIT_S = 20.0  # generous: only a test that fails waits this long


class Wire:
    """A filter running in a thread, and the far ends of its socket, its input and its output."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.near, self.gateway = socket.socketpair()
        self.gateway.settimeout(WAIT_S)
        self.stdin_fd, self.typed_fd = os.pipe()
        self.shown_fd, self.stdout_fd = os.pipe()

    def start(self, stdin_fd: int | None = None, stdout_fd: int | None = None) -> Future[str | None]:
        """Start the filter as alice; the future holds what it returns."""
        source = self.stdin_fd if stdin_fd is None else stdin_fd
        target = self.stdout_fd if stdout_fd is None else stdout_fd
        return self._pool.submit(client.filter_lines, "alice", self.near, source, target)

    def received(self, size: int) -> bytes:
        """Exactly `size` bytes that reached the gateway, or fewer at the end of the stream."""
        with self.gateway.makefile("rb", buffering=0) as stream:
            data = b""
            while len(data) < size and (block := stream.read(size - len(data))):
                data += block
        return data

    def end_input(self) -> None:
        """Let standard input end."""
        os.close(self.typed_fd)
        self.typed_fd = -1

    def close(self) -> None:
        """Close every end that a test has left open."""
        self.near.close()
        self.gateway.close()
        for fd in (self.typed_fd, self.stdin_fd, self.shown_fd, self.stdout_fd):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The ends of one filter, closed after the test."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ends = Wire(pool)
        yield ends
        ends.gateway.close()
        if ends.typed_fd >= 0:
            ends.end_input()
    ends.close()


@pytest.mark.parametrize("login", ["alice", "a", "jürgen", "李", "x" * 64, "a-b.c_d@e", "!"])
def test_login_has_no_problem_when_the_gateway_takes_it(login: str) -> None:
    """A login of up to 64 bytes without separators or controls is not refused."""
    assert client.login_problem(login) is None


@pytest.mark.parametrize(
    ("login", "problem"),
    [
        ("", "empty"),
        ("two words", "white space"),
        ("tab\t", "white space"),
        ("nbsp\u00a0", "white space"),
        ("line\n", "white space"),
        ("a,b", "','"),
        ("a:b", "':'"),
        ("bell\a", "control"),
        ("c1\u009b", "control"),
        ("del\x7f", "control"),
        ("turned\u202e", "control"),
        ("not-utf8\udcff", "control"),
        ("x" * 65, "64 bytes"),
        ("ü" * 33, "64 bytes"),
    ],
)
def test_login_problem_is_named_when_the_gateway_would_refuse_it(login: str, problem: str) -> None:
    """Each rule of the protocol for logins has words of its own."""
    assert problem in (client.login_problem(login) or "")


def test_login_is_measured_composed_when_it_comes_decomposed() -> None:
    """The bound of 64 bytes holds for the normal form, which is what the gateway compares."""
    assert client.login_problem("u\u0308" * 32) is None


def test_run_client_never_connects_when_the_login_is_unusable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unusable login is one clear line and status 2, before any connection."""
    monkeypatch.setattr(client, "open_socket", lambda *_: pytest.fail("connected"))
    assert client.run_client("a b", "127.0.0.1", 1) == 2
    assert capsys.readouterr().err == (
        "chat-gateway: unusable login: it must not contain white space, ',' or ':'\n"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (UnicodeError("label too long"), "label too long"),
        (OverflowError("port must be 0-65535"), "port must be 0-65535"),
    ],
)
def test_open_socket_says_where_and_why_when_it_cannot_connect(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever prevents a connection becomes one line with the address and the reason."""

    def refuse(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(client.ConnectFailedError) as raised:
        client.open_socket("::1", 4000)
    assert str(raised.value) == f"cannot connect to [::1]:4000: {words}"


def test_filter_sends_login_and_input_unchanged_when_input_ends(wire: Wire) -> None:
    """The login is the first line, every byte of the input follows, and then the sending side is closed."""
    os.write(wire.typed_fd, b"bob: hi\r\n\xff\x00\x1b no end")
    wire.end_input()
    result = wire.start()
    assert wire.received(1000) == b"alice\nbob: hi\r\n\xff\x00\x1b no end"
    wire.gateway.close()
    assert result.result(WAIT_S) is None


def test_filter_goes_on_showing_when_input_has_ended(wire: Wire) -> None:
    """What arrives after the half-close is shown byte for byte until the gateway closes."""
    wire.end_input()
    result = wire.start()
    assert wire.received(1000) == b"alice\n"
    wire.gateway.sendall(b"from bob: \x1b[0m\xff\r\nno end")
    wire.gateway.close()
    assert result.result(WAIT_S) is None
    assert os.read(wire.shown_fd, 1000) == b"from bob: \x1b[0m\xff\r\nno end"


def test_filter_ends_when_the_gateway_closes_and_input_is_open(wire: Wire) -> None:
    """A read of standard input that never returns does not keep the filter alive."""
    result = wire.start()
    assert wire.received(6) == b"alice\n"
    wire.gateway.close()
    assert result.result(WAIT_S) is None


def test_filter_says_lost_when_the_connection_is_reset(wire: Wire) -> None:
    """A connection that breaks instead of ending is reported."""
    os.write(wire.typed_fd, b"bob: never read\n")
    result = wire.start()
    assert wire.received(6) == b"alice\n"
    wire.gateway.recv(1, socket.MSG_PEEK)  # the rest has come, and closing without reading it is a reset
    wire.gateway.close()
    assert result.result(WAIT_S) == "the connection was lost: Connection reset by peer"


class StuckSocket(socket.socket):
    """Looks closed in order to its reader, while its writer is still about to be told an error."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error  # what the send under way ends with
        self.is_sending = threading.Event()  # the writer is inside its send
        self.is_cut = threading.Event()  # the socket has been shut down

    def sendall(self, *_: object) -> None:
        self.is_sending.set()
        assert self.is_cut.wait(WAIT_S)
        raise self._error

    def recv(self, *_: object) -> bytes:
        assert self.is_sending.wait(WAIT_S)
        return b""

    def shutdown(self, _: int, /) -> None:
        self.is_cut.set()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            "the connection was lost: Connection reset by peer",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), None),
    ],
)
def test_filter_asks_the_sending_half_when_the_stream_has_ended(
    wire: Wire, error: OSError, expected: str | None
) -> None:
    """An end of stream is believed only after a send under way has told whether it was a reset."""
    with StuckSocket(error) as sock:
        assert client.filter_lines("alice", sock, wire.stdin_fd, wire.stdout_fd) == expected


def test_filter_ends_quietly_when_nobody_reads_its_output(wire: Wire) -> None:
    """A closed standard output is an ordinary end."""
    os.close(wire.shown_fd)
    result = wire.start()
    wire.gateway.sendall(b"from bob: hi\n")
    assert result.result(WAIT_S) is None


def test_filter_says_cannot_write_when_the_output_is_full(wire: Wire) -> None:
    """Any other failure of standard output is reported."""
    full_fd = os.open("/dev/full", os.O_WRONLY)
    result = wire.start(stdout_fd=full_fd)
    wire.gateway.sendall(b"from bob: hi\n")
    assert result.result(WAIT_S) == "cannot write: No space left on device"
    os.close(full_fd)


def test_filter_says_cannot_read_when_the_input_is_a_directory(wire: Wire) -> None:
    """Input that cannot be read counts as ended, and is reported when the gateway has closed."""
    directory_fd = os.open("/", os.O_RDONLY)
    result = wire.start(stdin_fd=directory_fd)
    assert wire.received(1000) == b"alice\n"
    wire.gateway.close()
    assert result.result(WAIT_S) == "cannot read standard input: Is a directory"
    os.close(directory_fd)


def test_filter_waits_when_pipes_are_non_blocking(wire: Wire) -> None:
    """Standard streams that another program made non-blocking work like others, beyond what a pipe holds."""
    os.set_blocking(wire.stdin_fd, False)
    os.set_blocking(wire.stdout_fd, False)
    result = wire.start()
    assert wire.received(6) == b"alice\n"  # by now the input has been found empty, or soon will be
    os.write(wire.typed_fd, b"bob: hi\n")
    assert wire.received(8) == b"bob: hi\n"
    sender = threading.Thread(target=wire.gateway.sendall, args=(b"x" * 1_000_000,))
    sender.start()
    shown = 0
    while shown < 1_000_000:
        shown += len(os.read(wire.shown_fd, 65_536))
    sender.join(WAIT_S)
    wire.gateway.close()
    assert result.result(WAIT_S) is None
