"""The registry of one worker's sessions; answers "where is this login?".

Changed by connections that log in and end, read by the route stage, all in one loop: no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.session import Session
    from stages.outbox import Outbox
    from stages.route import Peer

__all__ = ["Hub"]


class Hub:
    """Made by a worker; a login belongs to at most one session."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.routes: dict[str, Outbox | Peer] = {}  # where copies for a login go; the route stage looks here
        # With several workers: keeps `routes`, and is told of each login that came or left.
        self.on_change: Callable[[str], None] = self._route_here

    def holder(self, login: str) -> Session | None:
        """Who is logged in under that name."""
        return self._sessions.get(login)

    def find_here(self, login: str) -> Outbox | None:
        """The outbox of who is logged in under that name."""
        session = self._sessions.get(login)
        return session.outbox if session is not None else None

    def claim(self, session: Session) -> bool:
        """Enter a session under its login; False when another one holds that."""
        if session.login in self._sessions:
            return False
        self._sessions[session.login] = session
        self.on_change(session.login)
        return True

    def release(self, session: Session) -> bool:
        """Remove this session; False when it is not there: another one that has its login since stays."""
        if self._sessions.get(session.login) is not session:
            return False
        del self._sessions[session.login]
        self.on_change(session.login)
        return True

    @property
    def sessions(self) -> list[Session]:
        """All sessions, as they are now."""
        return list(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    def _route_here(self, login: str) -> None:
        """Without other workers: a login lives here or nowhere."""
        session = self._sessions.get(login)
        if session is None:
            self.routes.pop(login, None)
        else:
            self.routes[login] = session.outbox
