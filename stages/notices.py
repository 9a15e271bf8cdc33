"""Lines from the gateway itself to one client: merged while they wait, so that they never pile up.

`! WORD words` or `! WORD NAME: words`; WORD is for machines, the rest for people. A thousand refusals of
one kind are one line with a count.
"""

from __future__ import annotations

from stages.login_name import MAX_LOGIN_BYTES, peer_name

__all__ = ["MAX_LINE_BYTES", "MAX_NAMES", "MAX_PENDING_BYTES", "MAX_TEXT_BYTES", "Notices", "notice_line"]

# Names told apart while notices wait; what concerns further names is one line with a count for each word.
MAX_NAMES = 32
_MAX_NAMELESS = 16  # lines without a name: each word with each of its reasons, of which there are fewer
_MAX_SHOWN_BYTES = 10  # of one character of a name, escaped
# The longest line; all that can be pending, as they are written; and as they wait: names of characters that
# take four bytes each, and the objects around them.
MAX_LINE_BYTES = MAX_LOGIN_BYTES * _MAX_SHOWN_BYTES + 160
MAX_TEXT_BYTES = (MAX_NAMES + _MAX_NAMELESS) * MAX_LINE_BYTES
MAX_PENDING_BYTES = (MAX_NAMES + _MAX_NAMELESS) * (4 * (MAX_LOGIN_BYTES + 1) + 320)


def notice_line(word: str, reason: str, *, name: str = "", count: int = 1, unit: str = "message") -> bytes:
    """One encoded Notice. `reason` may be a label with underscores; `name` is escaped and shortened."""
    words = reason.replace("_", " ")
    if count > 1 or word == "refused":
        words = f"{count} {unit}{'s' if count > 1 else ''}, {words}"
    head = f"{word} {peer_name(name)}:" if name else word
    return f"! {head} {words}\n".encode()


class Notices:
    """The pending notices of one session; made at its first one, emptied at each flush."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str, str], int] = {}  # (word, name, reason) to how often

    def add(self, word: str, reason: str, *, name: str = "", count: int = 1) -> None:
        """Count `count` more of its kind; beyond `MAX_NAMES` kinds the name is left out."""
        name = name[: MAX_LOGIN_BYTES + 1]  # no more is kept than is shown, and that it was longer
        key = (word, name, reason)
        if key not in self._pending and len(self._pending) >= MAX_NAMES:
            key = (word, "", reason)
        self._pending[key] = self._pending.get(key, 0) + count

    def take(self) -> bytes:
        """All pending notices as whole lines, and begin anew."""
        lines = b"".join(
            notice_line(word, reason, name=name, count=count, unit="message" if name else _unit(word))
            for (word, name, reason), count in self._pending.items()
        )
        self._pending.clear()
        return lines

    def __bool__(self) -> bool:
        return bool(self._pending)


def _unit(word: str) -> str:
    return "message" if word in ("refused", "unknown-recipient") else "line"
