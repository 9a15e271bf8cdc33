"""The most memory that messages can take in a gateway: it follows from the configuration alone.

Knows what takes memory and where, and nothing of how that is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_gateway.bus_frames import MAX_FRAME_BYTES
from chat_gateway.dead_letters import MAX_QUEUED_BYTES
from chat_gateway.read_buffers import LEAST_READ_BYTES
from chat_gateway.session import BLOCK_OVERHEAD_BYTES, LINE_OVERHEAD_BYTES
from chat_gateway.shares import share_of
from stages.line_codec import MAX_CACHE_BYTES, most_tail_bytes
from stages.message import ENTRY_BYTES
from stages.notices import MAX_LINE_BYTES, MAX_PENDING_BYTES, MAX_TEXT_BYTES

if TYPE_CHECKING:
    from chat_gateway.config import Config

__all__ = ["MemoryBound", "MemoryPart", "most_message_memory_bytes"]

# "b:" and its end: what takes most for each of its bytes once it is encoded.
SHORTEST_LINE_BYTES = 3


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One of the places where bytes of messages can be, at its worst."""

    name: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """The most memory that messages can take: in one worker, and in all of them together."""

    shared: tuple[MemoryPart, ...]  # of a worker
    parts: tuple[MemoryPart, ...]  # of one connection
    connections: int  # of a worker
    workers: int = 1

    @property
    def per_connection_bytes(self) -> int:
        """What one connection can hold beside the shared parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def all_connections_bytes(self) -> int:
        """All connections of a worker at their worst at once."""
        return self.per_connection_bytes * self.connections

    @property
    def worker_bytes(self) -> int:
        """What one worker can take."""
        return sum(part.size_bytes for part in self.shared) + self.all_connections_bytes

    @property
    def total_bytes(self) -> int:
        """The bound: all workers at their worst at once."""
        return self.worker_bytes * self.workers


def most_message_memory_bytes(config: Config, workers: int = 1) -> MemoryBound:
    """The bound on the memory of messages inside a gateway of so many workers.

    `limits.max_buffered_bytes` bounds what was read until its last copy has an outcome, wherever that waits:
    in a stage, in an outbox, parked, in a grace. The credits of the sessions are a share of it, and no bound
    of their own, since what waits in a grace or behind an open breaker holds no credit. It is passed by one
    read, and then by the lines that the least reads may still end. What it does not see comes on top: what is
    made of one read while it is worked on, and for each connection the unfinished line, the notices, and what
    the transport holds, which counts as delivered.
    """
    config = share_of(config, workers)
    limits = config.limits
    read_bytes = limits.max_read_bytes + limits.max_line_bytes  # with the unfinished line before it
    encoded = read_bytes + read_bytes // SHORTEST_LINE_BYTES * LINE_OVERHEAD_BYTES
    counted = [
        MemoryPart("messages in flight", limits.max_buffered_bytes, "limits.max_buffered_bytes"),
        MemoryPart(
            "one read more",
            BLOCK_OVERHEAD_BYTES + read_bytes * (1 + max(LINE_OVERHEAD_BYTES, ENTRY_BYTES // 2)),
            "limits.max_read_bytes of the lines that count most",
        ),
    ]
    shared = [
        *counted,
        MemoryPart("one read at work", 2 * encoded, "limits.max_read_bytes of the shortest lines, encoded"),
        MemoryPart("recipient lists", MAX_CACHE_BYTES, "that were parsed lately"),
    ]
    if config.dead_letters.path:
        shared.append(MemoryPart("dead letters", MAX_QUEUED_BYTES, "that wait for the disk"))
    if workers > 1:
        of_one_bytes = sum(part.size_bytes for part in counted)
        of_one_bytes += limits.max_connections * _ended_line_bytes(config)
        shared += _bus_parts(config, workers - 1, of_one_bytes)
    return MemoryBound(tuple(shared), _connection_parts(config), limits.max_connections, workers)


def _bus_parts(config: Config, others: int, arriving_bytes: int) -> tuple[MemoryPart, ...]:
    """What a worker holds for its links to so many others.

    What others have in flight is counted there and, where it has arrived, here too. A text for recipients at
    several workers is at each of them, so all that each of the others counts, `arriving_bytes`, can be here.
    """
    waiting_bytes = max(config.bus.max_outbox_bytes, MAX_FRAME_BYTES)
    if config.when_full.fanout == "stall":
        waiting_bytes += (
            arriving_bytes  # parked: as much is in flight here, and all of it goes to each of them
        )
    return (
        MemoryPart("from other workers", others * arriving_bytes, "the most that each of them has in flight"),
        MemoryPart("links, waiting", others * waiting_bytes, "bus.max_outbox_bytes for each other worker"),
        MemoryPart("links, one flush", others * MAX_FRAME_BYTES, "to each other worker"),
        MemoryPart("links, one frame", others * 2 * MAX_FRAME_BYTES, "from each other worker, as it is read"),
    )


def _ended_line_bytes(config: Config) -> int:
    """What a line counts that is ended by the least read while memory is full."""
    limits = config.limits
    line = BLOCK_OVERHEAD_BYTES + LINE_OVERHEAD_BYTES + limits.max_line_bytes + LEAST_READ_BYTES
    return line + min(limits.max_recipients, limits.max_line_bytes // 2) * ENTRY_BYTES


def _connection_parts(config: Config) -> tuple[MemoryPart, ...]:
    """What each connection can hold beside the shared parts."""
    limits = config.limits
    encoded = limits.max_line_bytes + LINE_OVERHEAD_BYTES
    notices = MAX_TEXT_BYTES if limits.notices else 0
    return (
        MemoryPart(
            "unfinished line",
            max(most_tail_bytes(limits.max_line_bytes), _ended_line_bytes(config)),
            "limits.max_line_bytes, or ended when memory is full, to limits.max_recipients",
        ),
        MemoryPart(
            "one flush",
            max(config.outbox.send_buffer_bytes, encoded, notices) + MAX_LINE_BYTES,
            "outbox.send_buffer_bytes or the longest line, and the last notice",
        ),
        MemoryPart(
            "notices",
            MAX_PENDING_BYTES if limits.notices else 0,
            "that wait for the next flush, merged by name",
        ),
    )
