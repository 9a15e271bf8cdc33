"""The chat client for a person: reads terminal and socket at the same time, and ends when either ends.

Lines that arrive are printed above the line being typed. The terminal stays in raw mode meanwhile, and the
write blocks: a screen that takes nothing stops the socket from being read, and nothing piles up in between.
It shows what the gateway sends and knows nothing about it but that a Notice begins with ``! ``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import Style

from chat_gateway.client import lost_because

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Final

    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPressEvent
    from prompt_toolkit.output import Output

READ_BYTES: Final = 65_536  # one read is printed in one go, which keeps a flood cheap
MAX_TAIL_BYTES: Final = 1_048_576  # far above any line a gateway sends; a longer one is shown in pieces
LEAVE_TIMEOUT_S: Final = 2.0  # a healthy gateway needs milliseconds to route the last line and close

CLOSED_BY_GATEWAY: Final = "the gateway closed the connection"
NOT_TAKEN: Final = "left before the gateway had taken the last lines"

_STYLE: Final = Style([("notice", "ansiyellow bold"), ("hint", "dim")])
# A peer's text must never steer the terminal: C0 except tab, DEL and C1 are shown, not sent.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")}


def run_terminal(login: str, address: str, sock: socket.socket) -> str | None:
    """Talk over a connected socket on the terminal of this process; the caller closes the socket.

    Returns:
        Why it ended badly, in words for people; None if the person ended it.

    Raises:
        KeyboardInterrupt: Ctrl-C while there was no prompt to take it.
    """
    output = Vt100_Output.from_pty(
        sys.stdout,
        term=os.environ.get("TERM"),
        default_color_depth=ColorDepth.from_env(),  # honours NO_COLOR
    )
    output.enable_cpr = False  # the cursor's position serves menus; we have none, and asking can take seconds
    session = make_session(create_input(sys.stdin), output, open_history(history_path()))
    try:
        return asyncio.run(_converse_on(sock, login, address, session))
    except asyncio.CancelledError:
        return "ended by a signal"


async def _converse_on(
    sock: socket.socket, login: str, address: str, session: PromptSession[str]
) -> str | None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):  # their default would leave the terminal in raw mode
        loop.add_signal_handler(number, task.cancel)
    reader, writer = await asyncio.open_connection(sock=sock)
    hint = f'connected to {address} as {login} - type "bob: hello", Ctrl-D to leave'
    with session.input.raw_mode():  # also between two prompts, or keys typed there would be lost
        return await converse(login, reader, writer, session, hint=hint)


async def converse(
    login: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    session: PromptSession[str],
    *,
    hint: str = "",
    leave_timeout_s: float = LEAVE_TIMEOUT_S,
) -> str | None:
    """Log in, then send what is typed and show what arrives until either side ends; closes `writer`.

    Args:
        login: sent as the first line, and shown as the prompt.
        reader: the gateway's lines.
        writer: where typed lines go; typing waits while the gateway does not take them.
        session: from `make_session`; its terminal is given back as it was.
        hint: shown once, before the first prompt.
        leave_timeout_s: how long the gateway may take to close after the person has left.

    Returns:
        Why it ended badly, in words for people; None if the person ended it.
    """
    if hint:
        show(session, [("class:hint", f"{hint}\n")])
    writer.write(login.encode() + b"\n")
    typing_task = asyncio.create_task(_send_typed(login, session, writer), name="client-typing")
    printing_task = asyncio.create_task(_show_received(reader, session), name="client-printing")
    try:
        await asyncio.wait((typing_task, printing_task), return_when=asyncio.FIRST_COMPLETED)
        if not typing_task.done():
            await printing_task
            return CLOSED_BY_GATEWAY
        await typing_task
        return await _leave(writer, printing_task, leave_timeout_s)
    except OSError as error:
        return lost_because(error)
    finally:
        typing_task.cancel()
        printing_task.cancel()
        await asyncio.gather(typing_task, printing_task, return_exceptions=True)
        writer.transport.abort()  # what could be sent in order was sent by `_leave`
        with suppress(OSError):
            await writer.wait_closed()


async def _leave(
    writer: asyncio.StreamWriter, printing_task: asyncio.Task[None], leave_timeout_s: float
) -> str | None:
    """Close the sending side and go on showing: the last line may still bring a Notice."""
    writer.write_eof()
    try:
        await asyncio.wait_for(printing_task, leave_timeout_s)
    except TimeoutError:
        return NOT_TAKEN if writer.transport.get_write_buffer_size() else None
    return None


async def _send_typed(login: str, session: PromptSession[str], writer: asyncio.StreamWriter) -> None:
    """Send typed lines until the person leaves."""
    with suppress(EOFError):
        while True:
            line = await session.prompt_async(f"{login}> ")
            if line.strip():
                writer.write(line.encode(errors="surrogateescape") + b"\n")
                is_stuck = writer.transport.get_write_buffer_size() > 0
                with session.input.cooked_mode() if is_stuck else nullcontext():  # so that Ctrl-C works
                    await writer.drain()


async def _show_received(reader: asyncio.StreamReader, session: PromptSession[str]) -> None:
    """Show the gateway's lines until it closes; a last line without its end counts."""
    lines = LineSplitter()
    while block := await reader.read(READ_BYTES):
        show(session, styled(lines.feed(block)))
    show(session, styled(lines.take_tail()))


