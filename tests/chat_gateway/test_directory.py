"""The directory of one worker, rule by rule: what it says and does when this or that is said to it.

The worker under test is number 1 in slot 0 of two; `MINE` are logins that it owns, `THEIRS` those of slot 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

from chat_gateway.bus_frames import (
    Answer,
    Ask,
    Check,
    Checked,
    Claim,
    Claimed,
    Owns,
    Place,
    Places,
    Release,
    Report,
)
from chat_gateway.directory import Directory, Member, PlaceCounts, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_gateway.bus_frames import DirectoryMessage

_Message = TypeVar("_Message")

_NAMES = [f"user{number}" for number in range(6000)]
MINE = [name for name in _NAMES if slot_of(name, 2) == 0]
THEIRS = [name for name in _NAMES if slot_of(name, 2) == 1]
A, B = MINE[:2]
X, Y = THEIRS[:2]
HERE = "10.0.0.1"
THERE = "10.0.0.2"


class FakePeers:
    """Remembers what a directory says and asks for."""

    def __init__(self) -> None:
        self.posts: list[tuple[int, DirectoryMessage]] = []
        self.places: list[tuple[str, int, str]] = []
        self.checks: list[tuple[str, Callable[[bool], None]]] = []
        self.readies = 0

    def post(self, wid: int, message: DirectoryMessage) -> None:
        """See `Peers`."""
        self.posts.append((wid, message))

    def on_place(self, login: str, wid: int, address: str) -> None:
        """See `Peers`."""
        self.places.append((login, wid, address))

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """See `Peers`."""
        self.checks.append((login, on_checked))

    def on_ready(self) -> None:
        """See `Peers`."""
        self.readies += 1

    def take(self) -> list[tuple[int, DirectoryMessage]]:
        """What was posted since the last call."""
        posts, self.posts = self.posts, []
        return posts


class Desk:
    """A directory and all that came out of it."""

    def __init__(self) -> None:
        self.peers = FakePeers()
        self.directory = Directory(1, 0, 2, self.peers)
        self.verdicts: list[bool] = []
        self.answers: list[int] = []

    def set_members(self, *members: tuple[int, int] | tuple[int, int, bool]) -> None:
        """Each one its slot, its number, and perhaps that it is leaving."""
        self.directory.set_members([Member(*(*one, False)[:3]) for one in members])

    def link(self, *wids: int) -> None:
        """These can be reached."""
        for wid in wids:
            self.directory.link_up(wid)

    def hear(self, wid: int, *messages: DirectoryMessage) -> None:
        """These come from that worker."""
        for message in messages:
            self.directory.receive(wid, message)

    def claim(self, login: str) -> Callable[[], None]:
        """A client of this worker wants it."""
        return self.directory.claim(login, HERE, self.verdicts.append)

    def ask(self, login: str) -> None:
        """Somebody at this worker looks for it."""
        self.directory.ask(login, self.answers.append)

    def said(self, kind: type[_Message]) -> list[tuple[int, _Message]]:
        """What of this kind it has said since it was last taken."""
        return [(wid, message) for wid, message in self.peers.posts if isinstance(message, kind)]

    def published(self) -> list[tuple[int, list[tuple[str, int, str]], bool]]:
        """All places it has told since they were last taken."""
        self.directory.flush()
        told = self.said(Places)
        self.peers.posts.clear()
        return [
            (wid, [(one.login, one.wid, one.address) for one in message.places], message.is_last)
            for wid, message in told
        ]


@pytest.fixture
def desk() -> Desk:
    """Members are 1 and 2, the link is up; neither owner has called or got an answer."""
    desk = Desk()
    desk.set_members((0, 1), (1, 2))
    desk.link(2)
    return desk


@pytest.fixture
def claimant(desk: Desk) -> Desk:
    """The same, and worker 2 is followed for `THEIRS`."""
    desk.hear(2, Owns(1, 2), Places([], True))
    desk.peers.posts.clear()
    return desk


@pytest.fixture
def owner(claimant: Desk) -> Desk:
    """The same, and this worker may grant `MINE`."""
    claimant.hear(2, Report(1, [], True))
    assert claimant.directory.is_ready
    claimant.peers.posts.clear()
    return claimant


# Claims of logins that another worker owns.


def test_claim_is_granted_when_the_owner_says_so(claimant: Desk) -> None:
    """From then on the login lives here."""
    claimant.claim(X)
    assert claimant.peers.take() == [(2, Claim(1, X, HERE))]
    assert (claimant.verdicts, len(claimant.directory)) == ([], 0)
    claimant.hear(2, Claimed(1, True))
    assert (claimant.verdicts, len(claimant.directory)) == ([True], 1)
    assert claimant.directory.place_of(X) == 1


def test_claim_is_refused_when_the_owner_says_so(claimant: Desk) -> None:
    """Nothing lives here then, and the login can be claimed again."""
    claimant.claim(X)
    claimant.hear(2, Claimed(1, False))
    assert (claimant.verdicts, len(claimant.directory)) == ([False], 0)
    claimant.claim(X)
    assert claimant.said(Claim)[1:] == [(2, Claim(2, X, HERE))]


@pytest.mark.parametrize("is_held", [False, True])
def test_claim_is_refused_at_once_when_this_worker_has_or_wants_the_login(
    claimant: Desk, is_held: bool
) -> None:
    """Nobody is asked about that, and the first claim is not touched."""
    claimant.claim(X)
    if is_held:
        claimant.hear(2, Claimed(1, True))
    claimant.claim(X)()
    assert claimant.verdicts == [True, False] if is_held else [False]
    assert len(claimant.peers.take()) == 1


def test_claims_and_asks_wait_when_nobody_is_followed(desk: Desk) -> None:
    """Who is followed later hears of them, after the report."""
    desk.claim(X)
    desk.ask(Y)
    desk.claim(A)
    assert desk.said(Claim) == []
    desk.peers.take()
    desk.hear(2, Owns(1, 2))
    assert desk.peers.take() == [(2, Report(2, [], True)), (2, Claim(1, X, HERE)), (2, Ask(2, Y))]


def test_claim_is_withdrawn_when_its_client_leaves(claimant: Desk) -> None:
    """The owner is told, and whatever verdict is under way does not count."""
    cancel = claimant.claim(X)
    cancel()
    assert claimant.peers.take() == [(2, Claim(1, X, HERE)), (2, Release(X))]
    claimant.hear(2, Claimed(1, True))
    assert (claimant.verdicts, len(claimant.directory)) == ([], 0)


def test_claim_of_a_withdrawn_login_is_a_new_one(claimant: Desk) -> None:
    """It does not get the verdict of the one before."""
    claimant.claim(X)()
    claimant.claim(X)
    claimant.hear(2, Claimed(1, True))
    assert claimant.verdicts == []
    claimant.hear(2, Claimed(2, False))
    assert claimant.verdicts == [False]


def test_withdrawal_does_nothing_when_there_is_a_verdict(claimant: Desk) -> None:
    """The session of a granted claim has to be released like any other."""
    cancel = claimant.claim(X)
    claimant.hear(2, Claimed(1, True))
    claimant.peers.take()
    cancel()
    assert claimant.peers.take() == []
    assert len(claimant.directory) == 1


def test_withdrawn_claim_is_forgotten_when_nobody_is_followed(desk: Desk) -> None:
    """The next owner does not hear of it."""
    desk.claim(X)()
    desk.hear(2, Owns(1, 2))
    assert desk.said(Claim) == []
    assert desk.directory.places().claims == 0


def test_release_is_told_to_the_owner(claimant: Desk) -> None:
    """Only once, and only of what lives here."""
    claimant.claim(X)
    claimant.hear(2, Claimed(1, True))
    claimant.peers.take()
    for login in (X, X, Y):
        claimant.directory.release(login)
    assert claimant.peers.take() == [(2, Release(X))]
    assert claimant.directory.place_of(X) == 0


# Whom a worker follows.


def test_report_names_what_lives_here_when_a_newer_owner_calls(claimant: Desk) -> None:
    """With addresses, only of that slot, and what is still wanted comes after it."""
    for login in (X, Y, THEIRS[2]):
        claimant.claim(login)
    claimant.hear(2, Claimed(1, True), Claimed(2, True))
    claimant.directory.release(Y)
    claimant.hear(2, Report(1, [], True))
    claimant.claim(A)
    claimant.link(4)
    claimant.peers.take()
    claimant.hear(4, Owns(1, 4))
    assert claimant.peers.take() == [
        (4, Report(4, [(X, HERE)], True)),
        (4, Claim(3, THEIRS[2], HERE)),
    ]


def test_report_comes_in_parts_when_many_logins_live_here(claimant: Desk) -> None:
    """At most 1,000 in each, and the last one says that it is."""
    for number, login in enumerate(THEIRS[:2001], 1):
        claimant.claim(login)
        claimant.hear(2, Claimed(number, True))
    claimant.peers.take()
    claimant.link(4)
    claimant.hear(4, Owns(1, 4))
    reports = [report for _, report in claimant.said(Report)]
    assert [(len(one.logins), one.is_last) for one in reports] == [(1000, False), (1000, False), (1, True)]


def test_verdict_is_ignored_when_it_comes_from_an_earlier_owner(claimant: Desk) -> None:
    """The claim stands with the owner that is followed now."""
    claimant.claim(X)
    claimant.link(4)
    claimant.hear(4, Owns(1, 4))
    claimant.hear(2, Claimed(1, True))
    assert claimant.verdicts == []
    claimant.hear(4, Claimed(1, False))
    assert claimant.verdicts == [False]


@pytest.mark.parametrize(
    ("first", "second", "is_followed"),
    [
        ((4, 4), (2, 2), False),
        ((2, 2), (4, 4), True),
        ((4, 4), (2, 4), True),  # 4 has died, 2 owns again
        ((2, 4), (4, 4), False),
        ((2, 4), (5, 5), True),
        ((2, 2), (2, 2), False),
    ],
)
def test_owner_is_followed_when_its_term_is_newer(
    desk: Desk, first: tuple[int, int], second: tuple[int, int], is_followed: bool
) -> None:
    """By the newest worker that its slot has had, then downwards by its own number."""
    desk.link(4, 5)
    desk.hear(first[0], Owns(1, first[1]))
    desk.peers.take()
    desk.hear(second[0], Owns(1, second[1]))
    assert desk.said(Report) == ([(second[0], Report(second[1], [], True))] if is_followed else [])


def test_any_owner_is_followed_when_the_one_before_is_dead(desk: Desk) -> None:
    """Nothing can come from that any more, so nothing has to be kept to."""
    desk.link(4)
    desk.hear(4, Owns(1, 4))
    desk.directory.link_lost(4)
    desk.peers.take()
    desk.claim(X)
    assert desk.peers.take() == []
    desk.hear(2, Owns(1, 2))
    assert desk.peers.take() == [(2, Report(2, [], True)), (2, Claim(1, X, HERE))]


# Where logins live.


def test_ask_is_answered_at_once_when_the_login_lives_here(claimant: Desk) -> None:
    """Nobody knows better."""
    claimant.claim(X)
    claimant.hear(2, Claimed(1, True))
    claimant.peers.take()
    claimant.ask(X)
    assert (claimant.answers, claimant.peers.take()) == ([1], [])


def test_ask_is_answered_when_the_owner_does(claimant: Desk) -> None:
    """With the worker where it lives, 0 for nowhere, once."""
    claimant.link(3)
    claimant.ask(X)
    claimant.ask(Y)
    assert claimant.peers.take() == [(2, Ask(1, X)), (2, Ask(2, Y))]
    claimant.hear(2, Answer(2, 0), Answer(1, 3), Answer(1, 0))
    assert claimant.answers == [0, 3]


def test_answer_is_ignored_when_it_comes_from_an_earlier_owner(claimant: Desk) -> None:
    """The one that is followed now has been asked, too."""
    claimant.ask(X)
    claimant.link(4)
    claimant.hear(4, Owns(1, 4))
    claimant.hear(2, Answer(1, 2))
    assert claimant.answers == []
    claimant.hear(4, Answer(1, 4))
    assert claimant.answers == [4]


def test_answer_is_nowhere_when_the_worker_it_names_is_dead_or_knows_better(claimant: Desk) -> None:
    """A dead worker has no session, and of its own each worker knows."""
    claimant.link(3)
    claimant.directory.link_lost(3)
    claimant.ask(X)
    claimant.ask(Y)
    claimant.hear(2, Answer(1, 3), Answer(2, 1))
    assert claimant.answers == [0, 0]


def test_answer_is_this_worker_when_the_login_lives_here_by_then(claimant: Desk) -> None:
    """It was asked for before it was granted."""
    claimant.ask(X)
    claimant.claim(X)
    claimant.hear(2, Claimed(2, True), Answer(1, 0))
    assert claimant.answers == [1]


def test_places_are_told_when_they_change(claimant: Desk) -> None:
    """What was known already is no change."""
    claimant.hear(2, Places([Place(X, 2, THERE), Place(Y, 0, "")], False))
    claimant.hear(2, Places([Place(X, 2, THERE)], False))
    assert claimant.peers.places == [(X, 2, THERE)]
    assert claimant.directory.place_of(X) == 2
    claimant.hear(2, Places([Place(X, 0, "")], False))
    assert claimant.peers.places[1:] == [(X, 0, "")]
    assert claimant.directory.place_of(X) == 0


def test_places_are_ignored_when_their_owner_is_not_followed(desk: Desk) -> None:
    """Before its call, and after another one's."""
    desk.hear(2, Places([Place(X, 2, THERE)], False))
    desk.link(4)
    desk.hear(4, Owns(1, 4))
    desk.hear(2, Places([Place(X, 2, THERE)], False))
    assert desk.peers.places == []


