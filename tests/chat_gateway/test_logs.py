"""Records as they arrive at the other end of a descriptor: their form, their safety, and what is left out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_gateway.logs import Log, LogStatistics, describe_exception, open_log, peer_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Far longer than anything here takes; only a broken log waits for it.
PATIENCE_S = 20.0

NOW = datetime(2024, 2, 29, 12, 34, 56, 789_000, tzinfo=UTC).timestamp()

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.text(
    st.sampled_from(BIDI + '\0\n\r\x1b\x7f\x80\x85\x9f\u2028\u2029\ud800\udcff\ufeff\U000e0001a"\\= ')
)


class Tap:
    """A log into a pipe, a clock to move, and the lines that came out."""

    def __init__(self, **chosen: Any) -> None:
        self.now = 1_000.0
        self._read_fd, write_fd = os.pipe()
        usual: dict[str, Any] = {
            "format": "json",
            "level": "debug",
            "queue_records": 1_000,
            "flood_per_s": 10,
            "clock": lambda: self.now,
            "now": lambda: NOW,
        }
        self.log: Log = open_log(**(usual | chosen), fd=write_fd)
        os.close(write_fd)

    def output(self) -> bytes:
        """Close the log; all that was written (a pipe holds 64 KiB, which is enough here)."""
        assert self.log.close(PATIENCE_S) == 0
        with os.fdopen(self._read_fd, "rb") as file:
            return file.read()

    def records(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.output().splitlines()]

    def lines(self) -> list[str]:
        return self.output().decode().splitlines()


def raises(message: str) -> None:
    raise ValueError(message)


class Hostile:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Liar:
    """A value whose text is not fit for a line."""

    def __repr__(self) -> str:
        return "\ud800\n\x1b[2J\u202e"


def is_clean(text: str) -> bool:
    """No control, format, line or surrogate character, so nothing that acts on a terminal."""
    return all(unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)


def test_json_record_has_the_common_fields_first_when_it_is_written() -> None:
    """A line is one JSON object: when, how grave, what, who, and the fields of the call."""
    tap = Tap(bind={"worker": 3})
    tap.log.logger.info("session.login", login="alice", peer="127.0.0.1:5000")
    assert tap.output().decode() == (
        '{"ts":"2024-02-29T12:34:56.789Z","level":"info","event":"session.login",'
        f'"worker":3,"pid":{os.getpid()},"login":"alice","peer":"127.0.0.1:5000"}}\n'
    )


def test_json_timestamp_changes_when_time_goes_on() -> None:
    """Milliseconds are cut off, not rounded up, and each second is its own."""
    moments = iter([0.0, 0.9996, 1.0, 59.25, 60.0])
    tap = Tap(now=lambda: next(moments))
    for _ in range(5):
        tap.log.logger.info("x")
    assert [record["ts"][14:] for record in tap.records()] == [
        "00:00.000Z", "00:00.999Z", "00:01.000Z", "00:59.250Z", "01:00.000Z",
    ]  # fmt: skip


def test_logger_binds_fields_when_asked() -> None:
    """A bound logger adds its fields to each record, and the fields of a call win."""
    tap = Tap()
    tap.log.logger.bind(login="alice", port=1).warning("x", port=2)
    (record,) = tap.records()
    assert (record["level"], record["port"], record["login"]) == ("warning", 2, "alice")


def test_record_keeps_a_field_when_its_name_is_taken() -> None:
    """The common fields cannot be overwritten; a field of such a name gets a `_`."""
    tap = Tap(bind={"worker": "supervisor"})
    tap.log.logger.info("worker.ended", pid=7, level="high", ts="noon", worker=2)
    (record,) = tap.records()
    assert (record["pid"], record["level"], record["ts"][:4]) == (os.getpid(), "info", "2024")
    assert (record["pid_"], record["level_"], record["ts_"]) == (7, "high", "noon")
    assert (record["worker"], record["worker_"]) == ("supervisor", 2)


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


@settings(deadline=None)  # each example starts a thread
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_json_line_is_one_clean_object_when_any_text_is_logged(event: str, name: str, value: str) -> None:
    """Whatever the text, there is one line of valid JSON without a character that acts on a terminal."""
    tap = Tap(flood_per_s=1_000)
    tap.log.logger.info(event, **{"x" + name: value, "nested": [{name: value}]})
    output = tap.output().decode()
    assert output.endswith("}\n")
    assert is_clean(output[:-1])
    record = orjson.loads(output)
    assert json.loads(output) == record
    if not any(0xD800 <= ord(char) <= 0xDFFF for char in event + name + value):
        assert (record["event"], record["x" + name], record["nested"]) == (event, value, [{name: value}])


@settings(deadline=None)  # each example starts a thread
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_text_line_is_one_clean_line_when_any_text_is_logged(event: str, name: str, value: str) -> None:
    """Whatever the text, there is one line without a character that acts on a terminal."""
    tap = Tap(format="text", flood_per_s=1_000)
    tap.log.logger.info(event, **{"x" + name: value})
    output = tap.output().decode()
    assert output.endswith("\n")
    assert is_clean(output[:-1])


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary() | ANY_TEXT
)
OBJECTS = st.builds(Hostile) | st.builds(Liar) | st.datetimes() | st.uuids()
ANY_VALUE = st.recursive(
    PLAIN | OBJECTS,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers() | ANY_TEXT, inner),
    max_leaves=10,
)


@settings(deadline=None)  # each example starts a thread
@given(ANY_VALUE, st.sampled_from(["json", "text"]))
def test_line_is_clean_when_any_value_is_logged(value: object, form: str) -> None:
    """Whatever the value, a log call does not raise and makes one clean line."""
    tap = Tap(format=form)
    tap.log.logger.info("x", value=value)
    output = tap.output().decode()
    assert output.endswith("\n")
    assert is_clean(output[:-1])
    if form == "json":
        assert "value" in orjson.loads(output)


def cyclic() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\xff", "b'\\xff'"),
        ({1: "x"}, {"1": "x"}),
        (2**70, str(2**70)),
        ("a\ud800b", "a\\ud800b"),
        ({"a": ("\udcff", 1, 2.5, None)}, {"a": ["\\udcff", 1, 2.5, None]}),
        (Hostile(), None),
        (Liar(), "\\ud800\n\x1b[2J\u202e"),
    ],
)
def test_record_shows_a_value_when_json_has_no_form_for_it(value: object, expected: object) -> None:
    """What JSON cannot hold appears as a short text, and the other fields are untouched."""
    tap = Tap()
    tap.log.logger.info("x", value=value, after=1)
    (record,) = tap.records()
    assert record["after"] == 1
    assert record["value"] == expected or (expected is None and "Hostile" in record["value"])


@pytest.mark.parametrize("value", [cyclic(), set(range(100_000)), 10**10_000, b"x" * 1_000_000], ids=type)
def test_record_stays_short_when_a_value_is_endless(value: object) -> None:
    """A value without a form in JSON is shortened."""
    tap = Tap()
    tap.log.logger.info("x", value=value)
    assert len(tap.output()) < 1_000


def test_exception_is_fields_of_one_line_when_it_is_logged() -> None:
    """Type, message and places, never a traceback of several lines."""
    tap = Tap()
    try:
        raises("bad\nthing")
    except ValueError:
        tap.log.logger.exception("stage.failed", stage="route")
    (record,) = tap.records()
    assert record["stage"] == "route"
    assert "exc_info" not in record
    exception = record["exception"]
    assert (exception["type"], exception["message"]) == ("ValueError", "bad\nthing")
    assert [place.partition(":")[0] for place in exception["traceback"]] == ["chat_gateway/test_logs.py"] * 2
    assert exception["traceback"][-1].endswith(" raises")
    assert "causes" not in exception


@pytest.mark.parametrize("form", ["flag", "exception", "triple"])
def test_exception_is_found_when_it_is_given_in_any_form(form: str) -> None:
    """A flag in an `except`, an exception, and a triple are understood, at any level."""
    tap = Tap()
    error = ValueError("x")
    forms = {"flag": True, "exception": error, "triple": (ValueError, error, None)}
    try:
        raise error
    except ValueError:
        tap.log.logger.info("x", exc_info=forms[form])
    assert tap.records()[0]["exception"]["type"] == "ValueError"


@pytest.mark.parametrize("exc_info", [False, None, True, (None, None, None), ()])
def test_record_has_no_exception_when_there_is_none(exc_info: object) -> None:
    """Outside of an `except` there is nothing to tell."""
    tap = Tap()
    tap.log.logger.error("x", exc_info=exc_info)
    assert {"exception", "exc_info"}.isdisjoint(tap.records()[0])


def test_exception_names_its_causes_when_it_has_some() -> None:
    """Causes, contexts and members of a group are named, nearest first."""
    cause = KeyError("k")
    cause.__context__ = OSError("deep")
    group = ExceptionGroup("tasks", [ValueError("a"), TypeError("b")])
    group.__cause__ = cause
    assert describe_exception(group)["causes"] == [
        "ValueError: a",
        "TypeError: b",
        "KeyError: 'k'",
        "OSError: deep",
    ]


def test_exception_names_no_context_when_it_was_suppressed() -> None:
    """`raise … from None` is respected."""
    error = ValueError("x")
    error.__context__ = KeyError("k")
    assert "causes" in describe_exception(error)
    error.__suppress_context__ = True
    assert "causes" not in describe_exception(error)


def test_exception_is_shortened_when_it_is_long() -> None:
    """A deep recursion with a long message and a long chain of causes make a short record."""

    def recurse(depth: int) -> None:
        if not depth:
            raises("x" * 100_000)
        recurse(depth - 1)

    with pytest.raises(ValueError, match="x") as caught:
        recurse(100)
    first = caught.value
    error: BaseException = first
    for number in range(50):
        error.__cause__ = KeyError(number)
        error = error.__cause__
    described: dict[str, Any] = describe_exception(first)
    assert len(described["traceback"]) == 8
    assert described["traceback"][-1].endswith(" raises")
    assert described["message"] == "x" * 500 + "..."
    assert described["causes"] == [f"KeyError: {number}" for number in range(8)]


def test_exception_is_described_once_when_it_causes_itself() -> None:
    """A chain that bites its own tail has an end."""
    error, cause = ValueError("x"), KeyError("k")
    error.__cause__, cause.__cause__ = cause, error
    assert describe_exception(error)["causes"] == ["KeyError: 'k'"]


def test_exception_is_described_when_its_text_cannot_be_had() -> None:
    """An exception that cannot say what it is still makes a record."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    tap = Tap()
    tap.log.logger.error("x", exc_info=MuteError())
    assert "MuteError" in tap.records()[0]["exception"]["message"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", "12:34:56.789 debug session.login  login=alice peer=127.0.0.1:5000"),
        ("info", "12:34:56.789 info  session.login  login=alice peer=127.0.0.1:5000"),
        ("warning", "12:34:56.789 warn  session.login  login=alice peer=127.0.0.1:5000"),
        ("error", "12:34:56.789 error session.login  login=alice peer=127.0.0.1:5000"),
        ("critical", "12:34:56.789 crit  session.login  login=alice peer=127.0.0.1:5000"),
    ],
)
def test_text_line_is_aligned_when_the_format_is_text(level: str, expected: str) -> None:
    """Time and level have a fixed width; fields follow the event."""
    tap = Tap(format="text")
    getattr(tap.log.logger, level)("session.login", login="alice", peer="127.0.0.1:5000")
    assert tap.lines() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("zoë", "zoë"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("C:\\x", '"C:\\\\x"'),
        ("a\nb\u202ec", '"a\\nb\\u202ec"'),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (["a b", 1], '["a b",1]'),
    ],
)
def test_text_value_is_quoted_when_it_needs_to_be(value: object, expected: str) -> None:
    """A value with a space or anything that is not plain is quoted as in JSON."""
    tap = Tap(format="text")
    tap.log.logger.info("x", value=value)
    assert tap.lines() == [f"12:34:56.789 info  x  value={expected}"]


