"""The client as its user meets it: a process on a real terminal, or in a pipe; the test plays the gateway."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

WAIT_S = 30.0  # generous: only a test that fails waits this long
STREAM_BYTES = 100_000_000
MAX_MEMORY_KIB = 60_000  # an interpreter with some buffers; a client that hoards needs the stream besides
RUN = "import sys; from chat_gateway.client import run_client; sys.exit(run_client({!r}, {!r}, {}))"
ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")


def command(login: str, port: int) -> list[str]:
    """The command line of a client on the loopback address."""
    return [sys.executable, "-c", RUN.format(login, "127.0.0.1", port)]


class Gateway:
    """Accepts one client at a time; the test reads and writes the lines itself."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.port: int = self._listener.getsockname()[1]

    def accept(self, login: bytes = b"alice") -> tuple[socket.socket, IO[bytes]]:
        """The next client's socket and its lines; the login has been read and checked."""
        sock, _ = self._listener.accept()
        sock.settimeout(WAIT_S)
        lines = sock.makefile("rb")
        assert lines.readline() == login + b"\n"
        return sock, lines

    def close(self) -> None:
        """Stop accepting."""
        self._listener.close()


class Terminal:
    """A client on a terminal of its own, 24 by 80."""

    def __init__(self, port: int, **environment: str) -> None:
        self.master_fd, self.slave_fd = pty.openpty()
        fcntl.ioctl(self.slave_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.raw = ""
        self.process = subprocess.Popen(
            command("alice", port),
            stdin=self.slave_fd,
            stdout=self.slave_fd,
            stderr=self.slave_fd,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
        )

    @property
    def text(self) -> str:
        """Everything the terminal was told, without the sequences that steer it."""
        return ESCAPE_SEQUENCE.sub("", self.raw).replace("\r\r\n", "\r\n")  # the terminal adds a CR, too

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master_fd, text.encode())

    def until(self, text: str, start: int = 0) -> int:
        """Wait until `text` was written at or after `start`; returns where it ends."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.text.find(text, start)) < 0:
            ready, _, _ = select.select([self.master_fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not on the screen: {self.text!r}"
            self.raw += os.read(self.master_fd, 65_536).decode(errors="replace")
        return found + len(text)

    def is_cooked(self) -> bool:
        """Whether the terminal edits lines itself, as a shell expects to find it."""
        local_modes: int = termios.tcgetattr(self.slave_fd)[3]
        return bool(local_modes & termios.ICANON and local_modes & termios.ECHO)

    def close(self) -> None:
        """End the client and take the terminal away."""
        self.process.kill()
        self.process.wait(WAIT_S)
        for fd in (self.master_fd, self.slave_fd):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the history of these clients out of the user's; leave the colours to each test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A listener on the loopback address."""
    place = Gateway()
    yield place
    place.close()


@pytest.fixture
def terminal(gateway: Gateway) -> Iterator[Terminal]:
    """A client that has been started on a terminal."""
    place = Terminal(gateway.port)
    yield place
    place.close()