def test_places_of_a_login_that_lives_here_are_ignored_until_it_is_released(claimant: Desk) -> None:
    """This worker knows better, and where it has just left nothing lives."""
    claimant.hear(2, Places([Place(X, 2, THERE)], False))
    claimant.peers.places.clear()
    claimant.claim(X)
    claimant.hear(
        2, Claimed(1, True), Places([Place(X, 2, THERE)], False), Places([Place(X, 1, HERE)], False)
    )
    assert (claimant.peers.places, claimant.directory.place_of(X)) == ([], 1)
    claimant.directory.release(X)
    claimant.hear(2, Places([Place(X, 1, HERE)], False))
    assert (claimant.peers.places, claimant.directory.place_of(X)) == ([], 0)
    claimant.hear(2, Places([Place(X, 2, THERE)], False))
    assert claimant.peers.places == [(X, 2, THERE)]


def test_places_are_nowhere_when_their_worker_is_lost(claimant: Desk) -> None:
    """At once, and whatever its owner still says of it."""
    claimant.link(3)
    claimant.hear(2, Places([Place(X, 3, THERE), Place(Y, 2, THERE)], False))
    claimant.peers.places.clear()
    claimant.directory.link_lost(3)
    claimant.hear(2, Places([Place(X, 3, THERE)], False))
    assert claimant.peers.places == [(X, 0, "")]
    assert claimant.directory.place_of(Y) == 2


