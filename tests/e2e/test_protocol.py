"""The line protocol's table, row by row and byte for byte, against a gateway process.

Each test runs twice: with the client and the gateway on asyncio, and with both on uvloop.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.room import lines_until, open_room

if TYPE_CHECKING:
    from tests.e2e.gateway_process import LineClient
    from tests.e2e.room import Room

MAX_LINE_BYTES = 16384  # the protocol's defaults
MAX_RECIPIENTS = 256
NAMED_NOTICES = 32  # names that wait as Notices of their own; the rest are one line with a count

EXPECTED_FORM = b'expected "login1, login2: message"\n'
BAD_TEXT = b"! bad-text a message is UTF-8 without control characters\n"
BAD_LINE = b"! bad-line " + EXPECTED_FORM
TOO_LONG = b"! line-too-long a line is longer than allowed\n"
TOO_MANY = b"! too-many-recipients at most 256 in one line\n"
SHUTDOWN = b"! shutdown the gateway stops\n"
BUSY = b"! busy too many connections, try again later\n"
LOGIN_TIMEOUT = b"! login-timeout no login came in time\n"
LOGIN_TAKEN = b"! login-taken someone is logged in under that name\n"


class Line(NamedTuple):
    """What alice says after her login, what she and bob get, and whether she is cut off."""

    meaning: str
    said: bytes
    alice: bytes = b""
    bob: bytes = b""
    is_closed: bool = False


def _unknown(*names: str) -> bytes:
    return b"".join(f"! unknown-recipient {name}: not logged in\n".encode() for name in names)


def _crowd(size: int) -> bytes:
    """Bob and size - 1 names that nobody has, as the head of a line."""
    return ", ".join(["bob", *(f"n{index}" for index in range(size - 1))]).encode()


# fmt: off
LINES = [
    Line("one recipient", b"bob: hello\n", bob=b"from alice: hello\n"),
    Line("two recipients", b"alice, bob: hi\n", b"from alice: hi\n", b"from alice: hi\n"),
    Line("white space around names", b" \tbob\t , \talice :x\n", b"from alice: x\n", b"from alice: x\n"),
    Line("white space around the text", b"bob: \t a\t b \t\n", bob=b"from alice: a\t b\n"),
    Line("no white space anywhere", b"alice,bob:x\n", b"from alice: x\n", b"from alice: x\n"),
    Line("later colons belong to the text", b"bob:a:b: c:\n", bob=b"from alice: a:b: c:\n"),
    Line("a recipient named twice", b"bob, bob,bob: once\n", bob=b"from alice: once\n"),
    Line("an empty name in the list", b"bob,,: x\n", bob=b"from alice: x\n"),
    Line("an empty name at the front", b" , bob: x\n", bob=b"from alice: x\n"),
    Line("no name", b": x\n", BAD_LINE),
    Line("only empty names", b" ,\t,: x\n", BAD_LINE),
    Line("empty text", b"bob:\n", bob=b"from alice: \n"),
    Line("text of white space", b"bob: \t \n", bob=b"from alice: \n"),
    Line("no colon", b"hello bob\n", BAD_LINE),
    Line("only white space", b" \n", BAD_LINE),
    Line("empty lines", b"\n\r\n\nbob: x\n\n", bob=b"from alice: x\n"),
    Line("a carriage return before the end", b"bob: x\r\n", bob=b"from alice: x\n"),
    Line("two carriage returns before the end", b"bob: x\r\r\n", BAD_TEXT),
    Line("an unknown recipient", b"carol: x\n", _unknown("carol")),
    Line("one unknown of three", b"bob, carol, alice: x\n", _unknown("carol") + b"from alice: x\n",
         b"from alice: x\n"),
    Line("many to one unknown", b"carol: x\n" * 3, b"! unknown-recipient carol: 3 messages, not logged in\n"),
    Line("other letters", "bob: grüße 👋 名前\n".encode(), bob="from alice: grüße 👋 名前\n".encode()),
    Line("a line separator of Unicode", "bob: a\u2028b\n".encode(), bob="from alice: a\u2028b\n".encode()),
    Line("invalid UTF-8", b"bob: \xff\n", BAD_TEXT),
    Line("invalid UTF-8 between good lines", b"bob: 1\nbob: \xc3(\nbob: 2\n", BAD_TEXT,
         b"from alice: 1\nfrom alice: 2\n"),
    Line("C0 in the text", b"bob: \x1b[31m\n", BAD_TEXT),
    Line("NUL in the text", b"bob: \x00\n", BAD_TEXT),
    Line("vertical tab in the text", b"bob: a\x0bb\n", BAD_TEXT),
    Line("DEL in the text", b"bob: \x7f\n", BAD_TEXT),
    Line("C1 in the text", "bob: \x85\n".encode(), BAD_TEXT),
    Line("a control character in a name", b"b\x01ob: x\n", BAD_TEXT),
    Line("three kinds of mistakes", b"x\nbob: \x00\ny\ncarol: x\n",
         b"! bad-line 2 lines, " + EXPECTED_FORM + BAD_TEXT + _unknown("carol")),
    Line("the longest line", b"bob: ".ljust(MAX_LINE_BYTES, b"x") + b"\n",
         bob=b"from alice: " + b"x" * (MAX_LINE_BYTES - 5) + b"\n"),
    Line("a longer line", b"bob: ".ljust(MAX_LINE_BYTES + 1, b"x") + b"\n", TOO_LONG, is_closed=True),
    Line("a longer line without its end", b"b" * (MAX_LINE_BYTES + 1), TOO_LONG, is_closed=True),
    Line("a longer line behind a good one", b"bob: x\n" + b"b" * (MAX_LINE_BYTES + 1) + b"\nbob: y\n",
         TOO_LONG, b"from alice: x\n", is_closed=True),
    Line("the most recipients", _crowd(MAX_RECIPIENTS) + b": x\n",
         _unknown(*(f"n{index}" for index in range(NAMED_NOTICES)))
         + f"! unknown-recipient {MAX_RECIPIENTS - 1 - NAMED_NOTICES} messages, not logged in\n".encode(),
         b"from alice: x\n"),
    Line("one recipient more", _crowd(MAX_RECIPIENTS + 1) + b": x\n", TOO_MANY),
    Line("most recipients with one named twice", _crowd(2) + b", bob" * MAX_RECIPIENTS + b": x\n",
         _unknown("n0"), b"from alice: x\n"),
]
# fmt: on

NO_SPACE = b"! bad-login a login has no white space\n"
NO_SEPARATOR = b"! bad-login a login has no ',' and no ':'\n"
NO_CONTROL = b"! bad-login a login has no control characters\n"
TOO_LONG_LOGIN = b"! bad-login a login has at most 64 bytes\n"

# The first line, and all that its sender gets before it is closed.
REFUSED_LOGINS = {
    b"\n": b"! bad-login a login must not be empty\n",
    b"\r\n": b"! bad-login a login must not be empty\n",
    b"x" * 65 + b"\n": TOO_LONG_LOGIN,
    "é".encode() * 32 + b"x\n": TOO_LONG_LOGIN,
    b"al ice\n": NO_SPACE,
    b" alice\n": NO_SPACE,
    b"alice \n": NO_SPACE,
    b"al\tice\n": NO_SPACE,
    "al\u3000ice\n".encode(): NO_SPACE,
    b"al\rice\n": NO_SPACE,
    b"al,ice\n": NO_SEPARATOR,
    b"al:ice\n": NO_SEPARATOR,
    b"al\x1b[0mice\n": NO_CONTROL,
    b"al\x7fice\n": NO_CONTROL,
    "al\x9bice\n".encode(): NO_CONTROL,
    "al\u202eice\n".encode(): NO_CONTROL,
    "al\u2066ice\n".encode(): NO_CONTROL,
    b"bob\n": LOGIN_TAKEN,
    b"bob\r\n": LOGIN_TAKEN,
    "re\u0301mi\n".encode(): LOGIN_TAKEN,  # the same name as rémi's, decomposed
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n": b"",
    b"\x16\x03\x01\x02\x00\x01": b"",
    b"\x00\x01\x02": b"",
    b"al\xffice\nbob: x\n": b"",
    b"al\x00ice\nbob: x\n": b"",
}

# Allowed logins, each with how it is shown to others.
ALLOWED_LOGINS = {
    b"x" * 64 + b"\n": b"x" * 64,
    "é".encode() * 32 + b"\n": "é".encode() * 32,
    b"dave\r\n": b"dave",
    b"!\n": b"!",
    b"*1\n": b"*1",
    b"from\n": b"from",
    "名前\n".encode(): "名前".encode(),
    "zoe\u0308\n".encode(): "zoë".encode(),
}


async def say(room: Room, bob: LineClient, line: Line) -> tuple[bytes, bytes, bool]:
    """Say a line as alice; returns what she and bob get, and whether she was cut off."""
    alice = await room.login("alice")
    alice.send(line.said)
    if line.is_closed:
        to_alice = await alice.rest()
    else:
        alice.send(b"alice: end\n")
        to_alice = await lines_until(alice, b"from alice: end\n")
        alice.end()
        assert await alice.rest() == b""
    bob.send(b"bob: end\n")
    return to_alice, await lines_until(bob, b"from bob: end\n"), line.is_closed


def without_notices(data: bytes) -> bytes:
    """The same without the gateway's own lines."""
    return re.sub(rb"(?m)^! .*\n", b"", data)


