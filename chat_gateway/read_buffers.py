"""What one read may fill: less where more of the same is to be feared, next to nothing where memory is full.

All are views of the same bytes, since what a read brought is taken out before the next one is begun.
"""

from __future__ import annotations

__all__ = ["LEAST_READ_BYTES", "LITTLE_READS", "ReadBuffer", "ReadBuffers"]

# What is read at once of a session that was just refused: what it brings is likely to be refused again, at
# the cost of all others in that turn.
_LITTLE_READ_BYTES = 16 * 1024
# How many reads more are as small: what they bring reaches the outboxes some turns of the loop later.
LITTLE_READS = 16
# A transport that is told of a readable socket reads it, whatever we say meanwhile. So little ends one line
# at most, which bounds what all connections together can still bring.
LEAST_READ_BYTES = 1


class ReadBuffer:
    """Shared by all connections that may read as much just now."""

    __slots__ = ("view", "widest")

    def __init__(self, view: memoryview) -> None:
        self.view = view  # what the next read may fill
        self.widest = view  # the same, while memory is not full


class ReadBuffers:
    """Made by a worker's connections.

    Args:
        max_read_bytes: the most that one read may bring.
    """

    __slots__ = ("_is_narrow", "least", "little", "unbounded", "usual")

    def __init__(self, max_read_bytes: int) -> None:
        whole = memoryview(bytearray(max_read_bytes))
        self.usual = ReadBuffer(whole)
        self.little = ReadBuffer(whole[:_LITTLE_READ_BYTES])
        self.least = ReadBuffer(whole[:LEAST_READ_BYTES])
        self.unbounded = ReadBuffer(whole)  # for what is thrown away, so never narrowed
        self._is_narrow = False

    def narrow(self) -> None:
        """Memory is full: from now on every read that is kept brings the least."""
        self._is_narrow = True
        self.usual.view = self.little.view = self.least.view

    def widen(self) -> None:
        """There is room again."""
        if self._is_narrow:
            self._is_narrow = False
            for buffer in (self.usual, self.little):
                buffer.view = buffer.widest
