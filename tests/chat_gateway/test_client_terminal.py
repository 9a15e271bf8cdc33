"""Tests of the person's client: a pipe is the keyboard, a string the screen, a socket pair the network."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import re
import socket
import stat
import unicodedata
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from chat_gateway import client_terminal
from chat_gateway.client_terminal import LineSplitter, converse, escape, make_session, open_history

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import PipeInput

WAIT_S = 20.0  # generous: only a test that fails waits this long
CTRL_C, CTRL_D, ENTER, UP = "\x03", "\x04", "\r", "\x1b[A"
ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")


class Screen(io.StringIO):
    """Everything that was written to the terminal, and a way to wait for some of it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()  # something was written since the last look

    def write(self, text: str, /) -> int:
        self._changed.set()
        return super().write(text)

    @property
    def text(self) -> str:
        """What was written, without the sequences that steer a terminal."""
        return ESCAPE_SEQUENCE.sub("", self.getvalue())

    async def until(self, text: str, start: int = 0) -> int:
        """Wait until `text` was written at or after `start`; returns where it ends."""
        async with asyncio.timeout(WAIT_S):
            while (found := self.text.find(text, start)) < 0:
                self._changed.clear()
                await self._changed.wait()
        return found + len(text)


class Desk:
    """A person at a terminal, talking to a gateway that the test plays."""

    def __init__(self, keyboard: PipeInput, screen: Screen) -> None:
        self.keyboard = keyboard
        self.screen = screen
        output = Vt100_Output(screen, lambda: Size(rows=24, columns=80), term="xterm", enable_cpr=False)
        self.session: PromptSession[str] = make_session(keyboard, output, InMemoryHistory())
        self._near, self._far = socket.socketpair()

    async def start(self, leave_timeout_s: float = WAIT_S) -> None:
        """Connect both ends and let alice talk in a task."""
        self.reader, self.writer = await asyncio.open_connection(sock=self._near)
        self.from_client, self.to_client = await asyncio.open_connection(sock=self._far)
        self.task = asyncio.create_task(
            converse(
                "alice", self.reader, self.writer, self.session, hint="hello", leave_timeout_s=leave_timeout_s
            )
        )
        await self.screen.until("alice>")

    async def line(self) -> bytes:
        """The next line that reached the gateway."""
        return await asyncio.wait_for(self.from_client.readline(), WAIT_S)

    async def result(self) -> str | None:
        """What the conversation returned."""
        return await asyncio.wait_for(self.task, WAIT_S)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A conversation that has not started; the gateway's end is closed after the test."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard):
        place = Desk(keyboard, Screen())
        yield place
        place.to_client.transport.abort()
        await asyncio.gather(place.task, place.to_client.wait_closed(), return_exceptions=True)


async def test_converse_sends_login_and_typed_lines_when_a_person_types(desk: Desk) -> None:
    """The login goes first, every line that is not blank follows, and Ctrl-D closes the sending side."""
    await desk.start()
    assert desk.screen.text.startswith("hello\r\n")
    desk.keyboard.send_text(f"bob: hi{ENTER}{ENTER}  {ENTER}carol: grüße{ENTER}{CTRL_D}")
    assert await asyncio.wait_for(desk.from_client.read(), WAIT_S) == (
        "alice\nbob: hi\ncarol: grüße\n".encode()
    )
    desk.to_client.close()
    assert await desk.result() is None


async def test_converse_keeps_the_line_being_typed_when_a_message_arrives(desk: Desk) -> None:
    """What arrives is shown above the prompt, the half line is drawn again below, and arrives whole."""
    await desk.start()
    assert await desk.line() == b"alice\n"
    desk.keyboard.send_text("bob: half")
    await desk.screen.until("bob: half")
    desk.to_client.write(b"from carol: one\nfrom carol: two\n")
    shown = await desk.screen.until("from carol: one\r\nfrom carol: two\r\n")
    await desk.screen.until("alice> bob: half", shown)
    desk.keyboard.send_text(f" a line{ENTER}")
    assert await desk.line() == b"bob: half a line\n"


