"""Where logins live, as one worker knows: its own, which nobody knows better, and what it was told of others.

Knows nothing of owners, claims and messages but `Place`.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from chat_gateway.bus_frames import Place

__all__ = ["PlaceTable", "slot_of"]


def slot_of(login: str, slots: int) -> int:
    """The slot whose owner decides about a login."""
    return zlib.crc32(login.encode()) % slots


class PlaceTable:
    """Made by a directory, for its life.

    Args:
        wid: of this worker.
        slots: how many there are.
        on_place: told of every change of what lives, or has lived, elsewhere: login, worker (0: nowhere),
            address of its client.
    """

    def __init__(self, wid: int, slots: int, on_place: Callable[[str, int, str], None]) -> None:
        self.held: dict[str, str] = {}  # logins that live here, with their clients' addresses
        self.elsewhere: dict[str, int] = {}  # logins that live elsewhere, with their workers
        self.lost: set[int] = set()  # workers that are dead
        self._wid = wid
        self._slots = slots
        self._on_place = on_place
        self._wids: dict[int, int] = {}  # one object for each number, shared by all entries

    def hold(self, login: str, address: str) -> None:
        """It lives here from now on."""
        self.held[login] = address
        self.elsewhere.pop(login, None)

    def held_of(self, slot: int) -> list[tuple[str, str]]:
        """What lives here of the logins of a slot, with addresses."""
        return [entry for entry in self.held.items() if slot_of(entry[0], self._slots) == slot]

    def place_of(self, login: str) -> int:
        """The worker where it lives, 0: nowhere or unknown."""
        return self._wid if login in self.held else self.elsewhere.get(login, 0)

    def known(self, wid: int) -> int:
        """The same, 0 where nothing can live: a dead worker, or this one, which knows what it holds."""
        return 0 if wid == self._wid or wid in self.lost else self._wids.setdefault(wid, wid)

    def take(self, places: Iterable[Place]) -> None:
        """Their owner says so."""
        for place in places:
            self._put(place.login, self.known(place.wid), place.address)

    def forget_others(self, slot: int, named: Container[str]) -> None:
        """The owner of this slot has named all its logins: what it did not name lives nowhere."""
        for login in [login for login in self.elsewhere if login not in named]:
            if slot_of(login, self._slots) == slot:
                self._put(login, 0, "")

    def lose(self, wid: int) -> None:
        """That worker is dead: nothing lives there, nor ever will."""
        self.lost.add(wid)
        for login in [login for login, place in self.elsewhere.items() if place == wid]:
            if self.elsewhere.get(login) == wid:  # what hears of the others may have changed this one
                self._put(login, 0, "")

    def _put(self, login: str, wid: int, address: str) -> None:
        """Nothing happens where that is no news; of what lives here others know less."""
        if login in self.held or self.elsewhere.get(login, 0) == wid:
            return
        if wid:
            self.elsewhere[login] = wid
        else:
            del self.elsewhere[login]
        self._on_place(login, wid, address)
