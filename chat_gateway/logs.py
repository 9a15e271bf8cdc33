"""What the gateway tells: structured records, one line each.

`open_log` puts structlog, the limit on floods and the writer thread together. A log call costs the event loop
a few microseconds, never waits, and never raises because of a value; no value can break out of its line.
An event is a constant name, everything that varies is a field. Must not know who logs what.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
import time
from collections import deque
from dataclasses import dataclass
from traceback import walk_tb
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
import structlog

from chat_gateway.log_flood import LogFlood
from chat_gateway.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, MutableMapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

# Events of the gateway itself: no peer can cause them.
NEVER_LIMITED: Final = frozenset(
    {
        *("gateway.ready", "gateway.draining", "gateway.stopped", "gateway.gives_up"),
        *("worker.started", "worker.ready", "worker.draining", "worker.stopped"),
        *("worker.killed", "worker.lost", "worker.not_started"),
        *("metrics", "log.dropped", "log.left_out"),
    }
)

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
FORMATS: Final = ("auto", "json", "text")

# Level on a terminal: a word of at most five letters, and the parameters of its colour sequence.
_TEXT_LEVELS: Final = {
    "debug": ("debug", "2"),
    "info": ("info", "36"),
    "warning": ("warn", "33"),
    "error": ("error", "31"),
    "critical": ("crit", "1;31"),
}

# Fields that every record has, besides those that are bound to the log; a caller's field of the same name is
# written with a `_` behind it.
_RESERVED: Final = frozenset({"ts", "level", "event", "pid"})

_MAX_MESSAGE_CHARS: Final = 500  # of an exception
_MAX_FRAMES: Final = 8  # the innermost say what happened
_MAX_CAUSES: Final = 8
_MAX_DEPTH: Final = 6  # of nested values that need mending

# Events of which a text line leaves nested fields out, or they would fill the screen.
_BRIEF_EVENTS: Final = frozenset({"metrics"})

# Fields of a text line that are quoted although JSON would not escape them.
_NEEDS_QUOTES: Final = re.compile(r"[ =\\]")

_BRIEF: Final = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 200


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Lines since the log was opened."""

    written: int
    """Taken by the operating system."""
    failed: int
    """Refused by the operating system: nobody reads, the disk is full."""
    dropped: int
    """Not queued, since the queue was full or the log closed."""
    left_out: int
    """Not rendered, since there were too many of the kind."""
    queued: int
    """Waiting for the writer thread."""


class Log:
    """A log and everything behind it.

    Created by `open_log`; closed by whoever opened it, when nobody logs any more. Several can exist at once.
    """

    def __init__(self, logger: FilteringBoundLogger, writer: LogWriter, flood: LogFlood) -> None:
        # What the program logs with, and binds fields to.
        self.logger: Final = logger
        # Writes the lines.
        self._writer = writer
        # Counts what is left out.
        self._flood = flood

    def flush_left_out(self) -> None:
        """Report counts of left-out records that no later record has reported; for a timer to call."""
        self._flood.flush()

    def close(self, timeout_s: float) -> int:
        """Report what was left out, write what is queued, and give up after `timeout_s`; may be called twice.

        Blocks its caller. Records logged later are dropped and counted.

        Returns:
            Lines that were not written in time.
        """
        self._flood.flush(is_final=True)
        return self._writer.close(timeout_s)

    def statistics(self) -> LogStatistics:
        """What became of the records so far."""
        writer = self._writer
        return LogStatistics(
            writer.written, writer.failed, writer.dropped, self._flood.left_out, writer.queued
        )


