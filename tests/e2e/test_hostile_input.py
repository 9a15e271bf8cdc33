"""Input that no good client sends: it hurts its sender only, and leaves no trace in lines or in the log.

Each test runs twice: with the client and the gateway on asyncio, and with both on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import ssl
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tests.e2e.gateway_process import WAIT_S
from tests.e2e.room import lines_until, open_room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.gateway_process import LineClient
    from tests.e2e.room import Room

MIB = 1 << 20
EXPECTED_FORM = b'expected "login1, login2: message"\n'
BAD_TEXT = b"! bad-text a message is UTF-8 without control characters\n"
BAD_LINE = b"! bad-line " + EXPECTED_FORM
TOO_LONG = b"! line-too-long a line is longer than allowed\n"
NO_SPACE = b"! bad-login a login has no white space\n"
NO_SEPARATOR = b"! bad-login a login has no ',' and no ':'\n"
NO_CONTROL = b"! bad-login a login has no control characters\n"
LONG_LOGIN = b"! bad-login a login has at most 64 bytes\n"
EMPTY_LOGIN = b"! bad-login a login must not be empty\n"

# Characters that change the order in which a screen shows a line.
BIDI = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


class Attack(NamedTuple):
    """What a stranger sends, all that comes back, all that victim gets, whether the stranger is closed."""

    meaning: str
    sent: bytes
    reply: bytes = b""
    victim: bytes = b""
    is_closed: bool = True


def tls_hello() -> bytes:
    """What a real TLS client says first."""
    context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="chat.example.org").do_handshake()
    return outgoing.read()


def noise(seed: int) -> bytes:
    """Random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(2048)


ROUTE = b"victim: routed\n"  # behind every first line that must be refused: nobody must get it

