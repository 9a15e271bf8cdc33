"""What `check` prints, and the bound on memory."""

from __future__ import annotations

import gc
import sys
import tomllib
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from chat_gateway.check import (
    MemoryBound,
    MemoryPart,
    most_message_memory_bytes,
    physical_memory_bytes,
    report,
)
from chat_gateway.config import Config
from chat_gateway.config_sources import load
from chat_gateway.dead_letters import MAX_QUEUED_BYTES
from stages.line_codec import most_tail_bytes
from stages.message import Refusal
from stages.notices import MAX_LINE_BYTES, MAX_TEXT_BYTES, Notices
from tests.chat_gateway.fakes import FakeGateway, configured, turns, virtual_time

if TYPE_CHECKING:
    from pathlib import Path


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
        pytest.param(b"\n" * 65_000 + b"b:\n", id="empty"),
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
    """What waits in graces holds no credit and no connection, so only the ceiling bounds it."""
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
    assert 0.9 * (1 << 20) < most_bytes <= bound_of(*sets).total_bytes


def test_report_is_the_same_configuration_when_loaded_again(tmp_path: Path) -> None:
    """What check prints can be given to serve, comments and warning included."""
    sets = ["limits.notices=false", "stages.route.capacity=7", "retry.base_delay_s=0.001", "log.level=debug"]
    config = load(None, {}, sets, ["line://[::1]:0", "line://chat.example.org:8080"])
    path = tmp_path / "gateway.toml"
    path.write_text(report(config, physical_bytes=1))
    assert load(path, {}, [], []) == config


def test_report_has_no_table_without_keys_when_tables_are_nested() -> None:
    """A table that only holds tables has no header of its own."""
    assert "[stages]" not in report(Config(), None)
    assert set(tomllib.loads(report(Config(), None))) == set(Config.model_fields)


def test_report_is_a_sum_that_can_be_followed_when_printed() -> None:
    """Each part is there readable and exact, with the key it follows from, and the total at the end."""
    text = report(configured("dead_letters.path=letters"), None)
    memory = [line.split() for line in text.splitlines() if line.startswith("#   ")]
    assert [" ".join(words) for words in memory] == [
        "# messages in flight 1.0 GiB (1073741824 bytes) limits.max_buffered_bytes",
        "# one read more 10.1 MiB (10568192 bytes) limits.max_read_bytes of the lines that count most",
        "# one read at work 3.9 MiB (4095904 bytes) limits.max_read_bytes of the shortest lines, encoded",
        "# recipient lists 8.0 MiB (8388608 bytes) that were parsed lately",
        "# dead letters 16.0 MiB (16777216 bytes) that wait for the disk",
        "# for 10000 connections 1.6 GiB (1766810000 bytes) each of them:",
        "# unfinished line 80.6 KiB (82505 bytes) limits.max_line_bytes, or ended when memory is full, "
        "to limits.max_recipients",
        "# one flush 64.8 KiB (66336 bytes) outbox.send_buffer_bytes or the longest line, "
        "and the last notice",
        "# notices 27.2 KiB (27840 bytes) that wait for the next flush, merged by name",
        "# in all 2.7 GiB (2880381744 bytes) and beside it the socket buffers of the kernel",
    ]


TOTAL_BYTES = 2_863_604_528


@pytest.mark.parametrize(
    ("physical_bytes", "is_warned"), [(TOTAL_BYTES - 1, True), (TOTAL_BYTES, False), (None, False)]
)
def test_report_warns_when_the_machine_has_less_memory(physical_bytes: int | None, is_warned: bool) -> None:
    """Only a bound above the memory of the machine is worth a warning; an unknown memory is none."""
    assert ("# Warning" in report(Config(), physical_bytes)) is is_warned


@pytest.mark.parametrize(("size_bytes", "text"), [(1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB")])
def test_report_uses_the_unit_that_fits_when_a_total_is_small_or_large(
    size_bytes: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units go from bytes to TiB."""
    bound = MemoryBound((), (MemoryPart("all", size_bytes, ""),), 1)
    monkeypatch.setattr("chat_gateway.check.most_message_memory_bytes", lambda _: bound)
    assert f"in all {text} ({size_bytes} bytes)" in " ".join(report(Config(), None).split())


def test_physical_memory_is_unknown_when_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without these names is no error."""
    assert (physical_memory_bytes() or 0) > 0

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert physical_memory_bytes() is None
