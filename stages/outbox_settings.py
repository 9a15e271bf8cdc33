"""The bounds and policies that all outboxes of a worker share, and what they queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from stages.message import Copies

__all__ = ["Entry", "OutboxSettings", "WhenFull"]

WhenFull: TypeAlias = Literal["stall", "refuse", "drop_oldest", "disconnect"]

Entry: TypeAlias = tuple[bytes | memoryview, int, Copies]
"""Encoded lines, how many copies they are, and the batch that these belong to.

A view is what is left of an entry that was handed over in part.
"""


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """Bounds and policies, the same for all outboxes of a worker."""

    max_outbox_bytes: int  # pending at most
    high_watermark_bytes: int  # above: senders are stalled
    low_watermark_bytes: int  # at or under: they go on
    max_flush_bytes: int  # handed to the writer in one call, unless one line is longer
    direct: WhenFull = "stall"  # a full outbox and a message to one recipient
    fanout: WhenFull = "refuse"  # a full outbox and a message to several
