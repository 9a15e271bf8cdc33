"""The orderly end of a connection: what is pending goes out, then the last word, then our side is shut down.

What the peer still sends is thrown away until it has closed too, since a close with unread input is a reset
and loses what was sent. Knows nothing of sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import MAX_DISCARDED_BYTES, State
from chat_gateway.sockets import reset_when_closed
from stages.message import Refusal
from stages.notices import notice_line

if TYPE_CHECKING:
    import asyncio

    from chat_gateway.connection import Connection
    from chat_gateway.connections import Connections
    from chat_gateway.disconnect import Reason
    from stages.outbox import Outbox

__all__ = ["Closing"]


class Closing:
    """Made by a connection when it begins to end, dropped when its transport is gone.

    Args:
        connection: what ends.
        connections: all of the worker.
        transport: of the connection, which has not ended.
        outbox: of the connection.
    """

    __slots__ = ("_all", "_connection", "_discarded", "_last_line", "_left_bytes", "_outbox", "_transport")

    def __init__(
        self,
        connection: Connection,
        connections: Connections,
        transport: asyncio.Transport,
        outbox: Outbox,
    ) -> None:
        self._connection = connection
        self._all = connections
        self._transport = transport
        self._outbox = outbox
        self._last_line = b""  # Notice that says why it ends
        self._discarded = 0  # bytes thrown away
        self._left_bytes = -1  # that had left the machine when the time was over, last

    def begin(self, reason: Reason, words: str, *, has_peer_ended: bool) -> None:
        """Flush, and go on once all is out; the last Notice says `words`, or those of the reason."""
        if reason.word and self._all.limits.notices:
            self._last_line = notice_line(reason.word, words or reason.words)
        self._all.on_ending(self._connection)
        self._outbox.on_empty = self._close if has_peer_ended else self._shut_down_sending
        self._outbox.flush_soon()

    def on_peer_ended(self) -> None:
        """The peer has closed its side while we flush."""
        self._outbox.on_empty = self._close

    def go_on(self) -> None:
        """Do not wait for what is pending any longer."""
        if self._outbox.on_empty is not None:
            self._outbox.on_empty()

    def throw_away(self, nbytes: int) -> None:
        """The peer has sent so many bytes more."""
        self._discarded += nbytes
        if self._discarded > MAX_DISCARDED_BYTES:
            self._connection.abort(Disconnect.CLIENT_LOST)

    def on_due(self) -> None:
        """The time for it is over, unless what is pending still moves."""
        connection, left_bytes = self._connection, self._outbox.left_bytes
        if connection.state == State.FLUSHING and left_bytes > self._left_bytes:
            self._left_bytes = left_bytes
            self._all.on_ending(connection)
            return
        if connection.unsent_bytes() and not self._all.is_draining:
            # The kernel would keep it until `tcp.user_timeout_s`; it may when this process ends.
            reset_when_closed(self._transport.get_extra_info("socket"))
        connection.abort(Disconnect.CLIENT_LOST)

    def _close(self) -> None:
        """The peer has closed its side already: nothing unread is left that a close could reset."""
        self._say_last()
        self._transport.close()

    def _shut_down_sending(self) -> None:
        if self._connection.state != State.FLUSHING:
            return
        self._say_last()
        self._connection.state = State.LINGERING
        self._all.on_ending(self._connection)  # anew: only now can the peer know
        try:
            self._transport.write_eof()
        except OSError:  # reset meanwhile
            self._connection.abort(Disconnect.CLIENT_LOST)

    def _say_last(self) -> None:
        """The last Notice, behind everything else."""
        self._outbox.on_empty = None
        line, self._last_line = self._last_line, b""
        if line:
            self._outbox.write_last(line)
        self._outbox.close(Refusal.GONE)  # nothing can follow the last word
