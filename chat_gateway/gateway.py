"""Runs the gateway: with one worker in this process, with several as their supervisor.

Exit status 0: ended in order. 1: the drain ran out of time with copies undelivered. 2: it could not start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from chat_gateway.hangup import Hangup
from chat_gateway.process import (
    LOG_CLOSE_S,
    CannotStartError,
    forget_start,
    join_command,
    log_loop_errors,
    loop_factory,
    open_dead_letters,
    open_listeners,
    open_process_log,
    prepare_files,
)
from chat_gateway.reload import Reload
from chat_gateway.shares import worker_count
from chat_gateway.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from chat_gateway.config import Config
    from chat_gateway.dead_letters import DeadLetters
    from chat_gateway.logs import Log
    from chat_gateway.shutdown import DrainReport

__all__ = ["loop_factory", "run_gateway"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def run_gateway(config: Config, load_config: Callable[[], Config] | None = None) -> int:
    """Run until a signal ends it; returns the exit status.

    Args:
        config: the effective configuration.
        load_config: reads it again, for SIGHUP; raises `ConfigError`. None: it cannot be read again.
    """
    load_config = load_config or (lambda: config)
    workers = worker_count(config.runtime.workers)
    try:
        if workers > 1:
            # Imported where there are several: the path of one worker needs neither package.
            from chat_gateway.supervised import run_supervised

            return run_supervised(config, workers, load_config)
        return _run_alone(config, load_config)
    except CannotStartError as error:
        sys.stderr.write(f"chat-gateway: {error}\n")
        return 2


def _run_alone(config: Config, load_config: Callable[[], Config]) -> int:
    new_loop, loop_name = loop_factory(config.runtime.loop)
    dead_letters = open_dead_letters(config)
    (listening,) = open_listeners(config, 1)
    log = open_process_log(config)
    reload = Reload(config, load_config, log.logger)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            report = runner.run(_serve(config, listening, log, dead_letters, loop_name, reload))
        log.logger.info("gateway.stopped", undelivered=report.undelivered, took_s=round(report.took_s, 3))
    finally:
        if dead_letters is not None:
            dead_letters.close()
        log.close(LOG_CLOSE_S)
    return 1 if report.undelivered else 0


async def _serve(
    config: Config,
    listening: list[socket.socket],
    log: Log,
    dead_letters: DeadLetters | None,
    loop_name: str,
    reload: Reload,
) -> DrainReport:
    stop = asyncio.Event()
    _install_signals(stop, reload)
    log_loop_errors(log.logger)
    prepare_files(config, log.logger)
    worker = Worker(config, listening, log, dead_letters)
    forget_start()

    def on_ready() -> None:
        urls = [listener.url for listener in worker.listeners]
        log.logger.info(
            "gateway.ready",
            listen=urls,
            loop=loop_name,
            max_connections=config.limits.max_connections,
            join=join_command(urls[0]),
        )

    return await worker.serve(stop, on_ready)


def _install_signals(stop: asyncio.Event, reload: Reload) -> None:
    """SIGTERM and the first SIGINT drain; the second SIGINT ends at once; SIGHUP checks the configuration."""
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    Hangup(stop.set, reload.check_only).install()
