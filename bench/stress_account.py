"""The account of a stress run: what was sent, received and reported, and what of it does not fit together.

Every text carries the number of its session and its number within that session. Told of everything by the
clients, in their one event loop; knows no sockets and no clock.

What must hold, for the copies of one session to one recipient:
 1. none arrives twice, changed, at somebody else, or after a later one;
 2. no more arrive and are reported as refused than were sent, but for those whose worker died;
 3. if the session ended in order: sent = received + reported, but for what a recipient that broke off had
    under way to it, which is bounded by the buffers between;
 4. if it broke off: of its lines to one steady recipient each, the gateway has delivered all up to some
    line, and none after that.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

__all__ = ["Account", "Line", "SentSession"]

# Faults that are told one by one; what follows from the first ones is only counted.
_MAX_TOLD = 30
_NOTICE = re.compile(rb"! (\S+) (?:(\S+): )?(?:(\d+) (?:messages?|lines?), )?")
_TEXT = re.compile(rb"(\d+)\.(\d+) ")
_OF_COPIES = ("refused", "unknown-recipient")
_UNCERTAIN = "worker lost"  # the reason of a refusal that says nothing of whether it arrived


@dataclass(slots=True)
class Line:
    """One line that was sent."""

    recipients: tuple[str, ...]  # perhaps one of them twice, which is one copy
    size: int  # bytes of padding
    at_s: float


@dataclass(slots=True)
class SentSession:
    """What one session sent, and what it was told; made by the account, ended by its client."""

    login: str
    number: int
    began_s: float
    port: int = 0  # its own, as the gateway's log has it
    lines: list[Line] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)  # lines that must be rejected, by machine word
    told: Counter[tuple[str, str]] = field(default_factory=Counter)  # by machine word and name
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # the same by name and reason
    is_in: bool = False  # its login was proved
    in_s: float | None = None  # when its client knew
    is_complete: bool = False  # it ended in order, so all of its lines were taken and all Notices arrived
    ended_s: float | None = None

    def refused(self, name: str) -> int:
        """Copies reported as refused for this name; for the empty one, those that no name was told of."""
        return sum(self.told[word, name] for word in _OF_COPIES)


class Account:
    """Made for one run.

    Args:
        steady: logins that always read and never leave before the end.
        window_bytes: the most that can be under way to a client that breaks off.
    """

    def __init__(self, steady: frozenset[str], window_bytes: int) -> None:
        # messages received in all
        self.received_total = 0
        # copies that arrived after copies of a later session of the same login
        self.overtaken_by_next_session = 0
        # copies that nobody was told of, under way to clients that broke off
        self.lost_under_way = 0
        self.sessions: list[SentSession] = []
        self._steady = steady
        self._window_bytes = window_bytes
        self._fault_count = 0
        self._faults: list[str] = []
        # (session, recipient) -> numbers of the lines that arrived
        self._arrived: dict[tuple[int, str], set[int]] = {}
        # (session, recipient) -> the highest of them
        self._latest: dict[tuple[int, str], int] = {}
        # (sender, recipient) -> the latest session of that sender that anything arrived from
        self._latest_session: dict[tuple[str, str], int] = {}
        # recipient -> when its connections broke off
        self._broken_s: dict[str, list[float]] = {}

    @property
    def faults(self) -> list[str]:
        """What was wrong so far."""
        more = self._fault_count - len(self._faults)
        return [*self._faults, f"and {more} more"] if more else list(self._faults)

    def fault(self, text: str) -> None:
        """Note that something was wrong."""
        self._fault_count += 1
        if len(self._faults) < _MAX_TOLD:
            self._faults.append(text)

    # What clients tell.

    def begin(self, login: str, at_s: float) -> SentSession:
        """A connection that is going to log in."""
        session = SentSession(login, len(self.sessions), at_s)
        self.sessions.append(session)
        return session

    def send(self, session: SentSession, recipients: tuple[str, ...], size: int, at_s: float) -> bytes:
        """The next line of a session, ready to be sent."""
        session.lines.append(Line(recipients, size, at_s))
        return ", ".join(recipients).encode() + b": " + self._text(session, len(session.lines) - 1) + b"\n"

    def reject(self, session: SentSession, word: str) -> None:
        """A session sends a line that must be rejected with this machine word."""
        session.rejected[word] += 1

    def receive(self, session: SentSession, line: bytes) -> None:
        """A session received this line, without its end."""
        if line.startswith(b"! "):
            self._receive_notice(session, line)
            return
        head, colon, text = line.partition(b": ")
        found = _TEXT.match(text + b" ")
        if not (colon and head.startswith(b"from ") and found):
            self.fault(f"{session.login} received a line that nobody sent: {line[:80]!r}")
            return
        self._receive_message(session.login, head[5:].decode(), int(found[1]), int(found[2]), text)

    def receive_half(self, session: SentSession, tail: bytes) -> None:
        """A session that its client ended in order had received this much of a line at its end."""
        self.fault(f"{session.login} (session {session.number}) received half a line: {tail[:60]!r}")

    def arrived(self, session: SentSession, name: str) -> Set[int]:
        """The numbers of those lines of a session that this login received."""
        return self._arrived.get((session.number, name), frozenset())

    def broken_s(self, login: str) -> Sequence[float]:
        """When connections of this login broke off."""
        return self._broken_s.get(login, ())

    def break_off(self, login: str, at_s: float) -> None:
        """A connection of this login ended without all that was sent to it having been read."""
        self._broken_s.setdefault(login, []).append(at_s)

    def _receive_notice(self, session: SentSession, line: bytes) -> None:
        found = _NOTICE.match(line)
        if found is None:
            self.fault(f"{session.login} received a Notice of no known form: {line[:80]!r}")
            return
        word, name, count = found[1].decode(), (found[2] or b"").decode(), int(found[3] or 1)
        session.told[word, name] += count
        session.reasons[name, line[found.end() :].decode()] += count

    def _receive_message(self, login: str, sender: str, number: int, index: int, text: bytes) -> None:
        self.received_total += 1
        session = self.sessions[number] if number < len(self.sessions) else None
        where = f"message {number}.{index} from {sender} at {login}"
        if session is None or session.login != sender or index >= len(session.lines):
            self.fault(f"{where} was never sent")
            return
        if login not in session.lines[index].recipients:
            self.fault(f"{where} was for {session.lines[index].recipients}")
        if text != self._text(session, index):
            self.fault(f"{where} was changed: {text[:60]!r}")
        arrived = self._arrived.setdefault((number, login), set())
        latest = self._latest.get((number, login), -1)
        if index in arrived:
            self.fault(f"{where} is a duplicate")
        elif index < latest:
            self.fault(f"{where} came after {number}.{latest}")
        arrived.add(index)
        self._latest[number, login] = max(latest, index)
        newest = self._latest_session.get((sender, login), -1)
        self.overtaken_by_next_session += number < newest
        self._latest_session[sender, login] = max(newest, number)

    # What does not fit together at the end.

    def close(self) -> list[str]:
        """All faults of the run; call it once, when every client has ended."""
        unexplained_bytes: Counter[str] = Counter()
        for session in self.sessions:
            sent = Counter(name for line in session.lines for name in set(line.recipients))
            unnamed = session.refused("")
            for name, copies in sent.items():
                missing = self._missing(session, name, copies)
                if not session.is_complete or not missing:
                    continue
                if unnamed >= missing:
                    unnamed -= missing
                elif self._may_be_lost(session, name, missing):
                    self.lost_under_way += missing
                    unexplained_bytes[name] += self._bytes_of_missing(session, name, missing)
                else:
                    self.fault(
                        f"{missing} of {copies} copies from {session.login} (session {session.number}) to "
                        f"{name} were neither received nor reported; {self._details(session, name)}"
                    )
            if session.is_complete:
                self._check_rejected(session)
            else:
                self._check_prefix(session)
        for name, nbytes in unexplained_bytes.items():
            most = self._window_bytes * len(self._broken_s[name])
            if nbytes > most:
                self.fault(f"{name} lost {nbytes} bytes under way to it, more than {most}")
        return self.faults

    def _missing(self, session: SentSession, name: str, copies: int) -> int:
        """Copies without an outcome that anybody knows of."""
        missing = copies - len(self.arrived(session, name)) - session.refused(name)
        too_many = -missing - session.reasons[name, _UNCERTAIN] - session.reasons["", _UNCERTAIN]
        if too_many > 0:
            self.fault(
                f"{too_many} copies from {session.login} (session {session.number}) to {name} were both "
                "received and reported as refused"
            )
        return max(missing, 0)

    def _may_be_lost(self, session: SentSession, name: str, missing: int) -> bool:
        """Whether so many copies can have been under way to a connection that broke off."""
        del missing
        return any(at_s >= session.began_s for at_s in self.broken_s(name))

    def _bytes_of_missing(self, session: SentSession, name: str, missing: int) -> int:
        """At least so many bytes are in that many of the lines that did not arrive."""
        arrived = self.arrived(session, name)
        lines = enumerate(session.lines)
        sizes = sorted(one.size for i, one in lines if name in one.recipients and i not in arrived)
        return sum(sizes[:missing])

    def _details(self, session: SentSession, name: str) -> str:
        """What helps to find a lost copy."""
        arrived = self.arrived(session, name)
        lines = [(i, line) for i, line in enumerate(session.lines) if name in line.recipients]
        gone = [f"{i} (at {line.at_s:.3f} s)" for i, line in lines if i not in arrived]
        told = {word: count for (word, of), count in session.told.items() if of == name}
        stays = [
            f"{one.number} from {one.began_s:.3f} to {one.ended_s} s"
            for one in self.sessions
            if one.login == name
        ]
        return (
            f"told {told}, did not arrive: {', '.join(gone[:_MAX_TOLD])}; sender there from "
            f"{session.began_s:.3f} to {session.ended_s} s; recipient's sessions: {'; '.join(stays)}"
        )

    def _check_rejected(self, session: SentSession) -> None:
        for word in ("bad-line", "bad-text"):
            if session.rejected[word] != session.told[word, ""]:
                self.fault(
                    f"{session.login} (session {session.number}) sent {session.rejected[word]} lines that "
                    f"are {word} and was told of {session.told[word, '']}"
                )

    def _check_prefix(self, session: SentSession) -> None:
        """Whether what arrived of the lines to one steady recipient each is their beginning."""
        first_missing = None
        for index, line in enumerate(session.lines):
            name = line.recipients[0]
            if len(set(line.recipients)) > 1 or name not in self._steady:
                continue
            if index not in self.arrived(session, name):
                first_missing = index if first_missing is None else first_missing
            elif first_missing is not None:
                self.fault(
                    f"{session.login} (session {session.number}): line {first_missing} was lost though line "
                    f"{index} arrived"
                )
                return

    @staticmethod
    def _text(session: SentSession, index: int) -> bytes:
        number, padding = b"%d.%d" % (session.number, index), b"x" * session.lines[index].size
        return number + b" " + padding if padding else number
