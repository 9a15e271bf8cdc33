"""One logged-in presence on a connection: its credit, its stalls, its outbox.

It is the `Sender` of its batches and outlives its connection until the last of them has its outcome.
Knows its connection only as something whose reading it can have looked at again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chat_gateway.config import LimitsConfig
    from stages.outbox import Outbox

__all__ = ["Reading", "Session"]


class Reading(Protocol):
    """What a session needs of its connection."""

    def update_reading(self) -> None:
        """Pause or resume reading, as everything together says now."""

    def on_credit_back(self) -> None:
        """Nothing of this session is in flight any more."""

    def end_if_gone(self) -> bool:
        """End it if its peer has gone unnoticed, as happens while reading is paused; True if so."""


class Session:
    """Made by a connection once its login is known to be free; released when both have ended.

    `prefix` is what stands before each of its texts on the wire.
    """

    __slots__ = (
        "_limits",
        "inflight_bytes",
        "inflight_messages",
        "login",
        "outbox",
        "prefix",
        "reading",
        "stalls",
    )

    def __init__(
        self, login: str, prefix: bytes, outbox: Outbox, limits: LimitsConfig, reading: Reading
    ) -> None:
        self.login = login
        self.prefix = prefix
        self.outbox = outbox
        self.inflight_messages = 0  # credit used: accepted or on the way to it, no outcome yet
        self.inflight_bytes = 0
        self.stalls = 0  # outboxes above their high watermark that it writes to
        self._limits = limits
        self.reading = reading

    @property
    def may_read(self) -> bool:
        """It has credit left and no outbox stalls it."""
        return (
            not self.stalls
            and self.inflight_messages < self._limits.max_inflight_messages
            and self.inflight_bytes < self._limits.max_inflight_bytes
        )

    def take(self, messages: int, nbytes: int) -> None:
        """Use credit for what was read; it may be overdrawn by one read."""
        self.inflight_messages += messages
        self.inflight_bytes += nbytes

    def give_back(self, messages: int, nbytes: int) -> None:
        """See `Sender`."""
        limits = self._limits
        was_spent = (
            self.inflight_messages >= limits.max_inflight_messages
            or self.inflight_bytes >= limits.max_inflight_bytes
        )
        self.inflight_messages -= messages
        self.inflight_bytes -= nbytes
        if was_spent:
            self.reading.update_reading()
        if not self.inflight_messages:
            self.reading.on_credit_back()

    def stall(self) -> None:
        """See `Sender`."""
        self.stalls += 1
        if self.stalls == 1:
            self.reading.update_reading()

    def unstall(self) -> None:
        """See `Sender`."""
        self.stalls -= 1
        if not self.stalls:
            self.reading.update_reading()

    def notify(self, word: str, reason: str, *, name: str = "", count: int = 1) -> None:
        """See `Sender`."""
        if self._limits.notices:
            self.outbox.notify(word, reason, name=name, count=count)
