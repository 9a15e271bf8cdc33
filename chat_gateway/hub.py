"""The registry of one worker's sessions; answers "where is this login?".

Changed by connections that log in and end, read by the route stage, all in one loop: no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chat_gateway.session import Session
    from stages.outbox import Outbox

__all__ = ["Hub"]


class Hub:
    """Made by a worker; a login belongs to at most one session."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.outboxes: dict[str, Outbox] = {}  # the same logins; what the route stage looks into

    def holder(self, login: str) -> Session | None:
        """Who is logged in under that name."""
        return self._sessions.get(login)

    def claim(self, session: Session) -> bool:
        """Enter a session under its login; False when another one holds that."""
        if session.login in self._sessions:
            return False
        self._sessions[session.login] = session
        self.outboxes[session.login] = session.outbox
        return True

    def release(self, session: Session) -> None:
        """Remove this session; another one that has taken its login since then stays."""
        if self._sessions.get(session.login) is session:
            del self._sessions[session.login]
            del self.outboxes[session.login]

    @property
    def sessions(self) -> list[Session]:
        """All sessions, as they are now."""
        return list(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)
