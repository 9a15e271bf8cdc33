"""The second stage: looks every recipient up and groups a batch's copies by where they go."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from stages.message import Refusal
from stages.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stages.message import Batch, Run

__all__ = ["Cut", "Peer", "Route", "Routed"]


class Cut(NamedTuple):
    """Copies on their way to another place: encoded once for all of the names there."""

    names: list[str]  # normalised logins, at least one
    payload: bytes  # whole lines, as recipients get them
    copies: int  # for each name: the lines in `payload`


class Peer(Protocol):
    """Where logins live that are not here, as the stages know it."""

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        """Take copies of a batch, in order; from then on it sees to their outcome. Never waits or raises."""


class Routed(NamedTuple):
    """A batch, and for each outbox that gets copies of it the runs it gets, in order.

    `crossings` are those for logins that live elsewhere: the names there, run by run.
    """

    batch: Batch
    deliveries: list[tuple[Outbox, list[Run]]]
    crossings: Sequence[tuple[Peer, list[tuple[Run, list[str]]]]] = ()


class Route:
    """Handler of the route stage; made once for a worker.

    Args:
        find: where copies for a normalised login go, None when nobody is logged in under it.
    """

    def __init__(self, find: Callable[[str], Outbox | Peer | None]) -> None:
        self.find = find  # may be replaced as long as nothing is routed

    def __call__(self, batch: Batch) -> Routed | None:
        """Route one batch; copies to unknown recipients are refused here. None when none are left."""
        runs = batch.runs
        if len(runs) == 1 and len(runs[0].recipients) == 1:
            name = runs[0].recipients[0]
            place = self.find(name)
            if isinstance(place, Outbox):  # by far the most frequent
                return Routed(batch, [(place, runs)])
            if place is not None:
                return Routed(batch, [], [(place, [(runs[0], [name])])])
        return self._route_grouped(batch)

    def _route_grouped(self, batch: Batch) -> Routed | None:
        grouped: dict[Outbox, list[Run]] = {}
        crossings: dict[Peer, list[tuple[Run, list[str]]]] = {}
        unknown: dict[str, int] = {}  # refused once for each name, however many runs it is in
        for run in batch.runs:
            for name in run.recipients:
                place = self.find(name)
                if place is None:
                    unknown[name] = unknown.get(name, 0) + run.count
                elif not isinstance(place, Outbox):
                    _cross(crossings.setdefault(place, []), run, name)
                elif place in grouped:
                    grouped[place].append(run)
                else:
                    grouped[place] = [run]
        for name, copies in unknown.items():
            batch.refuse(copies, Refusal.UNKNOWN, name)
        if not (grouped or crossings):
            return None
        return Routed(batch, list(grouped.items()), list(crossings.items()))


def _cross(crossing: list[tuple[Run, list[str]]], run: Run, name: str) -> None:
    """Add a recipient: the text of a run crosses once for all of them."""
    if crossing and crossing[-1][0] is run:
        crossing[-1][1].append(name)
    else:
        crossing.append((run, [name]))
