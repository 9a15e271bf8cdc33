"""Stand-ins for what surrounds the stages: a session, a transport and the event loop's turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.flusher import Flusher
from stages.message import Batch, Ledger, Refusal, Run
from stages.outbox import Entry, Outbox, OutboxSettings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "OUTBOX_SETTINGS",
    "FakeOwner",
    "FakeSender",
    "FakeWriter",
    "Turns",
    "World",
    "entry_of",
    "open_outbox",
    "run_of",
    "sized",
]


class FakeSender:
    """A session that only remembers what it was told."""

    def __init__(self, login: str = "alice") -> None:
        self.login = login
        self.prefix = b"from " + login.encode() + b": "
        self.given_back: list[tuple[int, int]] = []  # (messages, bytes)
        self.settled = 0  # messages that have all their outcomes
        self.waiting_bytes = 0  # memory of those that hold no credit any more
        self.stalls = 0  # stalls without their unstall
        self.stalled_ever = 0
        self.expected_at: list[int] = []  # credits returned before it was told of refusals to come
        self.notices: list[tuple[str, str, str, int]] = []  # (word, reason, name, count)

    def give_back(self, messages: int, nbytes: int, waiting_bytes: int) -> None:
        """See `Sender`."""
        self.given_back.append((messages, nbytes))
        self.waiting_bytes += waiting_bytes

    def settle(self, messages: int, waiting_bytes: int) -> None:
        """See `Sender`."""
        self.settled += messages
        self.waiting_bytes -= waiting_bytes

    def finish(self, messages: int, nbytes: int) -> None:
        """See `Sender`."""
        self.give_back(messages, nbytes, 0)
        self.settle(messages, 0)

    def stall(self) -> None:
        """See `Sender`."""
        self.stalls += 1
        self.stalled_ever += 1

    def unstall(self) -> None:
        """See `Sender`."""
        self.stalls -= 1

    def expect_refusals(self) -> None:
        """See `Sender`."""
        self.expected_at.append(len(self.given_back))

    def notify(
        self, word: str, reason: str, *, name: str = "", count: int = 1, lines: float | None = None
    ) -> None:
        """See `Sender`."""
        self.notices.append((word, reason, name, count))


class FakeWriter:
    """A transport that takes everything, or one write at a time while `is_stuck`: its peer reads slowly."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []  # what each call of `write` brought
        self.is_stuck = False
        self.error: Exception | None = None  # raised by `write`
        self.closing = False
        self.outbox: Outbox | None = None  # told to pause

    @property
    def written(self) -> bytes:
        """All it was given."""
        return b"".join(self.calls)

    def write(self, data: bytes) -> None:
        """See `Writer`."""
        if self.error is not None:
            raise self.error
        self.calls.append(data)
        if self.is_stuck and self.outbox is not None:
            self.outbox.pause()

    def is_closing(self) -> bool:
        """See `Writer`."""
        return self.closing

    def let_one_through(self) -> None:
        """The peer has read what it was sent; what is written next waits again."""
        assert self.outbox is not None
        self.outbox.resume()

    def free(self) -> None:
        """The peer reads everything from now on."""
        self.is_stuck = False
        self.let_one_through()


class Turns:
    """The event loop, as far as a flusher needs it: calls wait until the turn ends."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], None]] = []
        self.errors: list[tuple[Outbox, Exception]] = []
        self.flusher = Flusher(self.scheduled.append, self._on_error)

    def end(self) -> None:
        """Run what was scheduled, and what that schedules."""
        while self.scheduled:
            self.scheduled.pop(0)()

    def _on_error(self, outbox: Outbox, error: Exception) -> None:
        self.errors.append((outbox, error))
        outbox.close(Refusal.ERROR)


def open_outbox(
    settings: OutboxSettings, ledger: Ledger, turns: Turns, writer: FakeWriter | None = None
) -> tuple[Outbox, FakeWriter]:
    """An outbox named bob, and the writer behind it."""
    writer = writer or FakeWriter()
    outbox = Outbox(writer, settings, ledger, turns.flusher)
    outbox.name = "bob"
    writer.outbox = outbox
    return outbox, writer


def run_of(recipients: str, *texts: str) -> Run:
    """A run of texts to logins that are divided by blanks."""
    return Run(tuple(recipients.split()), "".join(f"{text}\n" for text in texts).encode(), len(texts))


def entry_of(sender: FakeSender, ledger: Ledger, payload: bytes, copies: int = 1) -> Entry:
    """An entry that is a whole batch."""
    run = Run(("bob",), b"\n" * copies, copies)
    return payload, copies, Batch(sender, [run], messages=copies, nbytes=len(payload), ledger=ledger)


OUTBOX_SETTINGS = OutboxSettings(
    max_outbox_bytes=100, high_watermark_bytes=60, low_watermark_bytes=20, max_flush_bytes=50
)


class World:
    """One outbox, its writer, and what surrounds them."""

    def __init__(self, settings: OutboxSettings = OUTBOX_SETTINGS) -> None:
        self.ledger = Ledger()
        self.turns = Turns()
        self.outbox, self.writer = open_outbox(settings, self.ledger, self.turns)
        self.alice, self.eve = FakeSender("alice"), FakeSender("eve")

    def offer(self, sender: FakeSender, payload: bytes, *, is_fanout: bool = False) -> None:
        self.outbox.offer(entry_of(sender, self.ledger, payload), is_fanout=is_fanout)
        assert self.ledger.is_balanced

    def let_through_one_by_one(self) -> list[bytes]:
        """What leaves, write by write, while the peer reads slowly."""
        self.writer.is_stuck = True
        before = len(self.writer.calls)
        for _ in range(100):
            self.writer.let_one_through()
            self.turns.end()
        return self.writer.calls[before:]


def sized(name: str, nbytes: int) -> bytes:
    return name.encode().ljust(nbytes - 1, b".") + b"\n"


class FakeOwner:
    """A connection that only counts."""

    def __init__(self, unsent_bytes: int = 0) -> None:
        self.evictions = 0
        self.failures = 0
        self._unsent_bytes = unsent_bytes

    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def fail(self) -> None:
        """See `Owner`."""
        self.failures += 1

    def evict(self) -> None:
        self.evictions += 1
