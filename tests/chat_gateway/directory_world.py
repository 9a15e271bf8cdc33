"""Several workers with their directories, the links between them, their clients and a supervisor: all of it
simulated, so that everything that can come earlier or later does so as whoever drives it decides.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

from chat_gateway.bus_frames import Checked, DirectoryMessage, Frames, decoder_of, encode_frame
from chat_gateway.directory import Directory, Member, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LOGINS = ("ann", "bob", "cy", "dora", "eve", "fay")
_MAX_WORKERS_PER_SLOT = 3
_MAX_CLAIMS = 12  # that wait, in all
_QUIET_STEPS = 20_000  # far above what it takes for everything to have been said

UP, DOWN = "up", "down"  # what a link says besides messages
Said: TypeAlias = str | bytes


class Attempt:
    """One client that wants a login."""

    def __init__(self, worker: Worker, login: str) -> None:
        self.worker = worker
        self.login = login
        self.verdict: bool | None = None
        self.is_cancelled = False
        self.has_rival = False  # somebody else had the login at some time since it began
        self.cancel: Callable[[], None] = lambda: None

    @property
    def is_waiting(self) -> bool:
        """It must get a verdict some day."""
        return self.verdict is None and not self.is_cancelled and self.worker.is_alive


class Question:
    """Somebody who has asked for a login."""

    def __init__(self, worker: Worker, login: str) -> None:
        self.worker = worker
        self.login = login
        self.answers: list[int] = []


class Worker:
    """One worker process: the `Peers` of its directory."""

    def __init__(self, world: World, wid: int, slot: int) -> None:
        self.world = world
        self.wid = wid
        self.slot = slot
        self.is_alive = True
        self.is_leaving = False
        self.has_joined = False  # it has said hello to the supervisor
        self.next_view = 0  # of the supervisor, that it has not seen
        self.linked: set[int] = set()
        self.sessions: dict[str, bool] = {}  # by login: the client is still there
        self.told: dict[str, int] = {}  # where other logins live, as it was told
        self.late: deque[Callable[[], None]] = deque()  # checks that it has not answered
        self.readies = 0
        self.directory = Directory(wid, slot, world.slots, self)

    def post(self, wid: int, message: DirectoryMessage) -> None:
        """See `Peers`."""
        if wid not in self.linked:
            assert isinstance(message, Checked), "only who looked at a holder may find that nobody is there"
        wire = self.world.wires.get((self.wid, wid))
        if wire is not None:  # otherwise it has just died
            wire.append(encode_frame(message))

    def on_place(self, login: str, wid: int, address: str) -> None:
        """See `Peers`."""
        assert wid != self.told.get(login, 0), "no real change"
        assert wid != self.wid
        assert login not in self.sessions, "it is known here where that lives"
        assert not wid or address == f"at {wid}"
        self.told[login] = wid
        if not wid:
            del self.told[login]

    def check_holder(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """See `Peers`."""
        assert login in self.sessions
        if self.world.is_late():
            self.late.append(partial(self.check, login, on_checked))
        else:
            self.check(login, on_checked)

    def check(self, login: str, on_checked: Callable[[bool], None]) -> None:
        """Look whether the client is there."""
        if login in self.sessions and not self.sessions[login]:
            self.end(login)
        on_checked(login not in self.sessions)

    def answer_check(self) -> None:
        """A check that took its time comes to its end."""
        self.late.popleft()()

    def on_ready(self) -> None:
        """See `Peers`."""
        self.readies += 1

    def end(self, login: str) -> None:
        """A session ends."""
        del self.sessions[login]
        self.directory.release(login)

    def on_verdict(self, attempt: Attempt, is_granted: bool) -> None:
        """A client gets what it wanted, or not."""
        assert attempt.verdict is None, "a second verdict"
        assert not attempt.is_cancelled
        attempt.verdict = is_granted
        if not is_granted:
            assert attempt.has_rival, "refused, though the login was free all the time"
            return
        assert not self.world.homes(attempt.login), "two sessions of one login"
        self.sessions[attempt.login] = True
        self.told.pop(attempt.login, None)
        for other in self.world.attempts:
            other.has_rival |= other.login == attempt.login

    def take(self, sender: int, said: Said) -> None:
        """Something comes from a link."""
        if said == UP:
            self.linked.add(sender)
            self.directory.link_up(sender)
        elif said == DOWN:
            self.linked.discard(sender)
            self.directory.link_lost(sender)
        else:
            for message in Frames(decoder_of(DirectoryMessage)).feed(cast("bytes", said)):
                self.directory.receive(sender, cast("DirectoryMessage", message))


class World:
    """The gateway; each of its actions does one thing, if there is anything to do.

    Args:
        slots: how many workers a whole gateway has.
        logins: what clients want to be called.
        choose: any of so many, from 0.
    """

    def __init__(self, slots: int, logins: Sequence[str], choose: Callable[[int], int]) -> None:
        self.slots = slots
        self.logins = logins
        self.choose = choose
        self.frozen: set[tuple[int, int]] = set()  # ways on which nothing arrives; from 0: of the supervisor
        self.workers: dict[int, Worker] = {}  # that live, by number
        self.wires: dict[tuple[int, int], deque[Said]] = {}  # from, to: under way
        self.views: list[list[Member]] = []  # of the supervisor, all it has ever sent
        self.members: dict[int, Member] = {}  # as the supervisor knows
        self.dead: list[int] = []  # of which the supervisor has not heard
        self.attempts: list[Attempt] = []  # that wait
        self.questions: list[Question] = []  # that wait
        self.last_wid = 0
        self.grants = 0
        for slot in range(slots):
            worker = self.start(slot)
            self.members[worker.wid] = Member(slot, worker.wid, False)
            worker.has_joined = True
        self.publish()

    # What is asked of it.

    def is_late(self) -> bool:
        """Whether something that may take time does."""
        return self.choose(2) == 1

    def homes(self, login: str) -> list[int]:
        """Where a login lives: one place at most."""
        return [worker.wid for worker in self.workers.values() if login in worker.sessions]

    def home(self, login: str) -> int:
        """Where a login lives, 0 for nowhere."""
        return next(iter(self.homes(login)), 0)

    def pick(self, things: Iterable[object]) -> object | None:
        """Any of them, None if there are none."""
        listed = list(things)
        return listed[self.choose(len(listed))] if listed else None

    def pick_worker(self, condition: Callable[[Worker], object] = lambda _: True) -> Worker | None:
        """Any worker of which this holds."""
        return cast("Worker | None", self.pick(one for one in self.workers.values() if condition(one)))

    # The supervisor.

    def publish(self) -> None:
        """Tell everybody who the members are."""
        self.views.append(list(self.members.values()))

    def start(self, slot: int) -> Worker:
        """Start a worker; it has not said hello."""
        self.last_wid += 1
        worker = self.workers[self.last_wid] = Worker(self, self.last_wid, slot)
        return worker

    def join(self, worker: Worker) -> None:
        """It says hello."""
        worker.has_joined = True
        worker.next_view = len(self.views)
        self.members[worker.wid] = Member(worker.slot, worker.wid, False)
        self.publish()

    def start_any(self) -> None:
        """Start a worker in any slot, unless one is being started there."""
        slot = self.choose(self.slots)
        there = [worker for worker in self.workers.values() if worker.slot == slot]
        if len(there) < _MAX_WORKERS_PER_SLOT and all(worker.has_joined for worker in there):
            self.start(slot)

    def join_any(self) -> None:
        """A worker that was started says hello."""
        if (worker := self.pick_worker(lambda one: not one.has_joined)) is not None:
            self.join(worker)

    def leave_any(self) -> None:
        """A worker begins to leave."""
        if (worker := self.pick_worker(lambda one: one.has_joined and not one.is_leaving)) is not None:
            worker.is_leaving = True
            self.members[worker.wid] = Member(worker.slot, worker.wid, True)
            self.publish()

    def bury_any(self) -> None:
        """The supervisor hears that a worker has ended."""
        if (wid := self.pick(self.dead)) is not None:
            self.bury(cast("int", wid))

    def bury(self, wid: int) -> None:
        """The supervisor hears of this end."""
        self.dead.remove(wid)
        if self.members.pop(wid, None) is not None:
            self.publish()

    # Ends.

    def kill_any(self) -> None:
        """A worker dies; what it said last does not leave it."""
        if (worker := self.pick_worker()) is not None:
            self.end_worker(worker, is_killed=True)

    def exit_any(self) -> None:
        """A worker that leaves has ended its sessions, and ends."""
        if (worker := self.pick_worker(lambda one: one.is_leaving)) is not None:
            for login in list(worker.sessions):
                worker.end(login)
            self.end_worker(worker, is_killed=False)

    def end_worker(self, worker: Worker, *, is_killed: bool) -> None:
        """The process ends, which others see one by one."""
        worker.is_alive = False
        del self.workers[worker.wid]
        self.dead.append(worker.wid)
        for (sender, receiver), wire in list(self.wires.items()):
            if receiver == worker.wid:
                del self.wires[sender, receiver]
            elif sender == worker.wid:
                for _ in range(self.choose(len(wire) + 1) if is_killed else 0):
                    wire.pop()
                wire.append(DOWN)

    # Links.

    def link_any(self) -> None:
        """Two workers greet each other."""
        pairs = [(one, two) for one in self.workers for two in self.workers if one < two]
        unlinked = [pair for pair in pairs if pair not in self.wires]
        if (pair := self.pick(unlinked)) is not None:
            self.link(*cast("tuple[int, int]", pair))

    def link(self, one: int, two: int) -> None:
        """These two greet each other."""
        self.wires[one, two] = deque([UP])
        self.wires[two, one] = deque([UP])

    def deliver_any(self) -> None:
        """Something arrives somewhere."""
        waiting = [way for way, wire in self.wires.items() if wire and way[1] in self.workers]
        if (way := self.pick(way for way in waiting if way not in self.frozen)) is not None:
            self.deliver(cast("tuple[int, int]", way))

    def deliver(self, way: tuple[int, int]) -> None:
        """The first that is under way there arrives."""
        sender, receiver = way
        said = self.wires[way].popleft()
        if said == DOWN:
            del self.wires[way]
            if receiver not in self.workers or sender not in self.workers[receiver].linked:
                return
        self.workers[receiver].take(sender, said)

    def view_any(self) -> None:
        """A worker hears of the members."""
        worker = self.pick_worker(self.has_view)
        if worker is not None and (0, worker.wid) not in self.frozen:
            self.view(worker)

    def has_view(self, worker: Worker) -> bool:
        """Whether there is a change of which it has not heard."""
        return worker.has_joined and worker.next_view < len(self.views)

    def view(self, worker: Worker) -> None:
        """This worker hears of the next change."""
        worker.next_view += 1
        worker.directory.set_members(self.views[worker.next_view - 1])

    def freeze_any(self) -> None:
        """Nothing arrives any more on one way, or the supervisor is not heard by one worker."""
        ways = [*self.wires, *((0, wid) for wid in self.workers)]
        self.frozen.add(cast("tuple[int, int]", self.pick(ways)) if ways else (0, 0))

    def thaw_any(self) -> None:
        """It arrives again."""
        if (way := self.pick(sorted(self.frozen))) is not None:
            self.frozen.discard(cast("tuple[int, int]", way))

    def flush_any(self) -> None:
        """A turn ends."""
        if (worker := self.pick_worker()) is not None:
            worker.directory.flush()

    # Clients.

    def claim_any(self) -> None:
        """A client logs in."""
        worker = self.pick_worker(lambda one: one.has_joined)
        if worker is not None and len(self.attempts) < _MAX_CLAIMS:
            self.claim(worker, cast("str", self.pick(self.logins)))

    def claim(self, worker: Worker, login: str) -> Attempt:
        """A client logs in there; a holder there that is gone has been ended before."""
        if not worker.sessions.get(login, True):
            worker.end(login)
        attempt = Attempt(worker, login)
        attempt.has_rival = any(one.sessions.get(login) for one in self.workers.values()) or any(
            one.worker is worker and one.login == login and one.is_waiting for one in self.attempts
        )
        self.attempts.append(attempt)
        on_verdict = partial(worker.on_verdict, attempt)
        attempt.cancel = worker.directory.claim(login, f"at {worker.wid}", on_verdict)
        return attempt

    def cancel_any(self) -> None:
        """A client leaves before it has its verdict."""
        attempt = self.pick(one for one in self.attempts if one.is_waiting)
        if isinstance(attempt, Attempt):
            attempt.is_cancelled = True
            attempt.cancel()

    def end_any(self) -> None:
        """A client leaves."""
        if (worker := self.pick_worker(lambda one: one.sessions)) is not None:
            worker.end(cast("str", self.pick(worker.sessions)))

    def vanish_any(self) -> None:
        """A client goes, which nobody notices."""
        if (worker := self.pick_worker(lambda one: one.sessions)) is not None:
            worker.sessions[cast("str", self.pick(worker.sessions))] = False

    def check_any(self) -> None:
        """A check that took its time comes to its end."""
        if (worker := self.pick_worker(lambda one: one.late)) is not None:
            worker.answer_check()

    def ask_any(self) -> None:
        """Somebody looks for a login."""
        worker = self.pick_worker(lambda one: one.has_joined)
        if worker is not None and len(self.questions) < _MAX_CLAIMS:
            self.ask(worker, cast("str", self.pick(self.logins)))

    def ask(self, worker: Worker, login: str) -> Question:
        """Somebody looks for a login there."""
        question = Question(worker, login)
        self.questions.append(question)
        worker.directory.ask(login, question.answers.append)
        return question

    # What must hold.

    def check(self) -> None:
        """What must hold at any moment."""
        for login in self.logins:
            assert len(self.homes(login)) <= 1, "two sessions of one login"
        for worker in self.workers.values():
            assert len(worker.directory) == len(worker.sessions)
            assert worker.readies <= 1
        self.attempts = [one for one in self.attempts if one.is_waiting]
        self.questions = [one for one in self.questions if not one.answers and one.worker.is_alive]

    def mend(self) -> None:
        """Have the supervisor do what it does for a whole gateway, and every pair of workers linked."""
        self.frozen.clear()
        for wid in list(self.dead):
            self.bury(wid)
        for slot in range(self.slots):
            there = [one for one in self.workers.values() if one.slot == slot and not one.is_leaving]
            if not there:
                there = [self.start(slot)]
            for worker in there:
                if not worker.has_joined:
                    self.join(worker)
        for one in self.workers:
            for two in self.workers:
                if one < two and (one, two) not in self.wires:
                    self.link(one, two)

    def settle(self) -> None:
        """Let everything arrive, in any order, until nobody has anything to say."""
        for _ in range(_QUIET_STEPS):
            todo: list[Callable[[], object]] = [
                partial(self.deliver, way)
                for way, wire in self.wires.items()
                if wire and way[1] in self.workers
            ]
            for worker in self.workers.values():
                if self.has_view(worker):
                    todo.append(partial(self.view, worker))
                if worker.late:
                    todo.append(worker.answer_check)
            if todo:
                cast("Callable[[], object]", self.pick(todo))()
            else:
                for worker in self.workers.values():
                    worker.directory.flush()
            self.check()
            if not todo and not any(self.wires.values()):
                return
        raise AssertionError("it never becomes quiet")

    def check_quiet(self) -> None:
        """What must hold when everything has been said."""
        assert not self.attempts, "a claim without a verdict"
        assert not self.questions, "an ask without an answer"
        for slot in range(self.slots):
            candidates = [one for one in self.workers.values() if one.slot == slot and not one.is_leaving]
            owner = max(candidates, key=lambda one: one.wid)
            for worker in self.workers.values():
                if worker.slot == slot:
                    assert worker.directory.is_ready == (worker is owner)
            assert owner.readies == 1
            living = [one for one in self.logins if slot_of(one, self.slots) == slot and self.home(one)]
            assert owner.directory.places().owned == len(living)
        for worker in self.workers.values():
            counts = worker.directory.places()
            assert (counts.claims, counts.asks) == (0, 0)
            for login in self.logins:
                home = self.home(login)
                assert worker.directory.place_of(login) == home, "an outdated place"
                assert worker.told.get(login, 0) == (0 if home == worker.wid else home)
            assert counts.elsewhere == sum(self.home(login) not in (0, worker.wid) for login in self.logins)

    def check_answers(self) -> None:
        """Whoever asks now gets the truth, and a claim of a login is granted if it lives nowhere."""
        asked = [self.ask(worker, login) for worker in self.workers.values() for login in self.logins]
        self.settle()
        for question in asked:
            assert question.answers == [self.home(question.login)]
        for login in self.logins:
            is_taken = any(one.sessions.get(login) for one in self.workers.values())
            attempt = self.claim(cast("Worker", self.pick_worker()), login)
            self.settle()
            assert attempt.verdict is not is_taken
            self.grants += not is_taken


# What happens how often: an action for each number that is drawn.
ACTIONS: Sequence[tuple[int, Callable[[World], None]]] = (
    (24, World.deliver_any),
    (6, World.view_any),
    (4, World.link_any),
    (3, World.flush_any),
    (7, World.claim_any),
    (3, World.cancel_any),
    (3, World.end_any),
    (2, World.vanish_any),
    (2, World.check_any),
    (3, World.ask_any),
    (2, World.freeze_any),
    (1, World.thaw_any),
    (1, World.start_any),
    (2, World.join_any),
    (1, World.leave_any),
    (1, World.kill_any),
    (1, World.exit_any),
    (2, World.bury_any),
)


def deck_of(choose: Callable[[int], int]) -> list[Callable[[World], None]]:
    """Actions to choose from: of some more than usual, of some hardly any, so that rare things meet."""
    return [action for count, action in ACTIONS for _ in range(count * (1, 4, 4, 12)[choose(4)])]
