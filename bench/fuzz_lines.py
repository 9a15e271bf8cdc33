"""What fuzzing holds the line codec against: however it is split, a stream says the same."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MODULES", "SEEDS", "check"]

MODULES = ("stages.line_codec",)  # whose coverage guides the search; not imported before it is measured

_MAX_RECIPIENTS = 4
_HEAD_BYTES = 4  # of each input: the longest line, and where the stream is split
_PREFIX = "from ünï: ".encode()
_ALLOWED_CONTROLS = "\t"

SEEDS = (
    b"\x20\x05\x09\x01bob: hello\nbob: hi\nbob: \n",
    b"\x40\x03\x00\x11bob, carol: a\r\nbob,,: x\n,: y\nno colon\n\nlast",
    b"\x10\x01\x01\x01a line that is far too long for its bound\nbob: x\n",
    b"\x7f\x02\x07\x05e\xcc\x81ve: \xc3\xa9\n\xff: bad\nbob: \x07\nbob: \xc2\x85\nbob:\ttab\t\n",
    b"\x30\x04\x04\x04a,b,c,d,e: many\na: \xe2\x80\xa8\nbob:a:b\nbob: \x0b\nbob: x\r\r\n",
)


class _Said(NamedTuple):
    """What a stream has said in all."""

    messages: list[tuple[tuple[str, ...], bytes]]
    rejected: Counter[str]
    is_too_long: bool


def check(data: bytes) -> None:
    """Hold the codec against its properties on one input.

    Raises:
        AssertionError: one of them does not hold.
    """
    head, stream = data[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\x01"), data[_HEAD_BYTES:]
    codec = importlib.import_module("stages.line_codec")
    whole = _said(codec, [stream], head[0])
    step = head[1] % 16 + 1
    ragged = [stream[i : i + step] for i in range(0, len(stream), step)]
    cuts = sorted(cut % (len(stream) + 1) for cut in head[2:])
    halves = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]
    assert _said(codec, ragged, head[0]) == whole, "the split changed what was said"
    assert _said(codec, halves, head[0]) == whole, "the split changed what was said"
    if not whole.is_too_long:
        lines = stream.split(b"\n")
        said = len(whole.messages) + whole.rejected.total()
        assert said == sum(line not in (b"", b"\r") for line in lines), "a line got lost or was doubled"


def _said(codec: Any, pieces: Iterable[bytes], max_line_bytes: int) -> _Said:
    framer, line_codec = codec.LineFramer(max_line_bytes), codec.LineCodec(_MAX_RECIPIENTS)
    said = _Said([], Counter(), False)
    for piece in pieces:
        if not piece:
            continue
        block, is_too_long = framer.feed(piece)
        assert b"\n" not in framer.tail
        assert len(framer.tail) <= max_line_bytes + len(piece), "more is kept than allowed"
        _take(codec, line_codec, block, said)
        if is_too_long:
            return said._replace(is_too_long=True)
    _take(codec, line_codec, framer.finish(), said)
    return said


def _take(codec: Any, line_codec: Any, block: bytes, said: _Said) -> None:
    """Parse a block as a busy codec does, whose cache is filled, and as a new one: both say the same."""
    if not block:
        return
    assert block.endswith(b"\n")
    lines = block.count(b"\n")
    runs, rejected = line_codec.parse(block, lines)
    found = [message for run in runs for message in _messages(codec, run)]
    for other in (line_codec, codec.LineCodec(_MAX_RECIPIENTS)):
        again, rejected_again = other.parse(block, lines)
        assert [one for run in again for one in _messages(codec, run)] == found, "the cache matters"
        assert rejected_again == rejected, "the cache matters"
    said.messages.extend(found)
    said.rejected.update(rejected)


def _messages(codec: Any, run: Any) -> list[tuple[tuple[str, ...], bytes]]:
    """The messages of a run, checked: for them and for what their recipients get."""
    recipients, texts = run.recipients, run.texts[:-1].split(b"\n")
    assert 0 < len(recipients) <= _MAX_RECIPIENTS
    assert len(set(recipients)) == len(recipients), "a recipient is named twice"
    assert all(recipients)
    assert all(name == name.strip(" \t") for name in recipients)
    assert run.texts.endswith(b"\n")
    assert len(texts) == run.count
    for text in texts:
        assert text == text.strip(b" \t")
        assert not any(_is_control(character) for character in text.decode()), "a control character"
    encoded = codec.LineCodec.encode(_PREFIX, run.texts)
    assert encoded == b"".join(_PREFIX + text + b"\n" for text in texts), "a recipient would get other lines"
    return [(recipients, text) for text in texts]


def _is_control(character: str) -> bool:
    return (character < " " and character not in _ALLOWED_CONTROLS) or "\x7f" <= character <= "\x9f"
