"""Logs as a whole: what is written, what is left out or dropped, and how they end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog

from chat_gateway.logs import LogStatistics, open_log
from tests.chat_gateway.log_tap import NOW, PATIENCE_S, Tap

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_logger_binds_fields_when_asked() -> None:
    """A bound logger adds its fields to each record, and the fields of a call win."""
    tap = Tap()
    tap.log.logger.bind(login="alice", port=1).warning("x", port=2)
    (record,) = tap.records()
    assert (record["level"], record["port"], record["login"]) == ("warning", 2, "alice")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_log_writes_from_its_level_on_when_records_of_all_levels_come(level: str) -> None:
    """Records below the level are not made."""
    levels = ["debug", "info", "warning", "error", "critical"]
    tap = Tap(level=level)
    for name in levels:
        getattr(tap.log.logger, name)("x")
    assert [record["level"] for record in tap.records()] == levels[levels.index(level) :]


def test_logs_are_independent_when_there_are_several() -> None:
    """Each log has its own destination and fields, and structlog's global settings stay as they are."""
    one, two = Tap(bind={"name": "one"}), Tap(bind={"name": "two"}, level="error")
    one.log.logger.info("x")
    two.log.logger.info("x")
    assert not structlog.is_configured()
    assert [record["name"] for record in one.records()] == ["one"]
    assert two.records() == []


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: the end that sees the output, and the end to write to."""
    ends = pty.openpty()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize(
    ("form", "no_colour", "expected"),
    [
        ("auto", None, b"12:34:56.789 \x1b[33mwarn \x1b[0m x  n=1\r\n"),
        ("auto", "", b"12:34:56.789 \x1b[33mwarn \x1b[0m x  n=1\r\n"),
        ("auto", "1", b"12:34:56.789 warn  x  n=1\r\n"),
        ("text", "1", b"12:34:56.789 warn  x  n=1\r\n"),
        ("json", None, b'"event":"x"'),
    ],
)
def test_log_suits_a_terminal_when_it_writes_to_one(
    terminal: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    no_colour: str | None,
    expected: bytes,
) -> None:
    """On a terminal `auto` is text, coloured by level unless NO_COLOR is set; JSON stays JSON."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour is not None:
        monkeypatch.setenv("NO_COLOR", no_colour)
    screen, fd = terminal
    log = open_log(format=form, level="info", queue_records=10, flood_per_s=10, fd=fd, now=lambda: NOW)
    log.logger.warning("x", n=1)
    assert log.close(PATIENCE_S) == 0
    assert expected in os.read(screen, 1_000)


def test_log_writes_json_when_the_format_is_auto_and_there_is_no_terminal() -> None:
    """In a pipe or a file `auto` is JSON."""
    tap = Tap(format="auto")
    tap.log.logger.info("x")
    assert tap.records()[0]["event"] == "x"


def test_log_limits_a_flood_and_tells_the_rest_when_it_is_closed() -> None:
    """Records over the limit are counted, told by the next one, and by a report at the end."""
    tap = Tap(flood_per_s=2, bind={"worker": 1})
    for _ in range(5):
        tap.log.logger.info("session.refused", reason="full", address="10.0.0.1")
    tap.now += 1.0
    for _ in range(3):
        tap.log.logger.info("session.refused", reason="full", address="10.0.0.1")
    *records, report = tap.records()
    assert [record.get("left_out") for record in records] == [None, None, 3, None]
    assert report["event"] == "log.left_out"
    assert report["level"] == "warning"
    assert (report["of"], report["reason"], report["address"]) == ("session.refused", "full", "10.0.0.1")
    assert (report["count"], report["worker"]) == (1, 1)
    assert tap.log.statistics().left_out == 4


def test_log_reports_what_was_left_out_when_its_timer_asks() -> None:
    """`flush_left_out` reports counts of quiet keys without any record being logged."""
    tap = Tap(flood_per_s=1)
    tap.log.logger.info("x")
    tap.log.logger.info("x")
    tap.now += 1.0
    tap.log.flush_left_out()
    assert tap.log.statistics().written + tap.log.statistics().queued == 2
    assert [record["event"] for record in tap.records()] == ["x", "log.left_out"]


@pytest.mark.parametrize("event", ["gateway.ready", "gateway.draining", "gateway.stopped", "metrics"])
def test_log_never_limits_when_the_event_is_the_gateways_own(event: str) -> None:
    """Events that no peer can cause always pass."""
    tap = Tap(flood_per_s=1)
    for _ in range(50):
        tap.log.logger.info(event)
    assert len(tap.records()) == 50


def test_log_reports_drops_when_the_queue_was_full() -> None:
    """A reader that stops costs records, which are counted and told once it reads again."""
    read_fd, write_fd = os.pipe()
    log = open_log(
        format="json", level="info", queue_records=10, flood_per_s=10_000, bind={"worker": 1}, fd=write_fd
    )
    os.close(write_fd)
    for number in range(200):
        log.logger.info("x", number=number, filler="x" * 4_000)
    dropped = log.statistics().dropped
    assert dropped > 0
    numbers: list[int] = []
    told = written = 0
    with os.fdopen(read_fd, "rb") as file:
        while told < dropped or len(numbers) < 200 - dropped:
            record = orjson.loads(file.readline())
            written += 1
            if record["event"] == "x":
                numbers.append(record["number"])
            else:
                assert (record["event"], record["level"], record["worker"]) == ("log.dropped", "warning", 1)
                told += record["count"]
        assert log.close(PATIENCE_S) == 0
        assert file.read() == b""
    assert numbers == sorted(set(numbers))
    assert told == dropped
    assert log.statistics() == LogStatistics(written, failed=0, dropped=dropped, left_out=0, queued=0)


def test_process_ends_when_its_log_is_stuck() -> None:
    """A reader that never reads keeps the process neither from closing its log in time nor from ending."""
    program = """if True:
        import os, sys
        from chat_gateway.logs import open_log
        log = open_log(format="json", level="info", queue_records=1000, flood_per_s=1000)
        for number in range(100):
            log.logger.info("x", filler="x" * 4000)
        sys.exit(0 if log.close(0.0) > 0 else "everything was written")
    """
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.wait(PATIENCE_S) == 0
    process.communicate()


def test_close_counts_later_records_as_dropped_when_it_is_done() -> None:
    """A log may be closed twice and used after that; nothing is written any more."""
    tap = Tap()
    tap.log.logger.info("x")
    assert tap.log.close(PATIENCE_S) == 0
    tap.log.logger.info("y")
    assert tap.log.statistics().dropped == 1
    assert [record["event"] for record in tap.records()] == ["x"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "xml"}, "format"),
        ({"level": "loud"}, "level"),
        ({"queue_records": 0}, "max_records"),
        ({"flood_per_s": 0}, "flood_per_s"),
    ],
)
def test_open_log_refuses_when_a_setting_is_wrong(wrong: dict[str, Any], message: str) -> None:
    """A setting that makes no sense is named."""
    right: dict[str, Any] = {"format": "json", "level": "info", "queue_records": 10, "flood_per_s": 10}
    with pytest.raises(ValueError, match=message):
        open_log(**(right | wrong))
