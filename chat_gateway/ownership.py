"""The owner's side of the directory: who gets which login of one slot.

An owner only puts claims in order; what a worker says of the logins that live there is the truth. How an
owner follows another one is told in `directory`. Knows of other workers what their messages say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from chat_gateway.bus_frames import Answer, Check, Claimed, Owns, Place, Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from chat_gateway.bus_frames import Ask, Checked, Claim, DirectoryMessage, Release, Report

__all__ = ["MAX_PART_LOGINS", "Ownership", "parts_of"]

MAX_PART_LOGINS = 1000  # of one message: some 100 KB at most, far below the bound of a frame

_NOWHERE = (0, "")
_T = TypeVar("_T")


def parts_of(items: Sequence[_T]) -> Iterator[tuple[Sequence[_T], bool]]:
    """Cut into parts of bounded length, at least one; with each of them, whether it is the last."""
    for begin in range(0, max(len(items), 1), MAX_PART_LOGINS):
        end = begin + MAX_PART_LOGINS
        yield items[begin:end], end >= len(items)


class _Line:
    """Claims of one login that wait: for the owner to be ready, or for its holder to be looked at."""

    __slots__ = ("check_id", "checked_for", "claims")

    def __init__(self) -> None:
        self.claims: dict[int, Claim] = {}  # by worker, each of which claims a login once at a time; in order
        self.check_id = 0  # the holder is being looked at
        self.checked_for: list[tuple[int, Claim]] = []  # who waited when that began


class Ownership:
    """Made by a directory; at work while `term` is not 0, that is from `begin` to `stop`.

    Args:
        wid: of this worker.
        slot: whose logins it may own.
        post: sends a message to a worker, this one included; not one of its answers comes before it returns.
        on_ready: every live worker has reported, from now on logins are granted.
    """

    def __init__(
        self,
        wid: int,
        slot: int,
        post: Callable[[int, DirectoryMessage], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.term = 0  # which of the terms of this slot it is
        self.is_ready = False
        self.conflicts = 0  # logins that two workers reported
        self._wid = wid
        self._slot = slot
        self._post = post
        self._on_ready = on_ready
        self._last_check_id = 0  # counts on through all terms
        self._clear()

    def _clear(self) -> None:
        self._holders: dict[str, tuple[int, str]] = {}  # login: worker and its client's address
        self._rivals: dict[str, dict[int, str]] = {}  # who else reported it: login: workers with addresses
        self._lines: dict[str, _Line] = {}  # claims that wait, by login
        self._checks: dict[int, str] = {}  # logins whose holder is being looked at, by id
        self._asks: list[tuple[int, Ask]] = []  # that wait for it to be ready, with their workers
        self._live: AbstractSet[int] = {self._wid}  # workers whose report it needs
        self._called: set[int] = set()  # workers that were told to report
        self._reported: set[int] = set()  # those that have; what came from a worker before is of another term
        self._changed: dict[str, None] = {}  # logins whose place others do not know yet

    @property
    def owned(self) -> int:
        """How many logins of this slot live anywhere."""
        return len(self._holders)

    def begin(self, term: int) -> None:
        """This worker has become the owner; `update` comes next."""
        self.stop()
        self.term = term

    def stop(self) -> None:
        """It is not the owner any more; whatever waits here is claimed and asked again elsewhere."""
        self.term = 0
        self.is_ready = False
        self._clear()

    def update(self, live: AbstractSet[int], linked: AbstractSet[int]) -> None:
        """These members live, and these workers can be reached; both with this worker."""
        if not self.term:
            return
        self._live = live
        for wid in sorted((live & linked) - self._called):
            self._called.add(wid)
            self._post(wid, Owns(self._slot, self.term))
        self._maybe_become_ready()

    def forget(self, wid: int) -> None:
        """This worker is dead: nothing lives there, and nobody there waits; `update` comes next."""
        self._reported.discard(wid)
        for login in [login for login, line in self._lines.items() if wid in line.claims]:
            self._withdraw(login, wid)
        for rivals in self._rivals.values():
            rivals.pop(wid, None)
        for login in [login for login, (holder, _) in self._holders.items() if holder == wid]:
            self._free(login)

    def flush(self) -> None:
        """Tell every worker what has changed since the last time."""
        if not self._changed or not self.is_ready:
            return
        changed, self._changed = self._changed, {}
        self._publish([Places(list(part), False) for part, _ in parts_of(self._places(changed))])

    # What comes from workers. Before its report a worker speaks to an earlier term of this owner.

    def on_report(self, wid: int, report: Report) -> None:
        """What lives there, or a part of it."""
        if report.term != self.term:
            return
        for login, address in report.logins:
            self._enter(login, wid, address)
        if not report.is_last:
            return
        self._reported.add(wid)
        if self.is_ready:
            for message in self._table():
                self._post(wid, message)
        else:
            self._maybe_become_ready()

    def on_claim(self, wid: int, claim: Claim) -> None:
        """A client there wants this login."""
        if wid in self._reported:
            self._lines.setdefault(claim.login, _Line()).claims[wid] = claim
            self._serve(claim.login)

    def on_release(self, wid: int, release: Release) -> None:
        """The login does not live there any more, or is not claimed there any more."""
        if wid not in self._reported:
            return
        if self._holders.get(release.login, _NOWHERE)[0] == wid:
            self._free(release.login)
        elif self._rivals.get(release.login, {}).pop(wid, None) is None:
            self._withdraw(release.login, wid)

    def on_checked(self, wid: int, checked: Checked) -> None:
        """A holder was looked at."""
        del wid  # an id that is still valid went to the holder
        login = self._checks.get(checked.id)
        if login is None:
            return
        if checked.is_gone:
            self._free(login)
            return
        line = self._lines[login]
        for claimant, claim in line.checked_for:
            if line.claims.get(claimant) is claim:
                del line.claims[claimant]
                self._post(claimant, Claimed(claim.id, False))
        self._end_check(line)
        self._serve(login)  # who came later may have been preceded by a release

    def on_ask(self, wid: int, ask: Ask) -> None:
        """Somebody there looks for this login."""
        if wid not in self._reported:
            return
        if self.is_ready:
            self._post(wid, Answer(ask.id, self._holders.get(ask.login, _NOWHERE)[0]))
        else:
            self._asks.append((wid, ask))

    # Who holds what.

    def _maybe_become_ready(self) -> None:
        if self.is_ready or not self.term or not self._live <= self._reported:
            return
        self.is_ready = True
        self._changed = {}
        self._publish(self._table())
        for login in list(self._lines):
            self._serve(login)
        asks, self._asks = self._asks, []
        for wid, ask in asks:
            self.on_ask(wid, ask)
        self._on_ready()

    def _enter(self, login: str, wid: int, address: str) -> None:
        """It lives there, as that worker says.

        Two can say so: one has released the login or died since, and the owner before this one knew of it
        when it granted the login again, while this one has not heard of it yet. So both count.
        """
        if self._holders.get(login, _NOWHERE)[0] in (0, wid):
            self._hold(login, wid, address)
        else:
            self.conflicts += 1
            self._rivals.setdefault(login, {})[wid] = address

    def _hold(self, login: str, wid: int, address: str) -> None:
        self._holders[login] = wid, address
        self._changed[login] = None

    def _free(self, login: str) -> None:
        """It does not live there; unless somebody else has it, who waits for it gets it."""
        del self._holders[login]
        self._changed[login] = None
        if rivals := self._rivals.pop(login, None):
            self._hold(login, *rivals.popitem())
            self._rivals[login] = rivals
        if (line := self._lines.get(login)) is not None:
            self._end_check(line)
            self._serve(login)

    def _withdraw(self, login: str, wid: int) -> None:
        """The claim from there, if there is one, does not wait any more."""
        if (line := self._lines.get(login)) is not None:
            line.claims.pop(wid, None)
            self._serve(login)

    def _serve(self, login: str) -> None:
        """Give the login to the first who waits for it, or have its holder looked at for all who do."""
        line = self._lines[login]
        if self.is_ready and line.claims and login not in self._holders:
            wid, claim = next(iter(line.claims.items()))
            del line.claims[wid]
            self._hold(login, wid, claim.address)
            self._post(wid, Claimed(claim.id, True))
        if not line.claims:
            self._end_check(line)
            del self._lines[login]
        elif self.is_ready and not line.check_id:
            self._begin_check(login, line)

    def _begin_check(self, login: str, line: _Line) -> None:
        self._last_check_id += 1
        self._checks[self._last_check_id] = login
        line.check_id = self._last_check_id
        line.checked_for = list(line.claims.items())
        self._post(self._holders[login][0], Check(line.check_id, login))

    def _end_check(self, line: _Line) -> None:
        """Whatever is said of it does not count any more."""
        self._checks.pop(line.check_id, None)
        line.check_id = 0
        line.checked_for = []

    # What others are told.

    def _places(self, logins: dict[str, None] | dict[str, tuple[int, str]]) -> list[Place]:
        return [Place(login, *self._holders.get(login, _NOWHERE)) for login in logins]

    def _table(self) -> list[Places]:
        """All of it."""
        return [Places(list(part), is_last) for part, is_last in parts_of(self._places(self._holders))]

    def _publish(self, messages: list[Places]) -> None:
        for wid in sorted(self._reported):
            for message in messages:
                self._post(wid, message)
