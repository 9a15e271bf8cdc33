"""The path to the other workers of this gateway: links, the directory of logins, and what moves between them.

Binds a Unix stream socket in the gateway's run directory, where workers that came later dial; dials those
that came before. Knows the sessions of its worker only through `Neighbourhood`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as chance
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chat_gateway.bus_frames import MAX_FRAME_BYTES, Ping
from chat_gateway.bus_statistics import BusStatistics
from chat_gateway.crossing import Arrival
from chat_gateway.directory import Directory
from chat_gateway.held import Routes, Waiting
from chat_gateway.link import Link
from retry.policy import RetryPolicy
from stages.login_name import MAX_LOGIN_BYTES
from stages.message import Batch, Ledger, Refusal
from stages.outbox import Outbox, OutboxSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from chat_gateway.bus_frames import DirectoryMessage, Returned
    from chat_gateway.config import Config
    from chat_gateway.crossing import Crossing
    from chat_gateway.directory import Member
    from stages.flusher import Flusher
    from stages.ladder import Ladder
    from stages.outbox import Entry
    from stages.route import Cut, Peer
    from stages.writer import Owner, Writer

__all__ = ["Bus", "Neighbourhood", "link_settings"]

_LOOK_S = 0.5  # how often what waits is looked at again, and the round trip is measured
_CLOSE_S = 1.0  # for what was said last to leave
_HIGH_SHARE, _LOW_SHARE = 0.75, 0.5  # watermarks of a link's outbox


class Neighbourhood(Protocol):
    """What the bus needs of its worker's sessions."""

    @property
    def routes(self) -> dict[str, Outbox | Peer]:
        """Where copies for each login go; what the route stage looks into."""

    def find_here(self, login: str) -> Outbox | None:
        """The outbox of a session of this worker."""

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """Find out whether the client of this session has gone; then it is ended first."""

    def take_kept(self, login: str, address: str) -> list[Entry]:
        """What was kept for a login that left here and has come back elsewhere, at this address."""


