"""One client of a stress run: does what its plan says and tells the account what it sends and receives."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from bench.stress_plan import Action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.stress_account import Account, SentSession
    from bench.stress_plan import Kind, Member

__all__ = ["Client", "Link"]

_BUFFER_BYTES = 16_384  # of the kernel, each way: small, so that pressure is felt soon
_LATE_S = 1.0  # what should have been said so long ago is left out
_LEAVE_TIMEOUT_S = 20.0  # until the gateway has closed; its copies may wait for stuck recipients
_RETRY_S = 0.1  # between attempts to log in
_CUT_S = 0.002  # between the parts of what is written in parts
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once


class Link(asyncio.Protocol):
    """One connection; made by its client, over when `closed` is done."""

    def __init__(self, account: Account, session: SentSession) -> None:
        self.session = session
        # done when the connection is over; the error it ended with, if any
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        # done when the login is proved, or the connection is over
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # we have ended our side in order
        self.is_leaving = False
        # the gateway has ended its side
        self.is_ended = False
        # what was written before waits to be sent
        self.is_full = False
        # nothing was read for a while at some time
        self.has_stalled = False
        self.proof = b""  # the line that proves the login
        self._account = account
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember it."""
        self.transport = cast("asyncio.Transport", transport)
        self.session.port = transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        """Tell the account of all whole lines."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            self._account.receive(self.session, line)
            if line == self.proof:
                self.session.is_in = True
                self._settle()

    def eof_received(self) -> None:
        """The gateway is done; the transport closes itself."""
        self.is_ended = True

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        self.is_full = True

    def resume_writing(self) -> None:
        """It was sent."""
        self.is_full = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Over, in whatever way."""
        if self._tail and self.is_leaving and self.is_ended:
            self._account.receive_half(self.session, self._tail)
        self._settle()
        self.closed.set_result(exc)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


