"""Several workers in one event loop and in virtual time, with links that are pipes in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from chat_gateway.bus import Bus
from chat_gateway.directory import Member
from tests.chat_gateway.fake_net import passed, turns
from tests.chat_gateway.fakes import FakeGateway, FakeLog, Peer, configured

if TYPE_CHECKING:
    from chat_gateway.link import Link

__all__ = ["Cluster", "PipeEnd"]


async def settled(count: int = 12) -> None:
    """Let the loops turn, and what was delivered be reported, which may wait for a moment."""
    await turns(count)
    await passed(0.002)
    await turns(count)


class PipeEnd:
    """One end of a connection between two workers, as a transport: what is written arrives a turn later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        self.loop = loop
        self.link = link
        self.other: PipeEnd | None = None
        self.is_stuck = False  # takes nothing: the other process hangs
        self._kept = b""  # written while it is stuck
        self._is_closed = False

    def write(self, data: bytes) -> None:
        if self.is_stuck:
            self._kept += data
            self.link.pause_writing()
        elif not self._is_closed:
            self.loop.call_soon(self._arrive, data)

    def unstick(self) -> None:
        """Take everything again."""
        self.is_stuck = False
        kept, self._kept = self._kept, b""
        if kept:
            self.write(kept)
            self.link.resume_writing()

    def _arrive(self, data: bytes) -> None:
        assert self.other is not None
        if not self.other._is_closed:
            self.other.link.data_received(data)

    def is_closing(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Both ends hear of it, the other one after all that was written."""
        if not self._is_closed:
            self._is_closed = True
            self.loop.call_soon(self.link.connection_lost, None)
            if self.other is not None:
                self.loop.call_soon(self.other.abort)

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        del high, low

    def get_write_buffer_size(self) -> int:
        return len(self._kept)

    def get_extra_info(self, name: str) -> Any:
        del name
        return _NoSocket()


class _NoSocket:
    def fileno(self) -> int:
        return -1


class Cluster:
    """Workers of one gateway; made in the running loop, numbered from 1 as they are added.

    Args:
        slots: how many workers the gateway has.
        sets: keys of their configuration.
    """

    def __init__(self, slots: int, *sets: str) -> None:
        self.slots = slots
        self.sets = sets
        self.loop = asyncio.get_running_loop()
        self.workers: dict[int, FakeGateway] = {}
        self.members: dict[int, Member] = {}
        self.pipes: dict[tuple[int, int], PipeEnd] = {}  # by (own wid, other wid)
        self.broken: list[str] = []
        self._last_wid = 0

    async def start(self) -> None:
        """One worker for each slot, all linked."""
        for slot in range(self.slots):
            self.add(slot)
        self.tell()
        await turns(40)
        assert all(self.bus(wid).directory.is_ready for wid in self.workers)

    def add(self, slot: int) -> FakeGateway:
        """A new worker in this slot, linked to all others; `tell` makes it known."""
        self._last_wid += 1
        wid = self._last_wid
        bus = Bus(
            wid=wid,
            slot=slot,
            slots=self.slots,
            run_dir="/nowhere",
            config=configured(*self.sets),
            log=FakeLog().logger,
            loop=self.loop,
            on_broken=self.broken.append,
        )
        cast("Any", bus)._dial = self._dialled  # links are made here
        worker = self.workers[wid] = FakeGateway(*self.sets, bus=bus)
        self.members[wid] = Member(slot, wid, is_leaving=False)
        for other in self.workers:
            if other != wid:
                self._link(wid, other)
        return worker

    async def _dialled(self, wid: int) -> None:
        """In place of a dial: the pipe is there."""

    def tell(self) -> None:
        """The supervisor tells all workers who they are."""
        for wid in self.workers:
            self.bus(wid).set_members(list(self.members.values()))

    def bus(self, wid: int) -> Bus:
        """Of one worker."""
        bus = self.workers[wid].worker.bus
        assert bus is not None
        return bus

    def kill(self, wid: int) -> None:
        """It dies; the others hear of it from their links, and from the supervisor with the next `tell`."""
        del self.members[wid]
        del self.workers[wid]
        for (own, other), pipe in list(self.pipes.items()):
            if wid in (own, other):
                del self.pipes[own, other]
                if own == wid:
                    pipe.abort()

    def _link(self, one: int, two: int) -> None:
        ends = [PipeEnd(self.loop, self.bus(wid)._new_link()) for wid in (one, two)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        self.pipes[one, two], self.pipes[two, one] = ends
        for end in ends:
            end.link.connection_made(cast("asyncio.BaseTransport", end))

    async def login(self, wid: int, name: str, **options: Any) -> Peer:
        """A client of this worker."""
        peer = self.workers[wid].connect(**options)
        peer.send(f"{name}\n".encode())
        await turns(40)
        assert peer.session.login == name
        return peer

    @property
    def in_flight(self) -> int:
        """Copies without an outcome, of all workers."""
        for worker in self.workers.values():
            assert worker.ledger.is_balanced
        return sum(worker.ledger.in_flight for worker in self.workers.values())

    async def close(self) -> None:
        """Stop all workers; everything has its outcome then."""
        for worker in self.workers.values():
            await worker.close()
        await turns(40)
        for wid in list(self.workers):
            await self.bus(wid).aclose()
