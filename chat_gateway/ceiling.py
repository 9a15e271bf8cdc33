"""The bound on the memory of messages in one worker, over all its sessions and outboxes.

Above `HIGH` of it, sessions that hold more than an equal share are not read; since they hold something,
something of theirs will be resolved, and then they are looked at again. Above `FULL` nobody is read, and new
connections are turned away; that everybody is looked at again is seen to by the worker's tick. What is left
above `FULL` is room for the read that passed it; sockets that are read in the same turn bring the least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sized

    from chat_gateway.read_buffers import ReadBuffers
    from stages.message import Ledger

__all__ = ["FULL", "HIGH", "Ceiling"]

HIGH = 0.85  # a share of the ceiling: leaves room for what is on its way already
FULL = 0.95


class Ceiling:
    """Made by a worker's connections; told of what is read, asked by sessions before they read on.

    Args:
        ledger: counts the bytes.
        max_buffered_bytes: the ceiling.
        sessions: how many share it.
        buffers: narrowed when it is full.
    """

    __slots__ = ("_buffers", "_full_bytes", "_high_bytes", "_ledger", "_sessions", "has_held")

    def __init__(
        self, ledger: Ledger, max_buffered_bytes: int, sessions: Sized, buffers: ReadBuffers
    ) -> None:
        self._ledger = ledger
        self._buffers = buffers
        self._high_bytes = int(max_buffered_bytes * HIGH)
        self._full_bytes = int(max_buffered_bytes * FULL)
        self._sessions = sessions
        self.has_held = False  # somebody was held for being full, since this was last set back

    def count(self, nbytes: int) -> None:
        """A read has brought what counts so many bytes; whoever took it sees to it that they go again."""
        ledger = self._ledger
        ledger.buffered_bytes += nbytes
        if ledger.buffered_bytes > self._full_bytes:
            self.has_held = True
            self._buffers.narrow()

    def holds(self, own_bytes: int) -> bool:
        """Whether a session whose messages take so many bytes must not be read now."""
        if self._ledger.buffered_bytes <= self._high_bytes:
            return False
        if self.is_full:
            self.has_held = True
            return True
        return own_bytes * max(len(self._sessions), 1) > self._high_bytes

    @property
    def is_full(self) -> bool:
        """No room for another connection."""
        return self._ledger.buffered_bytes > self._full_bytes
