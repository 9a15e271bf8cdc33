"""What peers, callers and exceptions bring, in a form that is safe to show: short, each character seen.

Whatever it is, nothing here raises because of it. Knows nothing of records.
"""

from __future__ import annotations

import reprlib
from collections import deque
from traceback import walk_tb
from typing import Final, cast

import orjson

__all__ = ["describe_exception", "peer_text", "to_json"]

_MAX_MESSAGE_CHARS: Final = 500  # of an exception
_MAX_FRAMES: Final = 8  # the innermost say what happened
_MAX_CAUSES: Final = 8
_MAX_DEPTH: Final = 6  # of nested values that need mending

_BRIEF: Final = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 200


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


def to_json(value: object, option: int = 0) -> bytes:
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
