"""The bound on the memory of messages: its figures, and that it holds in workers."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from chat_gateway.config import Config
from chat_gateway.config_sources import load
from chat_gateway.dead_letters import MAX_QUEUED_BYTES
from chat_gateway.memory_bound import MemoryBound, most_message_memory_bytes
from stages.line_codec import most_tail_bytes
from stages.message import Refusal
from stages.notices import MAX_LINE_BYTES, MAX_TEXT_BYTES, Notices
from tests.chat_gateway.fake_cluster import Cluster, settled
from tests.chat_gateway.fakes import FakeGateway, configured, turns, virtual_time

READ_BYTES = 512 + (65_536 + 16_384) * (1 + 256 // 2)
WORK_BYTES = 2 * (81_920 + 27_306 * 72)
CACHE_BYTES = 8 << 20
LINE_BYTES = 512 + 72 + 16_384 + 1 + 256 * 256
FLUSH_BYTES = 65_536 + 800
NOTICES_BYTES = 48 * (4 * 65 + 320)
SHARED_BYTES = 1_073_741_824 + READ_BYTES + WORK_BYTES + CACHE_BYTES


def test_memory_bound_has_the_known_figures_when_the_configuration_is_the_default() -> None:
    """What is in flight and one read once; for each connection a line, a flush and notices on top of it."""
    bound = most_message_memory_bytes(Config())
    shared = [part.size_bytes for part in bound.shared]
    assert shared == [1_073_741_824, READ_BYTES, WORK_BYTES, CACHE_BYTES]
    assert [part.size_bytes for part in bound.parts] == [LINE_BYTES, FLUSH_BYTES, NOTICES_BYTES]
    assert bound.per_connection_bytes == LINE_BYTES + FLUSH_BYTES + NOTICES_BYTES
    assert bound.all_connections_bytes == 10_000 * bound.per_connection_bytes
    assert bound.total_bytes == SHARED_BYTES + bound.all_connections_bytes


def test_memory_bound_is_near_the_ceiling_when_there_are_ten_thousand_connections() -> None:
    """With the defaults the connections add less than twice what is configured."""
    assert most_message_memory_bytes(Config()).total_bytes < 3 * Config().limits.max_buffered_bytes


def test_memory_bound_has_no_notices_when_there_are_none() -> None:
    """A gateway that keeps silent keeps nothing to say."""
    bound = most_message_memory_bytes(configured("limits.notices=false"))
    assert bound.parts[2].size_bytes == 0


@pytest.mark.parametrize(
    ("option", "grows_by", "shared_grows_by"),
    [
        ("limits.max_line_bytes=16387", 3, 3 * 129 + 2 * (3 + 72)),
        ("limits.max_read_bytes=65539", 0, 3 * 129 + 2 * (3 + 72)),
        ("limits.max_recipients=257", 256, 0),
        ("outbox.send_buffer_bytes=65537", 1, 0),
        ("limits.notices=false", -NOTICES_BYTES, 0),
        ("limits.max_buffered_bytes=1073741825", 0, 1),
        ("dead_letters.path=letters", 0, MAX_QUEUED_BYTES),
        ("limits.max_inflight_bytes=262145", 0, 0),
        ("outbox.max_outbox_bytes=524289", 0, 0),
        ("outbox.max_grace_bytes=65537", 0, 0),
    ],
)
def test_memory_bound_grows_when_a_key_it_follows_from_grows(
    option: str, grows_by: int, shared_grows_by: int
) -> None:
    """Keys of a connection count once for each, shared ones once, and what is within these not at all."""
    before = most_message_memory_bytes(load(None, {}, ["limits.max_connections=7"], []))
    after = most_message_memory_bytes(load(None, {}, [option, "limits.max_connections=7"], []))
    assert after.per_connection_bytes - before.per_connection_bytes == grows_by
    assert after.total_bytes - before.total_bytes == 7 * grows_by + shared_grows_by


# The bound, held against a worker.

SMALL = (
    "limits.max_buffered_bytes=1048576",
    "limits.max_connections=40",
    "limits.notices=false",
    'when_full.fanout="stall"',
)


def bound_of(*sets: str) -> MemoryBound:
    """The bound of a worker with these keys."""
    return most_message_memory_bytes(configured(*sets))


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"b,c:\nb,d:\n" * 6_553, id="to several"),
        pytest.param(b"b:\nb,c:\n" * 8_192, id="mixed"),
        pytest.param(b"b:\nc:\n" * 10_922, id="in turn"),
        pytest.param((b"\n" * 2000 + b"b:\n") * 32, id="mostly empty"),
    ],
)
@virtual_time
async def test_memory_bound_holds_when_all_bring_the_most_in_one_turn(lines: bytes) -> None:
    """One read goes past the ceiling; of all others in that turn the least is read, whatever they hold."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    for name in "bcd":
        await gateway.stuck(name, alice)
    senders = [gateway.login(f"s{number}") for number in range(12)]
    most_bytes = 0
    for sender in senders:
        for _ in range(3):
            sender.send(lines)
            most_bytes = max(most_bytes, gateway.ledger.buffered_bytes)
    for _ in range(400):  # as many as it takes to parse them all
        await turns(1)
        most_bytes = max(most_bytes, gateway.ledger.buffered_bytes)
    bound = bound_of(*SMALL)
    unread = [sender.transport.unread for sender in senders]
    is_read = [sender.is_read for sender in senders]
    await gateway.close()
    assert not any(is_read)
    assert unread[1:] == [3 * len(lines) - 1] * 11
    assert most_bytes <= bound.shared[0].size_bytes + bound.shared[1].size_bytes