@pytest.fixture
def piped(gateway: Gateway) -> Iterator[subprocess.Popen[bytes]]:
    """A client that has been started between two pipes."""
    process = subprocess.Popen(
        command("alice", gateway.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield process
    process.kill()
    process.wait(WAIT_S)
    for stream in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):
            assert stream is not None
            stream.close()


def test_terminal_loses_no_key_when_a_person_types_ahead(gateway: Gateway, terminal: Terminal) -> None:
    """Keys that arrive while no prompt is waiting for them are kept, Ctrl-D among them."""
    sock, lines = gateway.accept()
    with sock, lines:
        terminal.until("alice>")
        for number in range(50):
            terminal.type(f"bob: {number}\r")
            assert lines.readline() == f"bob: {number}\n".encode()
        terminal.type("\x04")
        assert lines.read() == b""
    assert terminal.process.wait(WAIT_S) == 0


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Wait for a piped client; returns its status and what it wrote to standard error."""
    assert process.stderr is not None
    status = process.wait(WAIT_S)
    return status, process.stderr.read()


def test_terminal_keeps_the_half_line_when_a_message_arrives(gateway: Gateway, terminal: Terminal) -> None:
    """A message that arrives in the middle of a line is shown above it, and the line arrives whole."""
    sock, lines = gateway.accept()
    with sock, lines:
        address = f"127.0.0.1:{gateway.port}"
        terminal.until(f'connected to {address} as alice - type "bob: hello", Ctrl-D to leave\r\n')
        terminal.until("alice>")
        terminal.type("bob: half")
        terminal.until("bob: half")
        sock.sendall(b"from carol: \x1b[2Jhi\n")
        terminal.until("alice> bob: half", terminal.until("from carol: \\x1b[2Jhi\r\n"))
        terminal.type(" a line\r")
        assert lines.readline() == b"bob: half a line\n"
        terminal.type("\x04")
        assert lines.read() == b""
    assert terminal.process.wait(WAIT_S) == 0
    assert terminal.is_cooked()


def test_terminal_ends_with_status_1_when_the_gateway_closes(gateway: Gateway, terminal: Terminal) -> None:
    """The last Notice stands on the screen, then who ended it; the terminal is as it was."""
    sock, lines = gateway.accept()
    with sock, lines:
        terminal.until("alice>")
        terminal.type("half")
        terminal.until("half")
        sock.sendall(b"! shutdown the gateway stops\n")
    terminal.until("chat-gateway: the gateway closed the connection\r\n", terminal.until("! shutdown"))
    assert terminal.process.wait(WAIT_S) == 1
    assert terminal.is_cooked()


def test_terminal_is_given_back_when_the_client_is_terminated(gateway: Gateway, terminal: Terminal) -> None:
    """A client that is told to end leaves no terminal in raw mode behind."""
    sock, lines = gateway.accept()
    with sock, lines:
        terminal.until("alice>")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(WAIT_S) == 1
    assert terminal.is_cooked()


def test_terminal_client_ends_when_its_window_is_closed(gateway: Gateway, terminal: Terminal) -> None:
    """A terminal that goes away ends the client, and with it the session at the gateway."""
    sock, lines = gateway.accept()
    with sock, lines:
        terminal.until("alice>")
        os.close(terminal.slave_fd)
        os.close(terminal.master_fd)
        with suppress(ConnectionResetError):
            assert lines.read() == b""
    terminal.process.wait(WAIT_S)


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_terminal_shows_notices_in_colour_unless_no_color_is_set(
    gateway: Gateway, no_color: str, *, is_coloured: bool
) -> None:
    """NO_COLOR takes the colour, not the difference: a Notice is bold either way."""
    with closing(Terminal(gateway.port, NO_COLOR=no_color)) as terminal:
        sock, lines = gateway.accept()
        with sock, lines:
            terminal.until("alice>")
            sock.sendall(b"! bad-line no colon\n")
            terminal.until("! bad-line no colon\r\n")
    assert ("\x1b[0;33;1m! bad-line" if is_coloured else "\x1b[0;1m! bad-line") in terminal.raw


def test_terminal_says_refused_in_one_line_when_nobody_listens(gateway: Gateway) -> None:
    """A refused connection is one line and status 1, without a traceback."""
    gateway.close()
    done = subprocess.run(command("alice", gateway.port), capture_output=True, timeout=WAIT_S, check=False)
    refused = f"chat-gateway: cannot connect to 127.0.0.1:{gateway.port}: Connection refused\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", refused.encode())


def test_filter_passes_both_ways_when_it_stands_in_a_pipe(
    gateway: Gateway, piped: subprocess.Popen[bytes]
) -> None:
    """Input reaches the gateway as it is; after its end, what the gateway still sends reaches the output."""
    assert piped.stdin is not None
    assert piped.stdout is not None
    sock, lines = gateway.accept()
    with sock, lines:
        piped.stdin.write(b"bob: hi\nbob: no end")
        piped.stdin.close()
        assert lines.read() == b"bob: hi\nbob: no end"
        sock.sendall(b"from bob: \x1b[1mraw\xff\n")
    assert piped.stdout.read() == b"from bob: \x1b[1mraw\xff\n"
    assert finish(piped) == (0, b"")


def test_filter_ends_when_the_gateway_closes_and_input_stays_open(
    gateway: Gateway, piped: subprocess.Popen[bytes]
) -> None:
    """An input that never ends does not keep the process alive."""
    sock, lines = gateway.accept()
    with sock, lines:
        sock.sendall(b"! shutdown bye\n")
    assert finish(piped) == (0, b"")
    assert piped.stdout is not None
    assert piped.stdout.read() == b"! shutdown bye\n"


def test_filter_ends_with_status_1_when_the_connection_is_reset(
    gateway: Gateway, piped: subprocess.Popen[bytes]
) -> None:
    """A connection that breaks is told apart from one that ends."""
    sock, lines = gateway.accept()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by reset
    lines.close()
    sock.close()
    assert finish(piped) == (1, b"chat-gateway: the connection was lost: Connection reset by peer\n")


def test_filter_ends_quietly_when_its_reader_has_gone(
    gateway: Gateway, piped: subprocess.Popen[bytes]
) -> None:
    """`chat-gateway connect alice | head -1` ends without a word."""
    assert piped.stdout is not None
    sock, lines = gateway.accept()
    with sock, lines:
        piped.stdout.close()
        sock.sendall(b"from bob: one\n")
        assert finish(piped) == (0, b"")


def test_filter_works_when_standard_input_is_closed(gateway: Gateway) -> None:
    """A client started with `<&-` never reads its own socket as if it were the input."""
    script = ["sh", "-c", 'exec "$@" <&-', "sh", *command("alice", gateway.port)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        sock, lines = gateway.accept()
        with sock, lines:
            sock.sendall(b"from bob: not an echo\n")
            assert lines.read() == b""
        assert process.stdout is not None
        assert process.stdout.read() == b"from bob: not an echo\n"
        assert process.wait(WAIT_S) == 0


def test_filter_streams_up_when_the_input_is_large(gateway: Gateway, piped: subprocess.Popen[bytes]) -> None:
    """Pressure from a gateway that does not read reaches the input, and the client's memory stays small."""
    assert piped.stdin is not None
    sock, lines = gateway.accept()
    with sock, lines:
        feeder = threading.Thread(target=_feed, args=(piped.stdin,), daemon=True)
        feeder.start()
        _wait_until_stuck(piped, feeder)
        assert feeder.is_alive()
        assert _count(lines) == STREAM_BYTES
        feeder.join(WAIT_S)
        assert _peak_memory_kib(piped) < MAX_MEMORY_KIB
    assert finish(piped) == (0, b"")


def test_filter_streams_down_when_the_output_is_slow(
    gateway: Gateway, piped: subprocess.Popen[bytes]
) -> None:
    """Pressure from an output that is not read reaches the gateway, and the client's memory stays small."""
    assert piped.stdout is not None
    sock, lines = gateway.accept()
    with sock, lines:
        feeder = threading.Thread(target=_feed, args=(sock.makefile("wb"),), daemon=True)
        feeder.start()
        _wait_until_stuck(piped, feeder)
        assert feeder.is_alive()
        received = 0
        while received < STREAM_BYTES:
            received += len(os.read(piped.stdout.fileno(), 65_536))
        feeder.join(WAIT_S)
        assert _peak_memory_kib(piped) < MAX_MEMORY_KIB
    assert finish(piped) == (0, b"")


def _feed(target: IO[bytes]) -> None:
    line = b"bob: " + b"x" * 94 + b"\n"
    block = line * 1_000
    with target:
        for _ in range(STREAM_BYTES // len(block)):
            target.write(block)


def _count(source: IO[bytes]) -> int:
    size = 0
    while block := source.read(65_536):
        size += len(block)
    return size


def _wait_until_stuck(process: subprocess.Popen[bytes], feeder: threading.Thread) -> None:
    """Wait until the client moves nothing for a while, because it has no room left, or all has been fed."""
    moved, before = _moved_bytes(process), -1
    while moved != before:
        feeder.join(0.2)
        before, moved = moved, _moved_bytes(process)


def _moved_bytes(process: subprocess.Popen[bytes]) -> int:
    """What the process has read from files and pipes and written to them so far; sockets do not count."""
    counters = Path(f"/proc/{process.pid}/io").read_text(encoding="ascii")
    return sum(int(size) for size in re.findall(r"[rw]char: (\d+)", counters))


def _peak_memory_kib(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])
