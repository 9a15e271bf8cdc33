"""The account of a stress run finds every kind of fault that is planted, and none where there is none."""

from __future__ import annotations

from bench.stress_account import Account, SentSession
from bench.stress_plan import make_plan

_WINDOW_BYTES = 1000


class _Run:
    """Alice sends to bob, who is steady, and to carol, who is not; nothing is wrong until a test says so."""

    def __init__(self) -> None:
        self.account = Account(frozenset({"bob"}), _WINDOW_BYTES)
        self.alice = self.account.begin("alice", 1.0)
        self.bob = self.account.begin("bob", 1.0)
        self.carol = self.account.begin("carol", 1.0)
        for session in self.account.sessions:
            session.is_complete = True

    def send(self, *recipients: str, size: int = 10, sender: SentSession | None = None) -> bytes:
        """What the recipients of a line get for it."""
        sender = sender or self.alice
        line = self.account.send(sender, recipients, size, 2.0)
        return f"from {sender.login}: ".encode() + line.partition(b": ")[2][:-1]

    def faults(self) -> str:
        """All faults, joined."""
        return "; ".join(self.account.close())


def test_account_finds_no_fault_when_everything_arrives_or_is_reported() -> None:
    """Received and refused copies add up, also with merged Notices and with those that name nobody."""
    run = _Run()
    lines = [run.send("bob", "carol") for _ in range(4)]
    for line in lines:
        run.account.receive(run.bob, line)
    run.account.receive(run.carol, lines[0])
    run.account.receive(run.alice, b"! refused carol: 2 messages, breaker open")
    run.account.receive(run.alice, b"! refused 1 message, gone")
    run.send("nobody")
    run.account.receive(run.alice, b"! unknown-recipient nobody: not logged in")
    run.account.reject(run.alice, "bad-line")
    run.account.receive(run.alice, b'! bad-line expected "login1, login2: message"')
    run.account.receive(run.bob, run.send("bob", "bob", size=0))
    assert run.faults() == ""


def test_account_finds_a_loss() -> None:
    """A copy that was neither received nor reported is a fault."""
    run = _Run()
    run.account.receive(run.bob, run.send("bob"))
    run.send("bob")
    assert "1 of 2 copies from alice (session 0) to bob were neither received nor reported" in run.faults()


def test_account_finds_a_duplicate() -> None:
    """A copy that arrives twice is a fault, also at two connections of its recipient."""
    run = _Run()
    line = run.send("bob")
    run.account.receive(run.bob, line)
    run.account.receive(run.account.begin("bob", 3.0), line)
    assert "message 0.0 from alice at bob is a duplicate" in run.faults()


def test_account_finds_a_reordering() -> None:
    """A copy that arrives after a later one is a fault."""
    run = _Run()
    first, second = run.send("bob"), run.send("bob")
    run.account.receive(run.bob, second)
    run.account.receive(run.bob, first)
    assert run.faults() == "message 0.0 from alice at bob came after 0.1"


def test_account_finds_a_change_and_a_wrong_recipient() -> None:
    """A text is what was sent, and only its recipients get it."""
    run = _Run()
    line = run.send("bob")
    run.account.receive(run.bob, line + b"x")
    run.account.receive(run.carol, line)
    run.account.receive(run.carol, b"from alice: 0.9 x")
    run.account.receive(run.carol, b"fro")
    for words in ("was changed", "was for ('bob',)", "0.9 from alice at carol was never sent", "nobody sent"):
        assert words in run.faults()


def test_account_finds_a_copy_that_was_delivered_and_refused() -> None:
    """Every copy has one outcome."""
    run = _Run()
    run.account.receive(run.bob, run.send("bob"))
    run.account.receive(run.alice, b"! refused bob: 1 message, gone")
    assert "1 copies from alice (session 0) to bob were both received and reported" in run.faults()


def test_account_finds_a_rejected_line_that_nobody_was_told_of() -> None:
    """Lines that are wrong are reported by their count."""
    run = _Run()
    run.account.reject(run.alice, "bad-text")
    run.account.reject(run.alice, "bad-text")
    run.account.receive(run.alice, b"! bad-text a message is UTF-8 without control characters")
    assert "sent 2 lines that are bad-text and was told of 1" in run.faults()


def test_account_allows_for_what_was_under_way_when_a_recipient_broke_off() -> None:
    """A bounded number of bytes may be lost so, and only to a session that was there at that time."""
    run = _Run()
    run.send("carol", size=_WINDOW_BYTES)
    run.account.break_off("carol", 5.0)
    assert run.faults() == ""
    assert run.account.lost_under_way == 1
    run.send("carol", size=1)
    assert "carol lost 1001 bytes under way to it, more than 1000" in run.faults()
    late = _Run()
    late.account.break_off("carol", 0.5)
    late.send("carol")
    assert "neither received nor reported" in late.faults()


def test_account_finds_a_gap_in_what_a_sender_said_before_it_broke_off() -> None:
    """Of its lines to steady recipients a beginning arrives; an end may be missing, a middle may not."""
    run = _Run()
    run.alice.is_complete = False
    lines = [run.send("bob") for _ in range(3)]
    run.account.receive(run.bob, lines[0])
    assert run.faults() == ""
    run.account.receive(run.bob, lines[2])
    assert "line 1 was lost though line 2 arrived" in run.faults()


def test_plan_is_the_same_when_its_seed_is() -> None:
    """A run can be repeated by its seed, and another seed is another run."""
    assert make_plan(7, 5.0, 9) == make_plan(7, 5.0, 9)
    assert make_plan(7, 5.0, 9) != make_plan(8, 5.0, 9)
