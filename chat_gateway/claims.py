"""Who gets a login: its holder here is looked at first, then the other workers are asked.

A holder may not have noticed that its client has gone: its loop has not come to it, or its socket is not
read. So it is looked at, and, where that says nothing of one that is not read, told something: what arrives
at a client that has died is answered with a reset. Knows connections only as `Reading`, and other workers
only as `Others`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from chat_gateway.hub import Hub
    from chat_gateway.session import Session

__all__ = ["Alone", "Claims", "Others"]

# When a holder that was told something is looked at: a reset takes one round trip. In all well under the
# second in which who comes back gets its login.
_LOOKS_S = (0.005, 0.02, 0.05, 0.1, 0.15, 0.25)


class Others(Protocol):
    """The other workers of the gateway."""

    def claim(self, login: str, address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """Ask for a login that is free here; the verdict comes now or later. Returns what takes it back."""

    def release(self, login: str) -> None:
        """It is free again."""


class Alone:
    """There are no other workers."""

    def claim(self, login: str, address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """See `Others`."""
        on_verdict(True)
        return _nothing

    def release(self, login: str) -> None:
        """See `Others`."""


class Claims:
    """Made by a worker's connections, in their loop. Its timers end by themselves within half a second."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.others: Others = Alone()
        self._hub = hub
        self._loop = loop
        self._asked: dict[str, _Claim] = {}  # logins that others are asked for

    def claim(
        self, session: Session, address: str, on_verdict: Callable[[bool], None]
    ) -> Callable[[], None]:
        """Enter a session under its login, or not; `on_verdict` is called now or later.

        Returns what ends the claim before that; then `on_verdict` is not called any more.
        """
        claim = _Claim(session, on_verdict)

        def on_checked(is_free: bool) -> None:
            if claim.is_cancelled:
                return
            if not is_free or session.login in self._asked:
                on_verdict(False)
                return
            self._asked[session.login] = claim
            take_back = self.others.claim(session.login, address, lambda granted: self._end(claim, granted))
            claim.take_back = take_back

        self.check_holder(session.login, on_checked)
        return lambda: self._cancel(claim)

    def release(self, session: Session) -> None:
        """A session has ended; nothing happens when its login is another one's by now."""
        if self._hub.release(session):
            self.others.release(session.login)

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """Find out whether a login is free here, now or in a moment; a holder that is gone is ended."""
        holder = self._hub.holder(login)
        if holder is None or holder.reading.end_if_gone():
            on_checked(True)
        elif not holder.reading.is_reading:
            holder.reading.nudge()
            self._look_later(holder, 0, on_checked)
        elif holder.reading.has_peer_ended():  # its loop has not come to it, or its last lines are answered
            self._look_later(holder, 0, on_checked)
        else:
            on_checked(False)

    def _look_later(self, holder: Session, number: int, on_checked: Callable[[bool], None]) -> None:
        def look() -> None:
            current = self._hub.holder(holder.login)
            if current is not holder:
                on_checked(current is None)
            elif holder.reading.end_if_gone():
                on_checked(True)
            elif number + 1 < len(_LOOKS_S):
                self._look_later(holder, number + 1, on_checked)
            else:
                on_checked(False)

        self._loop.call_later(_LOOKS_S[number], look)

    def _end(self, claim: _Claim, granted: bool) -> None:
        session = claim.session
        del self._asked[session.login]
        if granted:
            self._hub.claim(session)
        claim.on_verdict(granted)

    def _cancel(self, claim: _Claim) -> None:
        claim.is_cancelled = True
        if self._asked.get(claim.session.login) is claim:
            del self._asked[claim.session.login]
            claim.take_back()


class _Claim:
    """One connection that wants a login."""

    __slots__ = ("is_cancelled", "on_verdict", "session", "take_back")

    def __init__(self, session: Session, on_verdict: Callable[[bool], None]) -> None:
        self.session = session
        self.on_verdict = on_verdict
        self.is_cancelled = False
        self.take_back: Callable[[], None] = _nothing  # tells others that it is not wanted any more


def _nothing() -> None:
    """What there is to take back where nobody was asked."""