class Client:
    """Made by the run, which runs `run` in one task and then `finish`; one connection at a time.

    Args:
        member: its login and plan.
        address: where the gateway listens.
        account: told of everything.
        clock: seconds since the beginning of the run.
    """

    return_timeout_s = 10.0  # until a login that was left must be free again

    def __init__(
        self, member: Member, address: tuple[str, int], account: Account, clock: Callable[[], float]
    ) -> None:
        # actions done, by kind
        self.done: dict[str, int] = {}
        # sends that were left out because the one before was not through, or the client not in
        self.left_out = 0
        # the longest time from wanting to return to being logged in
        self.slowest_return_s = 0.0
        self._member = member
        self._address = address
        self._account = account
        self._clock = clock
        self._link: Link | None = None
        self._resume_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Do everything in the plan, each thing at its time."""
        steps: dict[Kind, Callable[[Action], Awaitable[None]]] = {
            "send": self._send,
            "garbage": self._send_garbage,
            "stall": self._stall,
            "leave": self._leave,
            "vanish": self._vanish,
            "return": self._return,
        }
        for action in self._member.actions:
            await self._wait_until(action.at_s)
            await steps[action.kind](action)
            self.done[action.kind] = self.done.get(action.kind, 0) + 1

    async def finish(self) -> None:
        """Read on, leave in order and wait for the end of the connection."""
        await self._leave(Action(self._clock(), "leave"))

    async def _wait_until(self, at_s: float) -> None:
        await asyncio.sleep(max(at_s - self._clock(), 0.0))

    async def _send(self, action: Action) -> None:
        link = await self._usable(action)
        if link is None:
            return
        now_s = self._clock()
        lines = zip(action.recipients, action.sizes, strict=True)
        data = b"".join(self._account.send(link.session, to, size, now_s) for to, size in lines)
        start = 0
        for cut in action.cuts:
            end = int(cut * len(data))
            link.transport.write(data[start:end])
            start = end
            await asyncio.sleep(_CUT_S)
        link.transport.write(data[start:])

    async def _send_garbage(self, action: Action) -> None:
        link = await self._usable(action)
        if link is not None:
            self._account.reject(link.session, "bad-text" if b"\x07" in action.garbage else "bad-line")
            link.transport.write(action.garbage + b"\n")

    async def _stall(self, action: Action) -> None:
        link = await self._usable(action)
        if link is not None and link.transport.is_reading():
            link.has_stalled = True
            link.transport.pause_reading()
            self._resume_timer = asyncio.get_running_loop().call_later(action.seconds, self._read_on)

    def _read_on(self) -> None:
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None
        link = self._link
        if link is not None and not link.transport.is_closing() and not link.transport.is_reading():
            link.transport.resume_reading()

    async def _leave(self, _action: Action) -> None:
        """End our side, read until the gateway has ended its own."""
        self._read_on()
        link = self._link
        if link is None:
            return
        if link.closed.done():
            self._note_end(link)
            return
        link.is_leaving = True
        link.transport.write_eof()
        try:
            await asyncio.wait_for(asyncio.shield(link.closed), _LEAVE_TIMEOUT_S)
        except TimeoutError:
            self._account.fault(f"{self._member.login} left and was not closed for {_LEAVE_TIMEOUT_S} s")
            link.transport.abort()
            await link.closed
        self._note_end(link)

    async def _vanish(self, action: Action) -> None:
        """Break off: with a reset, perhaps within a line, or with a close that leaves what came unread."""
        self._read_on()
        link = self._link
        if link is None:
            return
        if not link.closed.done():
            if action.way == "cut line":
                link.transport.write(b"steady0: this line has no end")
            # In order, what was cut off within a line would count as a line that was said.
            if action.way != "close" or link.transport.get_write_buffer_size():
                sock = link.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            link.transport.abort()
            await link.closed
        self._note_end(link)

    async def _return(self, _action: Action) -> None:
        """Log in again, as often as it takes."""
        begun_s = self._clock()
        while self._link is None:
            link = await self._connect()
            if link.session.is_in:
                link.session.in_s = self._clock()
                self._link = link
                break
            if self._clock() - begun_s > self.return_timeout_s:
                self._account.fault(f"{self._member.login} got no login for {self.return_timeout_s} s")
                return
            await asyncio.sleep(_RETRY_S)
        self.slowest_return_s = max(self.slowest_return_s, self._clock() - begun_s)

    async def _connect(self) -> Link:
        login = self._member.login
        session = self._account.begin(login, self._clock())
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self._address)
        _, link = await loop.create_connection(lambda: Link(self._account, session), sock=sock)
        line = self._account.send(session, (login,), 0, self._clock())
        link.proof = b"from " + login.encode() + b": " + line.partition(b": ")[2][:-1]
        link.transport.write(login.encode() + b"\n" + line)
        try:
            await asyncio.wait_for(asyncio.shield(link.settled), self.return_timeout_s)
        except TimeoutError:
            self._account.fault(f"{login} heard nothing of its login for {self.return_timeout_s} s")
        if not session.is_in:
            link.transport.abort()
            await link.closed
            session.ended_s = self._clock()
        return link

    async def _usable(self, action: Action) -> Link | None:
        """The connection if it takes more now; a client that was closed by the gateway returns first."""
        link = self._link
        if link is not None and link.closed.done():
            self._note_end(link)
            await self._return(action)
            link = self._link
        if link is None or link.is_full or self._clock() - action.at_s > _LATE_S:
            self.left_out += 1
            return None
        return link

    def _note_end(self, link: Link) -> None:
        """The connection is over: was all of it heard, and was it ours to end?"""
        self._link = None
        session = link.session
        session.ended_s = self._clock()
        was_closed_by_gateway = bool(session.told["slow-consumer", ""])
        session.is_complete = (
            link.is_leaving and link.is_ended and link.closed.result() is None and not was_closed_by_gateway
        )
        if not session.is_complete:
            self._account.break_off(session.login, session.ended_s)
