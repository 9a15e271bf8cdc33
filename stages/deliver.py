"""The last stage: encodes each run once, however many recipients it has, and offers it to each outbox."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from stages.route import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stages.message import Batch, Run
    from stages.outbox import Entry
    from stages.route import Routed

__all__ = ["Deliver"]


class Deliver:
    """Handler of the deliver stage; made once for a worker.

    Args:
        encode: bytes for the wire from a sender's prefix and the texts of a run.
    """

    def __init__(self, encode: Callable[[bytes, bytes], bytes]) -> None:
        self._encode = encode

    def __call__(self, routed: Routed) -> None:
        """Offer every copy to its outbox; from then on the outbox sees to their outcome."""
        batch, deliveries, crossings = routed
        if len(batch.runs) > 1:
            self._deliver_several(routed)
            return
        (run,) = batch.runs
        is_fanout = len(run.recipients) > 1
        payload = self._encode(batch.sender.prefix, run.texts)
        batch.runs = []  # while the batch waits for its outcome only the encoded form is kept
        entry: Entry = (payload, run.count, batch)
        for outbox, _ in deliveries:
            outbox.offer(entry, is_fanout=is_fanout)
        for peer, ((_, names),) in crossings:
            peer.carry(batch, (Cut(names, payload, run.count),), is_fanout=is_fanout)

    def _deliver_several(self, routed: Routed) -> None:
        batch, deliveries, crossings = routed
        prefix = batch.sender.prefix
        for run in batch.runs:  # before the first offer: what can fail has not delivered half a batch
            run.encoded = self._encode(prefix, run.texts)
        fanout = _fanout_part(routed)
        for outbox, runs in deliveries:
            if len(runs) == 1:
                (run,) = runs
                assert run.encoded is not None
                is_fanout = len(run.recipients) > 1
                taken = (run.encoded, run.count, fanout if is_fanout else batch)
                outbox.offer(taken, is_fanout=is_fanout)
            else:
                for is_fanout, entry in _joined(runs, batch, fanout):
                    outbox.offer(entry, is_fanout=is_fanout)
        for peer, pieces in crossings:
            for is_fanout, group in groupby(pieces, key=_is_fanout):
                cuts = _CUTS[is_fanout](group)
                peer.carry(fanout if is_fanout else batch, cuts, is_fanout=is_fanout)
        batch.runs = []


def _fanout_part(routed: Routed) -> Batch:
    """The batch that messages to several belong to: one of its own where there are others beside them."""
    batch, deliveries, crossings = routed
    messages = sum(run.count for run in batch.runs if len(run.recipients) > 1)
    if messages in (0, sum(run.count for run in batch.runs)):
        return batch
    copies = sum(run.count for _, runs in deliveries for run in runs if len(run.recipients) > 1)
    for _, pieces in crossings:
        copies += sum(run.count * len(names) for run, names in pieces if len(run.recipients) > 1)
    return batch.split_off(messages, copies) if 0 < copies < batch.pending else batch


def _is_fanout(piece: tuple[Run, list[str]]) -> bool:
    return len(piece[0].recipients) > 1


def _cuts(pieces: Iterable[tuple[Run, list[str]]]) -> list[Cut]:
    """What crosses to several, in order, each text once."""
    return [Cut(names, run.encoded or b"", run.count) for run, names in pieces]


def _joined_cuts(pieces: Iterable[tuple[Run, list[str]]]) -> list[Cut]:
    """What crosses to single recipients: one cut for each of them, in which their order is kept."""
    by_name: dict[str, list[Run]] = {}
    for run, (name,) in pieces:
        by_name.setdefault(name, []).append(run)
    return [
        Cut([name], b"".join([run.encoded or b"" for run in runs]), sum(run.count for run in runs))
        for name, runs in by_name.items()
    ]


_CUTS = {True: _cuts, False: _joined_cuts}


def _joined(runs: list[Run], batch: Batch, fanout: Batch) -> list[tuple[bool, Entry]]:
    """Entries for runs to one outbox, in order: neighbours of direct traffic are joined.

    Runs to several recipients are not, so that all of these share one encoded form.
    """
    entries: list[tuple[bool, Entry]] = []
    parts: list[bytes] = []
    count = 0
    for run in runs:
        assert run.encoded is not None
        if len(run.recipients) == 1:
            parts.append(run.encoded)
            count += run.count
            continue
        if parts:
            entries.append((False, (b"".join(parts), count, batch)))
            parts, count = [], 0
        entries.append((True, (run.encoded, run.count, fanout)))
    if parts:
        entries.append((False, (b"".join(parts), count, batch)))
    return entries
