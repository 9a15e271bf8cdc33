"""What a connection's first bytes are: a login, or the talk of a program that took the wrong port."""

from __future__ import annotations

import re

from stages.login_name import login_problem, normalised

__all__ = ["BadLoginError", "NotLineProtocolError", "check_unfinished", "login_of"]

_HTTP = re.compile(rb"[A-Z-]+ [^ ]+ HTTP/[0-9.]+\r?$")
_TLS_HELLO = b"\x16"


class NotLineProtocolError(Exception):
    """The peer speaks something else; it is closed without a word."""


class BadLoginError(Exception):
    """The first line is text, but no login that is allowed; the message says why."""


def check_unfinished(data: bytes | bytearray) -> None:
    """Look at a first line that is still incomplete.

    Raises:
        NotLineProtocolError: no login begins like this.
    """
    if data.startswith(_TLS_HELLO) or b"\x00" in data:
        raise NotLineProtocolError


def login_of(line: bytes) -> str:
    """The normalised login of a first line without its line feed.

    Raises:
        NotLineProtocolError: an HTTP request, a TLS hello or other binary data.
        BadLoginError: a name that is not allowed.
    """
    check_unfinished(line)
    if _HTTP.match(line):
        raise NotLineProtocolError
    try:
        login = normalised(line.removesuffix(b"\r").decode())
    except UnicodeDecodeError:
        raise NotLineProtocolError from None
    problem = login_problem(login)
    if problem is not None:
        raise BadLoginError(problem)
    return login