async def test_gateway_answers_each_line_exactly_when_lines_are_good_and_bad() -> None:
    """Every row about lines: sender and recipient get these bytes and no others."""
    async with open_room() as room:
        bob = await room.login("bob")
        got = {line.meaning: await say(room, bob, line) for line in LINES}
    assert got == {line.meaning: (line.alice, line.bob, line.is_closed) for line in LINES}


async def test_gateway_keeps_silent_when_notices_are_off() -> None:
    """With notices = false everything is as it was, but for the lines that begin with `! `."""
    silenced = [first for first, reply in REFUSED_LOGINS.items() if reply != LOGIN_TAKEN] + [b"bob\n"]
    async with open_room("--set", "limits.notices=false") as room:
        bob = await room.login("bob")
        got = {line.meaning: await say(room, bob, line) for line in LINES}
        refused = {first: await room.answer(first) for first in silenced}
        bob.send(b"bob: still here\n")
        assert await bob.line() == b"from bob: still here\n"
        room.gateway.signal(signal.SIGTERM)
        assert await bob.rest() == b""
    assert got == {line.meaning: (without_notices(line.alice), line.bob, line.is_closed) for line in LINES}
    assert set(refused.values()) == {b""}


async def test_gateway_closes_with_the_reason_when_a_login_is_not_allowed() -> None:
    """Every row about logins that are refused; those who are logged in notice nothing."""
    async with open_room() as room:
        bob = await room.login("bob")
        remi = await room.login("rémi")
        got = {first: await room.answer(first) for first in REFUSED_LOGINS}
        for client, name in ((bob, "bob"), (remi, "rémi")):
            client.send(f"{name}: undisturbed\n".encode())
            assert await client.line() == f"from {name}: undisturbed\n".encode()
    assert got == REFUSED_LOGINS


