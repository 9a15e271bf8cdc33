"""What clients notice of a worker that dies, hangs or ends while messages are on their way to it."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from tests.e2e.outcomes import notice_counts, whole_lines
from tests.e2e.processes import nobody_left, pids
from tests.e2e.workers import (
    FAREWELL,
    FREELY,
    SOON,
    Guest,
    Places,
    Stream,
    assert_accounted,
    each_loop_once,
    log_in,
    notices,
    numbers_by_sender,
    replaced,
    several,
    spread,
    streaming,
    worker_pid,
)

LONG = " " + 12_000 * "x"  # with so many words lines take long to cross
UNHEARD = 100  # lines on their way to a worker that takes nothing
LARGE = 200  # lines of 1,000 bytes: of three senders more than may wait, of one less than its credit


async def say_unheard(sender: Guest, to: str, words: str = "") -> None:
    """Send numbered lines to a login whose worker takes nothing, and wait until they are accepted."""
    sender.send("".join(f"{to}: {number}{words}\n" for number in range(UNHEARD)))
    await sender.heard_out()


def assert_all_arrived(stream: Stream, recipient: Guest) -> None:
    """Every line arrived once and in order, and nobody was told anything."""
    assert numbers_by_sender(recipient.received) == {stream.sender.name: list(range(stream.sent))}
    assert notices(recipient.received) == notices(stream.sender.received) == FAREWELL


def assert_some_were_refused(stream: Stream, received: bytes) -> None:
    """Lines arrived in order and none twice; those that did not were refused, of the others a few perhaps."""
    numbers = numbers_by_sender(received)[stream.sender.name]
    assert numbers == sorted(set(numbers))
    refused = notice_counts(stream.sender.received.removesuffix(FAREWELL))[stream.to]
    assert stream.sent - refused <= len(numbers) < stream.sent


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_only_what_a_worker_had_is_lost_when_it_is_killed(workers: int) -> None:
    """Its clients are cut off and may log in again at once; what was on its way to it is refused, once.

    All the others go on meanwhile and miss nothing.
    """
    each_loop_once(workers)
    survivors = range(2, workers + 1)
    async with several(*SOON, *FREELY, workers=workers) as gateway:
        places = Places(gateway)
        found = await spread(gateway, places, "c", {1: 6, **dict.fromkeys(survivors, 8)})
        silent, busy, *_ = gone = found[1]
        speaker, toward_sender, *_ = found[2]
        chance = random.Random(workers)
        heard_by = [(found[one][other], found[other][one + 3]) for one in survivors for other in survivors]
        between = [Stream(sender, recipient.name, chance) for sender, recipient in heard_by]
        toward = Stream(toward_sender, busy.name, chance)

        def heard() -> list[int]:
            return [len(recipient.received) for _, recipient in heard_by]

        async with streaming([*between, toward]):
            await busy.until(f"from {toward_sender.name}: 9\n".encode())
            os.kill(worker_pid(gateway, 1), signal.SIGSTOP)
            await say_unheard(speaker, silent.name)
            before = heard()
            successor = asyncio.create_task(replaced(gateway, 1))
            os.kill(worker_pid(gateway, 1), signal.SIGKILL)
            await asyncio.gather(*(guest.ended() for guest in gone))
            busy_again = await Guest.come(gateway, places, busy.name)
            again = await log_in(gateway, places, (guest.name for guest in gone if guest is not busy))
            await successor
            assert all(now > then for now, then in zip(heard(), before, strict=True))
            await busy_again.until(f"from {toward_sender.name}: ".encode())
        speaker.send(f"{silent.name}: again\n")
        await again[0].until(f"from {speaker.name}: again\n".encode())
        for stream in (*between, toward):
            await stream.sender.heard_out()
        await spread(gateway, places, "n", {1: 1})
        assert await gateway.stop() == 0
        for guest in (busy_again, *again, *(one for worker in survivors for one in found[worker])):
            await guest.ended()
            await guest.close()
        for (_, recipient), stream in zip(heard_by, between, strict=True):
            assert_all_arrived(stream, recipient)
        lost = f"! refused {silent.name}: {UNHEARD} messages, worker lost\n".encode()
        assert notices(speaker.received) == lost + FAREWELL
        assert not [guest for guest in (silent, again[0]) if numbers_by_sender(guest.received)]
        assert_some_were_refused(toward, whole_lines(busy.received) + busy_again.received)
        last = assert_accounted(gateway)
        assert last["refused_by_reason"]["worker_lost"] >= UNHEARD
        assert (last["in_flight"], last["workers"]) == (0, {"live": 0, "restarts": 1})


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_senders_go_on_when_a_worker_hangs(workers: int) -> None:
    """What is for its clients is refused before long; it is killed, and its successor serves them."""
    each_loop_once(workers)
    survivors = range(2, workers + 1)
    hasty = ("--set=supervisor.worker_timeout_s=2", "--set=outbox.write_timeout_s=0.1")
    small = ("--set=bus.max_outbox_bytes=65536", "--set=retry.base_delay_s=0.01")
    async with several(*FREELY, *hasty, *small, workers=workers) as gateway:
        places = Places(gateway)
        found = await spread(gateway, places, "c", {1: 1, **dict.fromkeys(survivors, 4)})
        [victim] = found[1]
        pid = worker_pid(gateway, 1)
        os.kill(pid, signal.SIGSTOP)
        successor = asyncio.create_task(replaced(gateway, 1))
        for worker in survivors:
            recipient, *senders = found[worker]
            for sender in senders:
                sender.send(f"{victim.name}: {'x' * 1000}\n" * LARGE + f"{recipient.name}: 0\n")
        for worker in survivors:
            recipient, *senders = found[worker]
            for sender in senders:
                await recipient.until(f"from {sender.name}: 0\n".encode())
        assert not gateway.found("worker.killed")
        await successor
        (killed,) = gateway.found("worker.killed")
        assert (killed["of"], killed["reason"]) == (1, "no sign of life")
        assert pid not in pids(gateway.process.pid)
        assert any(record["bus"]["breakers"]["open"] for record in gateway.found("metrics"))
        [again] = await log_in(gateway, places, [victim.name])
        for sender in (sender for worker in survivors for sender in found[worker][1:]):
            sender.send(f"{victim.name}: 1\n")
            await again.until(f"from {sender.name}: 1\n".encode())
            await sender.heard_out()
            assert notice_counts(sender.received)[victim.name] == LARGE
        assert notices(again.received) == b""
        assert b"xxx" not in again.received
        assert await gateway.stop() == 0
        last = assert_accounted(gateway)
        assert last["refused"] == LARGE * 3 * len(survivors)
        assert set(last["refused_by_reason"]) == {"breaker_open", "worker_lost"}
        assert last["workers"] == {"live": 0, "restarts": 1}


@pytest.mark.parametrize(("workers", "is_for_all"), [(2, False), (3, True), (4, False), (4, True)])
async def test_accepted_lines_arrive_at_another_worker_when_the_gateway_is_told_to_end(
    workers: int, *, is_for_all: bool
) -> None:
    """They are on their way when the signal comes, to the supervisor alone or to the whole process group."""
    each_loop_once(workers)
    others = range(2, workers + 1)
    async with several("--set=limits.max_inflight_bytes=4000000", workers=workers) as gateway:
        found = await spread(gateway, Places(gateway), "c", {1: 1, **dict.fromkeys(others, 2)})
        [recipient] = found[1]
        senders = [sender for worker in others for sender in found[worker]]
        os.kill(worker_pid(gateway, 1), signal.SIGSTOP)
        for sender in senders:
            await say_unheard(sender, recipient.name, LONG)
        if is_for_all:
            os.killpg(gateway.process.pid, signal.SIGTERM)
        else:
            gateway.signal(signal.SIGTERM)
        await gateway.wait_record("gateway.draining")
        assert recipient.received == b""
        os.kill(worker_pid(gateway, 1), signal.SIGCONT)
        for guest in (recipient, *senders):
            await guest.ended()
            assert notices(guest.received) == FAREWELL
            await guest.close()
        everything = {sender.name: list(range(UNHEARD)) for sender in senders}
        assert numbers_by_sender(recipient.received) == everything
        assert await gateway.wait() == 0
        await nobody_left(gateway.process.pid)
        assert gateway.found("gateway.stopped")[0]["undelivered"] == 0
        last = assert_accounted(gateway)
        assert (last["delivered"], last["in_flight"]) == (last["accepted"], 0)
