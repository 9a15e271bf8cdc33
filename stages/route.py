"""The second stage: looks every recipient up and groups a batch's copies by outbound writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stages.message import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.message import Batch, Run
    from stages.outbox import Outbox

__all__ = ["Route", "Routed"]


class Routed(NamedTuple):
    """A batch, and for each outbox that gets copies of it the runs it gets, in order."""

    batch: Batch
    deliveries: list[tuple[Outbox, list[Run]]]


class Route:
    """Handler of the route stage; made once for a worker.

    Args:
        find: the outbox of a normalised login, None when nobody is logged in under it.
    """

    def __init__(self, find: Callable[[str], Outbox | None]) -> None:
        self._find = find

    def __call__(self, batch: Batch) -> Routed | None:
        """Route one batch; copies to unknown recipients are refused here. None when none are left."""
        runs = batch.runs
        if len(runs) == 1 and len(runs[0].recipients) == 1:
            return self._route_one(batch)
        grouped: dict[Outbox, list[Run]] = {}
        unknown: dict[str, int] = {}  # refused once for each name, however many runs it is in
        for run in runs:
            for name in run.recipients:
                outbox = self._find(name)
                if outbox is None:
                    unknown[name] = unknown.get(name, 0) + run.count
                elif outbox in grouped:
                    grouped[outbox].append(run)
                else:
                    grouped[outbox] = [run]
        for name, copies in unknown.items():
            batch.refuse(copies, Refusal.UNKNOWN, name)
        return Routed(batch, list(grouped.items())) if grouped else None

    def _route_one(self, batch: Batch) -> Routed | None:
        run = batch.runs[0]
        outbox = self._find(run.recipients[0])
        if outbox is None:
            batch.refuse(run.count, Refusal.UNKNOWN, run.recipients[0])
            return None
        return Routed(batch, [(outbox, batch.runs)])
