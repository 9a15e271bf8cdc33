"""What waits for logins that have just left: kept for a moment, in case they come back.

The copies stay in flight: they no longer hold their senders' credit, `outbox.max_grace_bytes` bounds them
for each login, and the worker's ceiling counts them. They end when their login returns, from the same
address, and gets them ahead of anything newer, or when the time is over.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from chat_gateway.deadlines import Deadlines
from stages.message import Refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from chat_gateway.config import OutboxConfig
    from stages.outbox import Entry, Outbox

__all__ = ["Grace"]


class _Kept(NamedTuple):
    address: str  # where it was logged in
    entries: list[Entry]  # oldest first


class Grace:
    """Made and closed by a worker's connections.

    Args:
        config: how long and how much.
        on_expired: told of a login and the entries that it does not get, before they are refused.
        loop: the running one.
    """

    def __init__(
        self,
        config: OutboxConfig,
        on_expired: Callable[[str, list[Entry]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._on_expired = on_expired
        self._kept: dict[str, _Kept] = {}  # by login
        self._deadlines: Deadlines[str] = Deadlines(config.reconnect_grace_s, self._on_due, loop)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, login: str, address: str, outbox: Outbox) -> None:
        """A session has left: keep what its outbox still had, the oldest first as far as it fits."""
        entries = outbox.detach(Refusal.GONE)
        count = self._fitting(entries)
        if login in self._kept:  # by a later session of that login, which ended before: it got newer ones
            count = 0
        if count:
            self._kept[login] = _Kept(address, entries[:count])
            self._deadlines.start(login)
        self._refuse(login, entries[count:], Refusal.GONE)

    def refuse(self, login: str, outbox: Outbox) -> None:
        """A session has left and another one has its login: what it did not get is refused."""
        self._refuse(login, outbox.detach(Refusal.GONE), Refusal.GONE)

    def give(self, login: str, address: str, outbox: Outbox) -> None:
        """The login is back: what was kept goes to its new outbox, unless it is at another address."""
        entries = self.take(login, address)
        if entries:
            outbox.adopt(entries)

    def take(self, login: str, address: str) -> list[Entry]:
        """The login is back: what was kept of it, nothing where it is at another address."""
        kept = self._kept.get(login)
        if kept is None:
            return []
        if kept.address == address or self._config.grace_any_address:
            del self._kept[login]
            self._deadlines.stop(login)
            return kept.entries
        self._end(login, Refusal.GONE)
        return []

    def end_all(self, reason: str) -> None:
        """Refuse all that is kept."""
        for login in list(self._kept):
            self._end(login, reason)

    def close(self) -> None:
        """Cancel the timer; what is still kept has no outcome, so `end_all` comes first."""
        self._deadlines.close()

    def _on_due(self, login: str) -> None:
        self._end(login, Refusal.GONE)

    def _end(self, login: str, reason: str) -> None:
        self._deadlines.stop(login)
        self._refuse(login, self._kept.pop(login).entries, reason)

    def _fitting(self, entries: list[Entry]) -> int:
        """How many of the first are to be kept."""
        if not self._config.reconnect_grace_s:
            return 0
        ends = itertools.accumulate(len(payload) for payload, _, _ in entries)
        return sum(end <= self._config.max_grace_bytes for end in ends)

    def _refuse(self, login: str, entries: list[Entry], reason: str) -> None:
        if entries:
            self._on_expired(login, entries)
        for _, copies, batch in entries:
            batch.refuse(copies, reason, login)
