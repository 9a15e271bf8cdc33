"""Copies on their way from one worker to another: what stands for them at either end.

At the sender's worker a `Crossing` stands for its batch in front of the link; it ends when the other worker
has said what became of every copy. There an `Arrival` stands for the same copies at the outboxes and gathers
their outcomes. Only the sender's worker counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from chat_gateway.bus_frames import Outcomes, Part, Refused, Returned
from stages.message import ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chat_gateway.bus_frames import Carry
    from stages.message import Batch, Ledger, Sender
    from stages.route import Cut

__all__ = ["Arrival", "Crossing", "RemoteSender", "gathered"]

# How many bytes of returned copies one frame carries, or those of one name, which came in one frame. The text
# of a message to many crosses once, but returns once for each of them.
_MAX_RETURNED_BYTES = 256 * 1024


class Origin(Protocol):
    """What a `Crossing` needs of its link."""

    def on_crossed(self, crossing: Crossing) -> None:
        """Every copy of it has an outcome."""

    def on_returned(self, crossing: Crossing, returned: Returned) -> None:
        """These copies did not find their login; whoever hears of it sees to their outcome."""


class Destination(Protocol):
    """What an `Arrival` needs of its link."""

    def on_outcome(self, arrival: Arrival) -> None:
        """There is something to report of it, since the last report."""

    def report_soon(self) -> None:
        """Somebody waits for what there is to report: at the end of this turn."""


class Crossing:
    """Copies of one batch in one frame; made by a link, ends with the outcome of its last copy."""

    __slots__ = (
        "batch",
        "cuts",
        "delivered",
        "id",
        "is_fanout",
        "names",
        "origin",
        "pending",
        "returned",
        "runs_on",
    )

    def __init__(
        self, frame_id: int, batch: Batch, cuts: Sequence[Cut], origin: Origin, *, is_fanout: bool
    ) -> None:
        self.id = frame_id
        self.batch = batch  # what it is a part of
        self.cuts = [(names, copies) for names, _, copies in cuts]  # without the payload, which the link has
        self.is_fanout = is_fanout
        self.names: list[str] = []  # every login that gets copies of it, as often as it is named
        self.pending = 0  # copies without an outcome
        for names, _, copies in cuts:
            self.names += names
            self.pending += len(names) * copies
        self.delivered = 0  # copies
        self.returned: set[str] | None = None  # names that were not there
        self.runs_on = batch.runs_on
        self.origin = origin

    @property
    def sender(self) -> Sender:
        """See `Copies`."""
        return self.batch.sender

    def return_credit(self) -> None:
        """See `Copies`."""
        self.batch.return_credit()

    def deliver(self, copies: int) -> None:
        """See `Copies`: handed over to the link, which says nothing of what becomes of them."""

    def refuse(self, copies: int, reason: str, name: str) -> None:
        """See `Copies`: the link does not take it; nothing of it has left."""
        del copies, name  # of the link; all that are in the frame are meant
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """Whatever has no outcome is refused with this reason; by login, where it is known which."""
        pending, self.pending = self.pending, 0
        if not pending:
            return
        counts: dict[str, int] = {}
        for names, copies in self.cuts:
            for name in names:
                counts[name] = counts.get(name, 0) + copies
        if sum(counts.values()) == pending:
            for name, copies in counts.items():
                self.batch.refuse(copies, reason, name)
        else:
            self.batch.refuse(pending, reason, "")
        self.origin.on_crossed(self)

    def end_delivered(self) -> None:
        """All copies without an outcome were delivered."""
        pending, self.pending = self.pending, 0
        if pending:
            self.delivered += pending
            self.batch.deliver(pending)
            self.origin.on_crossed(self)

    def take(self, part: Part) -> None:
        """What the other worker says of some of them; says it of no more than there are."""
        ended = part.delivered + sum(one.copies for one in part.refused)
        ended += sum(one.copies for one in part.returned)
        if ended > self.pending or part.delivered < 0:
            return
        self.pending -= ended
        self.delivered += part.delivered
        if part.delivered:
            self.batch.deliver(part.delivered)
        for refused in part.refused:
            self.batch.refuse(refused.copies, refused.reason, refused.name)
        for returned in part.returned:
            if self.returned is None:
                self.returned = set()
            self.returned.add(returned.name)
            self.origin.on_returned(self, returned)
        if part.returns_credit:
            self.batch.return_credit()
        if not self.pending:
            self.origin.on_crossed(self)


class RemoteSender:
    """Who said what came from another worker: its credit is held there, so nothing here holds it."""

    __slots__ = ("login",)

    def __init__(self, login: str) -> None:
        self.login = login

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteSender) and other.login == self.login

    def __hash__(self) -> int:
        return hash(self.login)

    @property
    def prefix(self) -> bytes:
        """See `Sender`; what it says is encoded already."""
        return b""

    def give_back(self, messages: int, nbytes: int, waiting_bytes: int) -> None:
        """See `Sender`."""

    def settle(self, messages: int, waiting_bytes: int) -> None:
        """See `Sender`."""

    def finish(self, messages: int, nbytes: int) -> None:
        """See `Sender`."""

    def stall(self) -> None:
        """See `Sender`: it stalls when its credit, which its copies here hold, is used up."""

    def unstall(self) -> None:
        """See `Sender`."""

    def expect_refusals(self) -> None:
        """See `Sender`."""

    def notify(
        self, word: str, reason: str, *, name: str = "", count: int = 1, lines: float | None = None
    ) -> None:
        """See `Sender`: it hears of everything from its own worker."""


class Arrival:
    """Copies of one frame from another worker; made by a link, ends with the outcome of its last copy."""

    __slots__ = (
        "_counted_bytes",
        "_delivered",
        "_destination",
        "_has_credit",
        "_is_reported",
        "_ledger",
        "_pending",
        "_refused",
        "_returned",
        "_returns_credit",
        "id",
        "runs_on",
        "sender",
    )

    def __init__(self, carry: Carry, destination: Destination, ledger: Ledger) -> None:
        self.id = carry.id
        self.sender: Sender = RemoteSender(carry.sender)
        self.runs_on = False
        self._destination = destination
        self._ledger = ledger
        self._pending = self._counted_bytes = 0
        for cut in carry.cuts:
            names = len(cut.names)
            self._pending += names * cut.copies
            self._counted_bytes += len(cut.payload) + names * ENTRY_BYTES
        ledger.buffered_bytes += self._counted_bytes
        self._delivered = 0  # copies, since the last report
        self._refused: list[Refused] = []
        self._returned: list[Returned] = []
        self._has_credit = True  # its sender is held for it
        self._returns_credit = False  # to be reported
        self._is_reported = True  # nothing to report

    def return_credit(self) -> None:
        """See `Copies`."""
        if self._has_credit:
            self._has_credit = False
            self._returns_credit = True
            self._changed(0, is_awaited=True)

    def deliver(self, copies: int) -> None:
        """See `Copies`."""
        self._delivered += copies
        self._changed(copies)

    def refuse(self, copies: int, reason: str, name: str) -> None:
        """See `Copies`."""
        self._refused.append(Refused(name, reason, copies))
        self._changed(copies, is_awaited=True)

    def give_back(self, name: str, payload: bytes, copies: int) -> None:
        """This login is not here (any more): its copies go back to where they came from."""
        self._returned.append(Returned(name, payload, copies))
        self._changed(copies, is_awaited=True)

    def take_report(self) -> Part | None:
        """What happened since the last report; None when that is: all that was left was delivered."""
        self._is_reported = True
        if not (self._pending or self._refused or self._returned):
            return None  # nothing will follow
        part = Part(self.id, self._delivered, self._refused, self._returned, self._returns_credit)
        self._delivered, self._refused, self._returned, self._returns_credit = 0, [], [], False
        return part

    def _changed(self, copies: int, *, is_awaited: bool = False) -> None:
        self._pending -= copies
        if copies and not self._pending:
            self._ledger.buffered_bytes -= self._counted_bytes
        if self._is_reported:
            self._is_reported = False
            self._destination.on_outcome(self)
        if is_awaited:
            self._destination.report_soon()


def gathered(reports: Iterable[Arrival]) -> list[Outcomes]:
    """What there is to say of arrivals, in their order, in as few frames as their bound allows."""
    frames = [Outcomes([], [])]
    room = _MAX_RETURNED_BYTES
    for arrival in reports:
        part = arrival.take_report()
        if part is None:
            frames[-1].delivered.append(arrival.id)
            continue
        for piece in _pieces(part):
            size = sum(len(one.payload) for one in piece.returned)
            if size > room:
                frames.append(Outcomes([], []))
                room = _MAX_RETURNED_BYTES
            frames[-1].parts.append(piece)
            room -= size
    return frames


def _pieces(part: Part) -> Iterator[Part]:
    """Cut a part of which more returns than one frame carries."""
    if sum(len(one.payload) for one in part.returned) <= _MAX_RETURNED_BYTES:
        yield part
        return
    yield Part(part.id, part.delivered, part.refused, [], part.returns_credit)
    for one in part.returned:
        yield Part(part.id, 0, [], [one], False)
