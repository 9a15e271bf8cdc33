"""Where copies go while their recipients move from worker to worker."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from chat_gateway.held import Routes, Waiting
from stages.message import Batch, Ledger, Refusal, Run
from stages.route import Cut
from tests.stages.fakes import FakeSender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stages.route import Peer


class FakePeer:
    """Another worker: frames arrive when they are let to, and are answered when that is let to, in order."""

    def __init__(self, world: World, wid: int) -> None:
        self.world = world
        self.wid = wid
        self.waiting: dict[str, int] = {}
        self.logins: set[str] = set()  # that live there
        self.sent = 0  # frames
        self.frames: deque[tuple[str, Waiting]] = deque()  # on their way there
        self.answers: deque[tuple[str, Waiting, bool]] = deque()  # on their way back

    def carry(self, batch: Batch, cuts: Sequence[Cut], *, is_fanout: bool) -> None:
        for names, payload, copies in cuts:
            (name,) = names
            waiting = Waiting(payload, copies, batch, is_fanout)
            if not self.world.routes.leads_to(name, self):
                self.world.routes.pass_on(name, waiting)
                continue
            self.waiting[name] = self.waiting.get(name, 0) + 1
            self.sent += 1
            self.frames.append((name, waiting._replace(number=self.sent)))

    def receive(self) -> None:
        """The oldest frame arrives: its login is there, or it goes back."""
        if self.frames:
            name, waiting = self.frames.popleft()
            is_here = name in self.logins
            if is_here:
                self.world.delivered.setdefault(name, []).append(int(waiting.payload))
            self.answers.append((name, waiting, is_here))

    def answer(self) -> None:
        """The oldest answer arrives, as a link takes it."""
        if not self.answers:
            return
        name, waiting, was_there = self.answers.popleft()
        if was_there:
            waiting.batch.deliver(waiting.copies)
        else:
            self.world.routes.take_back(name, waiting, self.wid)
        self.waiting[name] -= 1
        if not self.waiting[name]:
            del self.waiting[name]
        if was_there:
            self.world.routes.overtaken(name, waiting.number)
        self.world.routes.look_if_held(name)


class World:
    """One worker with the routes under test, its ledger, and two other workers."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sender = FakeSender()
        self.table: dict[str, Any] = {}
        self.peers = {2: FakePeer(self, 2), 3: FakePeer(self, 3)}
        self.places: dict[str, int] = {}  # as this worker knows them
        self.truth: dict[str, int] = {}
        self.news: deque[tuple[str, int]] = deque()  # of places, on their way here
        self.asked: deque[tuple[str, Callable[[int], None]]] = deque()
        self.delivered: dict[str, list[int]] = {}
        self.routes = Routes(self.table, self._target, lambda: list(self.peers.values()), self._ask)
        self.said = 0
        self.routed: deque[tuple[Peer, str, Batch]] = deque()  # on their way through the stages

    def _target(self, login: str) -> Any:
        return self.peers.get(self.places.get(login, 0))

    def _ask(self, login: str, on_answer: Callable[[int], None]) -> None:
        self.asked.append((login, on_answer))

    def say(self, login: str) -> None:
        """The next number, to this login."""
        self.route(login)
        self.deliver()

    def route(self, login: str) -> None:
        """The next number, to this login: it is looked up where that goes."""
        self.said += 1
        payload = b"%d" % self.said
        batch = Batch(self.sender, [Run((login,), payload, 1)], messages=1, nbytes=0, ledger=self.ledger)
        place: Any = self.table.get(login)
        if place is None:
            place = self.routes.find_unknown(login)
        if place is None:
            batch.refuse(1, Refusal.UNKNOWN, login)
        else:
            self.routed.append((place, login, batch))

    def deliver(self) -> None:
        """What was routed goes there."""
        while self.routed:
            place, login, batch = self.routed.popleft()
            place.carry(batch, [Cut([login], batch.runs[0].texts, 1)], is_fanout=False)

    def move(self, login: str, wid: int) -> None:
        """It is somewhere else now, 0 for nowhere; this worker hears of it later."""
        for peer in self.peers.values():
            peer.logins.discard(login)
        if wid:
            self.peers[wid].logins.add(login)
        self.truth[login] = wid
        self.news.append((login, wid))

    def hear(self) -> None:
        """The oldest news of a place comes in."""
        if self.news:
            login, wid = self.news.popleft()
            self.places[login] = wid
            self.routes.look_again(login)

    def reply(self) -> None:
        """The owner answers the oldest question with what is true now."""
        if self.asked:
            login, on_answer = self.asked.popleft()
            on_answer(self.truth.get(login, 0))

    def settle(self) -> None:
        """Let everything happen that is under way."""
        for _ in range(10_000):
            busy = self.news or self.asked or any(one.frames or one.answers for one in self.peers.values())
            if not busy and not self.ledger.in_flight:
                return
            self.hear()
            self.reply()
            for peer in self.peers.values():
                peer.receive()
                peer.answer()
            if not busy:
                self.routes.ask_again()
        raise AssertionError(f"{self.ledger.in_flight} copies without an outcome")


