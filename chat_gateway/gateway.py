"""Runs the gateway in this process: event loop, signals, log, exit status.

Exit status 0: ended in order. 1: the drain ran out of time with copies undelivered. 2: it could not start.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_gateway.dead_letters import DeadLetters
from chat_gateway.logs import open_log
from chat_gateway.sockets import open_listening, raise_file_limit
from chat_gateway.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from chat_gateway.config import Config
    from chat_gateway.logs import Log
    from chat_gateway.shutdown import DrainReport

__all__ = ["loop_factory", "run_gateway"]

_LOG_CLOSE_S = 2.0  # a log that nobody reads must not keep the gateway from ending
_SPARE_FILES = 64  # files beside connections: listeners, log, loop, what Python opens
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class CannotStartError(Exception):
    """The gateway cannot start; the message is one line for the operator."""


def run_gateway(config: Config) -> int:
    """Run until a signal ends it; returns the exit status."""
    try:
        new_loop, loop_name = loop_factory(config.runtime.loop)
        dead_letters = _open_dead_letters(config)
        listening = _open_all(config)
    except CannotStartError as error:
        sys.stderr.write(f"chat-gateway: {error}\n")
        return 2
    log = open_log(
        format=config.log.format,
        level=config.log.level,
        queue_records=config.log.queue_records,
        flood_per_s=config.log.flood_per_s,
    )
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            report = runner.run(_serve(config, listening, log, dead_letters, loop_name))
        log.logger.info("gateway.stopped", undelivered=report.undelivered, took_s=round(report.took_s, 3))
    finally:
        if dead_letters is not None:
            dead_letters.close()
        log.close(_LOG_CLOSE_S)
    return 1 if report.undelivered else 0


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


def _open_all(config: Config) -> list[socket.socket]:
    opened: list[socket.socket] = []
    for address in config.listen:
        try:
            opened.append(open_listening(address.host, address.port))
        except (OSError, UnicodeError) as error:
            for one in opened:
                one.close()
            raise CannotStartError(f"cannot listen on {address.url}: {_explained(error)}") from None
    return opened


def _explained(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):  # of the host name's encoding for the name service
        return "no such host name can exist"
    return (error.strerror or str(error)).lower()


def _open_dead_letters(config: Config) -> DeadLetters | None:
    letters = config.dead_letters
    if not letters.path:
        return None
    try:
        return DeadLetters(Path(letters.path), max_bytes=letters.max_bytes, keep=letters.keep, now=time.time)
    except OSError as error:
        raise CannotStartError(f"cannot open dead_letters.path {letters.path}: {error.strerror}") from None


async def _serve(
    config: Config,
    listening: list[socket.socket],
    log: Log,
    dead_letters: DeadLetters | None,
    loop_name: str,
) -> DrainReport:
    stop = asyncio.Event()
    _install_signals(stop)
    asyncio.get_running_loop().set_exception_handler(_loop_error_logger(log))
    files = raise_file_limit()
    if config.limits.max_connections + _SPARE_FILES > files:
        log.logger.warning(
            "limits.files",
            max_connections=config.limits.max_connections,
            open_files=files,
            hint="raise the hard limit of open files (ulimit -Hn, LimitNOFILE=) "
            "or lower limits.max_connections",
        )
    worker = Worker(config, listening, log, dead_letters)
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again

    def on_ready() -> None:
        urls = [listener.url for listener in worker.listeners]
        log.logger.info(
            "gateway.ready",
            listen=urls,
            loop=loop_name,
            max_connections=config.limits.max_connections,
            join=_join_command(urls[0]),
        )

    return await worker.serve(stop, on_ready)


def _loop_error_logger(log: Log) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Errors that no code of ours has caught become records, never tracebacks on the terminal."""

    def on_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.logger.error("loop.error", message=context.get("message"), exc_info=context.get("exception"))

    return on_error


def _install_signals(stop: asyncio.Event) -> None:
    """SIGTERM and the first SIGINT drain; the second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)


def _join_command(url: str) -> str:
    """What to type in another terminal to join."""
    program = sys.argv[0] if shutil.which(sys.argv[0]) else "chat-gateway"
    return f"{program} connect alice --to {url.removeprefix('line://')}"
