"""What each client of a stress run does and when: all of it follows from one seed. No sockets, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Action", "Kind", "Manners", "Member", "Weights", "make_plan"]

Kind = Literal["send", "garbage", "stall", "leave", "vanish", "return"]
Manners = Literal["steady", "polite", "rude"]
Weights = dict[Manners, dict[Kind, int]]  # how often each manners do what

_STRANGERS = ("nobody1", "nobody2")  # never logged in
_SHORT_STALL_S = (0.05, 0.4)
_LONG_STALL_S = (1.0, 5.0)  # up to beyond the time after which a stuck client is closed
_AWAY_S = (0.0, 2.5)  # shorter and longer than the grace for those that reconnect
_PAUSE_S = (0.02, 0.5)  # between two actions
_POPULAR = 3  # rude clients that everybody writes to, so that they are under pressure
_KINDS: Weights = {
    "steady": {"send": 20, "garbage": 1},
    "polite": {"send": 20, "garbage": 1, "stall": 4, "leave": 1},
    "rude": {"send": 20, "garbage": 1, "stall": 5, "leave": 1, "vanish": 2},
}
_GARBAGE = (b"no recipient in this line", b"rude0: bell\x07", b" , ,: nobody")
_WAYS = ("reset", "close", "cut line")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a client does; which fields matter depends on its kind."""

    at_s: float  # from the beginning of the run
    kind: Kind
    recipients: tuple[tuple[str, ...], ...] = ()  # send: of each line
    sizes: tuple[int, ...] = ()  # send: bytes of padding in each text
    cuts: tuple[float, ...] = ()  # send: where what is written is cut, as shares of it
    garbage: bytes = b""  # garbage: the line
    seconds: float = 0.0  # stall: how long nothing is read
    way: str = ""  # vanish: "reset", "close", or "cut line", which is a reset within a line


@dataclass(frozen=True, slots=True)
class Member:
    """One client: a steady one always reads and stays; a polite one stalls a little and leaves in order."""

    login: str
    manners: Manners
    actions: tuple[Action, ...]


def make_plan(seed: int, seconds: float, members: int, weights: Weights = _KINDS) -> list[Member]:
    """The same for the same arguments: a third of the members of each manners, each with `seconds` to do."""
    chance = random.Random(seed)
    manners: Sequence[Manners] = tuple(_KINDS)
    who = [(f"{manners[i % 3]}{i // 3}", manners[i % 3]) for i in range(members)]
    logins = [login for login, _ in who]
    return [
        Member(login, manner, tuple(_actions(chance, manner, logins, seconds, weights[manner])))
        for login, manner in who
    ]


def _actions(
    chance: random.Random, manners: Manners, logins: list[str], seconds: float, weights: dict[Kind, int]
) -> list[Action]:
    popular = [login for login in logins if login.startswith("rude")][:_POPULAR]
    # some names may stand twice in a line, which is allowed and one copy
    friends = [*chance.sample(logins, 4), *popular]
    actions = [Action(chance.uniform(0.0, 0.5), "return")]
    at_s = 1.0
    while at_s < seconds:
        (kind,) = chance.choices(list(weights), list(weights.values()))
        actions.append(_action(chance, kind, manners, at_s, friends, logins))
        if kind in ("leave", "vanish"):
            at_s += chance.uniform(*_AWAY_S)
            actions.append(Action(at_s, "return"))
        elif chance.random() < 0.5:
            at_s += actions[-1].seconds  # stuck, and silent meanwhile
        at_s += chance.uniform(*_PAUSE_S)
    return actions


def _action(
    chance: random.Random, kind: Kind, manners: Manners, at_s: float, friends: list[str], logins: list[str]
) -> Action:
    if kind == "send":
        return _send(chance, at_s, friends, logins)
    if kind == "garbage":
        return Action(at_s, kind, garbage=chance.choice(_GARBAGE))
    if kind == "stall":
        is_long = manners == "rude" and chance.random() < 0.5
        return Action(at_s, kind, seconds=chance.uniform(*(_LONG_STALL_S if is_long else _SHORT_STALL_S)))
    return Action(at_s, kind, way=chance.choice(_WAYS) if kind == "vanish" else "")


def _send(chance: random.Random, at_s: float, friends: list[str], logins: list[str]) -> Action:
    """Some lines: a run to the same recipients, or mixed; mostly to friends, seldom to strangers."""
    lines = chance.choice((1, 2, 5, 20, 80))
    runs = [_recipients(chance, friends, logins) for _ in range(chance.choice((1, 1, 3)))]
    largest = chance.choice((0, 40, 400, 4000))
    return Action(
        at_s,
        "send",
        recipients=tuple(chance.choice(runs) for _ in range(lines)),
        sizes=tuple(chance.randint(0, largest) for _ in range(lines)),
        cuts=tuple(sorted(chance.random() for _ in range(chance.choice((0, 0, 1, 4))))),
    )


def _recipients(chance: random.Random, friends: list[str], logins: list[str]) -> tuple[str, ...]:
    draw = chance.random()
    if draw < 0.05:
        return (chance.choice(_STRANGERS), chance.choice(friends))
    if draw < 0.6:
        return (chance.choice(friends),)
    return tuple(chance.sample(friends if draw < 0.9 else logins, chance.randint(2, 4)))
