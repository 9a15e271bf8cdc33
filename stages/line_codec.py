"""The line protocol, bytes in and values out: no sockets, no waiting, no session.

`LineFramer` cuts what was read into blocks of whole lines, in time linear in the bytes however they
are split. `LineCodec` makes runs of messages of a block, and bytes of runs. Work is done for whole
runs of lines to the same recipients by calls that run in C; only a block with something unusual in
it is looked at line by line.
"""

from __future__ import annotations

import re
import sys
from itertools import repeat
from typing import TYPE_CHECKING

from stages.login_name import normalised
from stages.message import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "LARGE_BYTES",
    "MAX_CACHE_BYTES",
    "LineCodec",
    "LineFramer",
    "line_count",
    "most_entries",
    "most_tail_bytes",
    "pieces",
]

# One block goes through the stages in one go. So many lines at most, each to other recipients than the one
# before, take some 20 ms; a block that is not larger than LARGE_BYTES does not take much longer.
_MAX_LINES = 2048
LARGE_BYTES = 8192

# For `bytes.translate`, which is faster than to delete: changes what is not allowed in a text, the controls
# of C0 but tab and the line feed that ends each line, and DEL.
_CONTROLS = frozenset({*range(0x20), 0x7F} - {0x09, 0x0A})
_WITHOUT_CONTROLS = bytes(0x20 if c in _CONTROLS else c for c in range(256))
# The C1 controls in UTF-8; where bytes are valid UTF-8, 0xC2 only ever begins a character.
_C1 = re.compile(b"\xc2[\x80-\x9f]")
_COMMA = ord(",")  # as a number: `in` takes bytes for no number first, by way of an exception
_SPACES = " \t"
_BLANK = b" \t"
# What the cache of recipient lists may hold, keys and names as `sys.getsizeof` counts them and a place in
# the dict: room for some 30,000 lists of one name. A client that sends ever new lists gets no more.
MAX_CACHE_BYTES = 8 << 20
_DICT_PLACE_BYTES = 150
_OBJECT_BYTES = 64  # of a bytes or a bytearray beside its content


class LineFramer:
    """Keeps the unfinished line of one connection: at most `max_line_bytes`, what is beyond is dropped."""

    __slots__ = ("_max_line_bytes", "_tail")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._tail: bytes | bytearray = b""  # the unfinished line; a bytearray once it grows in pieces

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Take what was read. Returns all whole lines (maybe none), and whether a line is too long.

        In that case the lines before it are returned, and nothing more must be fed.
        """
        if not self._tail and data.endswith(b"\n") and len(data) <= self._max_line_bytes:
            return data, False  # by far the most frequent: whole lines, and not many
        cut = data.rfind(b"\n") + 1
        if not cut:
            return b"", self._keep(data)
        block = data if cut == len(data) else data[:cut]
        if self._tail:
            block = bytes(self._tail) + block
            self._tail = b""
        is_too_long = self._keep(data[cut:])
        if len(block) > self._max_line_bytes:
            whole = self._before_too_long(block)
            return whole, is_too_long or len(whole) < len(block)
        return block, is_too_long

    def finish(self) -> bytes:
        """The stream has ended: the last line without its end counts; returned with its end, or empty."""
        tail, self._tail = bytes(self._tail), b""
        return tail + b"\n" if tail else b""

    @property
    def tail(self) -> bytes | bytearray:
        """The unfinished line."""
        return self._tail

    def _keep(self, data: bytes) -> bool:
        """Add to the unfinished line as far as one may reach; True if that is not all."""
        room = self._max_line_bytes - len(self._tail)
        is_too_long = len(data) > room
        self._tail = _appended(self._tail, data[:room] if is_too_long else data)
        return is_too_long

    def _before_too_long(self, block: bytes) -> bytes:
        """Step from line end to line end as far as a line may reach, so short lines cost no step each."""
        start, reach = 0, self._max_line_bytes + 1
        while start < len(block):
            end = block.rfind(b"\n", start, start + reach) + 1
            if not end:
                return block[:start]
            start = end
        return block


def line_count(block: bytes) -> int:
    """How many line feeds there are.

    `bytes.count` looks at every byte, what is to be replaced is found by `memchr`: a seventh of the time for
    lines of 512 bytes, and never more.
    """
    return len(block) - len(block.replace(b"\n", b""))


def pieces(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Cut a block of whole lines so that none keeps the loop busy for long; in order, each with its lines."""
    lines = line_count(block)
    if lines <= _MAX_LINES:
        yield block, lines
        return
    half = len(block) // 2
    end = block.find(b"\n", half) + 1
    if end == len(block):  # its second half is one line
        end = block.rfind(b"\n", 0, half) + 1
    yield from pieces(block[:end])
    yield from pieces(block[end:])


def most_tail_bytes(max_line_bytes: int) -> int:
    """The most memory that an unfinished line takes: a bytearray keeps an eighth more than it needs."""
    return max_line_bytes + max_line_bytes // 8 + _OBJECT_BYTES


