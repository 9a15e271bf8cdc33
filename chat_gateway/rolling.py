"""Replaces the workers of a gateway one by one, by new ones with a configuration that was read again.

A new worker accepts before the old one drains, so that no connection is refused on the way. One that does
not get ready leaves everything as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from chat_gateway.control_frames import Close, Drain

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from chat_gateway.config import Config
    from chat_gateway.crew import Crew, WorkerHandle
    from chat_gateway.reload import Reload

__all__ = ["PATIENCE_S", "Places", "Rolling"]

# How much longer than `shutdown.drain_timeout_s` a worker may take to end: it keeps to that itself.
PATIENCE_S = 2.0


class Places(Protocol):
    """What is asked of the supervisor."""

    crew: Crew

    @property
    def places(self) -> int:
        """How many workers there are when all are there."""

    def start(self, slot: int, config: Config) -> WorkerHandle:
        """Start a worker in this place. Raises: OSError: it cannot be started."""

    def use(self, slot: int, config: Config) -> None:
        """Give this configuration to whoever will be started in this place from now on."""


class Rolling:
    """Made by a supervisor, which runs it in a task of its own and cancels that at the end.

    Args:
        places: the supervisor.
        reload: reads the configuration again.
        log: the supervisor's.
    """

    def __init__(self, places: Places, reload: Reload, log: FilteringBoundLogger) -> None:
        self._places = places
        self._reload = reload
        self._log = log
        self._asked = asyncio.Event()  # once more, however often it was asked for meanwhile

    def ask(self) -> None:
        """Read the configuration and replace everybody, once what is under way is done."""
        self._asked.set()

    async def run(self) -> None:
        """Do what is asked for, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                config = self._reload.take()
                if config is not None:
                    began = loop.time()
                    if await self._replace_all(config):
                        self._log.info("restart.done", took_s=round(loop.time() - began, 3))
            except Exception as error:  # the workers that are there go on
                self._log.error("restart.failed", exc_info=error)

    async def _replace_all(self, config: Config) -> bool:
        self._log.info("restart.began", workers=self._places.places)
        for slot in range(self._places.places):
            if not await self._replace(slot, config):
                self._log.error(
                    "restart.failed",
                    of=slot + 1,
                    hint="a new worker did not get ready, see the records before; the old ones go on",
                )
                return False
        return True

    async def _replace(self, slot: int, config: Config) -> bool:
        old = self._places.crew.holder(slot)
        if old is not None:  # else one will be started there in a moment
            new = self._places.start(slot, config)
            await _first(new.ready, new.ended)
            if new.ended.is_set():
                return False
        self._places.use(slot, config)
        if old is not None and not old.ended.is_set():
            await self._retire(old, config.shutdown.drain_timeout_s)
        return True

    async def _retire(self, old: WorkerHandle, timeout_s: float) -> None:
        """End a worker that has been replaced."""
        crew = self._places.crew
        crew.leave(old)
        old.send(Drain("restarting", timeout_s))
        try:
            async with asyncio.timeout(timeout_s + PATIENCE_S):
                await old.drained.wait()
                old.send(Close())
                await old.ended.wait()
        except TimeoutError:
            crew.kill(old, "did not drain in time")
            await old.ended.wait()


async def _first(*events: asyncio.Event) -> None:
    """Wait for one of several events."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
