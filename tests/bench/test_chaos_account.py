"""The account of a chaos run finds what must not be, also beside workers that die, and only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.chaos_account import ChaosAccount

if TYPE_CHECKING:
    from bench.stress_account import SentSession

_WINDOW_BYTES = 1000


class _Run:
    """Alice sends to bob, who is steady and there all the time, and to carol, who is not steady."""

    def __init__(self) -> None:
        self.account = ChaosAccount(frozenset({"bob"}), _WINDOW_BYTES)
        self.bob = self.begin("bob", 1.0, 60.0)
        self.carol = self.begin("carol", 1.0, 60.0)
        self.alice = self.begin("alice", 2.0, 50.0)

    def begin(self, login: str, began_s: float, ended_s: float) -> SentSession:
        """A session that was in all that time and ended in order."""
        session = self.account.begin(login, began_s)
        session.is_in = session.is_complete = True
        session.in_s, session.ended_s = began_s, ended_s
        return session

    def break_off(self, session: SentSession, at_s: float) -> None:
        """Its connection broke."""
        session.is_complete, session.ended_s = False, at_s
        self.account.break_off(session.login, at_s)

    def send(self, recipient: str, at_s: float) -> bytes:
        """What the recipient of a line from alice gets for it."""
        line = self.account.send(self.alice, (recipient,), 10, at_s)
        return b"from alice: " + line.partition(b": ")[2][:-1]

    def faults(self) -> str:
        """All faults, joined."""
        return "; ".join(self.account.close())


def test_account_excuses_a_loss_around_a_break_of_its_recipient() -> None:
    """What was sent shortly before the break, or before the gateway noticed it, may be gone."""
    run = _Run()
    run.account.receive(run.carol, run.send("carol", 3.0))
    run.send("carol", 9.0)
    run.send("carol", 10.5)
    run.break_off(run.carol, 10.0)
    assert run.faults() == ""
    assert run.account.lost_under_way == 2


def test_account_finds_a_loss_far_from_any_break() -> None:
    """That a connection of the recipient broke at some time explains nothing."""
    for at_s in (1.5, 14.0):
        run = _Run()
        run.break_off(run.carol, 10.0)
        run.send("carol", at_s)
        assert "1 of 1 copies from alice (session 2) to carol were neither" in run.faults()


def test_account_counts_a_login_that_was_never_proved_as_a_break() -> None:
    """It may have been in for a moment and got something; not one that was told that it is taken."""
    for told in (b"", b"! login-taken someone is logged in under that name"):
        run = _Run()
        run.carol.ended_s = 8.0
        attempt = run.account.begin("carol", 9.0)
        attempt.ended_s = 10.0
        if told:
            run.account.receive(attempt, told)
        run.send("carol", 9.5)
        assert ("neither received nor reported" in run.faults()) == bool(told)


def test_account_allows_copies_that_arrived_though_their_worker_was_lost() -> None:
    """That refusal says nothing of whether it arrived; any other one does."""
    for reason, words in ((b"worker lost", ""), (b"gone", "both received and reported")):
        run = _Run()
        run.account.receive(run.carol, run.send("carol", 3.0))
        run.account.receive(run.alice, b"! refused carol: 1 message, " + reason)
        assert words in run.faults()
        assert bool(run.account.faults) == bool(words)


def test_account_finds_a_refusal_for_who_was_there() -> None:
    """Only want of room excuses it, or that the recipient's worker stood still."""
    told = b"! unknown-recipient bob: not logged in"
    run = _Run()
    run.send("bob", 10.0)
    run.account.receive(run.alice, told)
    assert "lines [0] to bob did not arrive though it was there; reasons {'not logged in': 1}" in run.faults()

    run = _Run()
    run.send("bob", 10.0)
    run.account.receive(run.alice, b"! refused bob: 1 message, full")
    assert run.faults() == ""

    run = _Run()
    run.send("bob", 10.0)
    run.account.receive(run.alice, told)
    run.account.stood_still_s["bob"] = [(9.0, 10.0)]
    assert run.faults() == ""

    for at_s in (1.0, 57.0):  # it has just come, it leaves in a moment
        run = _Run()
        run.send("bob", at_s)
        run.account.receive(run.alice, told)
        assert run.faults() == ""


def test_account_finds_a_gap_in_what_a_broken_session_said() -> None:
    """For each recipient that was there, on its own: the worker may have died between two of them."""
    run = _Run()
    run.alice.is_complete = False
    lines = [run.send("bob", 10.0) for _ in range(3)]
    run.account.receive(run.bob, lines[0])
    run.send("carol", 10.0)
    run.account.receive(run.carol, run.send("carol", 10.0))
    assert run.faults() == ""
    run.account.receive(run.bob, lines[2])
    assert "line 1 to bob was lost though later ones arrived" in run.faults()


def test_account_finds_half_a_line_unless_the_worker_died() -> None:
    """Whole lines only, to the end of a session that the gateway closed."""
    run = _Run()
    run.account.receive_half(run.bob, b"from ali")
    run.account.receive_half(run.carol, b"from ali")
    run.carol.is_complete = False
    assert run.faults() == "bob (session 0) received half a line: b'from ali'"


def test_account_sums_what_became_of_the_copies() -> None:
    """As the clients know it."""
    run = _Run()
    run.account.receive(run.bob, run.send("bob", 10.0))
    run.send("carol", 10.0)
    run.account.receive(run.alice, b"! refused carol: 1 message, worker lost")
    run.send("carol", 11.0)
    run.alice.is_complete = False
    assert run.account.outcomes() == {
        "attempted": 3,
        "delivered": 1,
        "told as refused": 1,
        "gone with the sender's connection": 1,
    }
    assert run.account.told() == {"worker lost": 1}