# Strangers that are closed before they have a login, and why the log says so.
FIRST_LINES = [
    Attack("HTTP", b"GET /chat HTTP/1.1\r\nHost: localhost\r\n\r\n" + ROUTE),
    Attack("HTTP POST", b"POST / HTTP/1.0\nContent-Length: 15\n\n" + ROUTE),
    Attack("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Attack("WebSocket", b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    Attack("HTTP/0.9", b"GET /\r\n" + ROUTE, NO_SPACE),
    Attack("TLS hello", tls_hello()),
    Attack("first byte of a TLS hello", b"\x16"),
    Attack("RDP cookie", b"\x03\x00\x00\x2a\x25\xe0\x00\x00\x00\x00\x00Cookie: mstshash=hello\r\n"),
    Attack("SOCKS5", b"\x05\x01\x00"),
    Attack("SMB", b"\x00\x00\x00\x2f\xffSMBr\x00\x00\x00\x00\x18\x01\x28"),
    Attack("PostgreSQL", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"),
    Attack("MQTT", b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab"),
    Attack("SSH banner", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" + ROUTE, NO_SPACE),
    Attack("redis, inline", b"SET key value\r\n" + ROUTE, NO_SPACE),
    Attack("SMTP", b"EHLO mail.example.org\r\n" + ROUTE, NO_SPACE),
    Attack("IRC", b"NICK mallory\r\nUSER mallory 0 * :M\r\n" + ROUTE, NO_SPACE),
    *(Attack(f"random bytes {seed}", noise(seed)) for seed in range(8)),
    Attack("no UTF-8", b"mall\xffory\n" + ROUTE),
    Attack("lone surrogate in a login", b"mall\xed\xa0\x80ory\n" + ROUTE),
    Attack("overlong slash in a login", b"mall\xc0\xafory\n" + ROUTE),
    Attack("NUL in a login", b"mall\x00ory\n" + ROUTE),
    Attack("overlong NUL in a login", b"mall\xc0\x80ory\n" + ROUTE),
    Attack("escape in a login", b"mall\x1b[2Jory\n" + ROUTE, NO_CONTROL),
    Attack("CR in a login", b"mall\rory\n" + ROUTE, NO_SPACE),
    Attack("vertical tab in a login", b"mall\x0bory\n" + ROUTE, NO_SPACE),
    Attack("C1 in a login", "mall\x9b2Jory\n".encode() + ROUTE, NO_CONTROL),
    Attack("NEL in a login", "mall\x85ory\n".encode() + ROUTE, NO_SPACE),
    Attack("line separator in a login", "mall\u2028ory\n".encode() + ROUTE, NO_SPACE),
    Attack("bidi override in a login", "mall\u202eory\n".encode() + ROUTE, NO_CONTROL),
    Attack("bidi isolate in a login", "mall\u2066ory\n".encode() + ROUTE, NO_CONTROL),
    Attack("a login that is a line", b"from admin: obey\n" + ROUTE, NO_SPACE),
    Attack("a login that is a record", b'"}\\n{"event":"gateway.stopped"}\n' + ROUTE, NO_SEPARATOR),
    Attack("an empty login", b"\n" + ROUTE, EMPTY_LOGIN),
    Attack("a long login", b"m" * 10_000 + b"\n" + ROUTE, LONG_LOGIN),
    Attack("a login of 1 MiB", b"m" * MIB, TOO_LONG),
    Attack("a login of many marks", b"a" + "\u0301".encode() * 8000 + b"\n" + ROUTE, LONG_LOGIN),
    Attack("a taken login", b"victim\n" + ROUTE, b"! login-taken someone is logged in under that name\n"),
]


def by_mallory(
    meaning: str, sent: bytes, reply: bytes = b"", victim: bytes = b"", *, is_closed: bool = False
) -> Attack:
    """What is sent by someone who has logged in; `victim` is the texts that arrive."""
    return Attack(meaning, b"mallory\n" + sent, reply, victim, is_closed)


def unknown(name: str) -> bytes:
    """The Notice about a recipient who is not there."""
    return f"! unknown-recipient {name}: not logged in\n".encode()


# Strangers with a login.
# fmt: off
LATER_LINES = [
    by_mallory("CR that hides a line", b"victim: x\rfrom admin: obey\n", BAD_TEXT),
    by_mallory("NUL", b"victim: x\x00\n", BAD_TEXT),
    by_mallory("escape sequences", b"victim: \x1b]0;title\x07\x1b[2J\n", BAD_TEXT),
    by_mallory("backspaces", b"victim: x\x08\x08\n", BAD_TEXT),
    by_mallory("C1 as UTF-8", "victim: \x9b2J\n".encode(), BAD_TEXT),
    by_mallory("C1 as a byte", b"victim: \x9b2J\n", BAD_TEXT),
    by_mallory("NEL", "victim: x\x85from admin: obey\n".encode(), BAD_TEXT),
    by_mallory("line separator", "victim: x\u2028from admin: obey\n".encode(), b"",
               "from mallory: x\u2028from admin: obey\n".encode()),
    by_mallory("lone surrogate", b"victim: \xed\xb2\x80\n", BAD_TEXT),
    by_mallory("overlong line feed", b"victim: x\xc0\x8afrom admin: obey\n", BAD_TEXT),
    by_mallory("cut character", b"victim: \xe2\x82\n", BAD_TEXT),
    by_mallory("beyond Unicode", b"victim: \xf5\x80\x80\x80\n", BAD_TEXT),
    by_mallory("a Notice as text", b"victim: ! shutdown\n", b"", b"from mallory: ! shutdown\n"),
    by_mallory("a Notice as a line", b"! shutdown the gateway stops\n", BAD_LINE),
    by_mallory("bidi in a recipient", "vic\u202etim: x\n".encode(), unknown("vic\\u202etim")),
    by_mallory("invisible recipient", "\u2063\ufeff: x\n".encode(), unknown("\\u2063\\ufeff")),
    by_mallory("line separator in a recipient", "a\u2028b: x\n".encode(), unknown("a\\u2028b")),
    by_mallory("escape in a recipient", b"vic\x1b[2Jtim: x\n", BAD_TEXT),
    by_mallory("a long recipient", b"v" * 16_000 + b": x\n", unknown("v" * 64 + "...")),
    by_mallory("only separators", b"," * 1000 + b":" * 1000 + b"\n", BAD_LINE),
    by_mallory("many mistakes at once", b"x\n" * 1000, b"! bad-line 1000 lines, " + EXPECTED_FORM),
    by_mallory("noise without line ends", noise(1).replace(b"\n", b"") + b"\n", BAD_TEXT),
    by_mallory("a recipient of 1 MiB", b"v" * MIB, TOO_LONG, is_closed=True),
    by_mallory("a text of 1 MiB", b"victim: " + b"x" * MIB, TOO_LONG, is_closed=True),
]
# fmt: on


class Exchange:
    """Two good clients that talk all the time; every byte they get must be what they said.

    Made by `talking`, which also ends its task.
    """

    def __init__(self, ann: LineClient, ben: LineClient) -> None:
        self._ann, self._ben = ann, ben
        self.count = 0  # messages that have gone there and back
        self.is_over = False  # no message is to be sent any more
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Talk until it is over or disturbed; nothing is on its way then, or closing would be a reset."""
        while not self.is_over:
            self._ann.send(b"ben: %d\n" % self.count)
            assert await self._ben.line() == b"from ann: %d\n" % self.count
            self._ben.send(b"ann: %d\n" % self.count)
            assert await self._ann.line() == b"from ben: %d\n" % self.count
            async with self._news:
                self.count += 1
                self._news.notify_all()

    async def wait_more(self) -> None:
        """Wait until a message that was not yet sent has gone there and back."""
        goal = self.count + 2
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: self.count >= goal)


@contextlib.asynccontextmanager
async def talking(room: Room) -> AsyncIterator[Exchange]:
    """Two good clients that talk as long as the block runs."""
    exchange = Exchange(await room.login("ann"), await room.login("ben"))
    task = asyncio.create_task(exchange.run())
    try:
        yield exchange
    finally:
        exchange.is_over = True
        await task


async def reaction(room: Room, victim: LineClient, attack: Attack) -> Attack:
    """The attack with what it really led to."""
    stranger = await room.connect()
    stranger.send(attack.sent)
    if attack.is_closed:
        reply = await stranger.rest()
    else:
        stranger.send(b"mallory: end\n")
        reply = await lines_until(stranger, b"from mallory: end\n")
        stranger.end()
        reply += await stranger.rest()
    victim.send(b"victim: end\n")
    return attack._replace(reply=reply, victim=await lines_until(victim, b"from victim: end\n"))


def assert_clean(log_line: bytes) -> None:
    """One JSON object, in characters that show themselves and stay where they are."""
    assert log_line.endswith(b"\n")
    text = log_line[:-1].decode()
    assert text.isprintable(), text
    assert not [char for char in text if unicodedata.bidirectional(char) in BIDI], text
    assert isinstance(json.loads(text), dict)


async def test_gateway_stays_in_order_when_a_barrage_of_malformed_input_arrives() -> None:
    """Each attack gets its exact answer and no more; others are not disturbed; the log stays clean."""
    attacks = [*FIRST_LINES, *LATER_LINES]
    async with open_room("--set=metrics.interval_s=3600") as room:
        victim = await room.login("victim")
        async with talking(room) as exchange:
            for attack in attacks:
                assert await reaction(room, victim, attack) == attack
                await exchange.wait_more()
        await room.close()
        for name in ("victim", "ann", "ben"):
            await room.logged_out(name)
        assert await room.gateway.stop() == 0
        log_lines, (metrics,) = room.gateway.log_lines, room.gateway.found("metrics")
        levels = {record["level"] for record in room.gateway.records}
        stderr = room.gateway.stderr
    for line in log_lines:
        assert_clean(line)
    assert (levels, stderr) == ({"info"}, b"")
    assert Counter(metrics["connections_closed"]) == closings(attacks) + Counter(client_closed=3)
    assert metrics["accepted"] == metrics["delivered"] + sum(metrics["refused_by_reason"].values())
    assert metrics["in_flight"] == 0


def closings(attacks: list[Attack]) -> Counter[str]:
    """How many connections the gateway must count as closed, by reason."""
    reasons: Counter[str] = Counter()
    for attack in attacks:
        word = re.match(rb"! ([a-z-]+)", attack.reply)
        silent = "not_line_protocol" if attack.is_closed else "client_closed"
        reasons[word[1].decode().replace("-", "_") if word and attack.is_closed else silent] += 1
    return reasons


async def test_gateway_names_shortly_when_names_of_a_mebibyte_fit_the_line() -> None:
    """Where the configuration allows such lines, a name stays short in Notices and in the log."""
    keys = ("max_line_bytes", "max_read_bytes", "max_inflight_bytes")
    name = b"\xc3\xa9" * (MIB // 2 - 16)
    async with open_room(*(f"--set=limits.{key}={MIB}" for key in keys)) as room:
        assert await room.answer(name + b"\n") == LONG_LOGIN
        alice = await room.login("alice")
        alice.send(name + b", alice: x\n")
        assert await alice.line() == unknown("é" * 64 + "...")
        assert await alice.line() == b"from alice: x\n"
        await room.close()
        await room.logged_out("alice")
        assert max(map(len, room.gateway.log_lines)) < 4096


async def test_gateway_routes_nothing_when_a_client_of_another_server_sends_allowed_logins() -> None:
    """A first line of another protocol may be an allowed login; what follows is no message for anybody."""
    async with open_room() as room:
        victim = await room.login("victim")
        redis = b"*2\r\n$3\r\nGET\r\n$6\r\nvictim\r\n"
        assert await room.answer(redis, is_ended=True) == b"! bad-line 4 lines, " + EXPECTED_FORM
        ssh = b"SSH-2.0-libssh2_1.11.0\r\n" + noise(2).replace(b"\n", b"") + b"\n"
        assert await room.answer(ssh, is_ended=True) == BAD_TEXT
        victim.send(b"victim: end\n")
        assert await lines_until(victim, b"from victim: end\n") == b""


CROWD = 100
SENT_EACH = 3 * MIB
MAX_GROWTH_BYTES = 24 * MIB  # a twelfth of what is sent; buffers of the kernel are not in it


async def flood(port: int, login: bytes) -> bytes:
    """Send megabytes without a line end behind a login or none; returns all that the connection got."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, login)
        with contextlib.suppress(ConnectionError):
            for _ in range(SENT_EACH // 65536):
                await loop.sock_sendall(sock, b"x" * 65536)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, 65536):
                received += data
        return received


async def test_gateway_stays_small_when_many_send_megabytes_without_a_line_end() -> None:
    """Each is told and closed at max_line_bytes, nobody else notices, and memory hardly grows."""
    logins = [b"" if index % 2 else b"flooder%d\n" % index for index in range(CROWD)]
    async with open_room("--set=metrics.interval_s=0.1") as room, talking(room) as exchange:
        await exchange.wait_more()
        before = peak = room.gateway.resident_bytes
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            floods = [group.create_task(flood(room.gateway.port, login)) for login in logins]
            while not all(each.done() for each in floods):
                await exchange.wait_more()
                peak = max(peak, room.gateway.resident_bytes)
        await exchange.wait_more()
        assert {each.result() for each in floods} == {TOO_LONG}
        assert peak - before < MAX_GROWTH_BYTES
        last = await room.gateway.wait_record(
            "metrics", lambda record: record["connections_closed"].get("line_too_long") == CROWD
        )
    assert last["connections_closed"] == {"line_too_long": CROWD}
