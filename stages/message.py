"""What flows through the stages: blocks, batches and runs of messages, and the account of their copies.

No wire format is known here: a codec makes runs of what it reads and makes bytes of runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENTRY_BYTES", "Batch", "Block", "Copies", "Ledger", "Message", "Refusal", "Run", "Sender"]


# What an entry of an outbox takes beside its text, where its batch has others too: its objects, with the head
# of a text of its own, and the places for it if it is the only one that its sender has parked there.
ENTRY_BYTES = 256


@dataclass(frozen=True, slots=True)
class Message:
    """What one user said: to whom (normalised logins, each once) and the text, without a line end."""

    recipients: tuple[str, ...]
    text: str


class Run:
    """Neighbouring messages of one sender to the same recipients; immutable.

    Texts are UTF-8, each ended by one line feed, which no text contains; so a whole run is checked,
    rewritten and joined by a few calls that run in C.
    """

    __slots__ = ("count", "encoded", "recipients", "texts")

    def __init__(self, recipients: tuple[str, ...], texts: bytes, count: int) -> None:
        self.recipients = recipients  # normalised logins, each once, at least one
        self.texts = texts
        self.count = count  # messages, equal to the line feeds in `texts`
        self.encoded: bytes | None = None  # as recipients get it; filled once, by the deliver stage

    def messages(self) -> Iterator[Message]:
        """The messages one by one, for code that wants them so."""
        return (Message(self.recipients, text) for text in self.texts.decode().split("\n")[: self.count])


class Refusal:
    """Why a copy was refused: the label in metrics and, with spaces, the words in a Notice."""

    UNKNOWN = "not_logged_in"  # nobody is logged in under that name
    FULL = "full"  # the recipient's outbox is full and the policy is to refuse
    BREAKER_OPEN = "breaker_open"  # the recipient was stuck too often
    DROPPED = "dropped"  # newer ones took its place in a full outbox
    EVICTED = "slow_consumer"  # the recipient was stuck for too long and was closed
    GONE = "gone"  # the recipient left before it was delivered
    SHUTDOWN = "shutdown"  # the gateway stops and the recipient does not read
    WORKER_LOST = "worker_lost"  # the worker that had it died: it may have arrived or not
    TIMEOUT = "timeout"  # a stage ran out of time
    ERROR = "error"  # a stage failed; the log says how


class Sender(Protocol):
    """The session that a batch came from, as far as the stages know it."""

    @property
    def login(self) -> str:
        """Its name, normalised."""

    @property
    def prefix(self) -> bytes:
        """What stands before each of its texts on the wire, encoded once for its whole life."""

    def give_back(self, messages: int, nbytes: int, waiting_bytes: int) -> None:
        """Return credit for so many messages and bytes, which still take so much memory until they settle."""

    def settle(self, messages: int, waiting_bytes: int) -> None:
        """So many messages have all their outcomes, and their credit was returned before."""

    def finish(self, messages: int, nbytes: int) -> None:
        """So many messages have all their outcomes, and their credit was held until now."""

    def stall(self) -> None:
        """An outbox that it writes to is above its high watermark: stop reading."""

    def unstall(self) -> None:
        """That outbox has room again; `stall` and `unstall` come in pairs, one for each outbox."""

    def expect_refusals(self) -> None:
        """An outbox that it writes to refuses everything from now on, and gives back what holds it."""

    def notify(
        self, word: str, reason: str, *, name: str = "", count: int = 1, lines: float | None = None
    ) -> None:
        """Send a Notice, merged with its like, about `count` copies or lines.

        `lines` is how many lines' worth that is, where it is not `count`.
        """


class Copies(Protocol):
    """What copies belong to, as far as an outbox knows it: a batch, or what stands for one elsewhere."""

    runs_on: bool  # its sender is not to be held by what of it must wait

    @property
    def sender(self) -> Sender:
        """Who said them; equal for all that one sender said."""

    def return_credit(self) -> None:
        """Whatever of it waits from here on is bounded by somebody else than its sender's credit."""

    def deliver(self, copies: int) -> None:
        """So many were handed to the writer."""

    def refuse(self, copies: int, reason: str, name: str) -> None:
        """So many to the login `name` ended without that."""


class Block(NamedTuple):
    """All whole lines of one read: each ended by a line feed; what the parse stage takes.

    It becomes a batch or is discarded, and so stops to hold what it holds.
    """

    sender: Sender
    data: bytes
    lines: int
    cost_bytes: int  # the credit it holds
    counted_bytes: int  # its part of `Ledger.buffered_bytes`: the most that a batch of it can count

    def discard(self, ledger: Ledger) -> None:
        """No batch was made of it: it counts no longer, and its sender has its credit back."""
        ledger.buffered_bytes -= self.counted_bytes
        self.sender.finish(self.lines, self.cost_bytes)


