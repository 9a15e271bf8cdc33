"""Which login lives at which worker of the gateway, and who gets one that two want: one worker's part in it.

Logins are spread over slots by hash. One worker of each slot owns them: it puts claims in order (`ownership`)
and tells the others what has changed. What it has to know for that it learns from the workers where logins
live, since only they hold the truth. Pure logic: no I/O, no timers; knows nothing of sessions and messages.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from chat_gateway.bus_frames import (
    Answer,
    Ask,
    Check,
    Checked,
    Claim,
    Claimed,
    Owns,
    Places,
    Release,
    Report,
)
from chat_gateway.ownership import Ownership, parts_of
from chat_gateway.place_table import PlaceTable, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chat_gateway.bus_frames import DirectoryMessage

__all__ = ["Directory", "Member", "Peers", "PlaceCounts", "slot_of"]

# How no two owners of a slot ever both grant, whatever dies and whoever hears of it when:
#
# 1. An owner begins a *term* by calling every live member (`Owns`). Terms of a slot are ordered: by the
#    highest number that the owner has ever seen in its slot, then downwards by its own. They grow from owner
#    to owner, also when an older worker owns again because a newer one has died.
# 2. A worker that is called answers with its logins of that slot (`Report`), follows that owner from then
#    on, and until that owner dies answers none of an older term. It takes verdicts only from whom it follows,
#    and tells whom it begins to follow what it still wants.
# 3. An owner grants nothing before all live members have answered. So what an earlier owner has granted is
#    in a report or will not be taken, and an earlier owner has answered itself, which ends its term, or is
#    dead.
# 4. An owner listens to nobody who has not answered: what came before was said to an earlier term.
#
# What the supervisor does for it: every worker hears of all changes of the members since it has become one,
# in order; in a slot a higher number joins later; who leaves stays so; who is no member has no session.


class Member(NamedTuple):
    """A worker of the gateway."""

    slot: int  # its place, from 0
    wid: int  # its number, never used twice
    is_leaving: bool  # it owns nothing any more and ends once its sessions have


class Peers(Protocol):
    """What a directory needs of its worker; nothing of it raises."""

    def post(self, wid: int, message: DirectoryMessage) -> None:
        """Send to another worker, in order; ignored when there is no link to it."""

    def on_place(self, login: str, wid: int, address: str) -> None:
        """A login that does not live here lives at that worker now, its client at `address`; 0: nowhere."""

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """Say now or later whether the client of this session is gone; if so, its login is released first."""

    def on_ready(self) -> None:
        """Once: this worker may grant the logins of its slot."""


class PlaceCounts(NamedTuple):
    """How many logins, claims and asks a directory has."""

    here: int  # logins that live at this worker
    elsewhere: int  # and at others
    owned: int  # logins of its slot that live anywhere, as their owner knows
    claims: int  # without a verdict
    asks: int  # without an answer


class _Owner:
    """Whom this worker follows for one slot."""

    __slots__ = ("named", "term", "wid")

    def __init__(self, wid: int, term: int) -> None:
        self.wid = wid
        self.term = term
        self.named: set[str] | None = set()  # logins of its table, until that has come to its end

    def is_older_than(self, term: int, wid: int) -> bool:
        """Whether that is a newer term than this one."""
        return (self.term, -self.wid) < (term, -wid)


class _Claim:
    """A client of this worker that wants a login."""

    __slots__ = ("address", "id", "login", "on_verdict")

    def __init__(self, claim_id: int, login: str, address: str, on_verdict: Callable[[bool], None]) -> None:
        self.id = claim_id
        self.login = login
        self.address = address
        self.on_verdict = on_verdict


class _Ask(NamedTuple):
    """Somebody of this worker who looks for a login."""

    login: str
    on_answer: Callable[[int], None]


class Directory:
    """Made by a worker for its life; runs in its loop, called from there only. Nothing to close.

    A message to itself takes the way of all others: it waits until what is going on here is done.

    Args:
        wid: of this worker.
        slot: its slot.
        slots: how many there are.
        peers: its worker and, through it, the others.
    """

    def __init__(self, wid: int, slot: int, slots: int, peers: Peers) -> None:
        self._wid = wid
        self._slot = slot
        self._slots = slots
        self._peers = peers
        self._table = PlaceTable(wid, slots, peers.on_place)
        self._owners: dict[int, _Owner] = {}  # who is followed, by slot
        self._claims: dict[int, _Claim] = {}  # that have no verdict, by id
        self._claimed: dict[str, _Claim] = {}  # the same by login
        self._asks: dict[int, _Ask] = {}  # that have no answer, by id
        self._last_id = 0  # of a claim or an ask
        self._members: set[int] = set()
        self._linked: set[int] = {wid}  # workers that can be reached, this one included
        self._newest = 0  # the highest number that a worker of this slot has ever had
        self._term = 0  # of this worker as an owner, 0 while members make it none
        self._ownership = Ownership(wid, slot, self._post, self._on_ready)
        self._was_ready = False  # the worker has been told
        self._local: deque[DirectoryMessage] = deque()  # from this worker to itself
        self._is_settling = False  # they are being taken
        self._handlers: dict[type, Callable[[int, Any], None]] = {
            Owns: self._on_owns,
            Claimed: self._on_claimed,
            Check: self._on_check,
            Answer: self._on_answer,
            Places: self._on_places,
            Report: self._ownership.on_report,
            Claim: self._ownership.on_claim,
            Release: self._ownership.on_release,
            Checked: self._ownership.on_checked,
            Ask: self._ownership.on_ask,
        }

    def __len__(self) -> int:
        return len(self._table.held)

    @property
    def is_ready(self) -> bool:
        """Whether this worker owns its slot and may grant."""
        return self._ownership.is_ready

    @property
    def conflicts(self) -> int:
        """Logins that two workers reported to this owner; one of them was on its way out."""
        return self._ownership.conflicts

    def places(self) -> PlaceCounts:
        """See `PlaceCounts`."""
        here, elsewhere = len(self._table.held), len(self._table.elsewhere)
        return PlaceCounts(here, elsewhere, self._ownership.owned, len(self._claims), len(self._asks))

    # From the supervisor and from links.

    def set_members(self, members: Sequence[Member]) -> None:
        """These are the workers of the gateway now, this one included."""
        self._members = {member.wid for member in members}
        rivals = [member for member in members if member.slot == self._slot]
        self._newest = max(self._newest, *(member.wid for member in rivals), 0)
        owner = max((member.wid for member in rivals if not member.is_leaving), default=0)
        self._set_term(self._newest if owner == self._wid else 0)
        self._update()

    def link_up(self, wid: int) -> None:
        """Both sides have greeted; nothing comes from there before this call."""
        self._linked.add(wid)
        self._update()

    def link_lost(self, wid: int) -> None:
        """That process has ended, and its sessions with it; nothing comes from there after this call."""
        self._linked.discard(wid)
        for slot in [slot for slot, owner in self._owners.items() if owner.wid == wid]:
            del self._owners[slot]
        self._ownership.forget(wid)
        self._table.lose(wid)
        self._update()

    def receive(self, wid: int, message: DirectoryMessage) -> None:
        """Take a message of another worker."""
        self._handlers[type(message)](wid, message)
        self._settle()

    # From the connections and the route stage of this worker.

    def claim(self, login: str, address: str, on_verdict: Callable[[bool], None]) -> Callable[[], None]:
        """Ask for a login that is free here; the verdict comes now or later.

        Returns what takes the claim back, with or without a verdict; then none comes any more.
        """
        if login in self._table.held or login in self._claimed:
            on_verdict(False)
            return _nothing
        claim = _Claim(self._new_id(), login, address, on_verdict)
        self._claims[claim.id] = claim
        self._claimed[login] = claim
        self._post_to_owner(login, Claim(claim.id, login, address))
        self._settle()
        return lambda: self._cancel(claim)

    def release(self, login: str) -> None:
        """The session of this login has ended here."""
        if self._table.held.pop(login, None) is not None:
            self._post_to_owner(login, Release(login))
            self._settle()

    def ask(self, login: str, on_answer: Callable[[int], None]) -> None:
        """Say now or later at which worker a login lives, as its owner knows; 0: nowhere."""
        if login in self._table.held:
            on_answer(self._wid)
            return
        ask_id = self._new_id()
        self._asks[ask_id] = _Ask(login, on_answer)
        self._post_to_owner(login, Ask(ask_id, login))
        self._settle()

    def place_of(self, login: str) -> int:
        """The worker where a login lives as far as is known here, 0: nowhere or unknown."""
        return self._table.place_of(login)

    def flush(self) -> None:
        """Tell the others what has changed; called at the end of each turn in which anything was."""
        self._ownership.flush()
        self._settle()

    # The owner of this slot.

    def _set_term(self, term: int) -> None:
        """Begin a term as the owner of this slot, go on with it, or end it, which is 0."""
        if term == self._term:
            return
        self._term = term
        self._ownership.stop()
        if term:
            self._ownership.begin(term)

    def _update(self) -> None:
        self._ownership.update(self._members - self._table.lost, self._linked)
        self._settle()

    def _on_ready(self) -> None:
        if not self._was_ready:
            self._was_ready = True
            self._peers.on_ready()

    # What owners say.

    def _on_owns(self, wid: int, owns: Owns) -> None:
        """Follow this owner, unless another one is newer."""
        followed = self._owners.get(owns.slot)
        if followed is not None and not followed.is_older_than(owns.term, wid):
            return
        if owns.slot == self._slot and wid != self._wid:
            self._ownership.stop()  # the supervisor will say the same in a moment
        self._owners[owns.slot] = _Owner(wid, owns.term)
        for part, is_last in parts_of(self._table.held_of(owns.slot)):
            self._post(wid, Report(owns.term, list(part), is_last))
        for claim in self._claims.values():
            if slot_of(claim.login, self._slots) == owns.slot:
                self._post(wid, Claim(claim.id, claim.login, claim.address))
        for ask_id, ask in self._asks.items():
            if slot_of(ask.login, self._slots) == owns.slot:
                self._post(wid, Ask(ask_id, ask.login))

    def _on_claimed(self, wid: int, claimed: Claimed) -> None:
        claim = self._claims.get(claimed.id)
        if claim is None or self._owner_of(claim.login) != wid:
            return
        self._drop(claim)
        if claimed.is_granted:
            self._table.hold(claim.login, claim.address)
        claim.on_verdict(claimed.is_granted)

    def _on_check(self, wid: int, check: Check) -> None:
        """Look at the session, if there is one; then say whether there is."""

        def on_checked(_is_gone: bool) -> None:
            self._post(wid, Checked(check.id, check.login not in self._table.held))
            self._settle()

        if check.login in self._table.held:
            self._peers.check_holder(check.login, on_checked)
        else:
            on_checked(True)

    def _on_answer(self, wid: int, answer: Answer) -> None:
        ask = self._asks.get(answer.id)
        if ask is None or self._owner_of(ask.login) != wid:
            return
        del self._asks[answer.id]
        ask.on_answer(self._wid if ask.login in self._table.held else self._table.known(answer.wid))

    def _on_places(self, wid: int, places: Places) -> None:
        slot = next((slot for slot, owner in self._owners.items() if owner.wid == wid), None)
        if slot is None:
            return
        self._table.take(places.places)
        named = self._owners[slot].named
        if named is not None:
            named.update(place.login for place in places.places)
            if places.is_last:
                self._owners[slot].named = None
                self._table.forget_others(slot, named)

    # Claims and messages.

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _cancel(self, claim: _Claim) -> None:
        """The client has left; a grant that is on its way is given back by the same message."""
        if claim.id in self._claims:
            self._drop(claim)
            self._post_to_owner(claim.login, Release(claim.login))
            self._settle()

    def _drop(self, claim: _Claim) -> None:
        del self._claims[claim.id]
        del self._claimed[claim.login]

    def _owner_of(self, login: str) -> int:
        """The worker that is followed for this login, 0 for none."""
        owner = self._owners.get(slot_of(login, self._slots))
        return owner.wid if owner is not None else 0

    def _post_to_owner(self, login: str, message: DirectoryMessage) -> None:
        """Nothing where there is none: the next owner is told of what is still wanted."""
        wid = self._owner_of(login)
        if wid:
            self._post(wid, message)

    def _post(self, wid: int, message: DirectoryMessage) -> None:
        if wid == self._wid:
            self._local.append(message)
        else:
            self._peers.post(wid, message)

    def _settle(self) -> None:
        """Take what this worker has said to itself."""
        if self._is_settling:
            return
        self._is_settling = True
        try:
            while self._local:
                message = self._local.popleft()
                self._handlers[type(message)](self._wid, message)
        finally:
            self._is_settling = False


def _nothing() -> None:
    """What there is to take back of a claim that was refused at once."""
