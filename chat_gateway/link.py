"""The connection to one other worker: frames out through an outbox, frames in at once.

What is said of logins and outcomes goes ahead of batches, gathered over one turn of the loop, and is never
refused. What comes in is always read: credits of the sessions it comes from bound it. A link that is lost is
a worker that is dead.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from chat_gateway import bus_frames
from chat_gateway.bus_frames import (
    MAX_FRAME_BYTES,
    Carry,
    FrameError,
    Frames,
    Greet,
    Outcomes,
    Ping,
    Pong,
    decoder_of,
    encode_frame,
)
from chat_gateway.crossing import Arrival, Crossing, gathered
from chat_gateway.sockets import unsent_bytes
from stages.message import Refusal
from stages.route import Cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import msgspec

    from chat_gateway.bus_frames import DirectoryMessage, Returned
    from chat_gateway.bus_statistics import BusStatistics
    from stages.flusher import Flusher
    from stages.message import Batch, Ledger
    from stages.outbox import Outbox
    from stages.writer import Owner, Writer

__all__ = ["Link", "LinkOwner"]

_DECODER = decoder_of(bus_frames.Message)

# Texts of one frame, unless a single line is longer; and logins of one text.
_MAX_CARRY_BYTES = 256 * 1024
_MAX_NAMES = 4096
# How long deliveries may wait to be reported, for a frame that goes there anyway: each report by itself wakes
# the other worker once more. Their sender's credit waits as long.
_REPORT_AFTER_S = 0.001


class LinkOwner(Protocol):
    """What a link needs of its worker."""

    wid: int  # of this worker
    ledger: Ledger
    counts: BusStatistics
    flusher: Flusher
    loop: asyncio.AbstractEventLoop

    def open_link_outbox(self, writer: Writer, owner: Owner) -> Outbox:
        """The outbox in front of a link."""

    def on_greeting(self, link: Link) -> None:
        """The other worker has said who it is."""

    def on_message(self, link: Link, message: DirectoryMessage) -> None:
        """It says something of logins."""

    def find_here(self, login: str) -> Outbox | None:
        """The outbox of a login that lives at this worker."""

    def on_returned(self, link: Link, crossing: Crossing, returned: Returned) -> None:
        """Copies came back whose login was not there."""

    def only_there(self, link: Link, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> Sequence[Cut]:
        """Those copies that still go to that worker; the others, which were routed before, go elsewhere."""

    def on_answered(self, login: str, crossing: Crossing) -> None:
        """Copies for this login have their outcome."""

    def on_pong(self, number: int) -> None:
        """A ping is answered."""

    def on_lost(self, link: Link, why: str) -> None:
        """It has ended."""


class Link(asyncio.Protocol):
    """Made by the bus when it dials or accepts; ends with its connection. A `Peer` for the stages."""

    def __init__(self, owner: LinkOwner) -> None:
        self.wid = 0  # who is at the other end, once it has said so
        self.outbox: Outbox | None = None
        self.waiting: dict[str, int] = {}  # logins that have frames without an outcome there: how many
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._frames = Frames(_DECODER)
        self._ahead: list[bytes] = []  # frames that go before batches
        self._crossings: dict[int, Crossing] = {}  # by the id of their frame
        self._last_id = 0
        self._reports: list[Arrival] = []  # that have something to report
        self._report_timer: asyncio.TimerHandle | None = None  # since then
        self._why = ""  # it is lost

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, from whichever side."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0, low=0)
        self.outbox = self._owner.open_link_outbox(self._transport, self)
        self.outbox.ahead = self._take_ahead
        self.post(Greet(self._owner.wid))

    def data_received(self, data: bytes) -> None:
        """Frames, or parts of them."""
        self._owner.counts.bytes_in += len(data)
        self._owner.flusher.expect_flush()  # for what comes of it, once
        try:
            for message in self._frames.feed(data):
                self._on_message(message)
        except FrameError as error:
            self.give_up(f"worker {self.wid} sent {error}")
        finally:
            self._owner.flusher.flush()

    def pause_writing(self) -> None:
        """The transport holds bytes that the kernel has not taken."""
        assert self.outbox is not None
        self.outbox.pause()

    def resume_writing(self) -> None:
        """The transport has handed everything on."""
        assert self.outbox is not None
        self.outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other worker is gone; what it had may have arrived or not."""
        self._transport = None
        self._reported()
        if self.outbox is not None:
            self.outbox.ahead = None
            self.outbox.close(Refusal.WORKER_LOST)
        for crossing in list(self._crossings.values()):
            crossing.lose(Refusal.WORKER_LOST)
        self._owner.on_lost(self, self._why or (str(exc) if exc else "closed"))

    # What the bus calls.

    def post(self, message: msgspec.Struct) -> None:
        """Say something at the end of this turn, ahead of batches."""
        if self.outbox is not None and self._transport is not None:
            self._ahead.append(encode_frame(message))
            self.outbox.flush_soon()

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        """See `Peer`."""
        assert self.outbox is not None
        counts, waiting = self._owner.counts, self.waiting
        for group in _framed(self._owner.only_there(self, batch, cuts, is_fanout=is_fanout)):
            self._last_id += 1
            crossing = Crossing(self._last_id, batch, group, self, is_fanout=is_fanout)
            self._crossings[crossing.id] = crossing
            for name in crossing.names:
                waiting[name] = waiting.get(name, 0) + 1
            counts.batches_out += 1
            counts.copies_out += crossing.pending
            carried = cast("list[bus_frames.Cut]", group)  # tuples of the same fields are encoded alike
            frame = encode_frame(Carry(crossing.id, batch.sender.login, is_fanout, carried))
            self.outbox.offer((frame, crossing.pending, crossing), is_fanout=is_fanout)

    def close(self) -> None:
        """Send what is to be said and close."""
        if self.outbox is not None and self._transport is not None:
            self.outbox.flush()
            self._transport.close()

    def give_up(self, why: str) -> None:
        """Nothing can be said or heard any more."""
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    # What the outbox calls.

    def unsent_bytes(self) -> int:
        """See `Owner`: what the transport and the kernel hold."""
        if self._transport is None:
            return 0
        sock = self._transport.get_extra_info("socket")
        return self._transport.get_write_buffer_size() + unsent_bytes(sock)

    def fail(self) -> None:
        """See `Owner`."""
        self.give_up("the link failed")

    def evict(self) -> None:
        """See `Owner`: the supervisor has long killed a worker that hangs, unless it is to wait longer."""
        self.give_up("it took nothing for too long")

    # What crossings and arrivals call.

    def on_crossed(self, crossing: Crossing) -> None:
        """See `Origin`."""
        del self._crossings[crossing.id]
        for name in crossing.names:
            left = self.waiting[name] - 1
            if left:
                self.waiting[name] = left
            else:
                del self.waiting[name]
            self._owner.on_answered(name, crossing)

    def on_returned(self, crossing: Crossing, returned: Returned) -> None:
        """See `Origin`."""
        self._owner.on_returned(self, crossing, returned)

    def on_outcome(self, arrival: Arrival) -> None:
        """See `Destination`."""
        self._reports.append(arrival)
        if self._report_timer is None and self._transport is not None:
            self._report_timer = self._owner.loop.call_later(_REPORT_AFTER_S, self.report_soon)

    def report_soon(self) -> None:
        """See `Destination`."""
        if self.outbox is not None:
            self.outbox.flush_soon()

    def _reported(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None

    def _take_ahead(self) -> bytes:
        """What is to be said before batches, as frames."""
        if self._reports:
            self._reported()
            reports, self._reports = self._reports, []
            self._ahead += map(encode_frame, gathered(reports))
        ahead, self._ahead = self._ahead, []
        return b"".join(ahead)

    # What comes in.

    def _on_message(self, message: object) -> None:
        if not self.wid and not isinstance(message, Greet):
            raise FrameError("a message before its greeting")
        if isinstance(message, Carry):
            self._on_carry(message)
        elif isinstance(message, Outcomes):
            self._on_outcomes(message)
        elif isinstance(message, Greet):
            self.wid = message.wid
            self._owner.on_greeting(self)
        elif isinstance(message, Ping):
            self.post(Pong(message.number))
        elif isinstance(message, Pong):
            self._owner.on_pong(message.number)
        else:
            self._owner.on_message(self, cast("DirectoryMessage", message))

    def _on_carry(self, carry: Carry) -> None:
        counts = self._owner.counts
        counts.batches_in += 1
        arrival = Arrival(carry, self, self._owner.ledger)
        for cut in carry.cuts:
            counts.copies_in += cut.copies * len(cut.names)
            for name in cut.names:
                outbox = self._owner.find_here(name)
                if outbox is None:
                    arrival.give_back(name, cut.payload, cut.copies)
                else:
                    outbox.offer((cut.payload, cut.copies, arrival), is_fanout=carry.is_fanout)

    def _on_outcomes(self, outcomes: Outcomes) -> None:
        crossings = self._crossings
        for frame_id in outcomes.delivered:
            if (crossing := crossings.get(frame_id)) is not None:
                crossing.end_delivered()
        for part in outcomes.parts:
            if (crossing := crossings.get(part.id)) is not None:
                crossing.take(part)


def _framed(cuts: Sequence[Cut]) -> Iterable[Sequence[Cut]]:
    """Group cuts into frames of bounded size; a cut that is too large for one is cut at line ends."""
    if len(cuts) == 1 and len(cuts[0][1]) <= _MAX_CARRY_BYTES and len(cuts[0][0]) <= _MAX_NAMES:
        return (cuts,)
    return _grouped(cuts)


def _grouped(cuts: Sequence[Cut]) -> Iterator[list[Cut]]:
    group: list[Cut] = []
    size = 0
    for cut in cuts:
        for piece in _pieces(cut):
            piece_bytes = len(piece.payload) + sum(map(len, piece.names))
            if group and size + piece_bytes > _MAX_CARRY_BYTES:
                yield group
                group, size = [], 0
            group.append(piece)
            size += piece_bytes
    if group:
        yield group


def _pieces(cut: Cut) -> Iterator[Cut]:
    """The same copies in cuts of bounded size, in order for each name."""
    names, payload, copies = cut
    start = 0
    while start < len(payload):
        end = len(payload)
        if end - start > _MAX_CARRY_BYTES:
            limit = start + _MAX_CARRY_BYTES
            end = payload.rfind(b"\n", start, limit) + 1 or payload.find(b"\n", limit) + 1 or end
        part = payload[start:end]
        count = copies if len(part) == len(payload) else part.count(b"\n")
        for first in range(0, len(names), _MAX_NAMES):
            yield Cut(names[first : first + _MAX_NAMES], part, count)
        start = end


assert 4 * _MAX_CARRY_BYTES <= MAX_FRAME_BYTES, "a frame with one longest line beside others must fit"
