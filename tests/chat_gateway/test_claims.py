"""Who gets a login that has a holder: when the holder is looked at, and what it is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chat_gateway.claims import Claims
from chat_gateway.hub import Hub
from tests.chat_gateway.fakes import fake_session, passed, virtual_time

if TYPE_CHECKING:
    from chat_gateway.session import Session

SOON_S = 1.0  # by then every claim has its verdict


class FakeHolder:
    """The connection of who is logged in; stands for a `Reading`."""

    def __init__(self, *, is_reading: bool, is_gone: bool = False) -> None:
        self.is_reading = is_reading
        self.is_gone = is_gone  # what a look at it finds
        self.is_ending = False  # its peer has closed its side
        self.dies_when_nudged = False
        self.looks = 0
        self.nudges = 0
        self.session = new_session(self)
        self.hub = Hub()
        self.hub.claim(self.session)
        self.claims = Claims(self.hub, asyncio.get_running_loop())

    def has_peer_ended(self) -> bool:
        return self.is_ending

    def end_if_gone(self) -> bool:
        self.looks += 1
        if self.is_gone:
            self.claims.release(self.session)
        return self.is_gone

    def nudge(self) -> None:
        self.nudges += 1
        self.is_gone = self.dies_when_nudged

    def update_reading(self) -> None:
        raise AssertionError

    def pause_for(self, seconds: float) -> None:
        raise AssertionError

    def read_little(self) -> None:
        raise AssertionError

    def on_settled(self) -> None:
        raise AssertionError


def new_session(reading: FakeHolder) -> Session:
    """A session as alice that tells nobody anything."""
    return fake_session(reading, lambda *_arguments, **_keywords: None)


class Claimant:
    """Claims the login of a holder when it is made; `verdicts` are those it has got."""

    def __init__(self, holder: FakeHolder) -> None:
        self.session = new_session(holder)
        self.verdicts: list[bool] = []
        holder.claims.claim(self.session, "127.0.0.1", self.verdicts.append)


@virtual_time
async def test_claim_is_granted_at_once_when_its_holder_is_read_and_gone() -> None:
    """Its loop may not have come to what the kernel knows already."""
    holder = FakeHolder(is_reading=True, is_gone=True)
    new = Claimant(holder)
    assert new.verdicts == [True]
    assert holder.hub.holder("alice") is new.session


@virtual_time
async def test_claim_is_refused_at_once_when_its_holder_is_read_and_there() -> None:
    """One look is enough: it is not told of it, and what happens to it later is its own affair."""
    holder = FakeHolder(is_reading=True)
    new = Claimant(holder)
    assert new.verdicts == [False]
    holder.is_gone = True
    await passed(SOON_S)
    assert (new.verdicts, holder.looks, holder.nudges) == ([False], 1, 0)
    assert holder.hub.holder("alice") is holder.session


@virtual_time
async def test_claim_is_granted_when_its_holder_is_not_read_and_dies_of_what_it_is_told() -> None:
    """The first look says nothing of a client that died without a word; a later one does."""
    holder = FakeHolder(is_reading=False)
    holder.dies_when_nudged = True
    new = Claimant(holder)
    assert new.verdicts == []
    await passed(SOON_S)
    assert (new.verdicts, holder.looks, holder.nudges) == ([True], 2, 1)
    assert holder.hub.holder("alice") is new.session


@virtual_time
async def test_claim_is_refused_in_the_end_when_its_holder_is_not_read_and_there() -> None:
    """It is told once and looked at several times."""
    holder = FakeHolder(is_reading=False)
    new = Claimant(holder)
    await passed(SOON_S)
    assert (new.verdicts, holder.nudges) == ([False], 1)
    assert holder.looks > 1
    assert holder.hub.holder("alice") is holder.session


@virtual_time
async def test_claim_is_granted_when_its_holder_is_read_and_ends_soon() -> None:
    """A client that has closed and comes back at once need not come back twice; nobody is told anything."""
    holder = FakeHolder(is_reading=True)
    holder.is_ending = True
    new = Claimant(holder)
    await passed(0.01)
    assert new.verdicts == []
    holder.claims.release(holder.session)
    await passed(SOON_S)
    assert (new.verdicts, holder.nudges) == ([True], 0)
    assert holder.hub.holder("alice") is new.session


@virtual_time
async def test_claim_is_refused_in_the_end_when_its_holder_only_says_no_more() -> None:
    """A client that has closed its side alone keeps its login as long as it is answered."""
    holder = FakeHolder(is_reading=True)
    holder.is_ending = True
    new = Claimant(holder)
    await passed(SOON_S)
    assert (new.verdicts, holder.nudges) == ([False], 0)
    assert holder.hub.holder("alice") is holder.session
