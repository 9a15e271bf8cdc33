"""The byte-bounded queue in front of one outbound writer, and the only thing that writes to it.

The contract:
 1. Entries leave in the order in which they were taken, in whole lines, each handed over exactly once.
    One call of the writer gets at most `max_flush_bytes`, or one longer line.
 2. At most `max_outbox_bytes` are pending (or one entry that is larger). What does not fit is parked, by
    sender, in order, or refused, as the policy for its kind of traffic says.
 3. While anything is parked, nothing overtakes it; when room comes, senders are served in turn.
 4. Above the high watermark, whoever offers is stalled; at the low one all are let go on. Under another
    policy than "stall" nobody is, and what waits does not hold its sender's credit: a slow member of a
    group must not hold the others.
 5. Every copy offered is resolved exactly once: delivered when its last byte was handed to the
    writer, or refused with a reason.
 6. Notices never wait in the queue: they merge, and go ahead of entries at the next flush.
 7. While its writer is paused the ladder watches it (`stages.ladder`), which may have it refuse what is
    parked and what comes, and in the end have its owner close it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.entries import Parked, covering, cut_entry, fitting
from stages.ladder import Watch
from stages.message import Copies, Ledger, Refusal, Sender
from stages.notices import Notices
from stages.outbox_settings import Entry, OutboxSettings, WhenFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.flusher import Flusher
    from stages.ladder import Ladder
    from stages.writer import Owner, Writer

__all__ = ["Entry", "Outbox", "OutboxSettings", "WhenFull"]


class Outbox:
    """Queue in front of one writer; made with its connection, closed when that is lost, in its loop."""

    __slots__ = (
        "_entries",
        "_flusher",
        "_handed_bytes",
        "_is_touched",
        "_ladder",
        "_ledger",
        "_notices",
        "_owner",
        "_parked",
        "_refusing",
        "_settings",
        "_stalled",
        "_watch",
        "_writer",
        "ahead",
        "is_paused",
        "name",
        "on_empty",
        "pending_bytes",
    )

    def __init__(
        self,
        writer: Writer,
        settings: OutboxSettings,
        ledger: Ledger,
        flusher: Flusher,
        ladder: Ladder | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.name = ""  # the login behind it, for notices; empty before login
        self.pending_bytes = 0  # in entries, not yet handed over
        self.is_paused = False  # the writer takes nothing just now
        self.on_empty: Callable[[], None] | None = None  # called after a flush that left nothing
        self.ahead: Callable[[], bytes] | None = None  # asked at each flush for what goes before all else
        self._writer = writer
        self._settings = settings
        self._ledger = ledger
        self._flusher = flusher
        self._ladder = ladder  # watches while the writer is paused; none for a writer that cannot be stuck
        self._owner = owner
        self._watch: Watch | None = None  # from the first pause on
        self._handed_bytes = 0  # given to the writer, ever
        self._entries: list[Entry] = []
        self._parked: Parked | None = None  # entries that found no room, by sender
        self._stalled: dict[Sender, None] | None = None  # senders that may not read just now
        self._notices: Notices | None = None
        self._is_touched = False  # the flusher knows of us
        self._refusing: str | None = None  # why every offer is refused

    @property
    def is_empty(self) -> bool:
        """Nothing waits: no entry, nothing parked, no notice, and the writer has taken all it got."""
        return not (self._entries or self._parked or self._notices or self.is_paused)

    @property
    def parked_copies(self) -> int:
        """Copies that found no room."""
        return self._parked.copies if self._parked else 0

    @property
    def waiting_copies(self) -> int:
        """Copies that the writer has not been handed, parked or not; counted one entry after the other."""
        return self.parked_copies + sum(copies for _, copies, _ in self._entries)

    @property
    def breaker_state(self) -> str:
        """Of its breaker; closed where there is none yet."""
        breaker = self._watch.breaker if self._watch is not None else None
        return breaker.state if breaker is not None else "closed"

    def offer(self, entry: Entry, *, is_fanout: bool) -> None:
        """Take an entry, park it or refuse it; never waits, never raises."""
        settings = self._settings
        pending = self.pending_bytes + len(entry[0])
        if self._refusing is not None:
            entry[2].refuse(entry[1], self._refusing, self.name)
            return
        if self._parked or (pending > settings.max_outbox_bytes and self._entries):
            self._offer_when_full(entry, is_fanout=is_fanout)
            return
        self._entries.append(entry)
        self.pending_bytes = pending
        if (settings.fanout if is_fanout else settings.direct) != "stall":
            entry[2].runs_on = True
        if self.is_paused:
            self._hold(entry[2])
        elif not self._is_touched:
            self._is_touched = True
            self._flusher.add(self)

    def notify(self, word: str, reason: str, *, name: str = "", count: int = 1) -> None:
        """Send a Notice with the next flush, merged with its like; kept also while the breaker is open."""
        if self._refusing not in (None, Refusal.BREAKER_OPEN):
            return
        if self._notices is None:
            self._notices = Notices()
        self._notices.add(word, reason, name=name, count=count)
        self._touch()

    def flush_soon(self) -> None:
        """Have it flushed at the end of the turn even with nothing pending, for `on_empty` or `ahead`."""
        self._touch()

    def write_last(self, line: bytes) -> None:
        """Write a Notice behind all that was handed over: the last thing before the connection is closed."""
        if not self._writer.is_closing():
            self._write(line)

    @property
    def has_emptied(self) -> bool:
        """The writer takes bytes and no copy is pending."""
        return not (self.is_paused or self._entries or self._parked)

    @property
    def left_bytes(self) -> int:
        """Bytes that have left the machine so far."""
        return self._handed_bytes - (self._owner.unsent_bytes() if self._owner else 0)

    def pause(self) -> None:
        """The writer takes nothing more for now."""
        self.is_paused = True
        for _, _, batch in self._entries:  # what must wait from here on
            if batch.runs_on:
                batch.return_credit()
        if self._ladder is not None:
            if self._watch is None:
                self._watch = Watch(self, self._ladder)
            self._watch.begin()

    def resume(self) -> None:
        """The writer takes bytes again."""
        self.is_paused = False
        self._touch()

    def flush(self) -> None:
        """Hand over what is pending, as far as the writer takes it, then let in what is parked."""
        self._is_touched = False
        if self._writer.is_closing():
            self.close(Refusal.GONE)
            return
        if self._notices and not self.is_paused:
            self._write(self._notices.take())
        if self.ahead is not None and not self.is_paused and (first := self.ahead()):
            self._write(first)
        while not self.is_paused and self._entries:
            self._hand_over()
            if self._parked:
                self._let_in()
        if self._stalled and self.pending_bytes <= self._settings.low_watermark_bytes:
            self._unstall()
        if self._watch is not None and self.has_emptied:
            self._watch.note_emptied()
        if self.on_empty is not None and self.is_empty:
            self.on_empty()

    def close(self, reason: str) -> None:
        """Refuse all that is pending or parked, and every later offer, with `reason`. May be called twice."""
        self._refusing = reason
        self._notices = None
        if self._watch is not None:
            self._watch.close()
        for sender in self._stalled or ():  # many such writers may end together, each with its senders
            sender.expect_refusals()
        entries, self._entries = self._entries, []
        self.pending_bytes = 0
        for _, copies, batch in entries:
            batch.refuse(copies, reason, self.name)
        self._refuse_parked(reason)

    def detach(self, reason: str) -> list[Entry]:
        """Close, but return what was not handed over, oldest first, and what was parked in its turn.

        They no longer hold their senders' credit; the caller sees to their outcome. Later offers are refused
        with `reason`.
        """
        left = self._cut(len(self._entries), self.pending_bytes)
        while self._parked:
            self._let_in()
            left += self._cut(len(self._entries), self.pending_bytes)
        self.close(reason)
        for _, _, batch in left:
            batch.return_credit()
        return left

    def adopt(self, entries: list[Entry]) -> None:
        """Take over what an earlier outbox of the same login has kept, ahead of everything else."""
        self._entries[:0] = entries
        self.pending_bytes += sum(len(entry[0]) for entry in entries)
        self._touch()

    def fail(self, reason: str) -> None:
        """The writer raised: refuse everything and have the owner give the connection up."""
        self.close(reason)
        if self._owner is not None:
            self._owner.fail()

    # What the ladder calls.

    def refuse_all(self) -> None:
        """The breaker has opened: refuse what is parked and what comes, and let all senders run on.

        What is pending stays for when the writer moves again; it no longer holds its senders' credit, since
        `max_outbox_bytes` bounds it.
        """
        self._refusing = Refusal.BREAKER_OPEN
        entries = list(self._entries)
        held = dict.fromkeys(batch.sender for _, _, batch in entries)
        for sender in held | (self._parked.senders if self._parked else {}) | (self._stalled or {}):
            sender.expect_refusals()
        self._refuse_parked(Refusal.BREAKER_OPEN)
        for _, _, batch in entries:
            batch.return_credit()

    def accept_again(self) -> None:
        """The breaker has closed."""
        if self._refusing == Refusal.BREAKER_OPEN:
            self._refusing = None

    def evict(self) -> None:
        """Stuck for too long: refuse everything and have the owner close the connection."""
        self.close(Refusal.EVICTED)
        if self._owner is not None:
            self._owner.evict()

    def _refuse_parked(self, reason: str) -> None:
        parked, self._parked = self._parked, None
        for waiting in (parked or {}).values():
            for _, copies, batch in waiting:
                batch.refuse(copies, reason, self.name)
        if self._stalled:
            self._unstall()

    def _hold(self, batch: Copies) -> None:
        """An entry of this batch has to wait until the writer takes bytes again."""
        if self.pending_bytes > self._ledger.peak_outbox_bytes:
            self._ledger.peak_outbox_bytes = self.pending_bytes
        if batch.runs_on:
            batch.return_credit()  # `max_outbox_bytes` bounds it; its sender is not to be held
        elif self.pending_bytes > self._settings.high_watermark_bytes:
            self._stall(batch.sender)

    def _offer_when_full(self, entry: Entry, *, is_fanout: bool) -> None:
        if not self.is_paused:  # much came in one turn; the writer has not been asked yet
            self._flusher.flush_one(self)
            if self._refusing is not None:
                entry[2].refuse(entry[1], self._refusing, self.name)
                return
            if self._fits(entry):
                self.offer(entry, is_fanout=is_fanout)
                return
        policy = self._settings.fanout if is_fanout else self._settings.direct
        _WHEN_FULL[policy](self, entry, is_fanout)

    def _park(self, entry: Entry, _is_fanout: bool) -> None:
        if self._parked is None:
            self._parked = Parked()
        self._parked.park(entry)
        self._stall(entry[2].sender)

    def _refuse_full(self, entry: Entry, _is_fanout: bool) -> None:
        entry[2].refuse(entry[1], Refusal.FULL, self.name)

    def _drop_oldest(self, entry: Entry, is_fanout: bool) -> None:
        if self._parked:  # under the other policy: nothing may overtake them
            self._refuse_full(entry, is_fanout)
            return
        excess = self.pending_bytes + len(entry[0]) - self._settings.max_outbox_bytes
        for _, copies, batch in self._cut(*covering(self._entries, excess)):
            batch.refuse(copies, Refusal.DROPPED, self.name)
        self.offer(entry, is_fanout=is_fanout)

    def _disconnect(self, entry: Entry, is_fanout: bool) -> None:
        self._refuse_full(entry, is_fanout)
        self.evict()

    def _fits(self, entry: Entry) -> bool:
        pending = self.pending_bytes
        return not self._parked and (
            not pending or pending + len(entry[0]) <= self._settings.max_outbox_bytes
        )

    def _touch(self) -> None:
        if not self._is_touched and not self.is_paused:
            self._is_touched = True
            self._flusher.add(self)

    def _take_lines(self, max_bytes: int) -> Entry:
        """Those lines of the oldest entry that fit, or its first one; what is left of it stays the oldest."""
        taken, rest = cut_entry(self._entries[0], max_bytes)
        self._entries[:1] = [rest] if rest is not None else []
        self.pending_bytes -= len(taken[0])
        return taken

    def _cut(self, count: int, nbytes: int) -> list[Entry]:
        """Take out the `count` oldest entries, which have so many bytes."""
        taken = self._entries[:count]
        del self._entries[:count]
        self.pending_bytes -= nbytes
        return taken

    def _hand_over(self) -> None:
        """Make one call of the writer."""
        entries = self._entries
        pending, limit = self.pending_bytes, self._settings.max_flush_bytes
        if pending > self._ledger.peak_outbox_bytes:
            self._ledger.peak_outbox_bytes = pending
        if pending <= limit:
            self._entries = []
            self.pending_bytes = 0
        else:
            entries = self._cut(*fitting(entries, limit)) or [self._take_lines(limit)]
        payload = bytes(entries[0][0]) if len(entries) == 1 else b"".join([entry[0] for entry in entries])
        try:
            self._write(payload)
        except Exception:  # nothing of it was taken; whoever hears of the error closes us
            self._entries[:0] = entries
            self.pending_bytes += len(payload)
            raise
        for _, copies, batch in entries:
            batch.deliver(copies)

    def _write(self, data: bytes) -> None:
        self._writer.write(data)
        self._ledger.bytes_out += len(data)
        self._ledger.flushes += 1
        self._handed_bytes += len(data)

    def _let_in(self) -> None:
        """Room has come: one entry of each sender in turn, while they fit."""
        parked = self._parked
        while parked:
            pending = self.pending_bytes
            size = len(parked.next[0])
            if pending and pending + size > self._settings.max_outbox_bytes:
                return
            self._entries.append(parked.take())
            self.pending_bytes += size

    def _stall(self, sender: Sender) -> None:
        if self._stalled is None:
            self._stalled = {}
        if sender not in self._stalled:
            self._stalled[sender] = None
            sender.stall()

    def _unstall(self) -> None:
        stalled, self._stalled = self._stalled, None
        for sender in stalled or ():
            sender.unstall()


_WHEN_FULL: dict[WhenFull, Callable[[Outbox, Entry, bool], None]] = {
    "stall": Outbox._park,
    "refuse": Outbox._refuse_full,
    "drop_oldest": Outbox._drop_oldest,
    "disconnect": Outbox._disconnect,
}
