"""Clients at different workers that want one login at the same moment: one of them gets it, always."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest

from tests.e2e.gateway_process import GatewayProcess, LineClient
from tests.e2e.workers import Places, assert_accounted, each_loop_once, several

NAMES = 40  # that are raced for at the same time
ROUNDS = 25
TAKEN = b"! login-taken someone is logged in under that name\n"
PATIENT = ("--set", "limits.login_timeout_s=60")  # those that wait for their race say nothing


class Grid:
    """Connections that have said nothing yet, by their worker; made by a test, in its task."""

    def __init__(self, gateway: GatewayProcess, workers: int) -> None:
        self.workers = range(1, workers + 1)
        self._gateway = gateway
        self._places = Places(gateway)
        self._waiting: dict[int, deque[LineClient]] = {worker: deque() for worker in self.workers}

    async def refill(self) -> None:
        """Open more until every worker has one for each name."""
        while min(map(len, self._waiting.values())) < NAMES:
            clients = await asyncio.gather(*(LineClient.connect(self._gateway.port) for _ in range(NAMES)))
            for client in clients:
                self._waiting[await self._places.of(client)].append(client)

    def take(self, worker: int) -> LineClient:
        """One at this worker."""
        return self._waiting[worker].popleft()

    async def close(self) -> None:
        """Close those that were not needed."""
        for client in (one for clients in self._waiting.values() for one in clients):
            await client.close()


async def race(name: str, racers: list[LineClient]) -> LineClient | None:
    """All of these ask for a login at once; returns who got it, the others are refused and closed."""
    for racer in racers:
        racer.send(f"{name}\n{name}: in\n".encode())
    answers = [await racer.line() for racer in racers]
    winners = [racer for racer, line in zip(racers, answers, strict=True) if line != TAKEN]
    assert len(winners) <= 1, answers
    for racer, line in zip(racers, answers, strict=True):
        if line == TAKEN:
            assert await racer.rest() == b""
            await racer.close()
        else:
            assert line == f"from {name}: in\n".encode()
    return winners[0] if winners else None


async def leave(holder: LineClient) -> None:
    """Leave in order: when the gateway has closed too, the login is free."""
    holder.end()
    assert await holder.rest() == b""
    await holder.close()


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_one_client_wins_when_several_ask_different_workers_for_a_login_at_once(workers: int) -> None:
    """In 1,000 races exactly one gets it, the others are told so, and it is free once the winner has left.

    When its holder leaves at the very moment in which others ask, one of them gets it or none.
    """
    each_loop_once(workers)
    chance = random.Random(workers)
    async with several(*PATIENT, workers=workers) as gateway:
        grid = Grid(gateway, workers)

        async def one(name: str) -> LineClient:
            places = chance.sample(grid.workers, chance.randint(2, workers))
            winner = await race(name, [grid.take(worker) for worker in places])
            assert winner is not None, f"nobody got {name}"
            return winner

        async def against(name: str, holder: LineClient) -> None:
            holder.end()
            winner = await race(name, [grid.take(worker) for worker in grid.workers])
            await leave(holder)
            if winner is not None:
                await leave(winner)

        names = [f"name{number}" for number in range(NAMES)]
        for number in range(ROUNDS):
            await grid.refill()
            winners = await asyncio.gather(*map(one, names))
            if number % 10:
                await asyncio.gather(*map(leave, winners))
            else:
                await grid.refill()
                await asyncio.gather(*map(against, names, winners))
        await grid.close()
        assert await gateway.stop() == 0
        last = assert_accounted(gateway)
        assert last["logins"] == last["accepted"] == last["delivered"] >= NAMES * ROUNDS
        assert last["connections_closed"]["login_taken"] >= NAMES * ROUNDS
