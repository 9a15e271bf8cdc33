"""Where the sessions of a load live: which worker each of them needs, and which one it got.

The kernel spreads connections over workers as it likes, so sessions are opened until every place that is
needed is taken, and the others are closed. The gateway's log says where a login lives. Knows nothing of
messages and of their pace.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Self

from bench.login import LoginError, open_sessions

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_MAX_ROUNDS = 20  # one session that lacks comes in a round with 3 in 4, or 2 in 3 of many workers
_MAX_WAIT_S = 10.0
_LOOK_S = 0.01
_WITHIN = "bench.within"  # the one event that is not the gateway's
_TOLD_BY = ('"gateway.ready"', '"session.login"', f'"{_WITHIN}"')

Session = tuple[str, "socket.socket"]


class PlacementError(LoginError):
    """The share of conversations between workers cannot be made."""


def plan_places(pairs: int, fanout: int, cross: float, workers: int) -> list[int]:
    """Workers, from 1, of all senders, then of all receivers by sender.

    A conversation is one sender with one receiver. The share `cross` of them, 0.0 to 1.0, is between two
    workers. Senders, and receivers of either kind, are dealt out evenly.

    Raises:
        PlacementError: there are too few workers or conversations for this share.
    """
    conversations = pairs * fanout
    crossing = round(cross * conversations)
    if crossing and workers < 2:
        raise PlacementError("no conversation can be between workers: the gateway has one worker")
    if 0 < cross < 1 and crossing in (0, conversations):
        raise PlacementError(f"too few conversations, {conversations}, for a share of {cross:g} of them")
    senders: list[int] = []
    receivers: list[int] = []
    alike: Counter[int] = Counter()  # senders so far, by how many of their conversations cross
    crossed = 0
    for i in range(pairs):
        first = i * fanout
        until = [(first + k) * crossing // conversations for k in range(fanout + 1)]
        at = alike[until[-1] - until[0]] % workers
        alike[until[-1] - until[0]] += 1
        senders.append(at + 1)
        for k in range(fanout):
            further = 1 + crossed % (workers - 1) if until[k + 1] > until[k] else 0
            receivers.append((at + further) % workers + 1)
            crossed += further > 0
    return senders + receivers


class LoginLog:
    """Keeps of a gateway's output what `Places` reads; fed by the thread that reads the output.

    A context manager, which closes the file.

    Args:
        path: the file.
        within: the first workers, so many, at which all conversations are to live; 0 for any of them.
    """

    def __init__(self, path: Path, within: int = 0) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        if within:
            self.feed(json.dumps({"event": _WITHIN, "workers": within}) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def feed(self, line: str) -> None:
        """Take one line of output."""
        if any(word in line for word in _TOLD_BY):
            self._file.write(line)
            self._file.flush()


class Places:
    """Which worker each login lives at, as a gateway's log says; made, used and closed by one load."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # workers that the gateway has, over which connections are spread
        self.spread = 1
        # at how many of them conversations are to live; 0 for all
        self._within = 0
        self._clock = clock
        self._sleep = sleep
        # login -> worker, from 1
        self._found: dict[str, int] = {}
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise PlacementError(f"cannot read the gateway's log {path}: {error.strerror}") from error
        # the beginning of a line whose end is not written yet
        self._tail = b""
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def workers(self) -> int:
        """Workers, the first ones, at which conversations are to live."""
        return min(self._within or self.spread, self.spread)

    def wait_for(self, logins: Iterable[str]) -> list[int]:
        """Workers, from 1, of these logins, waiting for the log to tell.

        Raises:
            PlacementError: it did not for 10 s.
        """
        logins = list(logins)
        deadline_s = self._clock() + _MAX_WAIT_S
        while missing := [login for login in logins if login not in self._found]:
            if self._clock() > deadline_s:
                raise PlacementError(
                    f"the gateway's log does not say where {missing[0]} lives, and {len(missing) - 1} more "
                    "(is it JSON, and log.flood_per_s above the logins a second?)"
                )
            self._sleep(_LOOK_S)
            self._read()
        return [self._found[login] for login in logins]

    def _read(self) -> None:
        *lines, self._tail = (self._tail + self._file.read()).split(b"\n")
        for line in lines:
            try:
                record = json.loads(line)
                if record["event"] == "session.login":
                    self._found[record["login"]] = record["worker"]
                elif record["event"] == "gateway.ready":
                    self.spread = record.get("workers", 1)
                elif record["event"] == _WITHIN:
                    self._within = record["workers"]
            except (ValueError, KeyError, TypeError):  # whatever else a process prints
                continue


def open_placed(
    poll: select.epoll, address: tuple[str, int], tag: str, wanted: Sequence[int], places: Places
) -> list[Session]:
    """Open sessions until each of the workers in `wanted` has one for it; returns them in that order.

    Raises:
        PlacementError: the kernel did not give a worker the sessions it needs.
        LoginError: a connection could not be opened or did not prove its login.
    """
    free: dict[int, list[Session]] = defaultdict(list)  # by worker; 0 for those that are not known yet
    try:
        _open_enough(poll, address, (f"{tag}p{i}" for i in count()), Counter(wanted), places, free)
        return [free[place].pop() for place in wanted]
    finally:  # what nobody wants, and after an error all
        for _, sock in chain.from_iterable(free.values()):
            sock.close()


def _open_enough(
    poll: select.epoll,
    address: tuple[str, int],
    names: Iterator[str],
    needed: Counter[int],
    places: Places,
    free: dict[int, list[Session]],
) -> None:
    number = needed.total()
    for _ in range(_MAX_ROUNDS):
        logins = list(islice(names, number))
        free[0] += zip(logins, open_sessions(poll, address, logins), strict=True)
        for place in places.wait_for(logins):
            free[place].append(free[0].pop(0))
        lacking = needed - Counter({place: len(sessions) for place, sessions in free.items()})
        if not lacking:
            return
        number = lacking.total() * places.spread
    place, missing = lacking.most_common(1)[0]
    raise PlacementError(f"worker {place} lacks {missing} of the {needed[place]} sessions it is to have")