async def test_converse_escapes_when_a_peer_sends_terminal_sequences(desk: Desk) -> None:
    """A peer's escape sequence reaches the screen as text only."""
    await desk.start()
    desk.to_client.write(b"from eve: \x1b]0;owned\x07\x9b31m\n")
    await desk.screen.until("from eve: \\x1b]0;owned\\x07\\x9b31m\r\n")
    assert "\x1b]0;" not in desk.screen.getvalue()


async def test_converse_shows_a_notice_differently_when_one_arrives(desk: Desk) -> None:
    """A Notice is in colour, and what users write is not."""
    await desk.start()
    desk.to_client.write(b"from bob: ! fake\n! unknown-recipient bob: not logged in\n")
    await desk.screen.until("! unknown-recipient bob: not logged in\r\n")
    assert "m! unknown-recipient" in desk.screen.getvalue()
    assert "from bob: ! fake" in desk.screen.getvalue()


async def test_converse_shows_the_rest_when_the_gateway_closes(desk: Desk) -> None:
    """The last Notice is shown, also without its line end; then both tasks end and the reason is told."""
    await desk.start()
    assert await desk.line() == b"alice\n"
    before = asyncio.all_tasks()
    desk.keyboard.send_text("half")
    await desk.screen.until("half")
    desk.to_client.write(b"! shutdown bye")
    desk.to_client.close()
    assert await desk.result() == client_terminal.CLOSED_BY_GATEWAY
    await desk.screen.until("! shutdown bye\r\n")
    assert asyncio.all_tasks() < before
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("client-")]