def test_copies_cross_at_once_when_the_place_is_known() -> None:
    """Nothing is held, nobody is asked."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.say("bob")
    assert len(world.routes) == 0
    assert len(world.peers[2].frames) == 2
    world.settle()
    assert world.delivered == {"bob": [1, 2]}
    assert world.ledger.delivered == 2


def test_unknown_login_is_asked_for_once_and_then_refused() -> None:
    """Copies wait together for the answer of the owner."""
    world = World()
    world.say("nobody")
    world.say("nobody")
    assert len(world.asked) == 1
    assert world.ledger.in_flight == 2
    world.reply()
    assert world.ledger.refused == {Refusal.UNKNOWN: 2}
    assert world.table == {}
    assert len(world.routes) == 0


def test_copies_wait_for_the_place_when_the_owner_has_promised_one() -> None:
    """The answer may come before the news; it may also be outdated, then the owner is asked again."""
    world = World()
    world.move("bob", 2)
    world.say("bob")
    world.reply()
    assert world.ledger.in_flight == 1
    world.hear()
    assert len(world.peers[2].frames) == 1
    world.say("eve")
    world.truth["eve"] = 3
    world.reply()
    world.truth["eve"] = 0  # gone before the news was sent
    world.routes.ask_again()
    world.reply()
    assert world.ledger.refused == {Refusal.UNKNOWN: 1}


def test_newer_copies_wait_when_older_ones_are_unanswered_at_the_old_place() -> None:
    """What comes back goes first."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.move("bob", 3)
    world.hear()
    world.say("bob")
    assert not world.peers[3].frames
    world.peers[2].receive()
    world.peers[2].answer()
    assert [waiting.payload for _, waiting in world.peers[3].frames] == [b"1", b"2"]
    world.settle()
    assert world.delivered == {"bob": [1, 2]}


def test_returned_copies_are_refused_when_newer_ones_were_delivered_meanwhile() -> None:
    """The login left and came back to the same worker while they were on their way: order before delivery."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.say("bob")
    world.move("bob", 0)
    world.peers[2].receive()
    world.move("bob", 2)
    world.peers[2].receive()
    world.settle()
    assert world.delivered == {"bob": [2]}
    assert world.ledger.refused == {Refusal.GONE: 1}
    assert world.ledger.is_balanced


def test_returned_copies_follow_when_older_ones_waited_for_the_login_to_return() -> None:
    """It dropped and came back to its worker, which had kept the older ones: there is no hole behind them."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.say("bob")
    peer = world.peers[2]
    kept = peer.frames.popleft()  # for when it returns
    world.move("bob", 0)
    peer.receive()
    peer.answer()  # the newer ones found nobody
    world.move("bob", 2)
    peer.frames.appendleft(kept)
    world.settle()
    assert world.delivered == {"bob": [1, 2]}
    assert not world.ledger.refused


def test_copies_cross_when_the_place_was_known_before_its_link_was_there() -> None:
    """Nobody has to be asked, and the first message is not refused."""
    world = World()
    world.truth["bob"] = world.places["bob"] = 2
    world.peers[2].logins.add("bob")
    world.say("bob")
    assert not world.asked
    assert len(world.peers[2].frames) == 1
    world.settle()
    assert world.delivered == {"bob": [1]}