class LineSplitter:
    """Cuts a stream of bytes into lines; created and used by the task that reads the socket."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = bytearray()  # the line whose end has not come yet, bounded by MAX_TAIL_BYTES

    def feed(self, block: bytes) -> list[bytes]:
        """Return the lines that `block` completes, without their ends."""
        head, end, tail = block.rpartition(b"\n")
        lines = [line.removesuffix(b"\r") for line in (self._take() + head).split(b"\n")] if end else []
        self._tail += tail
        if len(self._tail) > MAX_TAIL_BYTES:
            lines += self.take_tail()
        return lines

    def take_tail(self) -> list[bytes]:
        """Return the unfinished line, if there is one, as if it had ended."""
        return [self._take()] if self._tail else []

    def _take(self) -> bytes:
        taken = bytes(self._tail)
        self._tail.clear()
        return taken


def styled(lines: Iterable[bytes]) -> StyleAndTextTuples:
    """Turn received lines into (style, text) pairs that are safe to print, one line each."""
    return [("class:notice" if line.startswith(b"! ") else "", f"{escape(line)}\n") for line in lines]


def escape(line: bytes) -> str:
    """Decode a line; what is not UTF-8 and what a terminal would obey is shown as a backslash escape."""
    return line.decode(errors="backslashreplace").translate(_VISIBLE)


def show(session: PromptSession[str], fragments: StyleAndTextTuples) -> None:
    """Print whole lines above the prompt, which is drawn again with what has been typed so far."""
    if not fragments:
        return
    if session.app.is_running:
        session.app.renderer.erase()
    print_formatted_text(session.output, fragments, _STYLE)
    session.app.invalidate()


def make_session(source: Input, output: Output, history: History) -> PromptSession[str]:
    """Build the prompt with history: Ctrl-D leaves, Ctrl-C clears or leaves, Ctrl-Z suspends."""
    bindings = KeyBindings()

    @bindings.add("c-c", filter=has_focus(DEFAULT_BUFFER))
    @bindings.add("<sigint>")
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return PromptSession(
        input=source, output=output, history=history, key_bindings=bindings, enable_suspend=True
    )


class PrivateFileHistory(FileHistory):
    """A history file that never ends the conversation: what cannot be stored is only remembered."""

    def store_string(self, string: str) -> None:
        """Append one typed line to the file, if the disk lets us."""
        with suppress(OSError):
            super().store_string(string)


def history_path() -> Path:
    """Where typed lines are kept between runs: the user's state directory (XDG), whether it exists or not."""
    state_home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state_home.is_absolute():  # the specification says to ignore such a value
        state_home = Path("~/.local/state")
    return state_home / "chat-gateway" / "history"


def open_history(path: Path) -> History:
    """Open the history at `path`, created for its owner's eyes only; in memory if it cannot be written."""
    try:
        path = path.expanduser()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError):  # the latter: there is no home directory
        return InMemoryHistory()
    return PrivateFileHistory(path)
