"""One logged-in presence on a connection: its credit, its stalls, its outbox.

It is the `Sender` of its batches and outlives its connection until the last of them has its outcome.
Knows its connection only as something whose reading it can have looked at again.
"""

from __future__ import annotations

import random as chance
import time
from typing import TYPE_CHECKING, Protocol

from pipeline.token_bucket import TokenBucket
from stages.line_codec import most_entries
from stages.message import ENTRY_BYTES, Block

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.ceiling import Ceiling
    from chat_gateway.config import LimitsConfig
    from stages.outbox import Outbox

__all__ = ["BLOCK_OVERHEAD_BYTES", "LINE_OVERHEAD_BYTES", "Reading", "Session"]


# The longest time a session is not read at a stretch for having said too much. A debt of messages is paid in
# full all the same, one pause after the other; one of refusals is forgiven then, since a stuck recipient can
# make all that is on its way to it one.
_MAX_PAUSE_S = 5.0

# By how much a wait for having been refused may be longer than it must, drawn anew each time: breakers that
# opened together must not bring all their senders back in the same moment.
_SPREAD = 0.5

# Over what time those that were stalled come back when they are to be refused, drawn for each; they have
# waited for several times `write_timeout_s`.
_MAX_RETURN_S = 0.5

# What a block of lines takes in memory beside its bytes: its objects, and for each line what is put in
# front of it on its way out ("from ", a login of at most 64 bytes, ": ").
BLOCK_OVERHEAD_BYTES = 512
LINE_OVERHEAD_BYTES = 72


class Reading(Protocol):
    """What a session needs of its connection."""

    @property
    def is_reading(self) -> bool:
        """Whether its socket is read now."""

    def update_reading(self) -> None:
        """Pause or resume reading, as everything together says now."""

    def pause_for(self, seconds: float) -> None:
        """Do not read for so long."""

    def read_little(self) -> None:
        """Read only a few lines at once for a while, since more of the same is to be feared."""

    def on_settled(self) -> None:
        """Every message of this session, which is leaving, has its outcome."""

    def nudge(self) -> None:
        """Send its peer something: one that has died without a word answers with a reset."""

    def has_peer_ended(self) -> bool:
        """Whether its peer has closed its side, which need not have been read yet."""

    def end_if_gone(self) -> bool:
        """End it if its peer has gone and it has not noticed; True if so.

        While it is read, only a broken connection counts: who has just ended the stream may await answers.
        """


class Session:
    """Made by a connection once its login is known to be free; released when both have ended.

    `prefix` is what stands before each of its texts on the wire.
    """

    __slots__ = (
        "_ceiling",
        "_limits",
        "_messages",
        "_random",
        "_refusals",
        "inflight_bytes",
        "inflight_messages",
        "is_leaving",
        "login",
        "outbox",
        "prefix",
        "reading",
        "stalls",
        "unsettled_messages",
        "waiting_bytes",
    )

    def __init__(
        self,
        login: str,
        prefix: bytes,
        outbox: Outbox,
        limits: LimitsConfig,
        ceiling: Ceiling,
        reading: Reading,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self.login = login
        self.prefix = prefix
        self.outbox = outbox
        self.inflight_messages = 0  # credit used: accepted or on the way to it, no outcome yet
        self.inflight_bytes = 0
        self.unsettled_messages = 0  # without an outcome, whoever bounds them
        self.waiting_bytes = 0  # memory of those that hold no credit any more
        self.is_leaving = False  # its connection waits for the last outcome
        self.stalls = 0  # outboxes above their high watermark that it writes to
        self.reading = reading
        self._limits = limits
        self._ceiling = ceiling
        self._random = random
        self._messages: TokenBucket | None = None  # of messages, where their rate is limited
        self._refusals: TokenBucket | None = None  # of refused lines, from the first one on
        if limits.messages_per_s:
            self._messages = TokenBucket(limits.messages_per_s, limits.messages_burst, time.monotonic)

    @property
    def may_read(self) -> bool:
        """It has credit left, no outbox stalls it, and the memory of the whole gateway allows it."""
        return (
            not self.stalls
            and self.inflight_messages < self._limits.max_inflight_messages
            and self.inflight_bytes < self._limits.max_inflight_bytes
            and not self._ceiling.holds(self.inflight_bytes + self.waiting_bytes)
        )

    def take(self, data: bytes, lines: int) -> Block:
        """Make a block of `lines` whole lines that were read, which uses credit; one read may overdraw it."""
        cost_bytes = len(data) + BLOCK_OVERHEAD_BYTES + lines * LINE_OVERHEAD_BYTES
        self.inflight_messages += lines
        self.unsettled_messages += lines
        self.inflight_bytes += cost_bytes
        counted_bytes = cost_bytes + ENTRY_BYTES * most_entries(data, lines, self._limits.max_recipients)
        self._ceiling.count(counted_bytes)
        if self._messages is not None:
            self._slow_down(self._messages, lines)
        return Block(self, data, lines, cost_bytes, counted_bytes)

    def give_back(self, messages: int, nbytes: int, waiting_bytes: int) -> None:
        """See `Sender`."""
        self.inflight_messages -= messages
        self.inflight_bytes -= nbytes
        self.waiting_bytes += waiting_bytes
        if not self.reading.is_reading:
            self.reading.update_reading()

    def settle(self, messages: int, waiting_bytes: int) -> None:
        """See `Sender`."""
        self.unsettled_messages -= messages
        self.waiting_bytes -= waiting_bytes
        if not self.reading.is_reading:
            self.reading.update_reading()
        if self.is_leaving and not self.unsettled_messages:
            self.reading.on_settled()

    def finish(self, messages: int, nbytes: int) -> None:
        """See `Sender`."""
        self.inflight_messages -= messages
        self.inflight_bytes -= nbytes
        self.unsettled_messages -= messages
        if not self.reading.is_reading:
            self.reading.update_reading()
        if self.is_leaving and not self.unsettled_messages:
            self.reading.on_settled()

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

    def expect_refusals(self) -> None:
        """See `Sender`. What it has ready is not read all at once."""
        if self._limits.refused_per_s:
            self.reading.read_little()
            if self.stalls:
                self.reading.pause_for(_MAX_RETURN_S * self._random())

    def notify(
        self, word: str, reason: str, *, name: str = "", count: int = 1, lines: float | None = None
    ) -> None:
        """See `Sender`. Whoever is refused a lot is read more slowly, so that it is not free."""
        limits = self._limits
        if limits.notices:
            self.outbox.notify(word, reason, name=name, count=count)
        if limits.refused_per_s:
            if self._refusals is None:
                self._refusals = TokenBucket(limits.refused_per_s, limits.refused_burst, time.monotonic)
            delay_s = self._refusals.take(count if lines is None else lines)
            if delay_s > 0:
                self.reading.pause_for(min(delay_s, _MAX_PAUSE_S) * (1 + _SPREAD * self._random()))
            self.reading.read_little()

    def on_pause_over(self) -> None:
        """A pause has ended: begin the next one, as long as more was said than `messages_per_s` allows."""
        if self._messages is not None:
            self._slow_down(self._messages, 0)

    def _slow_down(self, bucket: TokenBucket, count: int) -> None:
        delay_s = bucket.take(count)
        if delay_s > 0:
            self.reading.pause_for(min(delay_s, _MAX_PAUSE_S))
