"""The lines of records: their form, and that no value breaks out of them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat_gateway.log_tap import ANY_TEXT, Tap, is_clean, raises

if TYPE_CHECKING:
    from pathlib import Path


class Hostile:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Liar:
    """A value whose text is not fit for a line."""

    def __repr__(self) -> str:
        return "\ud800\n\x1b[2J\u202e"


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


def test_record_keeps_a_field_when_its_name_is_taken() -> None:
    """The common fields cannot be overwritten; a field of such a name gets a `_`."""
    tap = Tap(bind={"worker": "supervisor"})
    tap.log.logger.info("worker.ended", pid=7, level="high", ts="noon", worker=2)
    (record,) = tap.records()
    assert (record["pid"], record["level"], record["ts"][:4]) == (os.getpid(), "info", "2024")
    assert (record["pid_"], record["level_"], record["ts_"]) == (7, "high", "noon")
    assert (record["worker"], record["worker_"]) == ("supervisor", 2)


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
    places = [place.partition(":")[0] for place in exception["traceback"]]
    assert places == ["chat_gateway/test_log_lines.py", "chat_gateway/log_tap.py"]
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