def test_places_that_a_new_owner_does_not_name_are_forgotten_when_its_table_has_come(owner: Desk) -> None:
    """Those of its slot only, and not before its last part."""
    owner.claim(A)
    owner.hear(2, Claim(1, B, THERE))
    owner.directory.flush()
    owner.hear(2, Places([Place(login, 2, THERE) for login in THEIRS[:3]], False))
    owner.peers.places.clear()
    owner.link(4)
    owner.hear(4, Owns(1, 4), Places([Place(X, 2, THERE)], False))
    assert owner.peers.places == []
    owner.hear(4, Places([Place(Y, 4, THERE)], True), Places([], True))
    assert owner.peers.places == [(Y, 4, THERE), (THEIRS[2], 0, "")]
    assert [owner.directory.place_of(login) for login in (A, B, X)] == [1, 2, 2]


# Checks of sessions that live here.


def test_check_is_answered_at_once_when_the_login_does_not_live_here(claimant: Desk) -> None:
    """No session has to be looked at."""
    claimant.hear(2, Check(7, X))
    assert (claimant.peers.take(), claimant.peers.checks) == ([(2, Checked(7, True))], [])


@pytest.mark.parametrize("is_gone", [False, True])
def test_check_is_answered_when_the_session_was_looked_at(claimant: Desk, is_gone: bool) -> None:
    """Gone is what does not live here any more, after its release."""
    claimant.claim(X)
    claimant.hear(2, Claimed(1, True))
    claimant.peers.take()
    claimant.hear(2, Check(7, X))
    [(login, on_checked)] = claimant.peers.checks
    assert (login, claimant.peers.take()) == (X, [])
    if is_gone:
        claimant.directory.release(X)
    on_checked(is_gone)
    released = [(2, Release(X))] if is_gone else []
    assert claimant.peers.take() == [*released, (2, Checked(7, is_gone))]


