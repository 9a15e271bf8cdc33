"""Where copies for each login go, with what has to wait until that is known for certain.

Copies are held while a login's place is asked for, and while older ones, which went where it lived before,
have no outcome: so what one sender says to one recipient keeps its order, also while that moves from worker
to worker. What is held keeps its sender's credit, which bounds it. Knows nothing of sockets and frames.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, NamedTuple, Protocol

from stages.message import Refusal
from stages.outbox import Outbox
from stages.route import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stages.message import Batch
    from stages.route import Peer

__all__ = ["AwaitedPeer", "Held", "Routes", "Waiting"]


class Waiting(NamedTuple):
    """Copies of one batch for one login."""

    payload: bytes
    copies: int
    batch: Batch
    is_fanout: bool
    number: int = 0  # of those that came back: rises in the order in which they had been sent


class AwaitedPeer(Protocol):
    """Another worker, and which logins have copies there without an outcome."""

    wid: int
    waiting: dict[str, int]

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        """See `stages.route.Peer`."""


class Held:
    """Copies for one login that wait; a `Peer` for the stages as long as it stands for that login."""

    __slots__ = ("answer", "came_from", "is_asking", "is_over", "login", "newer", "returned", "routes")

    def __init__(self, login: str, routes: Routes) -> None:
        self.login = login
        self.routes = routes
        self.is_over = False  # it does not stand for its login any more
        self.returned: list[Waiting] = []  # came back from where it lived: older than the others
        self.came_from = 0  # the worker where it was not when copies came there last
        self.newer: list[Waiting] = []
        self.is_asking = False
        self.answer: int | None = None  # where it lives, as its owner says: 0 for nowhere

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        """See `Peer`. A batch may have been on its way through the stages while what it is for was found."""
        for _, payload, copies in cuts:
            waiting = Waiting(payload, copies, batch, is_fanout)
            if self.is_over:
                self.routes.pass_on(self.login, waiting)
            else:
                self.newer.append(waiting)


class Routes:
    """Made by the bus of a worker; `table` is what the route stage looks into.

    Args:
        table: login to its outbox here, the link to the worker where it lives, or what holds its copies.
        find_target: where a login lives as far as is known: its outbox here, a link, or None.
        peers: all links.
        ask: asks the owner of a login where it lives; the answer may come at once.
    """

    def __init__(
        self,
        table: dict[str, Outbox | Peer],
        find_target: Callable[[str], Outbox | AwaitedPeer | None],
        peers: Callable[[], Iterable[AwaitedPeer]],
        ask: Callable[[str, Callable[[int], None]], None],
    ) -> None:
        self._table = table
        self._find_target = find_target
        self._peers = peers
        self._ask_owner = ask
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def find_unknown(self, login: str) -> Outbox | Peer | None:
        """Where copies for a login go that is not in the table; None when it is known to be nowhere."""
        held = self._hold(login)
        self._reroute_held(held)
        return self._table.get(login)

    def leads_to(self, login: str, peer: AwaitedPeer) -> bool:
        """Whether copies for this login go there now."""
        return self._table.get(login) is peer

    def only_to(
        self, peer: AwaitedPeer, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool
    ) -> Sequence[Cut]:
        """Those copies that still go there; the others, which were routed before, are passed on."""
        for names, _, _ in cuts:
            for name in names:
                if not self.leads_to(name, peer):
                    return self._without_others(peer, batch, cuts, is_fanout=is_fanout)
        return cuts

    def _without_others(
        self, peer: AwaitedPeer, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool
    ) -> list[Cut]:
        there = []
        for names, payload, copies in cuts:
            stay = [name for name in names if self.leads_to(name, peer)]
            if stay:
                there.append(Cut(stay, payload, copies))
            for name in names:
                if not self.leads_to(name, peer):
                    self.pass_on(name, Waiting(payload, copies, batch, is_fanout))
        return there

    def pass_on(self, login: str, waiting: Waiting) -> None:
        """Send copies on that came to a place that their login has left since they were routed."""
        place = self._table.get(login) or self.find_unknown(login)
        if place is None:
            _refuse(login, [waiting], Refusal.UNKNOWN)
        else:
            _send(login, waiting, place)

    def look_again(self, login: str) -> None:
        """Something was learnt of a login: where it lives, or that copies of it have their outcome."""
        held = self._held.get(login)
        if held is not None:
            self._reroute_held(held)
            return
        target = self._find_target(login)
        if self._is_awaited(login, target):
            self._hold(login)
        elif target is None:
            self._table.pop(login, None)
        else:
            self._table[login] = target

    def look_if_held(self, login: str) -> None:
        """Copies for a login have their outcome, which matters only to what waits behind them."""
        if login in self._held:
            self._reroute_held(self._held[login])

    def take_back(self, login: str, waiting: Waiting, came_from: int) -> None:
        """Copies came back from a worker where the login does not live any more: 0 for this one."""
        held = self._held.get(login)
        if held is None:
            held = self._hold(login)
        # What waited there for the login to return comes back behind newer copies that found nobody.
        insort(held.returned, waiting, key=lambda one: one.number)
        held.came_from = came_from
        held.answer = None

    def overtaken(self, login: str, number: int) -> None:
        """Copies were delivered where others came back from: older ones than `number` must not follow them.

        Those that came back may be newer: they found nobody while the older ones waited for the login.
        """
        held = self._held.get(login)
        if held is None or not held.returned:
            return
        _refuse(login, [one for one in held.returned if one.number < number], Refusal.GONE)
        held.returned = [one for one in held.returned if one.number >= number]
        if not held.returned:
            held.came_from = 0

    def ask_again(self) -> None:
        """Now and then: a place that was promised and did not come may have changed since."""
        for held in list(self._held.values()):
            if not held.is_asking:
                held.answer = None
            self._reroute_held(held)

    def close(self, reason: str) -> None:
        """Refuse all that waits."""
        held, self._held = self._held, {}
        for one in held.values():
            one.is_over = True
            self._table.pop(one.login, None)
            _refuse(one.login, [*one.returned, *one.newer], reason)

    def _hold(self, login: str) -> Held:
        held = self._held[login] = Held(login, self)
        self._table[login] = held
        return held

    def _is_awaited(self, login: str, target: object, *, everywhere: bool = False) -> bool:
        """Older copies are without an outcome, elsewhere than where newer ones would go."""
        return any(login in peer.waiting for peer in self._peers() if everywhere or peer is not target)

    def _reroute_held(self, held: Held) -> None:
        login = held.login
        target = self._find_target(login)
        if self._is_awaited(login, target, everywhere=bool(held.returned)):
            return
        if target is None or (not isinstance(target, Outbox) and target.wid == held.came_from):
            if held.answer is None:
                self._maybe_ask(held)
                return
            if held.answer == 0:
                target = None
            elif target is None or target.wid != held.answer:
                return  # promised: it comes, or is asked for again
        del self._held[login]
        held.is_over = True
        if target is None:
            self._table.pop(login, None)
        else:
            self._table[login] = target
        _let_go(held, target)

    def _maybe_ask(self, held: Held) -> None:
        if held.is_asking:
            return

        def on_answer(wid: int) -> None:
            held.is_asking = False
            held.answer = wid
            if self._held.get(held.login) is held:
                self._reroute_held(held)

        held.is_asking = True
        self._ask_owner(held.login, on_answer)


def _let_go(held: Held, target: Outbox | AwaitedPeer | None) -> None:
    """Send what has waited where the login lives, the older first; refuse it where that is nowhere."""
    waiting = [*held.returned, *held.newer]
    if target is None:
        _refuse(held.login, waiting, Refusal.UNKNOWN)
        return
    for one in waiting:
        _send(held.login, one, target)


def _send(login: str, waiting: Waiting, place: Outbox | Peer) -> None:
    payload, copies, batch, is_fanout, _ = waiting
    if isinstance(place, Outbox):
        place.offer((payload, copies, batch), is_fanout=is_fanout)
    else:
        place.carry(batch, [Cut([login], payload, copies)], is_fanout=is_fanout)


def _refuse(login: str, waiting: Iterable[Waiting], reason: str) -> None:
    for one in waiting:
        one.batch.refuse(one.copies, reason, login)
