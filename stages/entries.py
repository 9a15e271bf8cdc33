"""What an outbox does with entries that are too large or find no room: cut at line ends, parked by sender.

Knows of the wire format only that lines end with a line feed, each line one copy.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from stages.message import Sender
from stages.outbox_settings import Entry

__all__ = ["Parked", "cut_entry", "park"]

Parked: TypeAlias = dict[Sender, list[Entry] | deque[Entry]]
"""Entries by sender, the oldest first; whose turn it is stands first."""

_MAX_LISTED = 8  # of one sender: a list of one entry is much smaller than a deque, which takes 0.6 KiB


def park(parked: Parked, sender: Sender, entry: Entry) -> None:
    """Add an entry behind the others of its sender."""
    waiting = parked.get(sender)
    if waiting is None:
        parked[sender] = [entry]
        return
    if len(waiting) == _MAX_LISTED:
        waiting = parked[sender] = deque(waiting)
    waiting.append(entry)


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