def test_check_says_what_the_table_says_when_a_session_was_said_to_be_gone(claimant: Desk) -> None:
    """As long as it is not released nobody else may have the login."""
    claimant.claim(X)
    claimant.hear(2, Claimed(1, True), Check(7, X))
    claimant.peers.checks[0][1](True)
    assert claimant.said(Checked) == [(2, Checked(7, False))]


# How an owner begins.


def test_owner_calls_every_member_once_when_it_can_be_reached() -> None:
    """Whether the link or the membership comes first; nobody else is called."""
    desk = Desk()
    desk.link(3, 9)
    desk.set_members((0, 1), (1, 2), (0, 3, True))
    assert desk.peers.take() == [(3, Owns(0, 3))]
    desk.link(2)
    desk.set_members((0, 1), (1, 2), (0, 3, True), (1, 4))
    desk.link(4)
    assert desk.peers.take() == [(2, Owns(0, 3)), (4, Owns(0, 3))]


@pytest.mark.parametrize(
    "members",
    [
        [(0, 1, True), (1, 2)],
        [(0, 1), (0, 3), (1, 2)],
        [(1, 2)],
    ],
)
def test_worker_owns_nothing_when_it_leaves_or_a_newer_one_is_there(
    members: list[tuple[int, int] | tuple[int, int, bool]],
) -> None:
    """The newest that stays owns the slot."""
    desk = Desk()
    desk.link(2, 3)
    desk.set_members(*members)
    assert desk.peers.take() == []


