"""Worker processes as the operating system sees them: started, watched until they end, killed.

Knows nothing of when that is right, and of what a worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from multiprocessing import resource_tracker
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import aiomultiprocess
from aiomultiprocess import core

from chat_gateway.process import loop_factory
from chat_gateway.worker_process import prepare_process, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.worker_process import WorkerStart

__all__ = ["Child", "Launch", "launch"]

# Blocked while a process is started: a signal to the whole group, such as Ctrl-C, must not kill it before
# it can handle it. It inherits that, and unblocks them itself.
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

# A process closes its files, which we notice, just before it can be waited for.
_REAP_S = 0.002


class Child(Protocol):
    """A worker process that was started."""

    @property
    def pid(self) -> int:
        """Its number in the system."""

    def kill(self) -> None:
        """End it at once; nothing happens when it has ended."""


class Launch(Protocol):
    """Starts worker processes."""

    def __call__(self, start: WorkerStart, on_ended: Callable[[int], None]) -> Child:
        """Start one; `on_ended` is called once, later, with its exit status, negative for a signal.

        Raises:
            OSError: it cannot be started.
        """


def launch(start: WorkerStart, on_ended: Callable[[int], None]) -> Child:
    """The `Launch` that starts real processes, in the running loop."""
    return _Process(start, on_ended)


class _Process:
    """Made and forgotten by the supervisor; watched by its loop until it has ended."""

    def __init__(self, start: WorkerStart, on_ended: Callable[[int], None]) -> None:
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        _do_without_manager()
        self._process = aiomultiprocess.Process(
            target=run_worker,
            args=(start,),
            name=f"chat-gateway worker {start.slot + 1}",
            initializer=prepare_process,
            loop_initializer=loop_factory(start.config.runtime.loop)[0],
        )
        _start_protected(self._process)
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self._sentinel: int = self._process.aio_process.sentinel
        self._loop.add_reader(self._sentinel, self._on_closed_files)

    def kill(self) -> None:
        """See `Child`."""
        with contextlib.suppress(ValueError):  # it is closed: it has ended
            self._process.kill()

    def _on_closed_files(self) -> None:
        self._loop.remove_reader(self._sentinel)
        self._reap()

    def _reap(self) -> None:
        status = self._process.exitcode
        if status is None:
            self._loop.call_later(_REAP_S, self._reap)
            return
        self._process.close()
        self._on_ended(status)


def _start_protected(process: aiomultiprocess.Process) -> None:
    """Start a process that no signal to the group can kill before it handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        # Started with the first process, or again when it has died; unblocks what it blocks on the way.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _do_without_manager() -> None:
    """Keep aiomultiprocess from starting a process of its own for results, which nobody looks at here.

    Its manager process, made with the first `Process`, would outlive a supervisor that is killed. A place for
    results is all that is asked of it.
    """
    core._manager = SimpleNamespace(Namespace=SimpleNamespace)
