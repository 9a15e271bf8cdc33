"""What `check` prints."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from chat_gateway.check import physical_memory_bytes, report
from chat_gateway.config import Config
from chat_gateway.config_sources import load
from chat_gateway.memory_bound import MemoryBound, MemoryPart, most_message_memory_bytes
from tests.chat_gateway.fakes import configured

if TYPE_CHECKING:
    from pathlib import Path

ALONE = configured("runtime.workers=1")


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
    text = report(configured("dead_letters.path=letters", "runtime.workers=1"), None)
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


@pytest.mark.parametrize(
    ("workers", "connections", "buffered_bytes"),
    [(2, 6250, 536_870_912), (3, 4167, 357_913_941), (4, 3125, 268_435_456)],
)
def test_report_has_the_share_of_each_worker_when_there_are_several(
    workers: int, connections: int, buffered_bytes: int
) -> None:
    """Beside the figure of the gateway, before the bound, which is that of a worker and of all together."""
    config = configured(f"runtime.workers={workers}")
    words = " ".join(report(config, None).split())
    assert f"# What each of the {workers} workers has of the limits of the gateway:" in words
    assert f"# limits.max_connections {connections} of 10000 a quarter more than an even part" in words
    assert f"# limits.max_buffered_bytes {buffered_bytes} of 1073741824 an even part" in words
    assert f"# for {connections} connections " in words
    bound = most_message_memory_bytes(config, workers)
    assert f"({bound.worker_bytes} bytes) while one is replaced, there is one more # in all" in words
    assert f"({bound.worker_bytes * workers} bytes) in {workers} workers, and beside it" in words


def test_report_counts_the_processors_when_the_workers_are_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """As serve would start them here; what is printed stays `auto`."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    text = report(configured("runtime.workers=auto"), None)
    assert "# What each of the 3 workers has" in text
    assert tomllib.loads(text)["runtime"]["workers"] == "auto"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5})
    assert report(configured("runtime.workers=auto"), None) == report(Config(), None)
    assert "worker has" not in report(Config(), None)


def test_report_says_nothing_of_shares_when_there_is_one_worker() -> None:
    """Nobody else is there."""
    text = report(ALONE, None)
    assert "each worker" not in text
    assert "links" not in text


TOTAL_BYTES = 2_863_604_528


@pytest.mark.parametrize(
    ("physical_bytes", "is_warned"), [(TOTAL_BYTES - 1, True), (TOTAL_BYTES, False), (None, False)]
)
def test_report_warns_when_the_machine_has_less_memory(physical_bytes: int | None, is_warned: bool) -> None:
    """Only a bound above the memory of the machine is worth a warning; an unknown memory is none."""
    assert ("# Warning" in report(ALONE, physical_bytes)) is is_warned


@pytest.mark.parametrize(("size_bytes", "text"), [(1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB")])
def test_report_uses_the_unit_that_fits_when_a_total_is_small_or_large(
    size_bytes: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units go from bytes to TiB."""
    bound = MemoryBound((), (MemoryPart("all", size_bytes, ""),), 1)
    monkeypatch.setattr("chat_gateway.check.most_message_memory_bytes", lambda _, workers: bound)
    assert f"in all {text} ({size_bytes} bytes)" in " ".join(report(ALONE, None).split())


def test_physical_memory_is_unknown_when_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without these names is no error."""
    assert (physical_memory_bytes() or 0) > 0

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert physical_memory_bytes() is None