def test_owner_serves_in_order_when_all_have_reported(desk: Desk) -> None:
    """Until then it grants nothing, answers nothing, and says so once."""
    desk.link(3)
    desk.set_members((0, 1), (1, 2), (1, 3))
    desk.hear(3, Report(1, [], True), Claim(1, A, THERE), Ask(2, A), Ask(3, B))
    desk.claim(A)
    desk.hear(2, Report(1, [(B, THERE)], False))
    desk.peers.take()
    assert (desk.directory.is_ready, desk.peers.readies, desk.verdicts) == (False, 0, [])
    desk.hear(2, Report(1, [], True))
    assert (desk.directory.is_ready, desk.peers.readies) == (True, 1)
    assert desk.peers.take() == [
        (2, Places([Place(B, 2, THERE)], True)),
        (3, Places([Place(B, 2, THERE)], True)),
        (3, Claimed(1, True)),
        (3, Check(1, A)),
        (3, Answer(2, 3)),
        (3, Answer(3, 2)),
    ]
    assert desk.peers.places == [(B, 2, THERE)]


def test_owner_does_not_wait_for_who_is_lost_or_no_member(desk: Desk) -> None:
    """Their sessions are gone with them."""
    desk.set_members((0, 1), (1, 2), (1, 3), (1, 4))
    desk.link(3)
    desk.hear(2, Report(1, [], True))
    desk.directory.link_lost(3)
    assert not desk.directory.is_ready
    desk.set_members((0, 1), (1, 2), (1, 3))
    assert desk.directory.is_ready


def test_owner_is_ready_at_once_when_it_is_alone() -> None:
    """It has nobody to wait for but itself."""
    desk = Desk()
    desk.claim(A)
    assert not desk.directory.is_ready
    desk.set_members((0, 1))
    assert (desk.directory.is_ready, desk.verdicts) == (True, [True])


def test_owner_has_its_own_logins_in_its_table_when_it_begins_again(owner: Desk) -> None:
    """It reports to itself as to any other owner."""
    owner.claim(A)
    owner.set_members((0, 1, False), (0, 3), (1, 2))
    owner.set_members((0, 1, False), (1, 2))
    owner.hear(2, Report(3, [], True))
    assert owner.published()[-1] == (2, [(A, 1, HERE)], True)
    assert owner.peers.readies == 1


