"""Entries that are too large, cut at line ends; and those that find no room, by sender."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from stages.entries import Parked, covering, cut_entry, fitting
from stages.message import Ledger
from tests.stages.fakes import FakeSender, entry_of

if TYPE_CHECKING:
    from stages.outbox_settings import Entry

_LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"x") + b"\n"), min_size=1)


def _entry(payload: bytes) -> Entry:
    return entry_of(FakeSender(), Ledger(), payload, payload.count(b"\n"))


def _all_cut(entry: Entry, max_bytes: int) -> list[Entry]:
    parts: list[Entry] = []
    rest: Entry | None = entry
    while rest is not None:
        part, rest = cut_entry(rest, max_bytes)
        parts.append(part)
    return parts


@given(_LINES, st.integers(1, 100))
def test_cut_entry_gives_all_lines_in_order_when_it_is_repeated(lines: list[bytes], max_bytes: int) -> None:
    """Every part is whole lines, each one copy of the same batch, as many as fit or one that is longer."""
    entry = _entry(b"".join(lines))
    parts = _all_cut(entry, max_bytes)
    assert b"".join(bytes(payload) for payload, _, _ in parts) == entry[0]
    left = list(lines)
    for payload, copies, batch in parts:
        assert batch is entry[2]
        assert isinstance(payload, bytes)
        taken = [left.pop(0) for _ in range(copies)]
        assert payload == b"".join(taken)
        assert len(payload) <= max_bytes or copies == 1
        assert not left or len(payload) + len(left[0]) > max_bytes
    assert not left


def test_cut_entry_copies_only_what_it_gives_when_the_entry_is_large() -> None:
    """What is left is a view of the same bytes, which other outboxes may share."""
    payload = b"x\n" * 1000
    part, rest = cut_entry(_entry(payload), 100)
    assert rest is not None
    view, copies, _ = rest
    assert isinstance(view, memoryview)
    assert view.obj is payload
    assert (len(part[0]), len(view), part[1], copies) == (100, 1900, 50, 950)


def test_cut_entry_gives_everything_when_no_line_end_is_there() -> None:
    """Bytes without a line end are not lost."""
    entry = _entry(b"xxx")
    assert cut_entry(entry, 2) == (entry, None)


def test_parked_entries_stay_in_order_when_there_are_few_or_many() -> None:
    """One entry takes a small place, many of one sender can be taken from the front in no time."""
    alice, eve = FakeSender("alice"), FakeSender("eve")
    parked = Parked()
    entries = [entry_of(alice, Ledger(), b"%d\n" % number) for number in range(20)]
    for entry in entries:
        parked.park(entry)
    parked.park(entry_of(eve, Ledger(), b"e\n"))
    assert list(parked) == ["alice", "eve"]
    assert list(parked["alice"]) == entries
    assert isinstance(parked["alice"], deque)
    assert isinstance(parked["eve"], list)
    assert list(parked.senders) == [alice, eve]


def test_parked_entries_are_taken_in_turn_when_several_senders_have_some() -> None:
    """One of each sender, the oldest first; who has none left stands in line no more."""
    alice, eve = FakeSender("alice"), FakeSender("eve")
    parked = Parked()
    senders = (alice, alice, alice, eve)
    entries = [
        entry_of(sender, Ledger(), b"%d\n" % number * (number + 1), number + 1)
        for number, sender in enumerate(senders)
    ]
    for entry in entries:
        parked.park(entry)
    assert parked.copies == 1 + 2 + 3 + 4
    taken = []
    while parked:
        first = parked.next
        taken.append(parked.take())
        assert taken[-1] is first
    assert taken == [entries[0], entries[3], entries[1], entries[2]]
    assert parked.copies == 0


def test_parked_entries_keep_the_order_of_a_login_when_its_sender_came_back() -> None:
    """What the new session says stands behind what the old one said, as one in turn with the others."""
    before, eve, after = FakeSender("alice"), FakeSender("eve"), FakeSender("alice")
    parked = Parked()
    entries = [entry_of(sender, Ledger(), b"x\n") for sender in (before, before, eve, after)]
    for entry in entries:
        parked.park(entry)
    assert list(parked.senders) == [before, after, eve]
    assert [parked.take() for _ in entries] == [entries[0], entries[2], entries[1], entries[3]]


@given(_LINES, st.integers(0, 100))
def test_fitting_and_covering_differ_by_one_entry_when_a_bound_is_within_it(
    lines: list[bytes], bound_bytes: int
) -> None:
    """What fits is within the bound, what covers it reaches it, or is all there is."""
    entries = [_entry(line) for line in lines]
    sizes = [len(line) for line in lines]
    count, nbytes = fitting(entries, bound_bytes)
    assert nbytes == sum(sizes[:count]) <= bound_bytes
    assert count == len(sizes) or nbytes + sizes[count] > bound_bytes
    least, reached = covering(entries, bound_bytes)
    assert reached == sum(sizes[:least])
    assert least == len(sizes) or reached >= bound_bytes
    assert least == 0 or sum(sizes[: least - 1]) < bound_bytes
