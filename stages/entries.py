"""What an outbox does with its entries: counted, cut at line ends where one is too large, parked by sender.

Knows of the wire format only that lines end with a line feed, each line one copy.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stages.message import Sender
    from stages.outbox_settings import Entry

__all__ = ["Parked", "covering", "cut_entry", "fitting"]

_MAX_LISTED = 8  # of one sender: a list of one entry is much smaller than a deque, which takes 0.6 KiB


class Parked(dict[str, "list[Entry] | deque[Entry]"]):
    """Entries by the sender's login, the oldest first; whose turn it is stands first. Made by a full outbox.

    By login: what a sender says after it has come back must not overtake what it said before.
    """

    __slots__ = ()

    @property
    def copies(self) -> int:
        """How many copies are parked."""
        return sum(entry[1] for waiting in self.values() for entry in waiting)

    @property
    def senders(self) -> dict[Sender, None]:
        """Whose copies are parked, each once."""
        return {entry[2].sender: None for waiting in self.values() for entry in waiting}

    def park(self, entry: Entry) -> None:
        """Add an entry behind the others of its sender."""
        login = entry[2].sender.login
        waiting = self.get(login)
        if waiting is None:
            self[login] = [entry]
            return
        if len(waiting) == _MAX_LISTED:
            waiting = self[login] = deque(waiting)
        waiting.append(entry)

    @property
    def next(self) -> Entry:
        """The entry whose turn it is; there is one."""
        return self[next(iter(self))][0]

    def take(self) -> Entry:
        """Take that entry out; its sender goes to the end of the line with what else it has."""
        login = next(iter(self))
        waiting = self.pop(login)
        entry = waiting[0]
        del waiting[0]
        if waiting:
            self[login] = waiting
        return entry


def fitting(entries: Iterable[Entry], max_bytes: int) -> tuple[int, int]:
    """How many of the first entries fit into `max_bytes`, which may be none, and their bytes."""
    count = nbytes = 0
    for payload, _, _ in entries:
        if nbytes + len(payload) > max_bytes:
            break
        nbytes += len(payload)
        count += 1
    return count, nbytes


def covering(entries: Iterable[Entry], min_bytes: int) -> tuple[int, int]:
    """How many of the first entries have `min_bytes` together, or all of them, and their bytes."""
    count = nbytes = 0
    for payload, _, _ in entries:
        if nbytes >= min_bytes:
            break
        nbytes += len(payload)
        count += 1
    return count, nbytes


def cut_entry(entry: Entry, max_bytes: int) -> tuple[Entry, Entry | None]:
    """Cut off as many whole lines as fit into `max_bytes`, at least one; None for the rest when that is all.

    The rest is a view of the same bytes, which other outboxes may share: cutting all of an entry off, piece
    by piece, copies each byte once.
    """
    payload, copies, batch = entry
    whole = payload if isinstance(payload, bytes) else payload.obj
    assert isinstance(whole, bytes)
    start = len(whole) - len(payload)  # a rest reaches to the end
    end = whole.rfind(b"\n", start, start + max_bytes) + 1 or whole.find(b"\n", start + max_bytes) + 1
    if end in (0, len(whole)):
        return (whole[start:], copies, batch), None
    part = whole[start:end]
    lines = part.count(b"\n")
    return (part, lines, batch), (memoryview(whole)[end:], copies - lines, batch)