@virtual_time
async def test_memory_bound_holds_when_every_connection_ends_a_line_while_memory_is_full() -> None:
    """A byte of each is read, which ends its line at most; then it is not read any more."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    await gateway.stuck("b", alice)
    senders = [gateway.login(f"s{number}") for number in range(12)]
    names = ",".join(f"n{number:07}" for number in range(256)).encode()
    for sender in senders:
        sender.send(b"b," + names + b": " + b"x" * 14_000)
    full_bytes = gateway.connections.limits.max_buffered_bytes
    gateway.ledger.buffered_bytes += full_bytes
    gateway.connections.ceiling.count(0)
    gateway.connections.input = gateway.worker.topology.input  # all is read before any of it is handled
    for sender in senders:
        sender.send(b"\n" + b"b:\n" * 1000)
    counted_bytes = gateway.ledger.buffered_bytes - full_bytes
    await turns(400)
    unread = [sender.transport.unread for sender in senders]
    is_read = [sender.is_read for sender in senders]
    gateway.ledger.buffered_bytes -= full_bytes
    await gateway.close()
    assert not any(is_read)
    assert unread == [3000] * 12
    assert 12 * 14_000 < counted_bytes <= 12 * bound_of(*SMALL).parts[0].size_bytes


@virtual_time
async def test_memory_bound_covers_the_transport_when_one_read_is_many_flushes() -> None:
    """An entry goes to the transport in parts, each as large as a flush may be."""
    gateway = FakeGateway(*SMALL)
    alice, bob = gateway.login("a" * 64), gateway.login("b")
    bob.stick()
    alice.send(b"b:\n" * 21_845)
    await turns()
    held_bytes, in_flight = bob.transport.get_write_buffer_size(), gateway.ledger.in_flight
    bob.unstick()
    await turns()
    received, left = bob.take(), gateway.ledger.buffered_bytes
    await gateway.close()
    assert 0 < 21_845 - in_flight == held_bytes // len(b"from " + b"a" * 64 + b": \n")
    assert Config().outbox.send_buffer_bytes * 0.99 < held_bytes <= bound_of(*SMALL).parts[1].size_bytes
    assert received == (b"from " + b"a" * 64 + b": \n") * 21_845
    assert left == 0


@pytest.mark.parametrize("piece_bytes", [1, 100, 16_384])
@virtual_time
async def test_memory_bound_covers_the_unfinished_line_when_a_read_passes_it(piece_bytes: int) -> None:
    """What is beyond the longest line is dropped, and what is kept takes no more than its part says."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    tail_bytes = 0
    for _ in range(16_384 // piece_bytes):
        alice.send(b"x" * piece_bytes)
        tail_bytes = max(tail_bytes, sys.getsizeof(alice.connection._framer.tail))
    alice.send(b"x" * 65_536)
    last_bytes = sys.getsizeof(alice.connection._framer.tail)
    await gateway.close()
    assert max(tail_bytes, last_bytes) <= most_tail_bytes(16_384) <= bound_of(*SMALL).parts[0].size_bytes


def test_memory_bound_covers_the_notices_when_their_names_are_the_longest() -> None:
    """The widest names, every kind of refusal: as they wait and as they are written."""
    reasons = [value for name, value in vars(Refusal).items() if name.isupper()]
    gc.collect()
    tracemalloc.start()
    notices = Notices()
    for number in range(200):
        name = chr(0x4E00 + number) + "\U000e0001" * 100
        notices.add("unknown-recipient", reasons[number % len(reasons)], name=name, count=10**9)
    for word in ("refused", "unknown-recipient"):
        for reason in reasons:
            notices.add(word, reason, count=10**9)
    del name
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    text = notices.take()
    parts = most_message_memory_bytes(Config()).parts
    assert held_bytes <= parts[2].size_bytes
    assert len(text) <= MAX_TEXT_BYTES <= parts[1].size_bytes
    assert max(map(len, text.splitlines())) <= MAX_LINE_BYTES


@virtual_time
async def test_memory_bound_holds_when_ever_new_logins_leave_copies_in_their_grace() -> None:
    """What waits in graces holds no credit and no connection, so only the ceiling bounds it.

    Who said it all is held at 85 % of that.
    """
    sets = (*SMALL, "limits.max_connections=2", "outbox.max_grace_bytes=1048576")
    gateway = FakeGateway(*sets)
    alice = gateway.login("alice")
    most_bytes = 0
    for number in range(200):
        bob = gateway.connect()
        bob.send(f"b{number}\n".encode())
        if bob.connection.session is None:
            break  # busy
        bob.stick()
        alice.send(f"b{number}: {'x' * 16_000}\n".encode())
        await turns()
        alice.send(f"b{number}: {'x' * 16_000}\n".encode())
        await turns()
        bob.reset()
        await turns()
        most_bytes = max(most_bytes, gateway.ledger.buffered_bytes)
    kept = len(gateway.connections.grace)
    await gateway.close()
    assert kept > 40
    assert 0.8 * (1 << 20) < most_bytes <= bound_of(*sets).total_bytes


# The same for several workers.

IN_FLIGHT_BYTES = 268_435_456 + READ_BYTES + 3125 * LINE_BYTES
FRAME_BYTES = 4_194_304


def test_memory_bound_has_the_known_figures_when_there_are_four_workers() -> None:
    """Each has its share, what comes from three others, and three links; all of them make up the gateway."""
    bound = most_message_memory_bytes(Config(), 4)
    shared = [part.size_bytes for part in bound.shared]
    assert shared[:4] == [268_435_456, READ_BYTES, WORK_BYTES, CACHE_BYTES]
    assert shared[4:] == [3 * IN_FLIGHT_BYTES, 3 * FRAME_BYTES, 3 * FRAME_BYTES, 3 * 2 * FRAME_BYTES]
    assert bound.connections == 3125
    assert bound.worker_bytes == sum(shared) + 3125 * bound.per_connection_bytes
    assert bound.total_bytes == 4 * bound.worker_bytes


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_memory_bound_counts_every_link_when_its_outbox_grows(workers: int) -> None:
    """Every worker has one to every other one."""
    before = most_message_memory_bytes(Config(), workers)
    after = most_message_memory_bytes(configured(f"bus.max_outbox_bytes={FRAME_BYTES + 1}"), workers)
    assert after.total_bytes - before.total_bytes == workers * (workers - 1)


def test_memory_bound_counts_what_is_parked_at_links_when_fanout_stalls() -> None:
    """A text to several workers is parked at the link to each of them."""
    before = most_message_memory_bytes(Config(), 4)
    after = most_message_memory_bytes(configured("when_full.fanout=stall"), 4)
    assert after.worker_bytes - before.worker_bytes == 3 * IN_FLIGHT_BYTES


@virtual_time
async def test_memory_bound_holds_when_all_workers_write_to_one() -> None:
    """That one counts what others have in flight beside its own, which makes several times its share."""
    one_mib = 1 << 20
    sets = (
        *("outbox.max_outbox_bytes=8388608", "outbox.high_watermark_bytes=8000000"),
        *("limits.max_inflight_bytes=8388608", "limits.max_connections=12", "limits.notices=false"),
    )
    cluster = Cluster(3, *sets, f"limits.max_buffered_bytes={one_mib}")  # as their shares are
    await cluster.start()
    senders = [await cluster.login(wid, f"s{wid}") for wid in (1, 2, 3)]
    stuck = await cluster.login(1, "stuck")
    stuck.stick()
    for sender in senders:
        for _ in range(80):
            sender.send(b"stuck: " + b"x" * 15_000 + b"\n")
            await turns(20)
    counted_bytes = cluster.workers[1].ledger.buffered_bytes
    is_read = [sender.is_read for sender in senders]
    for _ in range(30):
        stuck.unstick()
        await settled(40)
    in_flight = cluster.in_flight
    await cluster.close()
    bound = most_message_memory_bytes(configured(*sets, f"limits.max_buffered_bytes={3 * one_mib}"), 3)
    assert not any(is_read)
    assert bound.shared[0].size_bytes == one_mib
    assert 2.4 * one_mib < counted_bytes <= one_mib + bound.shared[1].size_bytes + bound.shared[4].size_bytes
    assert in_flight == 0