class Ledger:
    """One worker's account of copies: every accepted one ends exactly once.

    `accepted = delivered + stored + sum(refused) + in_flight` holds between any two calls. `in_flight` is
    counted on its own, where copies are taken in and resolved, so that the sum can be checked.
    `buffered_bytes` is the sum of `Block.counted_bytes` over all that were read and are no batch yet and of
    `Batch.memory_bytes` over all batches with a copy in flight; so it is 0 when nothing is under way.
    """

    __slots__ = (
        "accepted",
        "buffered_bytes",
        "bytes_in",
        "bytes_out",
        "delivered",
        "flushes",
        "in_flight",
        "peak_outbox_bytes",
        "refused",
        "rejected",
        "stored",
    )

    def __init__(self) -> None:
        self.accepted = 0  # copies that were taken in
        self.delivered = 0  # copies whose last byte was handed to a transport
        self.stored = 0  # copies kept for a recipient that is away
        self.refused: Counter[str] = Counter()  # copies by reason
        self.in_flight = 0  # copies taken in and without an outcome
        self.rejected: Counter[str] = Counter()  # lines that never became messages, by machine word
        self.buffered_bytes = 0  # that messages count in memory, from the read to their last outcome
        self.bytes_in = 0  # read from clients
        self.bytes_out = 0  # handed to transports
        self.flushes = 0  # calls of writers
        self.peak_outbox_bytes = 0  # most that was pending in one outbox, reset by whoever reports

    @property
    def is_balanced(self) -> bool:
        """The sum holds."""
        ended = self.delivered + self.stored + self.refused.total()
        return self.accepted == ended + self.in_flight


class Batch:
    """The messages of one session that arrived in one read; the unit that flows.

    Made by the parse stage, which accepts its copies. Holds its sender's credit until the last copy
    has an outcome. `counted_bytes` is what its block counted, which it counts instead from here on.
    """

    __slots__ = (
        "copies",
        "has_credit",
        "ledger",
        "memory_bytes",
        "messages",
        "nbytes",
        "pending",
        "runs",
        "runs_on",
        "sender",
    )

    def __init__(
        self,
        sender: Sender,
        runs: list[Run],
        *,
        messages: int,
        nbytes: int,
        ledger: Ledger,
        counted_bytes: int = 0,
    ) -> None:
        self.sender = sender
        self.runs = runs  # in the order they were said
        self.messages = messages  # credit held: messages
        self.nbytes = nbytes  # credit held: bytes, as they count in memory
        self.has_credit = True  # it has not been given back yet
        self.ledger = ledger
        self.runs_on = False  # its sender is not to be held by what of it must wait
        self.memory_bytes = nbytes  # that it counts against the ceiling
        copies = entries = 0
        for run in runs:
            recipients = len(run.recipients)
            copies += run.count * recipients
            entries += recipients
        if entries > 1:
            self.memory_bytes += entries * ENTRY_BYTES
        self.copies = copies  # copies in all
        self.pending = copies  # copies without an outcome
        ledger.accepted += copies
        ledger.in_flight += copies
        ledger.buffered_bytes += self.memory_bytes - counted_bytes

    def deliver(self, copies: int) -> None:
        """So many copies were handed to a transport: counted, resolved."""
        ledger = self.ledger
        ledger.delivered += copies
        ledger.in_flight -= copies
        self.pending -= copies
        if not self.pending:
            self._end()

    def resolve(self, copies: int) -> None:
        """So many copies have ended; the caller has counted how. The last one returns the credit."""
        self.ledger.in_flight -= copies
        self.pending -= copies
        if not self.pending:
            self._end()

    def return_credit(self) -> None:
        """Give the credit back, once; the copies may still be in flight, bounded by somebody else then."""
        if self.has_credit:
            self.has_credit = False
            self.sender.give_back(self.messages, self.nbytes, self.memory_bytes)

    def _end(self) -> None:
        """Every copy has its outcome."""
        self.ledger.buffered_bytes -= self.memory_bytes
        if self.has_credit:
            self.has_credit = False
            self.sender.finish(self.messages, self.nbytes)
        else:
            self.sender.settle(self.messages, self.memory_bytes)

    def split_off(self, messages: int, copies: int) -> Batch:
        """Make a batch of its own of so many messages and copies, with their share of the credit.

        Credit is returned by whole batches, so what may hold its sender must not be in one with what may not.
        """
        part = Batch(self.sender, [], messages=messages, nbytes=0, ledger=self.ledger)
        share = messages / max(self.messages, 1)
        part.nbytes, part.memory_bytes = int(self.nbytes * share), int(self.memory_bytes * share)
        part.copies = part.pending = copies
        self.messages -= messages
        self.nbytes -= part.nbytes
        self.memory_bytes -= part.memory_bytes
        self.copies -= copies
        self.pending -= copies
        return part

    def refuse(self, copies: int, reason: str, name: str) -> None:
        """So many copies to the login `name` are refused: counted, told to the sender, resolved."""
        self.ledger.refused[reason] += copies
        word = "unknown-recipient" if reason == Refusal.UNKNOWN else "refused"
        lines = copies * self.messages / self.copies  # one of a hundred recipients is little of a line
        self.sender.notify(word, reason, name=name, count=copies, lines=lines)
        self.resolve(copies)
