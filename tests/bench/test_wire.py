"""Specification of bench.wire: counting by runs of lines, and checks of order that can fail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.wire import Expected, Mixture, Script, payloads

PERIOD = 8
SCRIPT = Script(b"from s1: ", payloads(PERIOD, 4, 40))


def lines(first: int, last: int) -> list[bytes]:
    """The lines of the script from number `first` up to but without `last`."""
    one_period = SCRIPT.text[: SCRIPT.period_bytes].splitlines(keepends=True)
    return [one_period[i % PERIOD] for i in range(first, last)]


def feed(*blocks: bytes) -> tuple[Expected, int]:
    """A fresh receiver that was fed the blocks, and the lines it counted."""
    expected = Expected(SCRIPT)
    return expected, sum(expected.feed(block) for block in blocks)


def faults(expected: Expected) -> tuple[int, int, int]:
    """What the receiver found wrong: reordered, corrupt, notices."""
    return expected.reordered, expected.corrupt, expected.notices


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Any split of the bytes."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=20)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_payloads_have_their_sizes_and_numbers() -> None:
    """Texts have sizes from the smallest to the largest, and no two are equal."""
    texts = payloads(64, 16, 2048)
    assert min(map(len, texts)) == 16
    assert max(map(len, texts)) == 2048
    assert len(set(texts)) == 64
    assert {len(text) for text in payloads(64, 64, 64)} == {64}


def test_payloads_have_all_sizes_when_the_period_is_a_multiple_of_a_group() -> None:
    """A mixture that needs another period than a power of two has as many sizes, none twice."""
    sizes = sorted(map(len, payloads(80, 16, 2048)))
    assert (sizes[0], sizes[-1]) == (16, 2048)
    assert all(a <= b < 1.2 * a for a, b in itertools.pairwise(sizes))


def test_payloads_are_not_in_order_of_size_when_mixed() -> None:
    """Neighbours differ in size, so that a read does not hold texts of one kind."""
    sizes = [len(text) for text in payloads(64, 16, 2048)]
    assert sizes not in (sorted(sizes), sorted(sizes, reverse=True))


@given(st.integers(0, 100))
def test_script_offset_is_the_length_of_the_lines_before_it(count: int) -> None:
    """The offset of a line is the total length of all lines before it, and so many lines have begun there."""
    offset = sum(map(len, lines(0, count)))
    assert SCRIPT.offset(count) == offset
    assert SCRIPT.lines_begun(offset) == count
    assert SCRIPT.lines_begun(offset + 1) == count + 1


@given(st.integers(0, 200))
def test_script_is_cut_within_a_line_never_at_its_ends(line: int) -> None:
    """At least a byte and not the whole line is before the cut."""
    assert SCRIPT.offset(line) < SCRIPT.offset_within(line) < SCRIPT.offset(line + 1)


def test_script_is_cut_elsewhere_when_a_line_comes_again() -> None:
    """Over some periods a line is cut at many of its bytes."""
    cuts = {SCRIPT.offset_within(2 + i * PERIOD) - SCRIPT.offset(2 + i * PERIOD) for i in range(40)}
    assert len(cuts) > 5


MIXTURES = st.integers(1, 32).flatmap(
    lambda every: st.builds(Mixture, st.integers(1, 9), st.just(every), st.integers(0, every - 1))
)


@given(MIXTURES, st.integers(0, 200), st.integers(1, 4))
def test_mixture_counts_a_copy_for_each_receiver_of_each_line(
    mixture: Mixture, count: int, fanout: int
) -> None:
    """The lines for all are one of each group, and the copies are what the lines make one by one."""
    for_all = [mixture.is_for_all(line) for line in range(count)]
    assert mixture.lines_for_all(count) == sum(for_all)
    assert mixture.copies(count, fanout) == sum(fanout + mixture.further * one for one in for_all)
    assert sum(map(mixture.is_for_all, range(mixture.every))) == 1


@given(st.one_of(MIXTURES, st.just(Mixture())), st.integers(0, 2000), st.integers(1, 4))
def test_mixture_tells_whole_lines_from_copies(mixture: Mixture, copies: int, fanout: int) -> None:
    """As many lines as fit into the copies: one more would not."""
    lines = mixture.lines(copies, fanout)
    assert mixture.copies(lines, fanout) <= copies < mixture.copies(lines + 1, fanout)


@given(st.data(), st.integers(0, 50))
def test_expected_counts_the_same_when_bytes_are_split_anywhere(data: st.DataObject, count: int) -> None:
    """Any split of the right bytes gives every line once and no fault."""
    expected, done = feed(*data.draw(pieces(b"".join(lines(0, count)))))
    assert (done, faults(expected)) == (count, (0, 0, 0))


@given(st.data(), st.integers(0, 30), st.integers(1, PERIOD - 1), st.integers(0, 30))
def test_expected_counts_a_loss_once_when_bytes_are_split_anywhere(
    data: st.DataObject, before: int, lost: int, after: int
) -> None:
    """Missing lines are one break of the order, wherever reads end, and are not counted as arrived."""
    stream = lines(0, before) + lines(before + lost, before + lost + after)
    expected, done = feed(*data.draw(pieces(b"".join(stream))))
    assert (done, faults(expected)) == (before + after, (1 if after else 0, 0, 0))


@given(st.data(), st.integers(0, 20), st.sampled_from([b"! refused r1: 3 messages\n", b"! shutdown\n"]))
def test_expected_sets_notices_apart_when_they_come_between_lines(
    data: st.DataObject, at: int, notice: bytes
) -> None:
    """A notice is counted as one and does not disturb the order of the lines around it."""
    stream = [*lines(0, at), notice, *lines(at, 25)]
    expected, done = feed(*data.draw(pieces(b"".join(stream))))
    assert (done, faults(expected)) == (25, (0, 0, 1))


@pytest.mark.parametrize(
    ("stream", "arrived", "wrong"),
    [
        ([*lines(0, 3), *lines(2, 6)], 7, (1, 0, 0)),
        ([*lines(0, 2), *lines(3, 4), *lines(2, 3), *lines(4, 6)], 6, (3, 0, 0)),
        ([*lines(0, 2), b"from s2: 2 x\n", *lines(2, 4)], 4, (0, 1, 0)),
        ([*lines(0, 2), lines(2, 3)[0].replace(b"x\n", b"y\n"), *lines(3, 5)], 4, (1, 1, 0)),
        ([lines(0, 1)[0].rstrip(b"\n") + lines(1, 2)[0], *lines(2, 3)], 1, (1, 1, 0)),
    ],
    ids=["doubled", "swapped", "foreign", "changed", "joined"],
)
def test_expected_reports_a_fault_when_the_stream_differs(
    stream: list[bytes], arrived: int, wrong: tuple[int, int, int]
) -> None:
    """Doubles, changes of order and foreign or damaged lines are each seen and told apart."""
    expected, done = feed(b"".join(stream))
    assert (done, faults(expected)) == (arrived, wrong)


def test_expected_compares_in_one_piece_again_when_a_fault_is_over() -> None:
    """After a fault the receiver agrees with the script again and sees the next fault."""
    expected, _ = feed(b"".join(lines(0, 2) + lines(3, 5)), lines(5, 6)[0][:3], lines(5, 6)[0][3:])
    assert expected.reordered == 1
    assert expected.feed(b"".join(lines(6, 20))) == 14
    expected.feed(lines(3, 4)[0])
    assert expected.reordered == 2


def test_expected_keeps_no_endless_line() -> None:
    """A line that never ends is given up after a bound and counted as corrupt."""
    expected, done = feed(*[b"z" * 1000] * 66)
    assert (done, faults(expected)) == (0, (0, 1, 0))