async def test_gateway_lets_in_silently_when_a_login_is_allowed() -> None:
    """A login that succeeds gets no greeting, and can be written to under its normalised name."""
    async with open_room() as room:
        for first, name in ALLOWED_LOGINS.items():
            client = await room.connect()
            client.send(first + name + b": x\n")
            assert await client.line() == b"from " + name + b": x\n"
            client.send(first.rstrip(b"\r\n") + b": y\n")
            assert await client.line() == b"from " + name + b": y\n"
            client.end()
            assert await client.rest() == b""
            await client.close()


async def test_gateway_behaves_as_the_tutorial_when_alice_and_bob_talk() -> None:
    """The conversation that the protocol's description shows."""
    async with open_room() as room:
        alice, bob = await room.connect(), await room.connect()
        for client, name in ((alice, "alice"), (bob, "bob")):
            client.send(f"{name}\n".encode())
            await room.logged_in(name)
        alice.send(b"bob: hello\n")
        assert await bob.line() == b"from alice: hello\n"
        bob.send(b"alice, bob: hi!\n")
        assert [await alice.line(), await bob.line()] == [b"from bob: hi!\n"] * 2
        for client in (alice, bob):
            client.end()
            assert await client.rest() == b""


async def test_gateway_routes_and_flushes_all_when_a_client_closes_only_its_sending_side() -> None:
    """What was read counts, the last line without its end too, as does a login without its end."""
    lines = 5000
    async with open_room() as room:
        bob = await room.login("bob")
        alice = await room.connect()
        said = b"".join(b"alice, bob: %d\n" % number for number in range(lines))
        alice.send(b"alice\n" + said + b"bob: end")
        alice.end()
        expected = b"".join(b"from alice: %d\n" % number for number in range(lines))
        assert await alice.rest() == expected
        assert await lines_until(bob, b"from alice: end\n") == expected
        for first, reply in {b"carol": b"", b"bob": LOGIN_TAKEN, b"": b"", b"x y": NO_SPACE}.items():
            assert await room.answer(first, is_ended=True) == reply
        await room.logged_in("carol")


