"""Messages between clients of different workers: nothing lost, nothing doubled, everything in order."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import struct
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.e2e.gateway_process import LineClient
from tests.e2e.outcomes import notice_counts, whole_lines
from tests.e2e.workers import (
    FAREWELL,
    FREELY,
    Guest,
    Places,
    Stream,
    assert_accounted,
    each_loop_once,
    log_in,
    notices,
    numbers_by_sender,
    several,
    spread,
    streaming,
)

if TYPE_CHECKING:
    from tests.e2e.gateway_process import GatewayProcess

PAIRS = 200
ROUNDS = 10
LINES = 5  # that each sender says to its partner in a round, and as many to a crowd
MOVES = 100


def pair_up(guests: list[Guest]) -> list[tuple[Guest, Guest]]:
    """Half of the pairs within a worker and half across two, as far as their places allow."""
    at: defaultdict[int, list[Guest]] = defaultdict(list)
    for guest in guests:
        at[guest.worker].append(guest)
    pairs = []
    for number in range(len(guests) // 2):
        first, second, *_ = sorted(at.values(), key=len, reverse=True)
        is_crossing = number >= len(guests) // 4 and len(second) > 0
        pairs.append((first.pop(), (second if is_crossing else first).pop()))
    return pairs


class Talk:
    """What every sender has said to whom, in numbered lines."""

    def __init__(self) -> None:
        self.said: defaultdict[tuple[str, str], list[int]] = defaultdict(list)  # by sender and recipient
        self.copies = 0
        self._last = 0

    def say(self, sender: Guest, recipients: list[Guest], lines: int) -> None:
        """Some lines to all of these."""
        to = ",".join(guest.name for guest in recipients)
        numbers = range(self._last, self._last + lines)
        self._last += lines
        sender.send("".join(f"{to}: {number}\n" for number in numbers))
        for recipient in recipients:
            self.said[sender.name, recipient.name] += numbers
            self.copies += lines


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_every_line_arrives_once_and_in_order_when_pairs_and_crowds_cross_workers(workers: int) -> None:
    """200 pairs talk, half of them across workers, and each speaks to crowds at all workers in between."""
    each_loop_once(workers)
    chance = random.Random(workers)
    async with several(workers=workers) as gateway:
        guests = await log_in(gateway, Places(gateway), (f"g{number}" for number in range(2 * PAIRS)))
        one_of_each = list({guest.worker: guest for guest in guests}.values())
        assert len(one_of_each) == workers
        pairs = pair_up(guests)
        crossing = sum(sender.worker != recipient.worker for sender, recipient in pairs)
        assert PAIRS * 0.4 <= crossing <= PAIRS * 0.6
        talk = Talk()
        for _ in range(ROUNDS):
            for sender, recipient in pairs:
                talk.say(sender, [recipient], chance.randint(1, LINES))
                crowd = {recipient, *one_of_each, *chance.sample(guests, 3)} - {sender}
                talk.say(sender, sorted(crowd, key=lambda guest: guest.name), chance.randint(1, LINES))
            await asyncio.sleep(0.01)
        copies = len(guests) + talk.copies
        await gateway.wait_record("metrics", lambda record: record["delivered"] == copies)
        assert await gateway.stop() == 0
        await asyncio.gather(*(guest.ended() for guest in guests))
        for guest in guests:
            said = {sender: numbers for (sender, to), numbers in talk.said.items() if to == guest.name}
            assert numbers_by_sender(guest.received) == said
            assert notices(guest.received) == FAREWELL
            await guest.close()
        last = assert_accounted(gateway)
        assert (last["accepted"], last["delivered"], last["in_flight"]) == (copies, copies, 0)
        assert last["bus"]["copies_out"] == last["bus"]["copies_in"] > talk.copies / 4


async def stay(port: int, seconds: float, *, is_orderly: bool) -> bytes:
    """Be logged in as the mover for a moment; returns what it was sent meanwhile, as far as it came."""
    sock = socket.socket()
    sock.setblocking(False)
    if not is_orderly:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    client = LineClient(*await asyncio.open_connection(sock=sock))
    client.send(b"mover\n")
    await asyncio.sleep(seconds)
    if is_orderly:
        client.end()
    else:
        client.writer.transport.abort()
    heard = await client.rest()
    await client.close()
    return whole_lines(heard)


async def all_left(gateway: GatewayProcess) -> None:
    """Wait until every session of the mover has ended."""

    def count(event: str) -> int:
        return sum(record["login"] == "mover" for record in gateway.found(event))

    await gateway.wait_record("session.closed", lambda _: count("session.login") == count("session.closed"))


@pytest.mark.parametrize(
    ("workers", "grace_s", "is_orderly"),
    [(2, 0, True), (2, 5, False), (3, 5, True), (4, 0, False), (4, 5, True)],
)
async def test_lines_keep_their_order_when_their_recipient_moves_between_workers(
    workers: int, grace_s: int, is_orderly: bool
) -> None:
    """Each arrives in its turn or is refused, and none twice; what a reset throws away is lost, as always."""
    each_loop_once(workers)
    chance = random.Random(workers)
    async with several(*FREELY, f"--set=outbox.reconnect_grace_s={grace_s}", workers=workers) as gateway:
        places = Places(gateway)
        found = await spread(gateway, places, "s", dict.fromkeys(range(1, workers + 1), 1))
        streams = [Stream(sender, "mover", chance) for [sender] in found.values()]
        heard = b""
        async with streaming(streams):
            for _ in range(MOVES):
                heard += await stay(gateway.port, chance.random() * 0.01, is_orderly=is_orderly)
        await all_left(gateway)
        mover = await Guest.come(gateway, places, "mover")
        sent = sum(stream.sent for stream in streams)
        others = sum(record["login"] != "mover" for record in gateway.found("session.login"))
        await gateway.wait_record(  # each of the others has said one line to itself
            "metrics", lambda record: record["accepted"] == sent + others and not record["in_flight"]
        )
        assert await gateway.stop() == 0
        assert_accounted(gateway)
        for guest in (mover, *(stream.sender for stream in streams)):
            await guest.ended()
            await guest.close()
        heard += mover.received.removesuffix(FAREWELL)
        if is_orderly:
            assert notices(heard) == b""
        for stream in streams:
            numbers = numbers_by_sender(heard)[stream.sender.name]
            refused = notice_counts(stream.sender.received.removesuffix(FAREWELL))
            assert numbers == sorted(set(numbers))
            told = len(numbers) + refused["mover"]
            assert told == stream.sent if is_orderly else told <= stream.sent
        stays = [record["worker"] for record in gateway.found("session.login") if record["login"] == "mover"]
        moves = sum(before != after for before, after in itertools.pairwise(stays))
        assert moves > MOVES / 20  # who comes back from a reset too fast is refused: the login is taken
