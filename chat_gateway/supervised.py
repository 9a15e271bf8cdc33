"""Runs the gateway as the supervisor of several workers: sockets, run directory, signals, exit status.

Exit status 0: ended in order. 1: something that was accepted was lost, or the workers died too often.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from chat_gateway.children import launch
from chat_gateway.hangup import Hangup
from chat_gateway.process import (
    LOG_CLOSE_S,
    CannotStartError,
    join_command,
    log_loop_errors,
    loop_factory,
    open_dead_letters,
    open_listeners,
    open_process_log,
)
from chat_gateway.reload import Reload
from chat_gateway.run_dir import RunDir, default_bases
from chat_gateway.sockets import listening_url
from chat_gateway.supervisor import Supervisor
from chat_gateway.worker_process import letters_suffix

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from chat_gateway.config import Config
    from chat_gateway.logs import Log
    from chat_gateway.supervisor import SupervisorReport

__all__ = ["run_supervised"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def run_supervised(config: Config, workers: int, load_config: Callable[[], Config]) -> int:
    """Run several workers until a signal ends them; returns the exit status.

    Raises:
        CannotStartError: with one line for the operator.
    """
    new_loop, loop_name = loop_factory(config.runtime.loop)
    _check_dead_letters(config, workers)
    listening = open_listeners(config, workers)
    try:
        run_dir = RunDir(default_bases())
    except OSError as error:
        raise CannotStartError(f"cannot make a run directory: {error}") from None
    try:
        return _run_in(run_dir, config, listening, load_config, new_loop, loop_name)
    finally:
        run_dir.close()


def _run_in(
    run_dir: RunDir,
    config: Config,
    listening: list[list[socket.socket]],
    load_config: Callable[[], Config],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    loop_name: str,
) -> int:
    log = open_process_log(config, "supervisor", run_dir.log_lock)
    reload = Reload(config, load_config, log.logger)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            report = runner.run(_serve(config, listening, run_dir, log, reload, loop_name))
        log.logger.info("gateway.stopped", undelivered=report.undelivered, took_s=round(report.took_s, 3))
    finally:
        log.close(LOG_CLOSE_S)
    return 1 if report.is_failure or report.undelivered else 0


def _check_dead_letters(config: Config, workers: int) -> None:
    """What no worker could open is found out before one is started."""
    for slot in range(workers):
        letters = open_dead_letters(config, letters_suffix(slot))
        if letters is not None:
            letters.close()


async def _serve(
    config: Config,
    listening: list[list[socket.socket]],
    run_dir: RunDir,
    log: Log,
    reload: Reload,
    loop_name: str,
) -> SupervisorReport:
    log_loop_errors(log.logger)
    urls = [listening_url(one) for one in listening[0]]

    def on_all_ready() -> None:
        log.logger.info(
            "gateway.ready",
            listen=urls,
            workers=len(listening),
            loop=loop_name,
            max_connections=config.limits.max_connections,
            join=join_command(urls[0]),
        )

    supervisor = Supervisor(
        config,
        listening,
        run_dir=run_dir,
        launch=launch,
        log=log,
        reload=reload,
        on_all_ready=on_all_ready,
    )
    _install_signals(supervisor, run_dir)
    server = await asyncio.get_running_loop().create_unix_server(
        supervisor.crew.new_link, path=str(run_dir.supervisor_socket)
    )
    try:
        return await supervisor.serve()
    finally:
        server.close()


def _install_signals(supervisor: Supervisor, run_dir: RunDir) -> None:
    """SIGTERM and the first SIGINT drain, the second SIGINT ends at once, SIGHUP replaces the workers."""
    loop = asyncio.get_running_loop()
    stop = supervisor.stop

    def on_interrupt() -> None:
        if stop.is_set():
            supervisor.kill_all()
            run_dir.close()
            os._exit(_INTERRUPTED)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    Hangup(stop.set, supervisor.reload).install()
