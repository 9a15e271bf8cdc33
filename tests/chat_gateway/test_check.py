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

if TYPE_CHECKING:
    from pathlib import Path


def test_memory_bound_has_the_known_figures_when_the_configuration_is_the_default() -> None:
    """The parts follow from the defaults: line, credit, an encoded read, one flush."""
    bound = most_message_memory_bytes(Config())
    assert [part.size_bytes for part in bound.parts] == [16_384, 262_144, 65_536 * 24, 524_288]
    assert bound.per_connection_bytes == 2_375_680
    assert bound.total_bytes == 23_756_800_000


def test_memory_bound_has_no_smaller_read_when_the_shortest_line_is_encoded() -> None:
    """The factor is that of the worst line there is: no name and text, to the longest sender."""
    sent, arrives = b"b:\n", b"from " + b"x" * 64 + b": \n"
    read = most_message_memory_bytes(Config()).parts[2]
    assert read.size_bytes * len(sent) == Config().limits.max_read_bytes * len(arrives)


@pytest.mark.parametrize(
    ("option", "grows_by"),
    [
        ("limits.max_line_bytes=16385", 1),
        ("limits.max_inflight_bytes=262145", 1),
        ("limits.max_read_bytes=65537", 24),
        ("outbox.max_outbox_bytes=524289", 1),
    ],
)
def test_memory_bound_grows_when_a_key_it_follows_from_grows(option: str, grows_by: int) -> None:
    """Each key that bounds messages counts once for each connection."""
    before = most_message_memory_bytes(Config())
    after = most_message_memory_bytes(load(None, {}, [option, "limits.max_connections=7"], []))
    assert after.per_connection_bytes - before.per_connection_bytes == grows_by
    assert after.total_bytes == 7 * after.per_connection_bytes


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


def test_report_shows_readable_and_exact_sizes_when_printed() -> None:
    """Each part, the sum for a connection and the total are there in both forms."""
    lines = " ".join(report(Config(), None).split())
    assert "# unfinished line 16.0 KiB (16384 bytes)" in lines
    assert "# for each connection 2.3 MiB (2375680 bytes)" in lines
    assert "# for 10000 connections 22.1 GiB (23756800000 bytes)" in lines


@pytest.mark.parametrize(
    ("physical_bytes", "is_warned"), [(23_756_799_999, True), (23_756_800_000, False), (None, False)]
)
def test_report_warns_when_the_machine_has_less_memory(physical_bytes: int | None, is_warned: bool) -> None:
    """Only a bound above the memory of the machine is worth a warning; an unknown memory is none."""
    assert ("# Warning" in report(Config(), physical_bytes)) is is_warned


@pytest.mark.parametrize(("size_bytes", "text"), [(1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB")])
def test_report_uses_the_unit_that_fits_when_a_total_is_small_or_large(
    size_bytes: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units go from bytes to TiB."""
    bound = MemoryBound((MemoryPart("all", size_bytes, ""),), 1)
    monkeypatch.setattr("chat_gateway.check.most_message_memory_bytes", lambda _: bound)
    assert f"for each connection {text} ({size_bytes} bytes)" in " ".join(report(Config(), None).split())


def test_physical_memory_is_unknown_when_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without these names is no error."""
    assert (physical_memory_bytes() or 0) > 0

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert physical_memory_bytes() is None
