"""How evenly something is shared; no sockets, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def jain_index(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one of n has everything.

    Source: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness", 1984. Nothing shared is 1.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
