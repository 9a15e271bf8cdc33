"""What stands behind an Outbox: something to write to, and who owns it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Owner", "Writer"]


class Writer(Protocol):
    """What an Outbox writes to; a transport, or a fake in tests."""

    def write(self, data: bytes) -> None:
        """Take bytes; may call the Outbox' `pause` before it returns."""

    def is_closing(self) -> bool:
        """Nothing that is written from now on will arrive."""


class Owner(Protocol):
    """The connection behind a writer."""

    def unsent_bytes(self) -> int:
        """Bytes that were handed over and have not left the machine."""

    def fail(self) -> None:
        """Its writer raised: nothing can be written any more."""

    def evict(self) -> None:
        """Close it: it has been stuck for too long, or its outbox is full and the policy says so."""