@pytest.mark.parametrize("notice", [LOGIN_TIMEOUT, b""], ids=["notices", "silent"])
async def test_gateway_closes_when_no_login_comes_in_time(notice: bytes) -> None:
    """Silence and half a login are ended; who has logged in may be silent for as long as it likes."""
    options = ["--set", "limits.login_timeout_s=0.5", "--set", f"limits.notices={str(bool(notice)).lower()}"]
    async with open_room(*options) as room:
        bob = await room.login("bob")
        silent, half = await room.connect(), await room.connect()
        half.send(b"ali")
        assert [await silent.rest(), await half.rest()] == [notice] * 2
        bob.send(b"bob: still here\n")
        assert await bob.line() == b"from bob: still here\n"


@pytest.mark.parametrize("notice", [BUSY, b""], ids=["notices", "silent"])
async def test_gateway_turns_away_when_it_is_full_and_says_busy(notice: bytes) -> None:
    """One connection too many is told so and closed; when one has left, the next is let in."""
    options = ["--set", "limits.max_connections=2", "--set", "limits.at_limit=busy"]
    options += ["--set", f"limits.notices={str(bool(notice)).lower()}"]
    async with open_room(*options) as room:
        alice, bob = [await room.login(name) for name in ("alice", "bob")]
        assert [await room.answer(first) for first in (b"", b"carol\nbob: x\n")] == [notice] * 2
        bob.send(b"alice: hi\nbob: hi\n")
        assert [await alice.line(), await bob.line()] == [b"from bob: hi\n"] * 2
        await alice.close()
        await room.logged_out("alice")
        carol = await room.login("carol")
        carol.send(b"bob: I am in\n")
        assert await bob.line() == b"from carol: I am in\n"


async def test_gateway_serves_later_when_it_is_full_and_lets_wait() -> None:
    """One connection too many hears nothing until another has left, and loses nothing that it said."""
    async with open_room("--set", "limits.max_connections=1") as room:
        alice = await room.login("alice")
        await room.gateway.wait_record("listener.at_limit")
        bob = await room.connect()
        bob.send(b"bob\nbob: waited\n")
        alice.send(b"bob: too early\n")
        assert await alice.line() == _unknown("bob")
        await alice.close()
        assert await bob.line() == b"from bob: waited\n"
        await room.logged_in("bob")
        events = [(record["event"], record.get("login")) for record in room.gateway.records]
    assert events.index(("session.closed", "alice")) < events.index(("session.login", "bob"))


async def test_gateway_says_shutdown_behind_all_messages_when_it_is_stopped() -> None:
    """Everything accepted before SIGTERM arrives, then the Notice, then the end; also before a login."""
    lines = 2000
    expected = b"".join(b"from alice: %d\n" % number for number in range(lines))
    async with open_room() as room:
        alice, bob = [await room.login(name) for name in ("alice", "bob")]
        stranger = await room.connect()
        port = stranger.writer.get_extra_info("sockname")[1]
        await room.gateway.wait_record("connection.accepted", lambda record: record["port"] == port)
        alice.send(b"".join(b"bob: %d\n" % number for number in range(lines)) + b"alice: all sent\n")
        assert await alice.line() == b"from alice: all sent\n"
        room.gateway.signal(signal.SIGTERM)
        assert await bob.rest() == expected + SHUTDOWN
        assert [await alice.rest(), await stranger.rest()] == [SHUTDOWN] * 2
        for client in (alice, bob, stranger):
            await client.close()
        assert await room.gateway.wait() == 0
