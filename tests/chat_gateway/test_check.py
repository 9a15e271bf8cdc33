"""What `check` prints, and the bound on memory."""

from __future__ import annotations

import tomllib
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
from tests.chat_gateway.fakes import FakeGateway, configured, turns, virtual_time

if TYPE_CHECKING:
    from pathlib import Path


READ_BYTES = 512 + 65_536 + 13_107 * (72 + 2 * 96)
FLUSH_BYTES = 65_536 + 21_845 * 72


def test_memory_bound_has_the_known_figures_when_the_configuration_is_the_default() -> None:
    """What is in flight once, and for each connection a line, a read and a flush on top of it."""
    bound = most_message_memory_bytes(Config())
    assert [part.size_bytes for part in bound.shared] == [1_073_741_824]
    assert [part.size_bytes for part in bound.parts] == [16_384 + 65_536, READ_BYTES, FLUSH_BYTES]
    assert bound.per_connection_bytes == 81_920 + READ_BYTES + FLUSH_BYTES
    assert bound.all_connections_bytes == 10_000 * bound.per_connection_bytes
    assert bound.total_bytes == 1_073_741_824 + bound.all_connections_bytes


def test_memory_bound_has_no_smaller_read_when_the_shortest_line_is_encoded() -> None:
    """The overhead of a line covers the worst line there is: no name and text, to the longest sender."""
    sent, arrives = b"b:\n", b"from " + b"x" * 64 + b": \n"
    lines = Config().limits.max_read_bytes // len(sent)
    assert most_message_memory_bytes(Config()).parts[2].size_bytes >= lines * len(arrives)


@pytest.mark.parametrize(
    ("option", "grows_by", "shared_grows_by"),
    [
        ("limits.max_line_bytes=16385", 1, 0),
        ("limits.max_read_bytes=65551", 15 + 15 + 3 * (72 + 2 * 96) + 15 + 5 * 72, 0),
        ("outbox.send_buffer_bytes=1638376", 0, 0),
        ("outbox.send_buffer_bytes=1638378", 2, 0),
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


@virtual_time
async def test_memory_bound_holds_when_all_bring_the_most_in_one_turn() -> None:
    """The ceiling is known to be reached after one read of each: that much is counted on top of it."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    for name in "bcd":
        await gateway.stuck(name, alice)
    senders = [gateway.login(f"s{number}") for number in range(12)]
    for sender in senders:
        for _ in range(3):
            sender.send(b"b,c:\nb,d:\n" * 6_553)
    await turns(400)  # as many as it takes to parse them all
    bound = bound_of(*SMALL)
    counted_bytes = gateway.ledger.buffered_bytes
    await gateway.close()
    assert not any(sender.is_read for sender in senders)
    assert counted_bytes > 12 * bound.parts[1].size_bytes * 0.9
    assert counted_bytes <= bound.shared[0].size_bytes + 12 * bound.parts[1].size_bytes


@virtual_time
async def test_memory_bound_covers_the_transport_when_one_read_is_one_flush() -> None:
    """An entry goes to the transport whole, as large as it is, and counts as delivered then."""
    gateway = FakeGateway(*SMALL)
    alice, bob = gateway.login("a" * 64), gateway.login("b")
    bob.stick()
    alice.send(b"b:\n" * 21_845)
    await turns()
    held_bytes, in_flight = bob.transport.get_write_buffer_size(), gateway.ledger.in_flight
    await gateway.close()
    assert in_flight == 0
    assert Config().outbox.send_buffer_bytes < held_bytes <= bound_of(*SMALL).parts[2].size_bytes


@virtual_time
async def test_memory_bound_covers_the_unfinished_line_when_a_read_passes_it() -> None:
    """A line that becomes too long was kept as a whole until that was known."""
    gateway = FakeGateway(*SMALL)
    alice = gateway.login("alice")
    alice.send(b"x" * 16_384)
    alice.send(b"x" * 65_536)
    tail_bytes = len(alice.connection._framer.tail)
    await gateway.close()
    assert tail_bytes <= bound_of(*SMALL).parts[0].size_bytes


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
        "# dead letters 16.0 MiB (16777216 bytes) that wait for the disk",
        "# for 10000 connections 48.9 GiB (52465920000 bytes) each of them:",
        "# unfinished line 80.0 KiB (81920 bytes) limits.max_line_bytes, and the read that passes it",
        "# one read more 3.4 MiB (3526296 bytes) limits.max_read_bytes of the shortest lines, "
        "each to several",
        "# one flush 1.6 MiB (1638376 bytes) outbox.send_buffer_bytes, or all that one read brought, "
        "once encoded",
        "# in all 49.9 GiB (53556439040 bytes) and beside it the socket buffers of the kernel",
    ]


TOTAL_BYTES = 53_539_661_824


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