def most_entries(data: bytes, lines: int, max_recipients: int) -> int:
    """How many recipients `lines` whole lines can have in all, at most, before they are parsed.

    A line to n of them has n - 1 commas at least, and 2 n bytes beside its line feed: names and their ends.
    """
    named = (len(data) - lines) // 2
    if _COMMA not in data:  # much faster than to count none
        return lines if lines < named else named
    return min(lines + data.count(b","), named, lines * max_recipients)


def _appended(tail: bytes | bytearray, data: bytes) -> bytes | bytearray:
    if not tail:
        return data
    if isinstance(tail, bytes):
        tail = bytearray(tail)  # grows in place from here on
    tail += data
    return tail


class LineCodec:
    """Parses blocks and encodes runs; one for a worker, since its cache of recipient lists is shared."""

    __slots__ = ("_cache", "_max_recipients", "cache_bytes")

    def __init__(self, max_recipients: int) -> None:
        self._max_recipients = max_recipients
        self._cache: dict[bytes, tuple[str, ...]] = {}  # what stood before ":" to the recipients it means
        self.cache_bytes = 0  # memory that the cache takes, roughly

    def parse(self, data: bytes, lines: int) -> tuple[list[Run], dict[str, int]]:
        """Make runs of a block of `lines` whole lines, in their order; and how many were wrong, by word."""
        if not _is_clean(data):
            data = data.replace(b"\r\n", b"\n")
            if not _is_clean(data):
                return self._parse_lines(data, is_clean=False)
        run = self._one_run(data, lines)
        if run is not None:
            return [run], {}
        return self._parse_lines(data, is_clean=True)

    @staticmethod
    def prefix(login: str) -> bytes:
        """What stands before each text of this sender."""
        return b"from " + login.encode() + b": "

    @staticmethod
    def encode(prefix: bytes, texts: bytes) -> bytes:
        """The lines that a recipient gets; `texts` as in a Run, at least one."""
        if texts.find(b"\n") == len(texts) - 1:
            return prefix + texts  # one
        return b"".join((prefix, texts[:-1].replace(b"\n", b"\n" + prefix), b"\n"))

    def _one_run(self, data: bytes, lines: int) -> Run | None:
        """The whole block as one run when all its lines have the same head, else None."""
        colon = data.find(b":")
        recipients = self._cache.get(data[:colon]) if colon >= 0 else None
        if recipients is None:
            return None
        if lines == 1:
            return Run(recipients, data[colon + 1 :].strip(b" \t\n") + b"\n", 1)
        head = data[: colon + 1] + b" "
        texts = data[:-1].split(b"\n" + head)
        if len(texts) != lines or not data.startswith(head):
            return None  # not every line has this head
        texts[0] = texts[0][len(head) :]
        texts.append(b"")
        return Run(recipients, b"\n".join(map(bytes.strip, texts, repeat(_BLANK))), lines)

    def _parse_lines(self, data: bytes, *, is_clean: bool) -> tuple[list[Run], dict[str, int]]:
        runs: list[Run] = []
        rejected: dict[str, int] = {}
        texts: list[bytes] = []
        latest: Sequence[str] | None = None  # recipients of the texts gathered
        for line in data[:-1].split(b"\n"):
            if not line:
                continue
            word = None if is_clean or _is_clean(line) else "bad-text"
            head, colon, text = line.partition(b":")
            recipients = self._recipients(head) if colon and word is None else None
            if recipients is None or isinstance(recipients, str):
                word = word or recipients or "bad-line"
                rejected[word] = rejected.get(word, 0) + 1
                continue
            if recipients != latest and texts:
                runs.append(_run(latest, texts))
                texts = []
            latest = recipients
            texts.append(text.strip(_BLANK))
        if texts:
            runs.append(_run(latest, texts))
        return runs, rejected

    def _recipients(self, head: bytes) -> tuple[str, ...] | str:
        """The logins before the colon, normalised, each once; or the machine word for what is wrong."""
        found = self._cache.get(head)
        if found is not None:
            return found
        names = (name.strip(_SPACES) for name in head.decode().split(","))
        recipients = tuple(dict.fromkeys(normalised(name) for name in names if name))
        if not recipients:
            return "bad-line"
        if len(recipients) > self._max_recipients:
            return "too-many-recipients"
        self._keep(head, recipients)
        return recipients

    def _keep(self, head: bytes, recipients: tuple[str, ...]) -> None:
        sizes = sum(map(sys.getsizeof, recipients))
        nbytes = _DICT_PLACE_BYTES + sys.getsizeof(head) + sys.getsizeof(recipients) + sizes
        self.cache_bytes += nbytes
        if self.cache_bytes > MAX_CACHE_BYTES:
            self._cache.clear()
            self.cache_bytes = nbytes
        self._cache[head] = recipients


def _run(recipients: Sequence[str] | None, texts: list[bytes]) -> Run:
    assert isinstance(recipients, tuple)
    return Run(recipients, b"\n".join(texts) + b"\n", len(texts))


def _is_clean(data: bytes) -> bool:
    """Valid UTF-8 without control characters but tab and line feed."""
    if data.translate(_WITHOUT_CONTROLS) != data:
        return False
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return _C1.search(data) is None
