"""A connection's first line: a login, or something that took the wrong port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.first_line import BadLoginError, NotLineProtocolError, check_unfinished, login_of
from stages.login_name import login_problem

_TLS_HELLO = bytes.fromhex("160301020001")
_RDP_HELLO = bytes.fromhex("0300002f2ae0")


@pytest.mark.parametrize(
    ("line", "login"),
    [
        (b"alice", "alice"),
        (b"alice\r", "alice"),
        ("Zoe\u0308".encode(), "Zo\u00eb"),
        (b"x" * 64, "x" * 64),
        ("\u03b9\u0308\u0301".encode() * 32, "\u0390" * 32),  # 192 bytes that become 64
        (b"GET", "GET"),
        (b"!", "!"),
    ],
)
def test_login_of_is_the_name_when_it_is_allowed(line: bytes, login: str) -> None:
    """A name is normalised and one carriage return at its end is dropped."""
    assert login_of(line) == login


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r",
        b"GET /chat?x=1 HTTP/1.0",
        b"OPTIONS * HTTP/1.1\r",
        b"M-SEARCH * HTTP/1.1\r",
        b"PRI * HTTP/2.0\r",
        _TLS_HELLO,
        _RDP_HELLO,
        b"\x80\x2e\x01\x03\x01",
        b"alice\x00",
        "alice".encode("utf-16"),
        b"\xff\xfealice",
        b"\xc0\xafalice",  # overlong
        b"\xed\xa0\x80",  # half a surrogate pair
        b"\xf4\x90\x80\x80",  # beyond Unicode
    ],
)
def test_login_of_raises_not_line_protocol_when_peer_speaks_something_else(line: bytes) -> None:
    """HTTP requests, TLS hellos and what is not text are told apart from bad names."""
    with pytest.raises(NotLineProtocolError):
        login_of(line)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\r", b" alice", b"alice ", b"a b", b"a,b", b"bob: hi", b"x" * 65),
        *(b"a\r\r", b"a\x1b[2J", b"a\x7f", "a\u202eb".encode(), "a\u0085b".encode()),
        *(b"GET / HTTP/1.1 x", b"get / http/1.1"),
    ],
)
def test_login_of_raises_bad_login_when_text_is_no_allowed_name(line: bytes) -> None:
    """What is text but no login is answered with words that say why."""
    with pytest.raises(BadLoginError, match=r"a login"):
        login_of(line)


@given(st.binary(max_size=80) | st.text(max_size=30).map(str.encode))
def test_login_of_gives_an_allowed_login_or_raises_when_fed_anything(line: bytes) -> None:
    """No first line whatever yields a name that is not allowed, nor any other error."""
    try:
        login = login_of(line)
    except (BadLoginError, NotLineProtocolError):
        return
    assert login_problem(login) is None


@pytest.mark.parametrize("data", [_TLS_HELLO[:1], _TLS_HELLO, _RDP_HELLO, b"a\x00", bytearray(b"\x16")])
def test_check_unfinished_raises_when_no_login_begins_so(data: bytes | bytearray) -> None:
    """A peer that will never send a line end is told apart at its first bytes."""
    with pytest.raises(NotLineProtocolError):
        check_unfinished(data)


@pytest.mark.parametrize("data", [b"", b"ali", bytearray(b"ali"), b"GET / HT", b"\xc3", b"x" * 200])
def test_check_unfinished_waits_when_a_login_may_still_come(data: bytes | bytearray) -> None:
    """Half a name, half a character and half a request are waited for."""
    check_unfinished(data)
