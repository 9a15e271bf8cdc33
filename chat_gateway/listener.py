"""Owns one accepting socket, with an accept loop of its own.

A token is taken before a connection is accepted. An error of one connection is skipped at once; a
shortage of the process or the machine is logged with a hint how to mend it and pauses accepting for
`PAUSE_S`, so that it costs neither the log nor the processor. At the limit of connections new ones are left
waiting in the kernel's queue, or told so and closed.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

from chat_gateway.connection import Connection
from chat_gateway.lifecycle import State
from chat_gateway.sockets import BACKLOG, SHORTAGES, listening_url, prepare_accepted

if TYPE_CHECKING:
    import socket

    from chat_gateway.config import TcpConfig
    from chat_gateway.connections import Connections
    from pipeline.permits import Permits

__all__ = ["PAUSE_S", "Listener"]

PAUSE_S = 0.5  # as production accept loops do: long enough to be cheap, short enough not to be noticed
_MAX_ACCEPTS = 64  # in one turn of the loop, so that a storm of connections does not own it
# The same after a shortage, until nobody waits any more. Peers that left while they waited then give their
# files back before the next ones need them; else a long queue of such costs a pause for each few of them.
# Two, since it takes the second accept to find that nobody waits.
_MAX_ACCEPTS_SHORT = 2


class Listener:
    """Made and closed by a worker, which also tells it when tokens have come back.

    Args:
        listening: a listening socket that does not block; closed with the listener.
        connections: who takes the accepted ones.
        at_limit: "wait" or "busy", see `limits.at_limit` of the configuration.
        send_buffer_bytes: for each accepted socket.
        tcp: how the kernel finds out that its peer has gone.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        *,
        at_limit: Literal["wait", "busy"],
        send_buffer_bytes: int,
        tcp: TcpConfig,
    ) -> None:
        self._listening = listening
        self._connections = connections
        self._loop = connections.loop
        self._log = connections.log
        self._at_limit = at_limit
        self._send_buffer_bytes = send_buffer_bytes
        self._tcp = tcp
        self._is_accepting = False  # the loop watches the socket
        self._is_closed = False
        self._max_accepts = _MAX_ACCEPTS  # in one turn, just now
        self._pause: asyncio.TimerHandle | None = None  # ends a pause after a shortage
        self._opening: set[asyncio.Task[None]] = set()  # accepted, their transports are being made

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose."""
        return listening_url(self._listening)

    def start(self) -> None:
        """Accept from now on, in the running loop."""
        self.resume()

    def resume(self) -> None:
        """Accept again, if nothing else stands against it: a token has come back or a pause is over."""
        if not (self._is_accepting or self._is_closed or self._pause):
            self._is_accepting = True
            self._loop.add_reader(self._listening, self._on_readable)

    async def aclose(self, *, takes_waiting: bool = True) -> None:
        """Stop accepting, close the socket, and wait for connections that are just being opened.

        Whoever has connected by then is taken in first, as far as tokens and files allow: a close resets
        those that still wait in the kernel's queue. Not so with `takes_waiting` false, for a socket that
        somebody else holds open too. May be called twice.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_accepting()
        # A queue's length: new ones may come all the time.
        for _ in range(BACKLOG // _MAX_ACCEPTS if takes_waiting else 0):
            await asyncio.sleep(0)
            if not self._on_readable():
                break
        if self._pause is not None:
            self._pause.cancel()
        self._listening.close()
        await asyncio.gather(*self._opening)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listening)

    def _on_readable(self) -> bool:
        """Accept what waits, bounded; True when there may be more that could be accepted."""
        for _ in range(self._max_accepts):
            tokens = self._take_token()
            if tokens is None:
                self._stop_accepting()
                return False
            try:
                sock, address = self._listening.accept()
            except OSError as error:
                tokens.release()
                if isinstance(error, BlockingIOError):
                    self._max_accepts = _MAX_ACCEPTS
                    return False
                if error.errno in SHORTAGES:
                    self._pause_for(error)
                    return False
                self._log.info("connection.failed", reason=os.strerror(error.errno or 0))
                continue
            task = self._loop.create_task(self._open(sock, address, tokens))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return True

    def _take_token(self) -> Permits | None:
        tokens = self._connections.tokens
        if tokens.try_acquire():
            return tokens
        self._log.warning(
            "listener.at_limit",
            listen=self.url,
            max_connections=tokens.total,
            at_limit=self._at_limit,
            hint="raise limits.max_connections if the machine can take more",
        )
        turned_away = self._connections.turned_away
        if self._at_limit == "busy" and turned_away.try_acquire():
            return turned_away
        return None

    def _pause_for(self, error: OSError) -> None:
        assert error.errno is not None
        self._stop_accepting()
        self._max_accepts = _MAX_ACCEPTS_SHORT
        self._pause = self._loop.call_later(PAUSE_S, self._on_pause_over)
        self._log.error(
            "listener.paused",
            listen=self.url,
            errno=error.errno,
            error=os.strerror(error.errno).lower(),
            hint=SHORTAGES[error.errno],
            pause_s=PAUSE_S,
        )

    def _on_pause_over(self) -> None:
        self._pause = None
        self.resume()

    async def _open(self, sock: socket.socket, address: tuple[str, int], tokens: Permits) -> None:
        connection: Connection | None = None
        try:
            prepare_accepted(sock, self._send_buffer_bytes, self._tcp)
            connection = Connection(self._connections, address[0], address[1], tokens)
            made = connection
            await self._loop.connect_accepted_socket(lambda: made, sock)
        except Exception as error:
            sock.close()
            self._log.info("connection.failed", address=address[0], reason=str(error))
            if connection is None or connection.state == State.NEW:
                tokens.release()
