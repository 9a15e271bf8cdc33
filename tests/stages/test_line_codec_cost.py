"""What the line protocol may cost in time and memory, whatever a client sends."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from stages.line_codec import LineCodec, LineFramer, line_count, pieces

if TYPE_CHECKING:
    from collections.abc import Callable


def _seconds(call: Callable[[], object]) -> float:
    """Processor time of this thread, the best of some tries, so that a busy machine does not count."""
    best = 1e9
    for _ in range(3):
        began = time.thread_time()
        call()
        best = min(best, time.thread_time() - began)
    return best


def _feed(pieces: list[bytes], max_line_bytes: int) -> None:
    framer = LineFramer(max_line_bytes)
    for piece in pieces:
        framer.feed(piece)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ([b"x"] * n, n),  # a line that grows by single bytes
        lambda n: ([b"x" * 99 + b"\n"] * (n // 10), n),
        lambda n: ([b"x\n" * n], 8),  # many short lines and a low limit
        lambda n: ([(b"x\n" + b"y" * 8 + b"\n") * (n // 10)], 8),
        lambda n: ([b"x" * n, *([b"\ny"] * n)], n),
    ],
)
def test_framer_takes_linear_time_when_bytes_are_split_against_it(
    make: Callable[[int], tuple[list[bytes], int]],
) -> None:
    """A hundred times the bytes take about a hundred times as long, not the square of it."""
    small, large = make(2_000), make(200_000)
    assert _seconds(lambda: _feed(*large)) < 250 * _seconds(lambda: _feed(*small))  # copying: 550


def _near_misses(n: int) -> bytes:
    head = b"a" * (n // 50)
    return b"".join([head + b": x\n", *[head[1:] + b"\n" + head[:-1] + b"b: x\n"] * 25])


@pytest.mark.parametrize(
    "make",
    [
        lambda n: b"a:\nb:\n" * (n // 6),
        lambda n: b"bob: hi\n" * (n // 8),
        lambda n: b"x" * n + b"\n",
        lambda n: b"\n" * n,
        lambda n: b"\x01\n" * (n // 2),
        lambda n: b"," * n + b":\n",
        lambda n: b",".join(b"%d" % number for number in range(n // 6)) + b":\n",
        lambda n: b"".join(b"n%d:\n" % number for number in range(n // 8)),
        lambda n: ("a" + "\u0301" * (n // 4) + "\u0316" * (n // 4)).encode() + b": x\n",
        lambda n: "é\u009b".encode() * (n // 4) + b"\n",
        _near_misses,
    ],
)
def test_parse_takes_linear_time_when_a_block_is_made_against_it(make: Callable[[int], bytes]) -> None:
    """Thirty times the bytes take about thirty times as long, whatever they are."""
    small, large = make(2_000), make(60_000)

    def parse(block: bytes) -> None:
        codec = LineCodec(256)
        codec.parse(block[: block.index(b"\n") + 1], 1)
        codec.parse(block, block.count(b"\n"))

    assert _seconds(lambda: parse(large)) < 250 * _seconds(lambda: parse(small))  # quadratic: 900


@pytest.mark.parametrize(
    ("make", "lists"),
    [
        (lambda number: b"%d" % number, 45_000),  # short names
        (lambda number: b"%d" % number + b" " * 4000, 6_000),  # short names in long lists
        (lambda number: b"%d" % number + b"x" * 4000, 3_000),  # long names
        (lambda number: b"%d" % number + b"x" * 4000 + "\U0001f600".encode(), 2_000),  # the widest strings
        (lambda number: b",".join(b"%d" % (number + one) for one in range(256)), 800),  # many names
        (lambda number: b"%d" % number + b"x" * 15000, 2_000),  # very long names
    ],
)
def test_parse_keeps_bounded_memory_when_every_line_has_a_new_list(
    make: Callable[[int], bytes], lists: int
) -> None:
    """A client that never repeats itself fills the cache and gets no more of it."""
    codec = LineCodec(256)
    tracemalloc.start()
    try:
        for number in range(lists):
            codec.parse(make(number) + b": x\n", 1)
            assert codec.cache_bytes <= 8 << 20
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 12 << 20


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\n" * 20_000, id="empty lines"),
        pytest.param(b"a,b:\nb,a:\n" * 6000, id="short"),
        pytest.param(b"a:\n" * 3000 + b"a: " + b"x" * 40_000 + b"\n", id="a long one behind"),
        pytest.param(b"a: " + b"x" * 40_000 + b"\n" + b"a:\n" * 3000, id="a long one ahead"),
        pytest.param(b"\n" * 2100 + b"x" * 4000 + b"\n", id="all but one in the first half"),
    ],
)
def test_pieces_are_whole_lines_in_order_when_a_block_has_many(block: bytes) -> None:
    """None has so many that it would keep the loop for long, and none is empty."""
    cut = list(pieces(block))
    assert b"".join(piece for piece, _ in cut) == block
    assert len(cut) > 1
    assert all(piece.endswith(b"\n") and line_count(piece) == lines <= 2048 for piece, lines in cut)


def test_block_stays_whole_when_it_has_few_lines() -> None:
    """However long they are, it is the number of lines that takes time."""
    block = (b"a: " + b"x" * 60 + b"\n") * 1000
    ((piece, lines),) = pieces(block)
    assert (piece is block, lines) == (True, 1000)