class Bus:
    """Made for one worker process; `attach` joins it to its worker, `start` begins, `aclose` ends it.

    Args:
        wid: the number of this worker process, never used twice in a gateway.
        slot: its place, from 0.
        slots: how many places there are.
        run_dir: where the sockets of the workers are.
        config: the gateway's.
        log: bound to the worker.
        loop: the running one.
        on_broken: told why, when this worker cannot be part of the gateway any more.
    """

    def __init__(
        self,
        *,
        wid: int,
        slot: int,
        slots: int,
        run_dir: str,
        config: Config,
        log: FilteringBoundLogger,
        loop: asyncio.AbstractEventLoop,
        on_broken: Callable[[str], None],
    ) -> None:
        self.wid = wid
        self.on_ready_to_grant: Callable[[], None] | None = None  # once the directory may grant
        self.directory = Directory(wid, slot, slots, self)
        self.link_ledger = Ledger()  # of what links were handed; the copies are counted by their batches
        self.counts = BusStatistics()
        self._run_dir = Path(run_dir)
        self._settings = link_settings(config)
        self._patience_s = 3 * config.supervisor.worker_timeout_s  # without a link to a worker that lives
        self._log = log
        self.loop = loop
        self._on_broken = on_broken
        self._members: dict[int, Member] = {}
        self._links: dict[int, Link] = {}  # both sides have greeted
        self._unnamed: dict[Link, int] = {}  # not greeted yet: whom we have dialled, 0 where we were dialled
        self._dialling: dict[int, asyncio.Task[None]] = {}
        self._server: asyncio.AbstractServer | None = None
        self._pings: dict[int, float] = {}  # when each one was sent
        self._last_ping = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_flush_due = False  # of the directory, at the end of this turn
        self._is_closing = False
        self._has_no_links = asyncio.Event()  # at some time; waited for when it closes
        self._missing_since: dict[int, float] = {}  # members without a link

    def attach(
        self,
        neighbourhood: Neighbourhood,
        ledger: Ledger,
        flusher: Flusher,
        ladder: Ladder,
    ) -> None:
        """Join it to its worker, whose routes it keeps from here on."""
        self._here = neighbourhood
        self.ledger = ledger
        self.flusher = flusher
        self._ladder = ladder
        self.routes = Routes(neighbourhood.routes, self._find_target, self._links.values, self.directory.ask)

    async def start(self) -> None:
        """Bind the socket; others may dial from here on.

        Raises:
            OSError: it cannot be bound.
        """
        self._server = await self.loop.create_unix_server(self._new_link, path=str(self._path_of(self.wid)))
        self._schedule_look()

    def set_members(self, members: Sequence[Member]) -> None:
        """These are the workers of the gateway now, as the supervisor says."""
        self._members = {member.wid: member for member in members}
        self.directory.set_members(members)
        known = {*self._links, *self._dialling, *self._unnamed.values()}
        for wid in self._members:
            if wid < self.wid and wid not in known:
                self._dialling[wid] = self.loop.create_task(self._dial(wid))
        for wid in [wid for wid in self._dialling if wid not in self._members]:
            self._dialling[wid].cancel()
        self.directory.flush()

    async def aclose(self) -> None:
        """Say what is left to be said and end every link. May be called twice."""
        self._is_closing = True
        self._has_no_links.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.routes.close(Refusal.SHUTDOWN)
        for task in self._dialling.values():
            task.cancel()
        await asyncio.gather(*self._dialling.values(), return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for link in (*self._links.values(), *self._unnamed):
            link.close()
        if self._links or self._unnamed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._has_no_links.wait()

    # What the worker's stages and connections ask.

    def find_unknown(self, login: str) -> Outbox | Peer | None:
        """Where copies for a login go that is not in the table; None when it is known to be nowhere."""
        if len(login) > MAX_LOGIN_BYTES:
            return None  # no login can be that long: nobody has to be asked
        return self.routes.find_unknown(login)

    def claim(self, login: str, address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """Ask for a login; the verdict comes now or later, unless what is returned is called before."""
        cancel = self.directory.claim(login, address, on_verdict)
        self._flush_soon()
        return cancel

    def release(self, login: str) -> None:
        """The session of this login has ended here."""
        self.directory.release(login)
        self._flush_soon()

    def on_local_change(self, login: str) -> None:
        """A login came to this worker's hub, or left it."""
        self.routes.look_again(login)

    def statistics(self) -> BusStatistics:
        """What was counted, with the gauges as they are now."""
        counts, ledger = self.counts, self.link_ledger
        pending = [link.outbox.pending_bytes for link in self.links if link.outbox is not None]
        counts.bytes_out = ledger.bytes_out
        counts.pending_bytes = sum(pending)
        counts.peak_bytes = max(counts.peak_bytes, ledger.peak_outbox_bytes)
        ledger.peak_outbox_bytes = max(pending, default=0)
        counts.breakers = Counter(link.outbox.breaker_state for link in self.links if link.outbox is not None)
        counts.held_logins = len(self.routes)
        counts.places = self.directory.places().elsewhere
        return counts

    # What the directory calls: `directory.Peers`.

    def post(self, wid: int, message: DirectoryMessage) -> None:
        """See `directory.Peers`."""
        link = self._links.get(wid)
        if link is not None:
            link.post(message)

    def on_place(self, login: str, wid: int, address: str) -> None:
        """See `directory.Peers`. What was kept here for the login goes there, ahead of all else."""
        if wid:
            for payload, copies, batch in self._here.take_kept(login, address):
                whole = bytes(payload)
                if isinstance(batch, Arrival):
                    batch.give_back(login, whole, copies)
                elif isinstance(batch, Batch):
                    self.routes.take_back(login, Waiting(whole, copies, batch, batch.runs_on), came_from=0)
        self.routes.look_again(login)

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """See `directory.Peers`."""
        self._here.check_holder(login, on_checked)

    def on_ready(self) -> None:
        """See `directory.Peers`."""
        if self.on_ready_to_grant is not None:
            self.on_ready_to_grant()

    # What links call: `link.LinkOwner`.

    def open_link_outbox(self, writer: Writer, owner: Owner) -> Outbox:
        """See `LinkOwner`."""
        outbox = Outbox(writer, self._settings, self.link_ledger, self.flusher, self._ladder, owner)
        outbox.name = "another worker"
        return outbox

    def on_greeting(self, link: Link) -> None:
        """See `LinkOwner`."""
        self._unnamed.pop(link, None)
        assert link.outbox is not None
        link.outbox.name = f"worker {link.wid}"
        self._links[link.wid] = link
        self.directory.link_up(link.wid)
        self.routes.ask_again()
        self.directory.flush()

    def on_message(self, link: Link, message: DirectoryMessage) -> None:
        """See `LinkOwner`."""
        self.directory.receive(link.wid, message)
        self._flush_soon()

    def find_here(self, login: str) -> Outbox | None:
        """See `LinkOwner`."""
        return self._here.find_here(login)

    def on_returned(self, link: Link, crossing: Crossing, returned: Returned) -> None:
        """See `LinkOwner`."""
        batch, is_fanout = crossing.batch, crossing.is_fanout
        waiting = Waiting(returned.payload, returned.copies, batch, is_fanout, crossing.id)
        self.routes.take_back(returned.name, waiting, came_from=link.wid)

    def only_there(self, link: Link, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> Sequence[Cut]:
        """See `LinkOwner`."""
        return self.routes.only_to(link, batch, cuts, is_fanout=is_fanout)

    def on_answered(self, login: str, crossing: Crossing) -> None:
        """See `LinkOwner`."""
        if crossing.delivered and not (crossing.returned and login in crossing.returned):
            self.routes.overtaken(login, crossing.id)
        self.routes.look_if_held(login)

    def on_pong(self, number: int) -> None:
        """See `LinkOwner`."""
        sent_at = self._pings.pop(number, None)
        if sent_at is not None:
            self.counts.round_trip.record(self.loop.time() - sent_at)

    def on_lost(self, link: Link, why: str) -> None:
        """See `LinkOwner`."""
        self._unnamed.pop(link, None)
        is_named = self._links.get(link.wid) is link
        if is_named:
            del self._links[link.wid]
        if not (self._links or self._unnamed):
            self._has_no_links.set()
        if not is_named:
            return
        if not self._is_closing:
            self._log.info("bus.lost", peer=link.wid, reason=why)
        self.directory.link_lost(link.wid)
        self.routes.ask_again()
        self.directory.flush()

    # Links.

    @property
    def links(self) -> list[Link]:
        """Those that are up."""
        return list(self._links.values())

    def _path_of(self, wid: int) -> Path:
        return self._run_dir / f"{wid}.sock"

    def _new_link(self) -> Link:
        link = Link(self)
        self._unnamed[link] = 0
        return link

    async def _dial(self, wid: int) -> None:
        """Connect to a worker that came before; its socket was bound before anybody heard of it."""

        async def connect() -> None:
            _, link = await self.loop.create_unix_connection(self._new_link, str(self._path_of(wid)))
            if link in self._unnamed:
                self._unnamed[link] = wid  # it may take its time to greet us

        policy = RetryPolicy(attempts=10, base_delay_s=0.05, max_delay_s=1.0)
        try:
            await policy.run(
                connect,
                retry_on=(OSError,),
                sleep=asyncio.sleep,
                random=chance.random,
                clock=self.loop.time,
            )
        except OSError as error:
            if wid in self._members and not self._is_closing:
                self._on_broken(f"cannot reach worker {wid}: {error.strerror}")
        finally:
            del self._dialling[wid]

    def _find_target(self, login: str) -> Outbox | Link | None:
        """Where a login lives, as far as is known here."""
        outbox = self._here.find_here(login)
        return outbox if outbox is not None else self._links.get(self.directory.place_of(login))

    def _flush_soon(self) -> None:
        """Have what the directory has to say to all said at the end of this turn."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        self.directory.flush()

    # Now and then.

    def _schedule_look(self) -> None:
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._schedule_look()
        self.routes.ask_again()
        now = self.loop.time()
        self._pings.clear()  # what was not answered says nothing of the round trip: the breaker does
        for link in self._links.values():
            self._last_ping += 1
            self._pings[self._last_ping] = now
            link.post(Ping(self._last_ping))
        self._look_for_missing(now)

    def _look_for_missing(self, now: float) -> None:
        """A worker that the supervisor takes for alive and that we cannot talk to: one of us has to go."""
        missing = [wid for wid in self._members if wid != self.wid and wid not in self._links]
        self._missing_since = {wid: self._missing_since.get(wid, now) for wid in missing}
        for wid, since in self._missing_since.items():
            if now - since > self._patience_s and not self._is_closing:
                self._on_broken(f"no link to worker {wid}")


def link_settings(config: Config) -> OutboxSettings:
    """Bounds of the outbox of a link, and the policies that hold for every outbox.

    "disconnect" is about a client: the link refuses instead, and the client's own outbox, at the other end,
    disconnects it. To end a link would be to take all who live there for lost.
    """
    size = config.bus.max_outbox_bytes
    direct, fanout = (
        "refuse" if policy == "disconnect" else policy
        for policy in (config.when_full.direct, config.when_full.fanout)
    )
    return OutboxSettings(
        max_outbox_bytes=size,
        high_watermark_bytes=int(size * _HIGH_SHARE),
        low_watermark_bytes=int(size * _LOW_SHARE),
        max_flush_bytes=MAX_FRAME_BYTES,  # so that no frame is ever cut
        direct=direct,
        fanout=fanout,
    )