def open_log(
    *,
    format: str,  # noqa: A002 - the name of the setting, and the function has no use for the builtin
    level: str,
    queue_records: int,
    flood_per_s: int,
    bind: Mapping[str, Any] | None = None,
    lock_path: Path | None = None,
    fd: int = 1,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    never_limited: frozenset[str] = NEVER_LIMITED,
) -> Log:
    """Open a log and start its writer thread.

    Args:
        format: `json`, `text`, or `auto`, which is text on a terminal and JSON elsewhere.
        level: the lowest level that is logged; one of `LEVELS`.
        queue_records: lines that may wait for the writer thread.
        flood_per_s: records a second with the same event, reason and address; ten times as many for an event.
        bind: fields of every record that say who is talking. Text leaves them out where nobody else does.
        lock_path: file by which the processes that write to this descriptor keep their lines apart; None
            where only this one writes there.
        fd: descriptor to write to; duplicated.
        clock: monotonic seconds, for the limit.
        now: seconds since the epoch, for `ts`.
        never_limited: events that the limit does not concern.

    Raises:
        ValueError: an unknown format or level, or a number below 1.
        OSError: the file for the lock cannot be made.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}")
    bind = bind or {}
    form = _form_for(format, fd, unsaid=() if lock_path else tuple(bind))
    renderer = LineRenderer(form, bind=bind, now=now)

    def dropped_line(count: int) -> bytes:
        return renderer(None, "warning", {"event": "log.dropped", "count": count})

    def report(fields: dict[str, object]) -> None:
        writer.offer(renderer(None, "warning", {"event": "log.left_out", **fields}))

    flood = LogFlood(flood_per_s, clock=clock, never_limited=never_limited, report=report)
    writer = LogWriter(fd, max_records=queue_records, describe_dropped=dropped_line, lock_path=lock_path)
    lazy = structlog.wrap_logger(
        SimpleNamespace(**dict.fromkeys(LEVELS, writer.offer)),
        processors=[flood, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    # `bind` makes the real logger; the lazy one would make one for each call.
    return Log(cast("FilteringBoundLogger", lazy.bind()), writer, flood)


class LineRenderer:
    """The last structlog processor: a record to the bytes of its line.

    Created by `open_log`; called in the thread that logs, and by the writer thread for `log.dropped`.
    """

    def __init__(
        self,
        form: Callable[[dict[str, Any]], bytes],
        *,
        bind: Mapping[str, Any],
        now: Callable[[], float],
    ) -> None:
        # Makes the line of a record.
        self._form = form
        # Seconds since the epoch.
        self._now = now
        # In every record: who is talking.
        self._bound = {**bind, "pid": os.getpid()}
        # Names that a caller's field cannot have.
        self._reserved = _RESERVED | bind.keys()
        # The latest second and its text; replaced as a whole, so that threads see both or neither.
        self._second: tuple[int, str] = (-1, "")

    def __call__(self, logger: object, method_name: str, event_dict: MutableMapping[str, Any]) -> bytes:
        """One line, its end included; never raises because of a value."""
        record = {
            "ts": self._timestamp(),
            "level": method_name,
            "event": event_dict.pop("event", ""),
            **self._bound,
        }
        if not self._reserved.isdisjoint(event_dict):
            event_dict = {
                f"{name}_" if name in self._reserved else name: event_dict[name] for name in event_dict
            }
        if "exc_info" in event_dict:
            error = _exception_of(event_dict.pop("exc_info"))
            if error is not None:
                event_dict["exception"] = describe_exception(error)
        record.update(event_dict)
        return self._form(record)

    def _timestamp(self) -> str:
        """ISO 8601, UTC, milliseconds."""
        second, milli = divmod(int(self._now() * 1_000), 1_000)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{milli:03d}Z"


def peer_text(data: bytes | str, limit: int = 64) -> str:
    r"""Text of a peer in a form that is safe to show anywhere, and short.

    Printable characters stay. Others, undecodable bytes and the backslash become `\\`, `\xNN`, `\uNNNN` or
    `\UNNNNNNNN`.

    Args:
        data: what the peer sent; UTF-8 is assumed.
        limit: bytes of it that are shown, before escaping; how many are not is said behind them.
    """
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    end = min(limit, len(raw))
    # Not within a character; one has at most three bytes behind its first.
    while max(limit - 3, 0) < end < len(raw) and raw[end] & 0xC0 == 0x80:
        end -= 1
    text = raw[:end].decode("utf-8", "surrogateescape")
    if not text.isprintable() or "\\" in text:
        text = "".join(char if char.isprintable() and char != "\\" else _peer_escape(char) for char in text)
    return text if end == len(raw) else f"{text}... (+{len(raw) - end} bytes)"


def _peer_escape(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def describe_exception(error: BaseException) -> dict[str, object]:
    """Type, message, the innermost frames, and what caused it or is grouped in it; reads no source files."""
    fields: dict[str, object] = {"type": type(error).__qualname__, "message": _message_of(error)}
    frames = deque(walk_tb(error.__traceback__), maxlen=_MAX_FRAMES)
    fields["traceback"] = [
        f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{line} {frame.f_code.co_name}"
        for frame, line in frames
    ]
    if causes := _causes_of(error):
        fields["causes"] = causes
    return fields


def _causes_of(error: BaseException) -> list[str]:
    """One text for each exception behind this one, nearest first."""
    found = [error]
    for each in found:  # grows while it is walked
        behind = list(each.exceptions) if isinstance(each, BaseExceptionGroup) else []
        before = each.__cause__ if each.__suppress_context__ else each.__cause__ or each.__context__
        behind += [before] if before is not None else []
        known = {id(one) for one in found}
        found += [one for one in behind if id(one) not in known][: _MAX_CAUSES + 1 - len(found)]
    return [f"{type(one).__qualname__}: {_message_of(one)}" for one in found[1:]]


def _message_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        return _brief(error)
    return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}..."


def _exception_of(exc_info: object) -> BaseException | None:
    """The exception meant by a call's `exc_info`: true, an exception, or a triple."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 and isinstance(exc_info[1], BaseException) else None
    return sys.exception() if exc_info else None


