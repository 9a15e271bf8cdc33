"""One worker: the whole pipeline between its listeners and its sessions, in one event loop.

Knows nothing of signals, terminals and exit statuses; who runs it tells it when to stop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from chat_gateway.connections import Connections
from chat_gateway.listener import Listener
from chat_gateway.memory import Memory, system_trim
from chat_gateway.metrics import Metrics
from chat_gateway.shutdown import Ending, drain
from pipeline.permits import Permits
from pipeline.stage import Stage
from pipeline.topology import Topology
from retry.budget import RetryBudget
from stages.deliver import Deliver
from stages.flusher import Flusher
from stages.ladder import Ladder, LadderSettings
from stages.line_codec import LineCodec
from stages.message import Batch, Block, Ledger, Refusal
from stages.parse import Parse, rejection_words
from stages.route import Route

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from chat_gateway.bus import Bus
    from chat_gateway.config import Config, StageConfig
    from chat_gateway.dead_letters import DeadLetters
    from chat_gateway.logs import Log
    from chat_gateway.shutdown import DrainReport
    from stages.outbox import Outbox
    from stages.route import Peer, Routed

__all__ = ["Worker"]

# Connections at once that are only told that the gateway is full and closed in order; beyond them, new
# ones wait in the kernel's queue even with at_limit = "busy".
_MAX_TURNED_AWAY = 64


class Worker:
    """Made in its running loop; `serve` runs it from start to the end of its drain.

    Args:
        config: the gateway's configuration.
        listening: listening sockets; closed by the worker.
        log: where it tells what happens; not closed by the worker.
        dead_letters: where copies are written whose recipient did not come back; not closed by the worker.
        bus: the path to the other workers, where there are any; not closed by the worker.
    """

    def __init__(
        self,
        config: Config,
        listening: Sequence[socket.socket],
        log: Log,
        dead_letters: DeadLetters | None = None,
        bus: Bus | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.dead_letters = dead_letters
        self.ledger = Ledger()
        loop = asyncio.get_running_loop()
        self.flusher = Flusher(loop.call_soon, self._on_flush_error)
        self.ladder = self._make_ladder(loop)
        tokens = Permits(config.limits.max_connections)
        route = Route(_nowhere)  # until the connections have their hub
        self.topology = self._wire(route)
        self.connections = Connections(
            config,
            pipeline_input=self.topology,
            ledger=self.ledger,
            flusher=self.flusher,
            ladder=self.ladder,
            tokens=tokens,
            turned_away=Permits(_MAX_TURNED_AWAY),
            dead_letters=dead_letters,
            log=log.logger,
            loop=loop,
        )
        self.bus = bus
        route.find = self.connections.hub.routes.get
        if bus is not None:
            self.connections.join(bus)
            bus.attach(self.connections, self.ledger, self.flusher, self.ladder)
            route.find = partial(_find_anywhere, route.find, bus.find_unknown)
        self.listeners = [
            Listener(
                one,
                self.connections,
                at_limit=config.limits.at_limit,
                send_buffer_bytes=config.outbox.send_buffer_bytes,
                tcp=config.tcp,
            )
            for one in listening
        ]
        tokens.on_release = self.connections.turned_away.on_release = self._on_token_back
        self.metrics = Metrics(self)
        self.memory = Memory(
            self.ledger,
            log.logger,
            trim=system_trim(),
            resident_bytes=self.metrics.resident_bytes,
            clock=loop.time,
        )

    async def serve(
        self, stop: asyncio.Event, on_ready: Callable[[], None], ending: Callable[[], Ending] = Ending
    ) -> DrainReport:
        """Accept and route until `stop` is set, then drain; returns what became of the last copies.

        Args:
            stop: set by whoever runs it.
            on_ready: called once it accepts.
            ending: asked, once `stop` is set, how it is to end.
        """
        self.topology.start()
        self.metrics.start()
        for listener in self.listeners:
            listener.start()
        on_ready()
        try:
            await stop.wait()
            return await drain(self, ending())
        finally:
            self.metrics.stop()
            self.connections.close()
            await self.ladder.aclose()
            await self.topology.abort()

    def _wire(self, route: Route) -> Topology:
        """The stages, front to back; one more is one more entry."""
        codec = LineCodec(self.config.limits.max_recipients)
        words = rejection_words(self.config.limits.max_recipients)
        stages = self.config.stages
        return Topology(
            [
                self._stage("parse", Parse(codec, self.ledger, words), stages.parse, _of_block, _copies),
                self._stage("route", route, stages.route, _of_block, _routed_copies),
                self._stage("deliver", Deliver(codec.encode), stages.deliver, _of_routed, _routed_copies),
            ],
            on_turn_begin=self.flusher.expect_flush,
            on_turn_end=self.flusher.flush,
        )

    def _make_ladder(self, loop: asyncio.AbstractEventLoop) -> Ladder:
        config = self.config
        retry = config.retry
        return Ladder(
            LadderSettings(
                write_timeout_s=config.outbox.write_timeout_s,
                min_progress_bytes=config.outbox.min_progress_bytes,
                evict_after_s=config.outbox.evict_after_s,
                fail_max=config.breaker.fail_max,
                reset_timeout_s=config.breaker.reset_timeout_s,
                base_delay_s=retry.base_delay_s,
                max_delay_s=retry.max_delay_s,
            ),
            RetryBudget(retry.budget_ratio, retry.budget_window_s, retry.budget_floor),
            call_later=loop.call_later,
            clock=loop.time,
            on_change=self._on_breaker_change,
        )

    def _stage(
        self,
        name: str,
        handler: Callable[[Any], Any],
        config: StageConfig,
        key: Callable[[Any], object],
        weigh: Callable[[Any], int],
    ) -> Stage[Any, Any]:
        return Stage(
            name,
            handler,
            capacity=config.capacity,
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            key=key,
            weigh=weigh,
            on_error=self._on_stage_error,
        )

    def _on_token_back(self) -> None:
        for listener in self.listeners:
            listener.resume()

    def _on_stage_error(self, item: Block | Batch | Routed, error: Exception) -> None:
        """A handler failed: whoever sent that batch hears of it, all others go on.

        What has no outcome is refused, and nothing of it lies in an outbox, which would resolve it again: the
        deliver stage encodes before its first offer, and an offer never raises.
        """
        reason = Refusal.TIMEOUT if isinstance(error, TimeoutError) else Refusal.ERROR
        self.log.logger.error("stage.failed", reason=reason, exc_info=error)
        if isinstance(item, Block):
            item.sender.notify("refused", reason, count=item.lines)
            item.discard(self.ledger)
            return
        batch = item if isinstance(item, Batch) else item.batch
        if batch.pending:
            batch.refuse(batch.pending, reason, "")

    def _on_breaker_change(self, login: str, state: str) -> None:
        """A writer got into trouble or out of it."""
        log = self.log.logger
        if state == "open":
            log.warning("breaker.opened", login=login)
        else:
            log.info("breaker.half_open" if state == "half_open" else "breaker.closed", login=login)

    def _on_flush_error(self, outbox: Outbox, error: Exception) -> None:
        """A writer failed in a way it should not: its copies are refused, the others are flushed."""
        self.log.logger.error("outbox.failed", login=outbox.name, exc_info=error)
        outbox.fail(Refusal.ERROR)


def _nowhere(_login: str) -> None:
    """Nobody is logged in yet."""


def _find_anywhere(
    find: Callable[[str], Outbox | Peer | None],
    find_unknown: Callable[[str], Outbox | Peer | None],
    login: str,
) -> Outbox | Peer | None:
    """Where copies for a login go; the other workers are asked about one that is not known here."""
    place = find(login)
    return place if place is not None else find_unknown(login)


# What items are kept in order by, and what they weigh; these are called in C.
_of_block = attrgetter("sender")
_of_routed = attrgetter("batch.sender")
_copies = attrgetter("copies")
_routed_copies = attrgetter("batch.copies")
