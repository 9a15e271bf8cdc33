"""One client of a chaos run: as in a stress run, but it comes back at once when its connection breaks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.stress_client import Client
from bench.stress_plan import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.chaos_account import ChaosAccount
    from bench.stress_account import SentSession
    from bench.stress_client import Link
    from bench.stress_plan import Member

__all__ = ["ChaosClient", "Comeback"]


@dataclass(frozen=True, slots=True)
class Comeback:
    """A session that the gateway broke, and when its client was logged in again."""

    session: SentSession
    in_again_s: float


class ChaosClient(Client):
    """See `Client`.

    Args:
        member, address, account, clock: see `Client`.
        until_s: how long it stays at least.
    """

    return_timeout_s = 30.0  # some workers one after the other, on a machine that is busy

    def __init__(
        self,
        member: Member,
        address: tuple[str, int],
        account: ChaosAccount,
        clock: Callable[[], float],
        until_s: float,
    ) -> None:
        super().__init__(member, address, account, clock)
        # sessions that the gateway broke
        self.comebacks: list[Comeback] = []
        self._until_s = until_s
        self._broken: SentSession | None = None  # by the gateway; not back yet
        self._chaos_account = account

    async def run(self) -> None:
        """See `Client`; stays until `until_s`."""
        await super().run()
        await self._wait_until(self._until_s)

    async def _wait_until(self, at_s: float) -> None:
        while (left_s := at_s - self._clock()) > 0:
            link = self._link
            if link is None:
                await asyncio.sleep(left_s)
                continue
            await asyncio.wait([link.closed], timeout=left_s)
            if link.closed.done():
                self._note_end(link)
                await self._return(Action(self._clock(), "return"))

    async def _vanish(self, action: Action) -> None:
        if self._link is not None and not self._link.closed.done():
            self._chaos_account.vanished.add(self._link.session.number)
        await super()._vanish(action)

    async def _return(self, action: Action) -> None:
        await super()._return(action)
        broken, self._broken = self._broken, None
        if broken is not None and self._link is not None:
            self.comebacks.append(Comeback(broken, self._clock()))

    def _note_end(self, link: Link) -> None:
        super()._note_end(link)
        session = link.session
        if not session.is_complete and session.number not in self._chaos_account.vanished:
            self._broken = session
