"""The last stage: encodes each run once, however many recipients it has, and offers it to each outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.message import Run
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
        for outbox, runs in deliveries:
            if len(runs) == 1:
                (run,) = runs
                assert run.encoded is not None
                outbox.offer((run.encoded, run.count, batch), is_fanout=len(run.recipients) > 1)
            else:
                for is_fanout, entry in _joined(routed, runs):
                    outbox.offer(entry, is_fanout=is_fanout)
        batch.runs = []  # while the batch waits for its outcome only the encoded form is kept


def _joined(routed: Routed, runs: list[Run]) -> list[tuple[bool, Entry]]:
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
            entries.append((False, (b"".join(parts), count, routed.batch)))
            parts, count = [], 0
        entries.append((True, (run.encoded, run.count, routed.batch)))
    if parts:
        entries.append((False, (b"".join(parts), count, routed.batch)))
    return entries
