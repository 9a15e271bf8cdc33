"""Specification of bench.memory."""

from __future__ import annotations

import pytest

from bench.memory import (
    Bounds,
    Sample,
    fallen_after_s,
    fallen_share,
    late_growth_bytes,
    parse_check,
    peak_bytes,
)

REPORT = """# The effective configuration.

[limits]
max_line_bytes = 16384

# The most memory that messages can take, all at their worst at once:
#   messages in flight      1.0 GiB   (1073741824 bytes)  limits.max_buffered_bytes
#   10 connections          2.1 MiB      (2200000 bytes)  each of them:
#     unfinished line      80.0 KiB        (81920 bytes)  limits.max_line_bytes, and the read that passes it
#   in all                  1.0 GiB   (1075941824 bytes)  and beside it the socket buffers of the kernel
"""


def test_parse_check_finds_configuration_and_parts_when_the_report_is_whole() -> None:
    """The report is TOML, and every part of its bound is found under its name."""
    assert parse_check(REPORT) == Bounds(
        {"limits": {"max_line_bytes": 16384}},
        {
            "messages in flight": 1 << 30, "10 connections": 2_200_000, "unfinished line": 81_920,
            "in all": 1_075_941_824,
        },
    )  # fmt: skip
    assert parse_check(REPORT).total_bytes == 1_075_941_824


def test_parse_check_raises_when_no_bound_is_printed() -> None:
    """A report whose form has changed is noticed."""
    with pytest.raises(ValueError, match="no bound"):
        parse_check("[limits]\nmax_line_bytes = 1\n")


def samples(*resident: int) -> list[Sample]:
    """One sample a second, beginning at a clock of 100."""
    return [(100.0 + i, value) for i, value in enumerate(resident)]


def test_late_growth_is_what_the_second_half_adds_when_memory_keeps_growing() -> None:
    """Memory that stays has none; a rise in the first half does not hide one in the second."""
    assert late_growth_bytes(samples(1, 9, 9, 9, 8)) == 0
    assert late_growth_bytes(samples(1, 9, 3, 2, 15)) == 6
    assert late_growth_bytes([]) == 0


def test_fallen_is_when_three_quarters_of_the_rise_are_given_back() -> None:
    """The time counts from the first sample, and is None for a process that keeps more."""
    assert fallen_after_s(samples(90, 60, 35, 30), 10, 110) == 2.0
    assert fallen_after_s(samples(90, 60, 36), 10, 110) is None


def test_fallen_share_compares_the_last_sample_with_the_rise() -> None:
    """All given back is 1, nothing is 0, and without a rise there is no share."""
    assert fallen_share(samples(110, 60), 10, 110) == 0.5
    assert fallen_share(samples(110), 10, 110) == 0.0
    assert fallen_share([], 10, 110) is None
    assert fallen_share(samples(10), 10, 10) is None


def test_peak_is_the_largest_sample_when_there_is_one() -> None:
    """Nothing sampled is 0."""
    assert peak_bytes(samples(3, 8, 5)) == 8
    assert peak_bytes([]) == 0