def test_owner_ignores_a_report_when_it_is_for_an_earlier_term_of_its_own(owner: Desk) -> None:
    """It was sent before a newer owner came and went, which may have granted more."""
    owner.set_members((0, 1), (0, 3), (1, 2))
    owner.set_members((0, 1), (1, 2))
    assert owner.said(Owns) == [(2, Owns(0, 3))]
    owner.hear(2, Report(1, [], True))
    assert not owner.directory.is_ready
    owner.hear(2, Report(3, [(A, THERE)], True))
    assert owner.directory.is_ready
    owner.claim(A)
    assert owner.verdicts == []


def test_owner_ignores_who_has_not_reported(owner: Desk) -> None:
    """What comes before the report was said to an earlier term; it will be said again, or has no meaning."""
    owner.set_members((0, 1), (0, 3), (1, 2))
    owner.set_members((0, 1), (1, 2))
    owner.hear(2, Claim(1, A, THERE), Ask(2, A), Report(3, [(B, THERE)], False), Release(B))
    owner.peers.take()
    owner.hear(2, Report(3, [], True))
    assert owner.peers.take() == [(2, Places([Place(B, 2, THERE)], True))]


def test_owner_stops_when_a_newer_one_calls_before_the_supervisor_says_so(owner: Desk) -> None:
    """Not even who still follows it gets anything then, whatever becomes of the newer one."""
    owner.link(3)
    owner.hear(3, Owns(0, 3))
    assert not owner.directory.is_ready
    owner.directory.link_lost(3)
    owner.set_members((0, 1), (1, 2), (1, 4))
    owner.peers.take()
    owner.hear(2, Claim(1, A, THERE), Ask(2, A))
    assert (owner.peers.take(), owner.directory.is_ready) == ([], False)
    owner.set_members((0, 1), (0, 3), (1, 2))
    owner.set_members((0, 1), (1, 2))
    owner.hear(2, Report(3, [], True), Claim(1, A, THERE))
    assert owner.said(Claimed) == [(2, Claimed(1, True))]


def test_owner_forgets_all_when_it_is_none_any_more(owner: Desk) -> None:
    """What others claim and ask of it then is ignored, and its own claims wait for the next owner."""
    owner.hear(2, Claim(1, A, THERE))
    owner.set_members((0, 1, True), (1, 2))
    owner.peers.take()
    owner.claim(B)
    owner.hear(2, Claim(2, B, THERE), Ask(3, A), Release(A), Checked(1, True))
    assert owner.published() == []
    assert (owner.directory.is_ready, owner.verdicts, owner.directory.places().owned) == (False, [], 0)
    owner.link(3)
    owner.hear(3, Owns(0, 3))
    assert owner.peers.take() == [(3, Report(3, [], True)), (3, Claim(1, B, HERE))]


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("is_dead", [False, True])
def test_login_is_not_free_when_one_of_two_that_reported_it_has_left(
    desk: Desk, first: int, is_dead: bool
) -> None:
    """The owner before knew that it had gone from there when it granted it again; this one learns it late."""
    desk.link(3)
    desk.set_members((0, 1), (1, 2), (1, 3))
    for wid in (first, 5 - first):
        desk.hear(wid, Report(1, [(A, f"at {wid}")], True))
    assert desk.directory.conflicts == 1
    desk.claim(A)
    if is_dead:
        desk.directory.link_lost(3)
    else:
        desk.hear(3, Release(A))
    assert desk.verdicts == []
    desk.directory.flush()
    assert desk.directory.place_of(A) == 2
    desk.hear(2, Release(A))
    assert desk.verdicts == [True]


# How an owner decides.


def test_claim_of_its_own_login_has_its_verdict_at_once_when_it_is_free(owner: Desk) -> None:
    """No message is needed; the others hear of it at the end of the turn."""
    owner.claim(A)
    assert (owner.verdicts, owner.peers.posts) == ([True], [])
    assert owner.published() == [(2, [(A, 1, HERE)], False)]
    assert owner.peers.places == []


