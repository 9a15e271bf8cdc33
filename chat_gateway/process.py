"""What every process of the gateway needs around its work: event loop, sockets, log, files, clean memory.

Used by the gateway that is one process, by the supervisor and by its workers; knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_gateway.dead_letters import DeadLetters
from chat_gateway.logs import open_log
from chat_gateway.sockets import open_listening, open_shared_listening, raise_file_limit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from chat_gateway.config import Config
    from chat_gateway.logs import Log

__all__ = [
    "LOG_CLOSE_S",
    "CannotStartError",
    "forget_start",
    "join_command",
    "log_loop_errors",
    "loop_factory",
    "open_dead_letters",
    "open_listeners",
    "open_process_log",
    "prepare_files",
]

LOG_CLOSE_S = 2.0  # a log that nobody reads must not keep the gateway from ending
_SPARE_FILES = 64  # files beside connections: listeners, log, loop, what Python opens

# By default it is 700: a collection for every 50 logins. The longest pause for 10,000 that was seen, on a
# machine that was busy with much else, was 36 ms.
_GARBAGE_OBJECTS = 10_000


class CannotStartError(Exception):
    """The gateway cannot start; the message is one line for the operator."""


def loop_factory(name: str) -> tuple[Callable[[], asyncio.AbstractEventLoop], str]:
    """How to make the event loop called `name` ("auto", "uvloop" or "asyncio"), and which one it is.

    Raises:
        CannotStartError: uvloop is asked for and not installed.
    """
    if name != "asyncio":
        try:
            import uvloop  # where it exists
        except ImportError:
            if name == "uvloop":
                raise CannotStartError("runtime.loop is uvloop, which is not installed here") from None
        else:
            return uvloop.new_event_loop, "uvloop"
    return asyncio.new_event_loop, "asyncio"


def open_listeners(config: Config, workers: int) -> list[list[socket.socket]]:
    """For each worker its listening sockets, one for each address of the configuration.

    Raises:
        CannotStartError: an address cannot be had; then none is open.
    """
    opened: list[list[socket.socket]] = []
    for address in config.listen:
        try:
            if workers == 1:
                opened.append([open_listening(address.host, address.port)])
            else:
                opened.append(open_shared_listening(address.host, address.port, workers))
        except (OSError, UnicodeError) as error:
            for one in (one for sockets in opened for one in sockets):
                one.close()
            raise CannotStartError(f"cannot listen on {address.url}: {_explained(error)}") from None
    return [list(sockets) for sockets in zip(*opened, strict=True)]


def _explained(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):  # of the host name's encoding for the name service
        return "no such host name can exist"
    return (error.strerror or str(error)).lower()


def open_dead_letters(config: Config, suffix: str = "") -> DeadLetters | None:
    """The file for copies whose recipient did not come back; None when none is wanted.

    Args:
        config: the gateway's.
        suffix: of the name, where each worker has a file of its own.

    Raises:
        CannotStartError: it cannot be opened.
    """
    letters = config.dead_letters
    if not letters.path:
        return None
    path = Path(letters.path + suffix)
    try:
        return DeadLetters(path, max_bytes=letters.max_bytes, keep=letters.keep, now=time.time)
    except OSError as error:
        raise CannotStartError(f"cannot open dead_letters.path {path}: {error.strerror}") from None


def open_process_log(config: Config, worker: int | str = 1, lock_path: Path | None = None) -> Log:
    """The log of this process.

    Args:
        config: the gateway's.
        worker: who this process is, in every record: a worker's number from 1, or `supervisor`.
        lock_path: as for `open_log`: a file, where the gateway has several processes.
    """
    return open_log(
        format=config.log.format,
        level=config.log.level,
        queue_records=config.log.queue_records,
        flood_per_s=config.log.flood_per_s,
        bind={"worker": worker},
        lock_path=lock_path,
    )


def prepare_files(config: Config, log: FilteringBoundLogger) -> None:
    """Allow this process as many open files as the system does, and say so when they are too few."""
    files = raise_file_limit()
    if config.limits.max_connections + _SPARE_FILES > files:
        log.warning(
            "limits.files",
            max_connections=config.limits.max_connections,
            open_files=files,
            hint="raise the hard limit of open files (ulimit -Hn, LimitNOFILE=) "
            "or lower limits.max_connections",
        )


def log_loop_errors(log: FilteringBoundLogger) -> None:
    """Errors in the running loop that no code of ours has caught become records, never tracebacks."""

    def on_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("loop.error", message=context.get("message"), exc_info=context.get("exception"))

    asyncio.get_running_loop().set_exception_handler(on_error)


def forget_start() -> None:
    """What lives as long as the process need not be looked at again by the garbage collector.

    Later it looks after every `_GARBAGE_OBJECTS` that were made and live: each session is some fifteen.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, 10, 10)


def join_command(url: str) -> str:
    """What to type in another terminal to join."""
    program = sys.argv[0] if shutil.which(sys.argv[0]) else "chat-gateway"
    return f"{program} connect alice --to {url.removeprefix('line://')}"
