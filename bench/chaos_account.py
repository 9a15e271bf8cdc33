"""The account of a chaos run: what a stress run's account says, with workers that die in its course.

What must hold beyond that, for the copies of one session to one recipient:
 1. a copy that nobody was told of was under way when a connection of its recipient broke;
 2. a copy of a session that ended in order arrives when its recipient was there from before it was sent until
    well after that, on a worker that did not stand still, unless there was no room for it;
 3. of a session that broke, a recipient that was there all the time, always reads, and was told to be
    refused nothing, gets all lines up to some line, and none after that.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bench.stress_account import Account

if TYPE_CHECKING:
    from bench.stress_account import SentSession

__all__ = ["ChaosAccount"]

# What can be under way to a recipient when its connection breaks was sent at most so long before: the longest
# time that a worker hangs and its successor takes to be ready on a machine that is busy.
_BEFORE_S = 8.0
# A client that breaks off knows it before the gateway does, whose worker may stand still just then.
_AFTER_S = 2.0
_KNOWN_S = 0.1  # the recipient was there for so long when a line was sent
_FOR_WANT_OF_ROOM = ("full", "breaker open")


class ChaosAccount(Account):
    """See `Account`."""

    def __init__(self, steady: frozenset[str], window_bytes: int) -> None:
        super().__init__(steady, window_bytes)
        # sessions that their clients broke off, by number
        self.vanished: set[int] = set()
        # login -> when the worker of its session stood still
        self.stood_still_s: dict[str, list[tuple[float, float]]] = {}
        self._halves: list[tuple[SentSession, bytes]] = []
        self._stays: dict[str, list[tuple[float, float]]] = {}

    def receive_half(self, session: SentSession, tail: bytes) -> None:
        """See `Account`; no fault where its worker died before it had closed the connection."""
        self._halves.append((session, tail))

    def close(self) -> list[str]:
        """See `Account`."""
        for session in self.sessions:
            is_refused = session.told["login-taken", ""] or session.told["login-timeout", ""]
            if not (session.is_in or is_refused) and session.ended_s is not None:
                self.break_off(session.login, session.ended_s)  # it may have been in for a moment
        self._stays = self._find_stays()
        for session in self.sessions:
            if session.is_complete:
                self._check_refusals(session)
        for session, tail in self._halves:
            if session.is_complete:
                super().receive_half(session, tail)
        return super().close()

    def outcomes(self) -> dict[str, int]:
        """Copies by what became of them, as the clients know it."""
        found: Counter[str] = Counter()
        for session in self.sessions:
            sent = Counter(name for line in session.lines for name in set(line.recipients))
            found["attempted"] += sent.total()
            arrived = sum(len(self.arrived(session, name)) for name in sent)
            refused = sum(session.refused(name) for name in sent) + session.refused("")
            found["delivered"] += arrived
            found["told as refused"] += refused
            if not session.is_complete:
                found["gone with the sender's connection"] += max(sent.total() - arrived - refused, 0)
        return dict(found)

    def told(self) -> Counter[str]:
        """Copies that were told of as refused, by reason."""
        found: Counter[str] = Counter()
        for session in self.sessions:
            for (_, reason), copies in session.reasons.items():
                found[reason] += copies
        return found

    def _may_be_lost(self, session: SentSession, name: str, missing: int) -> bool:
        """See `Account`: as many as did not arrive of those sent around a break."""
        arrived = self.arrived(session, name)
        near = sum(
            any(-_AFTER_S <= broken_s - line.at_s <= _BEFORE_S for broken_s in self.broken_s(name))
            for index, line in enumerate(session.lines)
            if name in line.recipients and index not in arrived
        )
        return near >= missing

    def _find_stays(self) -> dict[str, list[tuple[float, float]]]:
        """By login, the times when it was logged in."""
        found: dict[str, list[tuple[float, float]]] = {}
        for one in self.sessions:
            if one.in_s is not None:
                ended_s = one.ended_s if one.ended_s is not None else float("inf")
                found.setdefault(one.login, []).append((one.in_s, ended_s))
        return found

    def _was_there(self, name: str, begin_s: float, end_s: float) -> bool:
        """Whether one session of this login was there all that time, on a worker that did not stand still."""
        return any(begin <= begin_s and end >= end_s for begin, end in self._stays.get(name, ())) and not any(
            begin <= end_s and end >= begin_s for begin, end in self.stood_still_s.get(name, ())
        )

    def _check_refusals(self, session: SentSession) -> None:
        """Whether what did not arrive at who was there was refused for want of room."""
        for name in {name for line in session.lines for name in line.recipients}:
            arrived = self.arrived(session, name)
            missing = [
                index
                for index, line in enumerate(session.lines)
                if name in line.recipients
                and index not in arrived
                and self._was_there(name, line.at_s - _KNOWN_S, line.at_s + _BEFORE_S)
            ]
            no_room = sum(session.reasons[to, why] for to in (name, "") for why in _FOR_WANT_OF_ROOM)
            if len(missing) > no_room:
                reasons = {why: count for (to, why), count in session.reasons.items() if to in (name, "")}
                self.fault(
                    f"{session.login} (session {session.number}): lines {missing[:10]} to {name} did not "
                    f"arrive though it was there; reasons {reasons}; {self._details(session, name)}"
                )

    def _check_prefix(self, session: SentSession) -> None:
        begin_s, end_s = session.began_s, (session.ended_s or session.began_s) + _AFTER_S
        names = {line.recipients[0] for line in session.lines if len(set(line.recipients)) == 1}
        for name in names:
            if name in self._steady and self._was_there(name, begin_s, end_s) and not session.refused(name):
                self._check_prefix_of(session, name)

    def _check_prefix_of(self, session: SentSession, name: str) -> None:
        arrived = self.arrived(session, name)
        direct = [i for i, line in enumerate(session.lines) if set(line.recipients) == {name}]
        missing = [index for index in direct if index not in arrived]
        if missing and any(index in arrived for index in direct if index > missing[0]):
            self.fault(
                f"{session.login} (session {session.number}): line {missing[0]} to {name} was lost though "
                f"later ones arrived; {self._details(session, name)}"
            )
