"""The line of a log record: JSON for machines, or text for people; no value can break out of it.

Knows nothing of where lines go, and which records get this far.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from chat_gateway.log_text import describe_exception, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, MutableMapping

__all__ = ["FORMATS", "LineRenderer", "form_for"]

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

# Events of which a text line leaves nested fields out, or they would fill the screen.
_BRIEF_EVENTS: Final = frozenset({"metrics"})

# Fields of a text line that are quoted although JSON would not escape them.
_NEEDS_QUOTES: Final = re.compile(r"[ =\\]")


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


def form_for(name: str, fd: int, unsaid: Collection[str]) -> Callable[[dict[str, Any]], bytes]:
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
    return to_json(record, orjson.OPT_APPEND_NEWLINE)


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
    text = to_json(value).decode()
    bare = text[1:-1]
    return bare if text[0] == '"' and bare and not _NEEDS_QUOTES.search(bare) else text


def _exception_of(exc_info: object) -> BaseException | None:
    """The exception meant by a call's `exc_info`: true, an exception, or a triple."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 and isinstance(exc_info[1], BaseException) else None
    return sys.exception() if exc_info else None
