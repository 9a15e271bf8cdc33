"""The last stage: encodes each run once, however many recipients it has, and offers it to each outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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
        batch, deliveries = routed
        prefix = batch.sender.prefix
        for run in batch.runs:  # before the first offer: what can fail has not delivered half a batch
            run.encoded = self._encode(prefix, run.texts)
        fanout = _fanout_part(routed) if len(batch.runs) > 1 else batch
        for outbox, runs in deliveries:
            if len(runs) == 1:
                (run,) = runs
                assert run.encoded is not None
                is_fanout = len(run.recipients) > 1
                entry = (run.encoded, run.count, fanout if is_fanout else batch)
                outbox.offer(entry, is_fanout=is_fanout)
            else:
                for is_fanout, entry in _joined(runs, batch, fanout):
                    outbox.offer(entry, is_fanout=is_fanout)
        batch.runs = []  # while the batch waits for its outcome only the encoded form is kept


def _fanout_part(routed: Routed) -> Batch:
    """The batch that messages to several belong to: one of its own where there are others beside them."""
    batch, deliveries = routed
    messages = sum(run.count for run in batch.runs if len(run.recipients) > 1)
    if messages in (0, sum(run.count for run in batch.runs)):
        return batch
    copies = sum(run.count for _, runs in deliveries for run in runs if len(run.recipients) > 1)
    return batch.split_off(messages, copies) if 0 < copies < batch.pending else batch


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
