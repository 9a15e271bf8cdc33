"""Codec and sessions beside a model: who is logged in, who must have received what, who was told of what.

The same bytes, ends and stalls go to a real worker with fake transports and to the model; after each step
everything that can be seen of both is compared. No writer is stuck for long enough to climb the ladder, and
nothing is kept for who has gone: those have tests of their own.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stages.message import Refusal
from tests.chat_gateway.fakes import PATIENT, FakeGateway, Peer, VirtualLoop, turns

if TYPE_CHECKING:
    from collections.abc import Coroutine

_MAX_PEERS = 6
_MAX_RECIPIENTS = 3
_STICKS = b"from filler: now\n"  # what a peer that sticks has got last; it pauses its writer
_NOTICE = re.compile(r"! (\S+) (?:([^:\"]+): )?(?:(\d+) (?:messages?|lines?), )?")

_HTTP = re.compile(r"GET \S+ HTTP/[0-9.]+$")

_NAMES = ("ann", "bob", "cy", "e\u0301va", "\u00e9va", "nobody")
_LOGINS = st.sampled_from(
    [*(name.encode() for name in _NAMES[:-1])] * 3
    + [b"ann\r", b"", b"a b", b"a:b", b"x" * 65, b"\x16\x03", b"GET / HTTP/1.1", b"\xff\xfe"]
)
_TEXTS = st.sampled_from([b"hi", b" hi ", b"", b"a: b", b"\xc3\xa9\xe2\x80\xa8", b"tab\tin", b"! x", b"cr\r"])
_HEADS = st.lists(st.sampled_from([*_NAMES, " ann ", "", "bob"]), min_size=1, max_size=5).map(
    lambda names: ",".join(names).encode()
)
_LINES = st.one_of(
    st.builds(lambda head, text: head + b": " + text, _HEADS, _TEXTS),
    st.sampled_from([b"", b"no colon", b"ann: bell\x07", b"\xff: x", b"bob: \xc2\x85", b",: x"]),
)
_SPEECHES = st.tuples(st.lists(_LINES, min_size=1, max_size=6), st.sampled_from([b"\n", b"\n", b""]))
_CUTS = st.lists(st.floats(0, 1, exclude_max=True), max_size=3)


class _ModelPeer:
    """One connection in the model."""

    def __init__(self) -> None:
        self.login = ""
        self.is_ended = False  # it has ended its stream
        self.is_closed = False
        self.is_stuck = False
        self.tail = b""
        self.messages: list[str] = []  # received
        self.notices: Counter[tuple[str, str]] = Counter()  # received, by word and name
        self.owed: list[tuple[_ModelPeer, str]] = []  # copies that wait for it, with their senders
        self.owed_notices: Counter[tuple[str, str]] = Counter()


class _Model:
    """The protocol as plainly as it can be said."""

    def __init__(self) -> None:
        self.peers: list[_ModelPeer] = []
        self.holders: dict[str, _ModelPeer] = {}

    @property
    def in_flight(self) -> int:
        return sum(len(peer.owed) for peer in self.peers)

    def feed(self, peer: _ModelPeer, data: bytes) -> None:
        *lines, peer.tail = (peer.tail + data).split(b"\n")
        for line in lines:
            self._take_line(peer, line.removesuffix(b"\r"))
        if not peer.login and not peer.is_closed and peer.tail.startswith(b"\x16"):
            peer.is_closed = True

    def end(self, peer: _ModelPeer) -> None:
        if peer.tail:
            self.feed(peer, b"\n")
        peer.is_ended = True
        peer.is_closed |= not peer.login
        self._close_those_that_are_done()

    def reset(self, peer: _ModelPeer) -> None:
        peer.is_closed = True
        self._release(peer)
        owed, peer.owed = peer.owed, []
        for sender, _ in owed:
            self._notify(sender, "refused", peer.login)
        self._close_those_that_are_done()

    def unstick(self, peer: _ModelPeer) -> None:
        peer.is_stuck = False
        peer.messages += [text for _, text in peer.owed]
        peer.owed = []
        peer.notices += peer.owed_notices
        peer.owed_notices.clear()
        self._close_those_that_are_done()

    def _take_line(self, peer: _ModelPeer, line: bytes) -> None:
        if peer.is_closed:
            return
        if not peer.login:
            self._take_login(peer, line)
            return
        if not line:
            return
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = "\x07"
        head, colon, said = text.partition(":")
        names = {unicodedata.normalize("NFC", name.strip(" \t")) for name in head.split(",")} - {""}
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in text):
            self._notify(peer, "bad-text")
        elif not colon or not names:
            self._notify(peer, "bad-line")
        elif len(names) > _MAX_RECIPIENTS:
            self._notify(peer, "too-many-recipients")
        else:
            for name in names:
                self._send(peer, name, said.strip(" \t"))

    def _take_login(self, peer: _ModelPeer, line: bytes) -> None:
        try:
            login = unicodedata.normalize("NFC", line.decode())
        except UnicodeDecodeError:
            login = "\x16"
        if login.startswith("\x16") or _HTTP.match(login):
            peer.is_closed = True
        elif not login or len(login) > 64 or " " in login or ":" in login:
            self._refuse_login(peer, "bad-login")
        elif login in self.holders:
            self._refuse_login(peer, "login-taken")
        else:
            peer.login = login
            self.holders[login] = peer

    def _refuse_login(self, peer: _ModelPeer, word: str) -> None:
        self._notify(peer, word)
        peer.is_closed = True

    def _send(self, sender: _ModelPeer, name: str, text: str) -> None:
        holder = self.holders.get(name)
        if holder is None:
            self._notify(sender, "unknown-recipient", name)
            return
        line = f"from {sender.login}: {text}"
        if holder.is_stuck:
            holder.owed.append((sender, line))
        else:
            holder.messages.append(line)

    def _notify(self, peer: _ModelPeer, word: str, name: str = "") -> None:
        if not peer.is_closed:
            (peer.owed_notices if peer.is_stuck else peer.notices)[word, name] += 1

    def _release(self, peer: _ModelPeer) -> None:
        if self.holders.get(peer.login) is peer:
            del self.holders[peer.login]

    def _close_those_that_are_done(self) -> None:
        """Who has ended its stream stays until all it said has its outcome, and until it has got all."""
        waited_for = {id(sender) for peer in self.peers for sender, _ in peer.owed}
        for peer in self.peers:
            if peer.is_ended and not peer.is_closed and id(peer) not in waited_for:
                self._release(peer)
                peer.is_closed = not peer.is_stuck


class SessionMachine(RuleBasedStateMachine):
    """Up to six peers that log in, talk, stick, end and break off, in any order."""

    @initialize()
    def begin(self) -> None:
        self.loop = VirtualLoop()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
        asyncio.set_event_loop(None)
        self.model = _Model()
        self.peers: list[Peer] = []
        self.gateway: FakeGateway
        self.do(self._make())

    def do(self, step: Coroutine[Any, Any, None] | None = None) -> None:
        """Run a step, and all that follows from it without any time passing."""

        async def run() -> None:
            if step is not None:
                await step
            await turns()

        self.loop.run_until_complete(run())

    async def _make(self) -> None:
        limits = (f"limits.max_recipients={_MAX_RECIPIENTS}", "limits.refused_per_s=0")
        self.gateway = FakeGateway(*PATIENT, *limits)
        self.filler = self.gateway.login("filler")

    def choose(self, data: st.DataObject, condition: Any) -> int | None:
        """The number of a peer for which the condition holds, or None."""
        numbers = [i for i, peer in enumerate(self.model.peers) if not peer.is_closed and condition(peer)]
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @precondition(lambda self: sum(not peer.is_closed for peer in self.model.peers) < _MAX_PEERS)
    @rule(login=_LOGINS, speech=_SPEECHES, cuts=_CUTS, has_end=st.booleans())
    def connect(
        self, login: bytes, speech: tuple[list[bytes], bytes], cuts: list[float], has_end: bool
    ) -> None:
        """A peer connects and says its login, perhaps with its first lines, perhaps not all of it."""
        self.peers.append(self.gateway.connect())
        self.model.peers.append(_ModelPeer())
        said = login + b"\n" + b"\n".join(speech[0]) + speech[1] if has_end else login
        self.say(len(self.peers) - 1, said, cuts)

    @rule(data=st.data(), speech=_SPEECHES, cuts=_CUTS)
    def talk(self, data: st.DataObject, speech: tuple[list[bytes], bytes], cuts: list[float]) -> None:
        """A peer says some lines, the last of them perhaps not whole, in pieces."""
        number = self.choose(data, lambda peer: not peer.is_ended)
        if number is not None:
            self.say(number, b"\n".join(speech[0]) + speech[1], cuts)

    def say(self, number: int, said: bytes, cuts: list[float]) -> None:
        """The same to both; the gateway has time to work between two pieces."""
        ends = sorted(int(cut * len(said)) for cut in cuts)
        for start, end in zip([0, *ends], [*ends, len(said)], strict=True):
            if start < end and not self.peers[number].transport.is_closing():
                self.peers[number].send(said[start:end])
                self.do()
        self.model.feed(self.model.peers[number], said)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A peer ends its stream, and reads on."""
        number = self.choose(data, lambda peer: not peer.is_ended)
        if number is not None:
            self.peers[number].end()
            self.do()
            self.model.end(self.model.peers[number])

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        """A peer goes away without a word."""
        number = self.choose(data, lambda _: True)
        if number is not None:
            self.peers[number].reset()
            self.do()
            self.model.reset(self.model.peers[number])

    @rule(data=st.data())
    def stick(self, data: st.DataObject) -> None:
        """A peer takes nothing any more; its writer is paused by what it gets next."""
        number = self.choose(data, lambda peer: peer.login and not peer.is_ended and not peer.is_stuck)
        if number is not None:
            model = self.model.peers[number]
            self.peers[number].stick()
            self.filler.send(model.login.encode() + b": now\n")
            self.do()
            model.is_stuck = True

    @rule(data=st.data())
    def unstick(self, data: st.DataObject) -> None:
        """A peer takes everything again."""
        number = self.choose(data, lambda peer: peer.is_stuck)
        if number is not None:
            self.unstick_one(number)

    def unstick_one(self, number: int) -> None:
        """The same in both."""
        self.loop.call_soon(self.peers[number].unstick)
        self.do()
        model = self.model.peers[number]
        model.messages.append(_STICKS.decode()[:-1])
        self.model.unstick(model)

    @invariant()
    def agree(self) -> None:
        """Everything that can be seen of both is the same, and every copy is accounted for."""
        for peer, model in zip(self.peers, self.model.peers, strict=True):
            *lines, rest = bytes(peer.transport.received).decode().split("\n")
            assert not rest
            notices: Counter[tuple[str, str]] = Counter()
            for line in lines:
                if (found := _NOTICE.match(line)) is not None:
                    notices[found[1], found[2] or ""] += int(found[3] or 1)
            assert [line for line in lines if not line.startswith("! ")] == model.messages
            assert notices == model.notices
            assert peer.transport.is_lost == model.is_closed
        assert set(self.gateway.connections.hub.routes) - {"filler"} == set(self.model.holders)
        assert self.gateway.ledger.is_balanced
        assert self.gateway.ledger.in_flight == self.model.in_flight
        assert not self.gateway.ledger.refused[Refusal.ERROR]
        assert not self.gateway.log.errors
        assert not self.problems

    def teardown(self) -> None:
        """Whoever is stuck gets the rest; then everybody leaves and nothing is left."""
        try:
            for number, peer in enumerate(self.model.peers):
                if peer.is_stuck and not peer.is_closed:
                    self.unstick_one(number)
            self.agree()
            self.do(self.gateway.close())
            assert (self.gateway.ledger.in_flight, self.gateway.ledger.buffered_bytes) == (0, 0)
            assert len(self.gateway.connections) == 0
        finally:
            self.loop.close()


TestSession = SessionMachine.TestCase
TestSession.settings = hypothesis_settings(max_examples=250, stateful_step_count=40, deadline=None)
