"""Specification of bench.fairness."""

from __future__ import annotations

import pytest

from bench.fairness import jain_index


@pytest.mark.parametrize(
    ("shares", "index"),
    [([7, 7, 7], 1.0), ([0, 5, 0, 0], 0.25), ([1, 3], 0.8), ([0, 0], 1.0), ([], 1.0)],
    ids=["equal", "one has all", "unequal", "nothing shared", "nobody"],
)
def test_jain_index_is_one_only_when_shares_are_equal(shares: list[int], index: float) -> None:
    """Equal shares give 1, a single winner among n gives 1/n, in between it is the square of sums ratio."""
    assert jain_index(shares) == pytest.approx(index)
