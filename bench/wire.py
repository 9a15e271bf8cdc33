"""What a conversation sends and what must arrive for it, as bytes; no sockets, no clock.

A sender repeats one period of numbered lines for ever, so the bytes a receiver must get are known in
advance. A read is checked by one comparison in C, and the lines in it are counted by its length, not by
looking for line ends. Only a read that differs is taken apart line by line. A loss or a duplicate of an
exact multiple of the period would look the same in the bytes, but not in the count.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from bench.protocols import LINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

    from bench.protocols import Dialect

_MAX_TAIL_BYTES = 1 << 16  # a server that never ends its line must not fill the generator's memory
_STRIDE = 37  # a prime, so that it visits every line of a period that is no multiple of it
_CUT_STRIDE = 7919  # a prime, so that a line is cut at another byte each time


def payloads(period: int, smallest: int, largest: int) -> list[bytes]:
    """One period of numbered texts with sizes in bytes spread evenly in ratio, in mixed order.

    `period` must be no multiple of 37; a text is never shorter than its number.
    """
    digits = len(str(period - 1))
    ratio = largest / smallest
    sizes = [round(smallest * ratio ** (i * _STRIDE % period / max(period - 1, 1))) for i in range(period)]
    return [(b"%0*d " % (digits, i)).ljust(size, b"x")[: max(size, digits)] for i, size in enumerate(sizes)]


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the lines of one sender differ from each other and from its writes; the default is not at all.

    Beside the `fanout` receivers of all lines, `further` ones get 1 line in `every`, or none where that is 0:
    the one at `place` in each `every`, from 0. `is_ragged`: each write ends in the middle of a line that is
    not due yet.
    """

    further: int = 0
    every: int = 0
    place: int = 0
    is_ragged: bool = False

    def is_for_all(self, line: int) -> bool:
        """Whether the further receivers get line number `line`, counted from 0."""
        return self.every > 0 and line % self.every == self.place

    def lines_for_all(self, lines: int) -> int:
        """How many of the first `lines` lines the further receivers get."""
        return (lines + self.every - 1 - self.place) // self.every if self.every else 0

    def copies(self, lines: int, fanout: int) -> int:
        """Copies that the first `lines` lines make."""
        return lines * fanout + self.further * self.lines_for_all(lines)

    def lines(self, copies: int, fanout: int) -> int:
        """How many whole lines the first `copies` copies are."""
        if not self.every:
            return copies // fanout
        groups, rest = divmod(copies, self.every * fanout + self.further)
        before, beyond = rest // fanout, (rest - self.further) // fanout
        return groups * self.every + max(min(before, self.place), beyond)


class Script:
    """An endless text of lines with one period; immutable, shared by all who send or expect it.

    A line is a message of any dialect, given whole (`head` and `end` are empty) or as what differs in it.
    """

    __slots__ = ("period", "period_bytes", "starts", "text", "view")

    def __init__(self, head: bytes, texts: Sequence[bytes], end: bytes = b"\n") -> None:
        lines = [head + text + end for text in texts]
        # lines in one period
        self.period = len(lines)
        # two periods, so that any piece of up to one period is contiguous
        self.text = b"".join(lines + lines)
        # the same without copies for slices
        self.view = memoryview(self.text)
        # bytes in one period
        self.period_bytes = len(self.text) // 2
        # where each line of the two periods starts, and where the last one ends
        self.starts = [0, *accumulate(len(line) for line in lines + lines)]

    def offset(self, lines: int) -> int:
        """Bytes in the first `lines` lines of the endless text."""
        turns, rest = divmod(lines, self.period)
        return turns * self.period_bytes + self.starts[rest]

    def offset_within(self, line: int) -> int:
        """Where to cut line number `line` of the endless text: not at its ends, elsewhere in each period."""
        at = line % self.period
        length = self.starts[at + 1] - self.starts[at]
        return self.offset(line) + 1 + line * _CUT_STRIDE % (length - 1)

    def lines_begun(self, offset: int) -> int:
        """How many lines have at least one byte before `offset` of the endless text."""
        turns, rest = divmod(offset, self.period_bytes)
        return turns * self.period + bisect_left(self.starts, rest)


class Expected:
    """What one receiver must get, in order; told of each read, it counts lines and faults.

    Created by the load generator for each receiver; holds no resource.
    """

    __slots__ = ("_at", "_dialect", "_index", "_script", "_tail", "corrupt", "notices", "owed", "reordered")

    def __init__(self, script: Script, dialect: Dialect = LINE) -> None:
        self._script = script
        # takes a stream that differs from the script apart
        self._dialect = dialect
        # next byte of the script that must arrive, within the first period
        self._at = 0
        # next line that must be completed, within the first period
        self._index = 0
        # beginning of a line while the stream differs from the script; None while it agrees
        self._tail: bytes | None = None
        # lines of the script that were not the next one (lost, doubled or overtaken before them)
        self.reordered = 0
        # lines that are neither in the script nor from the server itself
        self.corrupt = 0
        # complaints of the server itself
        self.notices = 0
        # what the server's questions must be answered with
        self.owed = b""

    def feed(self, data: ReadableBuffer) -> int:
        """Take the bytes of one read and return how many lines of the script they completed."""
        with memoryview(data) as view:
            if len(view) <= self._script.period_bytes:
                return self._feed_piece(view)
            step = self._script.period_bytes
            return sum(self._feed_piece(view[i : i + step]) for i in range(0, len(view), step))

    def _feed_piece(self, data: memoryview) -> int:
        script = self._script
        if self._tail is not None or not script.text.startswith(data, self._at):
            return self._feed_by_line(bytes(data))
        at = self._at + len(data)
        index = bisect_right(script.starts, at) - 1
        done = index - self._index
        if at >= script.period_bytes:
            at -= script.period_bytes
            index -= script.period
        self._at, self._index = at, index
        return done

    def _feed_by_line(self, data: bytes) -> int:
        script = self._script
        tail = script.text[script.starts[self._index] : self._at] if self._tail is None else self._tail
        lines, tail = self._dialect.cut(tail + data)
        done = sum(map(self._judge, lines))
        start = script.starts[self._index]
        if script.text.startswith(tail, start):
            self._tail, self._at = None, start + len(tail)
        elif len(tail) > _MAX_TAIL_BYTES:
            self._tail = b""
            self.corrupt += 1
        else:
            self._tail = tail
        return done

    def _judge(self, line: bytes) -> int:
        """Compare one whole line with the script; 1 if it belongs to it at all, else 0."""
        script = self._script
        if line == script.text[script.starts[self._index] : script.starts[self._index + 1]]:
            self._index = (self._index + 1) % script.period
            return 1
        if self._dialect.is_notice(line):
            self.notices += 1
            return 0
        answer = self._dialect.answer(line)
        if answer is not None:
            self.owed += answer
            return 0
        found = self._find(line)
        if found is None:
            self.corrupt += 1
            return 0
        self.reordered += 1
        self._index = (found + 1) % script.period
        return 1

    def _find(self, line: bytes) -> int | None:
        """Number of the line within the period, or None if the script has no such line."""
        at = self._script.text.find(line)
        index = bisect_left(self._script.starts, at)
        return index if at >= 0 and self._script.starts[index] == at else None
