"""A connection's way to its session: its first line, the claim of its login, and what it says meanwhile.

Knows nothing of transports; whether a connection is read is that connection's affair.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from chat_gateway.disconnect import Disconnect
from chat_gateway.lifecycle import CLAIMING, State
from chat_gateway.session import Session
from stages.first_line import BadLoginError, NotLineProtocolError, check_unfinished, login_of
from stages.line_codec import LineCodec

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.connection import Connection
    from chat_gateway.connections import Connections
    from chat_gateway.disconnect import Reason
    from stages.line_codec import LineFramer

__all__ = ["Login"]


class Login:
    """Made with a connection, and dropped by it when it is logged in or ends."""

    __slots__ = ("_all", "_claim", "_connection", "_early", "_framer", "has_stream_ended")

    def __init__(self, connection: Connection, connections: Connections, framer: LineFramer) -> None:
        self._connection = connection
        self._all = connections
        self._framer = framer
        self._early = b""  # read before its address was to be served, or lines before it has its login
        self._claim: Callable[[], None] | None = None  # takes the claim back, while that has no verdict
        self.has_stream_ended = False  # while the claim had no verdict

    def keep(self, data: bytes) -> None:
        """It was read although its address is not to be served yet: `maybe_go_on` takes it."""
        self._early += data

    def maybe_go_on(self) -> None:
        """Take what was kept, once its address is served."""
        if self._early and self._connection.state == State.LOGIN and not self._connection.is_held_back:
            early, self._early = self._early, b""
            self.take(early)

    def take(self, data: bytes) -> None:
        """What its peer says before it is logged in."""
        if self._connection.state == State.CLAIMING:  # not read any more, but for the end of its stream
            self._early += self._framer.feed(data)[0]
            return
        block, is_too_long = self._framer.feed(data)
        try:
            if block:
                line, _, rest = block.partition(b"\n")
                self._log_in(login_of(line), rest, is_too_long=is_too_long)
                return
            check_unfinished(self._framer.tail)
        except NotLineProtocolError:
            self._refuse(data, Disconnect.NOT_LINE_PROTOCOL)
        except BadLoginError as problem:
            self._refuse(data, Disconnect.BAD_LOGIN, str(problem))
        else:
            if is_too_long:
                self._connection.end(Disconnect.LINE_TOO_LONG)

    def give_up(self) -> None:
        """The connection ends: its login is not wanted any more."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim()

    def _log_in(self, login: str, rest: bytes, *, is_too_long: bool) -> None:
        """Claim the login; `rest` are the lines that came with it."""
        connection, connections = self._connection, self._all
        assert connection.outbox is not None
        session = Session(
            login,
            LineCodec.prefix(login),
            connection.outbox,
            connections.limits,
            connections.ceiling,
            connection,
        )
        connection.state = State.CLAIMING
        claim = connections.claims.claim(session, connection.address, partial(self._on_verdict, session))
        if connection.state == State.CLAIMING:
            self._claim, self._early = claim, rest
            connection.set_obstacle(CLAIMING)
            if is_too_long:
                connection.end(Disconnect.LINE_TOO_LONG)
        elif connection.state == State.OPEN:
            connection.take_lines(rest, is_too_long)

    def _on_verdict(self, session: Session, is_granted: bool) -> None:
        """It has its login, or not; at once, or after others were asked."""
        has_waited, self._claim = self._claim is not None, None
        if not is_granted:
            self._refuse(session.login.encode(), Disconnect.LOGIN_TAKEN)
            return
        try:
            self._connection.open(session)
            if has_waited:
                self._connection.go_on(self._early, has_stream_ended=self.has_stream_ended)
        except Exception as error:
            self._connection.on_own_error(error)

    def _refuse(self, said: bytes, reason: Reason, words: str = "") -> None:
        self._all.on_refused_login(self._connection, said, reason)
        self._connection.end(reason, words)