async def test_converse_says_lost_when_the_connection_is_reset(desk: Desk) -> None:
    """A connection that breaks instead of ending is told apart."""
    await desk.start()
    desk.reader.set_exception(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert await desk.result() == "the connection was lost: Connection reset by peer"


async def test_ctrl_c_clears_the_line_when_something_is_typed(desk: Desk) -> None:
    """Ctrl-C throws the typed text away and the conversation goes on."""
    await desk.start()
    assert await desk.line() == b"alice\n"
    desk.keyboard.send_text(f"bob: wrong{CTRL_C}bob: right{ENTER}")
    assert await desk.line() == b"bob: right\n"


async def test_ctrl_c_leaves_when_the_line_is_empty(desk: Desk) -> None:
    """Ctrl-C on an empty line ends the conversation like Ctrl-D."""
    await desk.start()
    desk.keyboard.send_text(CTRL_C)
    assert await asyncio.wait_for(desk.from_client.read(), WAIT_S) == b"alice\n"
    desk.to_client.close()
    assert await desk.result() is None


async def test_history_offers_the_last_line_when_up_is_pressed(desk: Desk) -> None:
    """A line that was sent can be sent again."""
    await desk.start()
    assert await desk.line() == b"alice\n"
    desk.keyboard.send_text(f"bob: hi{ENTER}")
    assert await desk.line() == b"bob: hi\n"
    await desk.screen.until("alice>", await desk.screen.until("\r\n", len("hello\r\n")))
    desk.keyboard.send_text(f"{UP}{ENTER}")
    assert await desk.line() == b"bob: hi\n"


async def test_leaving_shows_what_still_comes_when_the_gateway_answers_the_last_line(desk: Desk) -> None:
    """After Ctrl-D the client shows what arrives until the gateway closes."""
    await desk.start()
    desk.keyboard.send_text(f"nobody: hi{ENTER}{CTRL_D}")
    await asyncio.wait_for(desk.from_client.read(), WAIT_S)
    desk.to_client.write(b"! unknown-recipient nobody: not logged in\n")
    desk.to_client.close()
    assert await desk.result() is None
    assert "! unknown-recipient nobody: not logged in\r\n" in desk.screen.text


async def test_leaving_is_bounded_when_the_gateway_does_not_close(desk: Desk) -> None:
    """A gateway that keeps the connection open does not keep the person waiting."""
    await desk.start(leave_timeout_s=0)
    assert await desk.line() == b"alice\n"
    desk.keyboard.send_text(CTRL_D)
    assert await desk.result() is None


async def test_leaving_warns_when_typed_lines_were_not_taken(desk: Desk) -> None:
    """Lines that never left this process are not lost silently."""
    await desk.start(leave_timeout_s=0)
    desk.writer.write(b"x" * 4_000_000)  # stands for lines that a stalled gateway does not read
    desk.keyboard.send_text(CTRL_D)
    assert await desk.result() == client_terminal.NOT_TAKEN


async def test_typing_waits_with_ctrl_c_at_work_when_the_gateway_does_not_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt is offered while typed lines are stuck, and the terminal handles Ctrl-C meanwhile."""
    is_waiting, has_room = asyncio.Event(), asyncio.Event()

    @contextmanager
    def cooked_mode() -> Iterator[None]:
        is_waiting.set()
        yield
        has_room.set()

    monkeypatch.setattr(desk.keyboard, "cooked_mode", cooked_mode)
    await desk.start()
    stuck = b"x" * 4_000_000 + b"\n"
    desk.writer.write(stuck)
    desk.keyboard.send_text(f"bob: hi{ENTER}")
    await asyncio.wait_for(is_waiting.wait(), WAIT_S)
    assert not has_room.is_set()
    everything = b"alice\n" + stuck + b"bob: hi\n"
    assert await asyncio.wait_for(desk.from_client.readexactly(len(everything)), WAIT_S) == everything
    await asyncio.wait_for(has_room.wait(), WAIT_S)


async def test_converse_leaves_no_task_when_it_is_cancelled(desk: Desk) -> None:
    """Cancellation passes through, and ends the reading of both sides."""
    await desk.start()
    desk.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await desk.result()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("client-")]


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(min_value=0, max_value=400)))
def test_splitter_yields_the_same_lines_when_the_stream_is_cut_anywhere(
    lines: list[bytes], cuts: list[int]
) -> None:
    """Lines do not depend on how reads cut the stream; a line feed ends them, with or without a CR."""
    stream = b"\n".join(lines)
    splitter = LineSplitter()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    got = [line for a, b in itertools.pairwise(edges) for line in splitter.feed(stream[a:b])]
    *ended, tail = stream.split(b"\n")
    expected = [line.removesuffix(b"\r") for line in ended]
    assert got + splitter.take_tail() == expected + ([tail] if tail else [])


def test_splitter_cuts_a_line_when_its_end_never_comes() -> None:
    """A peer that sends no line end cannot fill the memory."""
    splitter = LineSplitter()
    assert splitter.feed(b"x" * client_terminal.MAX_TAIL_BYTES) == []
    assert splitter.feed(b"y") == [b"x" * client_terminal.MAX_TAIL_BYTES + b"y"]
    assert splitter.feed(b"z\n") == [b"z"]


@given(st.binary())
def test_escape_leaves_no_control_character_when_given_any_bytes(line: bytes) -> None:
    """Whatever bytes a peer sends, no control character but tab survives."""
    assert {char for char in escape(line) if unicodedata.category(char) == "Cc"} <= {"\t"}


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_escape_changes_nothing_when_the_text_is_harmless(text: str) -> None:
    """Text of any language is shown as it was written."""
    assert escape(text.encode()) == text


def test_history_is_for_its_owner_only_when_it_is_created(tmp_path: Path) -> None:
    """The file is made with mode 0600 and its folder with 0700, and a later run finds what was typed."""
    path = tmp_path / "state" / "chat-gateway" / "history"
    open_history(path).append_string("bob: hi")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(open_history(path).load_history_strings()) == ["bob: hi"]


def test_history_is_in_memory_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    """A folder in the place of the file costs the memory between runs and nothing else."""
    assert isinstance(open_history(tmp_path), InMemoryHistory)


def test_history_forgets_quietly_when_the_disk_is_full() -> None:
    """A line that cannot be stored is still offered in this run."""
    history = client_terminal.PrivateFileHistory("/dev/full")
    history.append_string("bob: hi")
    assert history.get_strings() == ["bob: hi"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/state", "/state/chat-gateway/history"),
        ("", "~/.local/state/chat-gateway/history"),
        ("relative", "~/.local/state/chat-gateway/history"),
    ],
)
def test_history_path_follows_the_state_directory_when_it_is_absolute(
    value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_STATE_HOME is used when it is an absolute path."""
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert str(client_terminal.history_path()) == expected