def test_text_line_does_not_say_who_talks_when_nobody_else_does() -> None:
    """One process: it is always the same one."""
    tap = Tap(format="text", bind={"worker": 1})
    tap.log.logger.info("x", n=2)
    assert tap.lines() == ["12:34:56.789 info  x  n=2"]


def test_text_line_says_which_worker_talks_when_several_do(tmp_path: Path) -> None:
    """First of all fields, and without the process."""
    tap = Tap(format="text", bind={"worker": 2}, lock_path=tmp_path / "lock")
    tap.log.logger.info("x", n=2)
    assert tap.lines() == ["12:34:56.789 info  x  worker=2 n=2"]


def test_text_line_ends_after_the_event_when_there_are_no_fields() -> None:
    """No spaces hang behind the event."""
    tap = Tap(format="text")
    tap.log.logger.info("x")
    assert tap.lines() == ["12:34:56.789 info  x"]


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


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"alice", "alice"),
        ("zoë", "zoë"),
        ("zoë".encode(), "zoë"),
        (b"", ""),
        (b"GET / HTTP/1.1\r\n", "GET / HTTP/1.1\\x0d\\x0a"),
        (b"\x16\x03\x01\xff", "\\x16\\x03\\x01\\xff"),
        ("\x7f\x85\u202e\u2028\U000e0001", "\\x7f\\u0085\\u202e\\u2028\\U000e0001"),
        ("a\\nb", "a\\\\nb"),
        ("\ud800", "\\xed\\xa0\\x80"),
        (b"x" * 64, "x" * 64),
        (b"x" * 65, "x" * 64 + "... (+1 bytes)"),
        ("é" * 40, "é" * 32 + "... (+16 bytes)"),
        ("x" + "é" * 40, "x" + "é" * 31 + "... (+18 bytes)"),
        ("xx" + "\U0001f600" * 20, "xx" + "\U0001f600" * 15 + "... (+20 bytes)"),
        (b"\x80" * 100, "\\x80" * 61 + "... (+39 bytes)"),
    ],
)
def test_peer_text_is_short_and_harmless_when_a_peer_sends_anything(data: bytes | str, expected: str) -> None:
    """What shows itself stays; the rest is escaped; the number of bytes that are missing is said."""
    assert peer_text(data) == expected


@given(st.binary() | ANY_TEXT, st.integers(0, 100))
def test_peer_text_is_clean_and_bounded_when_a_peer_sends_anything(data: bytes | str, limit: int) -> None:
    """No character of a peer acts on a terminal, and no peer makes a long line."""
    text = peer_text(data, limit)
    assert is_clean(text)
    assert len(text) <= 4 * limit + len("... (+1000000 bytes)")


@given(st.text(max_size=16), st.text(max_size=16))
def test_peer_text_differs_when_the_input_differs(one: str, other: str) -> None:
    """What a peer sent can be told from its text."""
    assert (peer_text(one) == peer_text(other)) == (one == other)
