"""The high and low pair: one answer for each crossing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.watermarks import Watermarks


def test_watermarks_rises_once_when_level_goes_above_high() -> None:
    """`rise` is True for the first level above the high mark only, and not for the mark itself."""
    marks = Watermarks(high=10, low=4)
    assert [marks.rise(level) for level in (9, 10, 11, 12)] == [False, False, True, False]
    assert marks.is_above


def test_watermarks_falls_once_when_level_is_back_at_low() -> None:
    """`fall` is True for the first level at or under the low mark only, not between the marks."""
    marks = Watermarks(high=10, low=4)
    marks.rise(11)
    assert [marks.fall(level) for level in (10, 5, 4, 3)] == [False, False, True, False]
    assert not marks.is_above


def test_watermarks_falls_not_when_it_was_never_above() -> None:
    """A level under the low mark says nothing as long as the high one was not crossed."""
    marks = Watermarks(high=10, low=4)
    assert not marks.rise(7)
    assert not marks.fall(0)


@pytest.mark.parametrize(("high", "low"), [(4, 4), (4, 5), (4, -1), (0, 0)])
def test_watermarks_refuses_when_marks_are_not_a_pair(high: int, low: int) -> None:
    """The low mark is at least zero and less than the high one."""
    with pytest.raises(ValueError, match="low < high"):
        Watermarks(high, low)


@given(
    low=st.integers(0, 5),
    gap=st.integers(1, 5),
    levels=st.lists(st.integers(0, 12), max_size=40),
)
def test_watermarks_alternates_when_both_are_asked(low: int, gap: int, levels: list[int]) -> None:
    """For any levels, pause and resume take turns, and each is right about the level it is given for."""
    marks = Watermarks(low + gap, low)
    crossings: list[str] = []
    for level in levels:
        if marks.rise(level):
            crossings.append("pause")
        elif marks.fall(level):
            crossings.append("resume")
        assert marks.is_above == (crossings[-1:] == ["pause"])
        assert level <= low + gap or marks.is_above
        assert level > low or not marks.is_above
    assert crossings == ["pause", "resume"] * (len(crossings) // 2) + ["pause"] * (len(crossings) % 2)