def test_copies_that_came_back_wait_for_the_owner_when_no_other_place_is_known() -> None:
    """They do not go to and fro between here and where the login is not."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.move("bob", 3)
    world.peers[2].receive()
    world.peers[2].answer()
    world.say("bob")
    assert not world.peers[2].frames
    assert len(world.asked) == 1
    world.reply()  # it is at 3, of which nothing is known here
    world.routes.ask_again()
    assert not world.peers[2].frames
    world.settle()
    assert world.delivered == {"bob": [1, 2]}


@pytest.mark.parametrize(("place", "frames", "refused"), [(0, 0, {Refusal.UNKNOWN: 2}), (2, 2, {})])
def test_copies_that_came_back_go_where_the_owner_says(
    place: int, frames: int, refused: dict[str, int]
) -> None:
    """Nowhere, or there again: the login has returned meanwhile."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.say("bob")
    world.move("bob", 0)
    world.peers[2].receive()
    world.peers[2].answer()
    world.say("bob")
    world.truth["bob"] = place
    world.reply()
    assert len(world.peers[2].frames) == frames
    assert world.ledger.refused == refused
    assert len(world.routes) == 0


@pytest.mark.parametrize("place", [0, 2])
def test_copies_go_on_when_their_login_was_found_while_they_were_in_the_stages(place: int) -> None:
    """What they were routed to does not stand for it any more, but they have their outcome."""
    world = World()
    world.move("bob", place)
    world.route("bob")
    world.hear()
    world.reply()
    assert len(world.routes) == 0
    world.deliver()
    world.settle()
    assert world.ledger.is_balanced
    assert world.ledger.delivered == bool(place)


def test_copies_keep_their_order_when_their_login_moved_while_they_were_in_the_stages() -> None:
    """What was routed to the old place goes to the new one, ahead of what was routed there."""
    world = World()
    world.move("bob", 2)
    world.hear()
    world.route("bob")
    world.move("bob", 3)
    world.hear()
    world.route("bob")
    world.deliver()
    assert [waiting.payload for _, waiting in world.peers[3].frames] == [b"1", b"2"]
    assert not world.peers[2].frames


def test_copies_that_came_back_keep_their_order_when_the_oldest_came_last() -> None:
    """It waited there for its login to return, while those behind it found nobody and came back at once."""
    world = World()
    world.move("bob", 2)
    world.hear()
    for _ in range(3):
        world.say("bob")
    world.move("bob", 3)
    for _ in range(3):
        world.peers[2].receive()
    world.peers[2].answers.rotate(-1)
    world.settle()
    assert world.delivered == {"bob": [1, 2, 3]}


def test_all_that_waits_is_refused_when_the_worker_closes() -> None:
    """Every copy has its outcome."""
    world = World()
    world.say("bob")
    world.routes.close(Refusal.SHUTDOWN)
    assert world.ledger.refused == {Refusal.SHUTDOWN: 1}
    assert world.table == {}
    world.reply()  # the answer comes too late
    assert world.ledger.in_flight == 0


@pytest.mark.parametrize("seed", range(200))
def test_order_holds_and_nothing_is_lost_when_logins_move_at_random(seed: int) -> None:
    """Whatever crosses whatever: numbers arrive in order, each at most once, and each has its outcome."""
    world = World()
    chance = random.Random(seed)
    steps: list[Callable[[], None]] = [world.hear, world.reply]
    steps += [step for peer in world.peers.values() for step in (peer.receive, peer.answer)] * 2
    steps += [lambda: world.route(chance.choice(["bob", "eve"])), world.deliver] * 3
    steps += [lambda: world.move(chance.choice(["bob", "eve"]), chance.choice([0, 2, 3]))]
    for _ in range(400):
        chance.choice(steps)()
        if chance.random() < 0.02:
            world.routes.ask_again()
    world.deliver()
    world.settle()
    for login, numbers in world.delivered.items():
        assert numbers == sorted(set(numbers)), login
    assert world.ledger.is_balanced
    assert world.ledger.delivered == sum(map(len, world.delivered.values()))
    assert world.ledger.delivered