def test_owner_grants_a_free_login(owner: Desk) -> None:
    """The claimant hears of it at once, everybody else at the end of the turn."""
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.link(3)
    owner.hear(3, Report(1, [], True))
    owner.hear(2, Claim(5, A, THERE))
    assert owner.said(Claimed) == [(2, Claimed(5, True))]
    owner.peers.take()
    assert owner.published() == [(wid, [(A, 2, THERE)], False) for wid in (2, 3)]
    assert owner.peers.places == [(A, 2, THERE)]
    assert owner.published() == []


def test_owner_tells_only_the_last_place_when_a_login_moves_within_a_turn(owner: Desk) -> None:
    """Nobody ever gets an older place after a newer one."""
    owner.hear(2, Claim(1, A, THERE), Claim(2, B, THERE), Release(A))
    owner.claim(A)
    owner.peers.take()
    assert owner.published() == [(2, [(A, 1, HERE), (B, 2, THERE)], False)]
    assert owner.peers.places == [(B, 2, THERE)]


def test_owner_answers_an_ask_with_the_newest_place(owner: Desk) -> None:
    """Also with what the others have not been told yet."""
    owner.claim(A)
    owner.hear(2, Ask(1, A), Ask(2, B))
    assert owner.said(Answer) == [(2, Answer(1, 1)), (2, Answer(2, 0))]
    owner.ask(B)
    assert owner.answers == [0]


def test_owner_has_a_holder_looked_at_once_when_others_want_its_login(owner: Desk) -> None:
    """All who wait are refused when it is still there."""
    owner.link(3)
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.hear(3, Report(1, [], True))
    owner.hear(2, Claim(1, A, THERE))
    owner.peers.take()
    owner.hear(3, Claim(1, A, THERE))
    assert owner.peers.take() == [(2, Check(1, A))]
    owner.claim(A)
    assert owner.peers.take() == []
    owner.hear(2, Checked(1, False))
    # Whoever came after the look began may have been preceded by a release, so it is looked at again.
    assert owner.peers.take() == [(3, Claimed(1, False)), (2, Check(2, A))]
    owner.hear(2, Checked(1, True), Checked(2, False))
    assert (owner.verdicts, owner.peers.take()) == ([False], [])


def test_owner_gives_the_login_to_the_first_who_waits_when_its_holder_is_gone(owner: Desk) -> None:
    """Who waits behind it is not forgotten: the new holder is looked at."""
    owner.link(3)
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.hear(3, Report(1, [], True))
    owner.hear(2, Claim(1, A, THERE))
    owner.hear(3, Claim(1, A, THERE))
    owner.claim(A)
    owner.peers.take()
    owner.hear(2, Checked(1, True))
    assert owner.peers.take() == [(3, Claimed(1, True)), (3, Check(2, A))]
    owner.hear(3, Checked(2, False))
    assert owner.verdicts == [False]


def test_owner_looks_at_its_own_session_when_another_worker_wants_its_login(owner: Desk) -> None:
    """In the same way as at any other."""
    owner.claim(A)
    owner.hear(2, Claim(1, A, THERE))
    [(login, on_checked)] = owner.peers.checks
    assert (login, owner.said(Claimed)) == (A, [])
    owner.directory.release(A)
    assert owner.said(Claimed) == [(2, Claimed(1, True))]
    on_checked(True)
    assert len(owner.said(Claimed)) == 1


def test_claim_waits_for_a_release_that_is_under_way(owner: Desk) -> None:
    """It crosses the check; whatever the answer says afterwards is of no interest."""
    owner.hear(2, Claim(1, A, THERE))
    owner.claim(A)
    assert owner.verdicts == []
    owner.hear(2, Release(A))
    assert owner.verdicts == [True]
    owner.hear(2, Checked(1, True))
    assert owner.directory.place_of(A) == 1
    assert owner.published()[-1] == (2, [(A, 1, HERE)], False)


def test_release_is_ignored_when_it_does_not_come_from_the_holder(owner: Desk) -> None:
    """The login stays where it is."""
    owner.claim(A)
    owner.hear(2, Release(A))
    owner.hear(2, Ask(1, A))
    assert owner.said(Answer) == [(2, Answer(1, 1))]


