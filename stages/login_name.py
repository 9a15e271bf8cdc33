"""What a login may be, and the one form in which logins are compared (Unicode NFC)."""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_LOGIN_BYTES", "login_problem", "normalised", "peer_name"]

MAX_LOGIN_BYTES = 64  # in UTF-8, after normalisation
# Characters that can become a name of so many bytes: none is made of more than 3 for each 2 of its bytes.
_MAX_CHARACTERS = MAX_LOGIN_BYTES * 3 // 2

# Bidirectional controls: they change the order in which a screen shows a line (Unicode TR 9).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNPRINTABLE = frozenset({"Cc", "Cs"})  # control, surrogate


def normalised(name: str) -> str:
    """The form in which a login is stored and looked up.

    What is too long to be a login stays as it is: the time to normalise grows with the square of the marks
    on one letter, 70 ms for a name of 16 KiB.
    """
    if name.isascii() or len(name) > _MAX_CHARACTERS:
        return name
    return unicodedata.normalize("NFC", name)


def login_problem(name: str) -> str | None:
    """What is wrong with a normalised login, in words for people; None when it is allowed."""
    if not name:
        return "a login must not be empty"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_LOGIN_BYTES:
        return f"a login has at most {MAX_LOGIN_BYTES} bytes"
    if any(character.isspace() for character in name):
        return "a login has no white space"
    if "," in name or ":" in name:
        return "a login has no ',' and no ':'"
    if any(character in _BIDI or unicodedata.category(character) in _UNPRINTABLE for character in name):
        return "a login has no control characters"
    return None


def peer_name(name: str) -> str:
    """A name that a peer sent, shortened and escaped, so that it can stand in a Notice."""
    shown = "".join(_shown(character) for character in name[:MAX_LOGIN_BYTES])
    return shown if len(name) <= MAX_LOGIN_BYTES else shown + "..."


def _shown(character: str) -> str:
    if character.isprintable() and character not in _BIDI:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