def _form_for(name: str, fd: int, unsaid: Collection[str]) -> Callable[[dict[str, Any]], bytes]:
    """What makes the lines for a format and the descriptor they go to; text leaves the fields `unsaid` out.

    Raises:
        ValueError: no such format.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}")
    is_terminal = os.isatty(fd)
    if name == "json" or (name == "auto" and not is_terminal):
        return _json_line
    # The process is for machines; people go by what is bound.
    return _text_form({"pid", *unsaid}, is_coloured=is_terminal and not os.environ.get("NO_COLOR"))


def _json_line(record: dict[str, Any]) -> bytes:
    return _to_json(record, orjson.OPT_APPEND_NEWLINE)


def _text_form(unsaid: Collection[str], *, is_coloured: bool) -> Callable[[dict[str, Any]], bytes]:
    def text_line(record: dict[str, Any]) -> bytes:
        time_of_day = record.pop("ts")[11:23]
        word, colour = _TEXT_LEVELS.get(record.pop("level"), ("?", "0"))
        level = f"\x1b[{colour}m{word:<5}\x1b[0m" if is_coloured else f"{word:<5}"
        event = _text_value(record.pop("event"))
        for name in unsaid:
            del record[name]
        if event in _BRIEF_EVENTS:
            record = {name: value for name, value in record.items() if not isinstance(value, dict)}
        fields = " ".join(f"{_text_value(name)}={_text_value(value)}" for name, value in record.items())
        return f"{time_of_day} {level} {event}  {fields}".rstrip().encode() + b"\n"

    return text_line


def _text_value(value: object) -> str:
    """JSON, without its quotes where a text needs none."""
    text = _to_json(value).decode()
    bare = text[1:-1]
    return bare if text[0] == '"' and bare and not _NEEDS_QUOTES.search(bare) else text


def _to_json(value: object, option: int = 0) -> bytes:
    """JSON of anything, in which every character that does not show itself is escaped."""
    try:
        line = orjson.dumps(value, _brief, option)
    except Exception:  # whatever a value of a caller does, it must not reach the caller
        line = orjson.dumps(_mended(value), None, option)
    if line.isascii() and b"\x7f" not in line:
        return line
    text = line.decode()
    body = text.removesuffix("\n")
    if body.isprintable():
        return line
    escaped = "".join(char if char.isprintable() else _json_escape(char) for char in body)
    return (escaped + text[len(body) :]).encode()


def _json_escape(char: str) -> str:
    code = ord(char)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def _mended(value: object, depth: int = 0) -> object:
    """The value without what orjson refuses: lone surrogates, keys that are no text, deep nesting."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is str:
        return value.encode("utf-8", "backslashreplace").decode()
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    if depth < _MAX_DEPTH:
        if type(value) is dict:
            return {_mended_name(name): _mended(each, depth + 1) for name, each in value.items()}
        if type(value) in (list, tuple):
            return [_mended(each, depth + 1) for each in cast("list[object]", value)]
    return _mended(_brief(value))


def _mended_name(name: object) -> str:
    return cast("str", _mended(name if type(name) is str else _brief(name)))


def _brief(value: object) -> str:
    """A short text for any value; never raises."""
    try:
        return _BRIEF.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