def test_claim_is_dropped_when_it_is_withdrawn_while_it_waits(owner: Desk) -> None:
    """With the last one the look at the holder is over, too."""
    owner.claim(A)
    owner.hear(2, Claim(1, A, THERE), Release(A))
    owner.peers.checks.pop()[1](False)
    assert owner.said(Claimed) == []
    owner.directory.release(A)
    assert (owner.said(Claimed), owner.directory.places().owned) == ([], 0)


def test_new_claim_of_a_worker_is_not_refused_by_a_look_that_began_before_it(owner: Desk) -> None:
    """The one for which it began was withdrawn."""
    owner.link(3)
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.hear(3, Report(1, [], True))
    owner.hear(2, Claim(1, A, THERE))
    owner.hear(3, Claim(1, A, THERE))
    owner.claim(A)
    owner.hear(3, Release(A), Claim(2, A, THERE))
    owner.peers.take()
    owner.hear(2, Checked(1, False))
    assert owner.said(Claimed) == []
    assert owner.said(Check) == [(2, Check(2, A))]


def test_login_is_free_when_its_holder_is_lost(owner: Desk) -> None:
    """Who waits for it gets it, and everybody hears of the rest."""
    owner.link(3)
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.hear(3, Report(1, [], True))
    owner.hear(3, Claim(1, A, THERE), Claim(2, B, THERE))
    owner.directory.flush()
    owner.hear(2, Claim(1, A, THERE))
    owner.peers.take()
    owner.directory.link_lost(3)
    assert owner.said(Claimed) == [(2, Claimed(1, True))]
    owner.peers.take()
    assert owner.published() == [(2, [(A, 2, THERE), (B, 0, "")], False)]


def test_claim_is_dropped_when_its_worker_is_lost(owner: Desk) -> None:
    """The login goes to the next one, and not to a worker that is dead."""
    owner.link(3)
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.hear(3, Report(1, [], True))
    owner.claim(A)
    owner.hear(3, Claim(1, A, THERE))
    owner.hear(2, Claim(1, A, THERE))
    owner.directory.link_lost(3)
    owner.peers.take()
    owner.directory.release(A)
    assert owner.said(Claimed) == [(2, Claimed(1, True))]


def test_newcomer_gets_the_whole_table_in_parts_when_it_has_reported(owner: Desk) -> None:
    """At most 1,000 in each, and the last one says that it is."""
    for login in MINE[:1001]:
        owner.claim(login)
    owner.directory.flush()
    owner.set_members((0, 1), (1, 2), (1, 3))
    owner.link(3)
    owner.peers.take()
    owner.hear(3, Report(1, [], True))
    assert [(wid, len(told.places), told.is_last) for wid, told in owner.said(Places)] == [
        (3, 1000, False),
        (3, 1, True),
    ]


def test_nobody_is_told_of_a_login_that_is_released_before_the_owner_is_ready(desk: Desk) -> None:
    """What is told before the table would not be corrected by it."""
    desk.link(3)
    desk.set_members((0, 1), (1, 2), (1, 3))
    desk.hear(2, Report(1, [(A, THERE)], True))
    desk.directory.flush()
    desk.hear(2, Release(A))
    desk.hear(3, Report(1, [], True))
    desk.directory.flush()
    assert desk.said(Places) == [(wid, Places([], True)) for wid in (2, 3)]


# What can be seen of it.


def test_places_counts_what_there_is(owner: Desk) -> None:
    """Logins here and elsewhere, those it owns, and what waits."""
    owner.claim(A)
    owner.claim(X)
    owner.ask(Y)
    owner.hear(2, Places([Place(Y, 2, THERE)], False), Claim(1, B, THERE))
    owner.directory.flush()
    assert owner.directory.places() == PlaceCounts(here=1, elsewhere=2, owned=2, claims=1, asks=1)


def test_directory_can_be_called_from_what_it_calls(owner: Desk) -> None:
    """A session may end in the moment it begins, and what hears of a place may ask for another one."""
    verdicts: list[bool] = []

    def on_verdict(is_granted: bool) -> None:
        verdicts.append(is_granted)
        owner.directory.release(A)
        owner.ask(A)

    owner.directory.claim(A, HERE, on_verdict)
    assert (verdicts, owner.answers, len(owner.directory)) == ([True], [0], 0)
    assert owner.published() == [(2, [(A, 0, "")], False)]
